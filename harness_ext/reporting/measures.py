"""The figures of a task, filled while its samples are read: confusion, reliability, distributions."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness_ext.metrics.labels import (
    calibration_bins,
    calibration_error_of_chance,
    calibration_p,
    expected_calibration_error,
    softmax,
)
from harness_ext.protocol.ties import scored_choices
from harness_ext.reporting.contents import Confusion, Distribution, KindOfDocument, Reliability
from harness_ext.results.outputs import Output
from harness_ext.results.run import TaskResult

MOST_CLASSES = 30  # a larger confusion matrix cannot be read
BINS = 20  # of a distribution
QUESTIONS = ["has an answer", "has no answer"]
_KINDS = ("HasAns_", "NoAns_")  # prefixes of metrics of questions with and without an answer


class Measures:
    """What the figures of one run and task need, added up document by document."""

    def __init__(self, run: str, result: TaskResult) -> None:
        self.run, self._result = run, result
        self._pairs: Counter[tuple[int, int | None]] = Counter()
        self._classes: list[str] = []
        self._confidence, self._correct = array("d"), array("d")
        self._gold_probability, self._scores = array("f"), array("d")

    def add(self, output: Output, score: float) -> None:
        """Add one document.

        Args:
            output: what was logged of it.
            score: its primary metric as logged; NaN if there is none.
        """
        self._scores.append(score)
        pair = label_pair(output)
        if pair is not None:
            self._pairs[pair] += 1
            self._classes = self._classes or class_names(output, self._result)
        probabilities = _probabilities(output)
        confident = _confidence_of(output, probabilities, score)
        if confident is not None:
            self._confidence.append(confident[0])
            self._correct.append(confident[1])
        if pair is not None and probabilities and 0 <= pair[0] < len(probabilities):
            self._gold_probability.append(probabilities[pair[0]])

    def confusion(self) -> Confusion | None:
        """The confusion matrix; None if documents share no named classes, or more of them than can be read."""
        indices = [index for pair in self._pairs for index in pair if index is not None]
        size = max(len(self._classes), max(indices, default=-1) + 1)
        if not self._classes or not indices or not 2 <= size <= MOST_CLASSES:
            return None
        counts = np.zeros((size, size + 1), dtype=int)
        for (gold, predicted), count in self._pairs.items():
            counts[gold, size if predicted is None else predicted] += count
        names = [*self._classes, *map(str, range(len(self._classes), size))]
        return Confusion(self.run, tuple(names), tuple(tuple(map(int, row)) for row in counts))

    def reliability(self) -> Reliability | None:
        """Accuracy by confidence, in the bins of the expected calibration error; None without probabilities."""
        if not len(self._confidence):
            return None
        bins = calibration_bins(self._confidence, self._correct)
        logged = self._result.metrics.get("ece")
        error = logged.value if logged else expected_calibration_error(self._confidence, self._correct)
        return Reliability(self.run, tuple(bins), error, calibration_error_of_chance(bins), calibration_p(bins))

    def gold_probabilities(self) -> tuple[int, ...] | None:
        """Documents by the probability of the right choice, in equal bins from 0 to 1; None without probabilities."""
        return _histogram(np.array(self._gold_probability), 0.0, 1.0) if len(self._gold_probability) else None

    def graded_scores(self) -> tuple[int, ...] | None:
        """Documents by their score, in equal bins from 0 to full marks; None if all are right or wrong."""
        scores = np.array(self._scores)
        scores = scores[~np.isnan(scores)]
        if not len(scores) or scores.min() < 0:
            return None
        full = 100.0 if self._result.metadata.get("metric_scale") == 100 or scores.max() > 1 else 1.0
        if scores.max() > full or not ((scores > 0) & (scores < full)).any():
            return None
        return _histogram(scores, 0.0, full)

    def kinds(self) -> dict[str, float]:
        """Logged metrics of questions with and without an answer, 0-1."""
        factor = 0.01 if self._result.metadata.get("metric_scale", 100) == 100 else 1.0
        metrics = self._result.metrics
        return {name: metrics[name].value * factor for name in metrics if name.startswith(_KINDS)}


def _histogram(values: np.ndarray, low: float, high: float) -> tuple[int, ...]:
    return tuple(int(count) for count in np.histogram(values, BINS, (low, high))[0])


def distributions(measures: Sequence[Measures], metric: str) -> list[Distribution]:
    """The distributions that some runs have."""
    edges = tuple(float(edge) for edge in np.linspace(0, 1, BINS + 1))
    kinds = (
        ("Probability of the right choice", [each.gold_probabilities() for each in measures]),
        (f"Score of a document ({metric})", [each.graded_scores() for each in measures]),
    )
    return [
        Distribution(title, edges, {each.run: row for each, row in zip(measures, counts, strict=True) if row})
        for title, counts in kinds
        if any(counts)
    ]


def kinds_of_document(measures: Sequence[Measures]) -> list[KindOfDocument]:
    """Metrics of questions with and without an answer, of the runs that logged them."""
    values = {each.run: each.kinds() for each in measures}
    names = list(dict.fromkeys(name for kinds in values.values() for name in kinds))
    return [
        KindOfDocument(name, {run: kinds[name] for run, kinds in values.items() if name in kinds}) for name in names
    ]


def label_pair(output: Output) -> tuple[int, int | None] | None:
    """(gold, predicted) class of a document; predicted is None if the output did not parse.

    As logged by our own tasks; else, for a choice, the best one against a reference that is the number of a choice.
    """
    for name in ("macro_f1", "mcc"):
        pair = output.logged.get(name)
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_class(pair[0]):
            return pair[0], pair[1] if _is_class(pair[1]) else None
    if output.text is None and len(output.choices) > 1 and output.target.isdecimal():
        choices = [score for _, score in scored_choices(output.logged)]
        if int(output.target) < len(choices):
            return int(output.target), max(range(len(choices)), key=choices.__getitem__)
    return None


def _is_class(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def class_names(output: Output, result: TaskResult) -> list[str]:
    """Names of the classes: the choices of the document or of the task; empty if they are not the same everywhere."""
    for words in (output.doc.get("choices"), result.config.get("doc_to_choice")):
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return [word.strip() for word in words]
    return []


def kinds_of_question(output: Output) -> list[str]:
    """`QUESTIONS` for tasks that score questions with and without an answer apart; else empty."""
    return QUESTIONS if any(name.startswith(_KINDS) for name in output.logged) else []


def _probabilities(output: Output) -> list[float]:
    scores = [score for _, score in scored_choices(output.logged)] if output.text is None else []
    if len(scores) < 2 or not math.isfinite(max(scores)) or any(map(math.isnan, scores)):
        return []
    return softmax(scores)


def _confidence_of(output: Output, probabilities: Sequence[float], score: float) -> tuple[float, float] | None:
    """(confidence, whether it is right): as logged, else of the choices."""
    logged: Mapping[str, Any] = output.logged
    pair = logged.get("ece")
    if isinstance(pair, (list, tuple)) and len(pair) == 2 and 0 <= pair[0] <= 1:
        return float(pair[0]), float(pair[1])
    if probabilities and score in (0.0, 1.0):
        return max(probabilities), score
    return None
