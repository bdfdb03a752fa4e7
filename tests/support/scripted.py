"""A model that answers by script, in lm-eval's own `simple_evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager


class Scripted(LM):
    """Answers each document by a function of it; a forced choice by the answer's words."""

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._answer = answer

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        chosen = [request.args[1].strip() == self._answer(request.doc).strip() for request in requests]
        return [(0.0 if each else -50.0, each) for each in chosen]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._answer(request.doc) for request in requests]


def run(manager: TaskManager, answer: Callable[[dict[str, Any]], str], *tasks: str, **settings: Any) -> dict[str, Any]:
    """Metric to value, for each task; names without lm-eval's filter suffix."""
    done = lm_eval.simple_evaluate(
        Scripted(answer), tasks=list(tasks), task_manager=manager, bootstrap_iters=10, log_samples=False, **settings
    )
    return {
        task: {name.removesuffix(",none"): value for name, value in scores.items()}
        for task, scores in done["results"].items()
    }
