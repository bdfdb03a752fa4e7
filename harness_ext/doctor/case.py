"""What the doctor looks at: one task of one run, its logged outputs, and the same task of the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.doctor.rescoring import Rescorer
from harness_ext.results.outputs import Output, iter_outputs, logged_number
from harness_ext.results.run import MetricValue, Run, TaskResult

MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Case:
    """One task of one run."""

    run: Run
    result: TaskResult
    metric: MetricValue  # the primary one
    outputs: Sequence[Output]
    base: Case | None = None  # the same task of the baseline; None for the baseline itself
    rescorer: Rescorer | None = None  # scores other texts with the task's own metric; None if the task is not installed

    @property
    def where(self) -> str:
        """Task and run, as findings name them."""
        return f"{self.result.task}, {self.run.name}"

    @property
    def is_generated(self) -> bool:
        """Whether the model wrote its answers."""
        return any(output.text is not None for output in self.outputs)

    @cached_property
    def factor(self) -> float:
        """From logged values to shares: 0.01 for a metric on 0-100."""
        return 0.01 if self.metric.value > 1 or self.result.metadata.get("metric_scale") == 100 else 1.0

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The primary metric of each document as a share, (n,); NaN where it was not logged."""
        return self.column(self.metric.metric) * self.factor

    def column(self, metric: str) -> NDArray[np.float64]:
        """A logged number of each document, (n,); NaN where there is none."""
        return np.array([logged_number(output.logged.get(metric)) for output in self.outputs], dtype=float)

    def value(self, metric: str) -> float | None:
        """A logged aggregate, as logged."""
        logged = self.result.metrics.get(metric)
        return None if logged is None else logged.value

    def labels(self) -> list[tuple[int, int | None]]:
        """(gold, predicted) of each document that logged a pair of labels; None for an output that did not parse."""
        pairs = (output.logged.get("macro_f1") for output in self.outputs)
        return [(int(pair[0]), pair[1]) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]

    def examples(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Up to three documents, complete, as evidence of a finding."""
        return [
            {
                "doc_id": self.outputs[index].doc_id,
                "prompt": self.outputs[index].prompt,
                "output": self.outputs[index].text,
                "target": " / ".join(dict.fromkeys(self.outputs[index].references)),
            }
            for index in list(indices)[:MAX_EXAMPLES]
        ]


def read_outputs(result: TaskResult, filter: str) -> list[Output]:
    """The logged samples of one filter, ordered by document.

    Raises:
        ResultsError: the samples file is incomplete.
    """
    return sorted(iter_outputs(result, filter), key=lambda output: output.doc_id)
