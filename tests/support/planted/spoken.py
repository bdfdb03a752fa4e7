"""A model that answers by a script, evaluated by the real engine: what is logged is what the engine logs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from conditional import ConditionalLM

from harness_ext.engine.hf_tree import PACK_TOKENS
from harness_ext.protocol.lm_eval_api import Instance, register_model

SPOKEN = "spoken"
Doc = Mapping[str, Any]


def always(_prompt: str, _scale: float) -> float:
    """A condition that is always met."""
    return 1.0


@dataclass(frozen=True)
class Script:
    """What a model knows, and when."""

    answer: Callable[[Doc], str]  # what it generates, or the choice that it prefers
    condition: Callable[[str, float], float] = always  # (prompt, scale of the adapter) -> 0 to 1
    otherwise: Callable[[Doc], str] = lambda _: "nothing of the kind"
    leaning: float = 0.0  # nats by which the second choice is preferred, whatever the document
    is_unstable: bool = False  # in smaller packs some answers are others


@register_model(SPOKEN)
class SpokenLM(ConditionalLM):
    """Follows a script."""

    script: ClassVar[Script]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """A choice is likely if it is the script's answer."""
        script, answers = self.script, []
        for request in requests:
            context, continuation = request.args
            met = script.condition(context, self._scale()) == 1
            wanted = (script.answer if met else script.otherwise)(request.doc)
            second = continuation.strip() == request.doc["choices"][1]
            answers.append((-1.0 * (continuation.strip() != wanted) + script.leaning * second, False))
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the script says."""
        answers = super().generate_until(requests, disable_tqdm)
        return ["?"] * 6 + answers[6:] if self.script.is_unstable and self.pack_tokens < PACK_TOKENS else answers


@contextlib.contextmanager
def spoken(script: Script) -> Iterator[None]:
    """Let the model follow a script."""
    before = vars(SpokenLM).get("script")
    SpokenLM.script = script
    for name in ("condition", "answer", "otherwise"):
        setattr(SpokenLM, name, staticmethod(getattr(script, name)))
    try:
        yield
    finally:
        if before is not None:
            SpokenLM.script = before
