"""Score other texts than the logged ones with the task's own filters and metric, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.protocol.lm_eval_api import ConfigurableTask, Instance, document_scores


class Rescorer:
    """A task's scoring of generated texts.

    Args:
        task: a loaded task that generates.
        metric: name of the metric to score.
        filter: name of the filter whose output is scored.
    """

    def __init__(self, task: ConfigurableTask, metric: str, filter: str) -> None:
        self._task, self._metric, self._filter = task, metric, filter

    def scores(self, docs: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> NDArray[np.float64]:
        """The metric of each document, (n,), in the unit in which the task logs it; NaN where it has none."""
        scored = all_scores(self._task, docs, texts, self._filter)
        return np.array([each.get(self._metric, np.nan) for each in scored], dtype=float)


def all_scores(
    task: ConfigurableTask, docs: Sequence[Mapping[str, Any]], texts: Sequence[str], filter: str | None = None
) -> list[dict[str, Any]]:
    """All metrics of each document, had its model generated this text.

    Args:
        task: a loaded task that generates.
        docs: n documents.
        texts: n generated texts.
        filter: name of the filter whose output is scored; None: the first.
    """
    kept = getattr(task, "_instances", None)
    task._instances = [
        Instance(
            request_type="generate_until", doc=dict(doc), arguments=("", {}), idx=0,
            metadata=(task.task_name, number, 1), resps=[text],
        )
        for number, (doc, text) in enumerate(zip(docs, texts, strict=True))
    ]  # fmt: skip
    try:
        task.apply_filters()
        return [
            document_scores(task, request.doc, [request], filter or next(iter(request.filtered_resps)))
            for request in task._instances
        ]
    finally:
        task._instances = kept
