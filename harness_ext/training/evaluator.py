"""What training needs of somebody who scores a model in training: which documents, which metric, and the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness_ext.stats.intervals import Mean, describe_mean
from harness_ext.stats.selection import Choice, choose_checkpoint
from harness_ext.stats.sequential.design import LEAST_UNITS


@dataclass(frozen=True)
class HeldOutDocuments:
    """Documents of the training split that are not trained on."""

    numbers: tuple[int, ...]  # in the split, in the order in which they are asked
    units: NDArray[Any] | None  # (n,) label of each document's passage; None: every document is independent

    @property
    def independent(self) -> int:
        """Number of independent documents or passages."""
        return len(self.numbers) if self.units is None else len(set(self.units.tolist()))

    def part(self, start: int, end: int) -> HeldOutDocuments:
        """The documents from one place to another, whether or not they end with a passage."""
        return HeldOutDocuments(self.numbers[start:end], None if self.units is None else self.units[start:end])

    def first(self, count: int) -> HeldOutDocuments:
        """The first `count` documents or more: whole passages, and not so few that nothing can be told from them.

        >>> HeldOutDocuments(tuple(range(200)), np.arange(200) // 3).first(100).numbers[-1]
        101
        """
        units = self.units if self.units is not None else np.arange(len(self.numbers))
        ends = [*(np.flatnonzero(units[1:] != units[:-1]) + 1).tolist(), len(self.numbers)]  # of passages
        end = next((place for place in ends[LEAST_UNITS - 1 :] if place >= count), len(self.numbers))
        return self.part(0, end)


@dataclass(frozen=True)
class EvaluatedMetric:
    """The task's primary metric: the mean of one score for each document."""

    name: str
    limits: tuple[float | None, float | None]  # smallest and largest value
    higher_is_better: bool
    in_points: bool  # a share, shown as points

    def mean(self, scores: list[float], documents: HeldOutDocuments) -> Mean:
        """The mean of the scores (n,) with its 95 % interval."""
        return describe_mean(scores, documents.units, limits=self.limits)

    def choose(self, scores: list[list[float]], documents: HeldOutDocuments) -> Choice:
        """The checkpoint to keep, from the scores (m, n) of m checkpoints."""
        return choose_checkpoint(scores, documents.units, limits=self.limits, higher_is_better=self.higher_is_better)

    def text(self, value: float) -> str:
        """A value as it is shown.

        >>> EvaluatedMetric("acc", (0, 1), True, True).text(0.815)
        '81.5'
        """
        return f"{100 * value:.1f}" if self.in_points else f"{value:.4g}"

    def described(self, value: float, low: float, high: float) -> str:
        """A value with its interval.

        >>> EvaluatedMetric("acc", (0, 1), True, True).described(0.8, 0.75, 0.85)
        'acc 80.0 [75.0, 85.0]'
        """
        return f"{self.name} {self.text(value)} [{self.text(low)}, {self.text(high)}]"


class Evaluator(Protocol):
    """Scores a model in training."""

    @property
    def metric(self) -> EvaluatedMetric:
        """The metric that is scored."""

    @property
    def for_choice(self) -> HeldOutDocuments:
        """The documents that every checkpoint is scored on."""

    @property
    def for_report(self) -> HeldOutDocuments:
        """The documents that only the chosen checkpoint is scored on, afterwards."""

    @property
    def excluded(self) -> frozenset[int]:
        """Numbers of the documents that must not be trained on: those above, and others of the same content."""

    @property
    def data_sha256(self) -> str:
        """Over the held-out documents."""

    def scores(self, model: Any, documents: HeldOutDocuments) -> list[float]:
        """The score of each document, (n,).

        Weights, gradients, modes and random generators are as before afterwards.

        Raises:
            HarnessExtError: the model cannot be scored.
        """

    def report(self, line: str) -> None:
        """Show a line about the progress."""
