"""Which lm-eval the tests run under: its task language and its requests are not the same in 0.4 and 0.5."""

from typing import Any

import lm_eval.api.task
from lm_eval.api.instance import Instance

LM_EVAL_05 = hasattr(lm_eval.api.task, "GenerateTask")


def request(kind: str, arguments: tuple[Any, ...], number: int = 0, *, task: str = "t", **more: Any) -> Instance:
    """A request for document `number` of a task."""
    more.setdefault("idx", 0)
    if LM_EVAL_05:
        if kind == "loglikelihood_rolling":
            arguments = ("", *arguments)
        return Instance(kind, more.pop("doc", {}), arguments, task, doc_id=number, **more)
    return Instance(kind, more.pop("doc", {}), arguments, metadata=(task, number, 1), **more)
