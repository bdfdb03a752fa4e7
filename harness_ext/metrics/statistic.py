"""The declaration of a metric, used by hooks, `compare`, `check` and the documentation.

As in sacrebleu, a metric has two steps: a few numbers per document, and a value from their sums. Tests and intervals
only resample or swap these numbers, so they work the same for every metric. A metric that lm-eval averages needs no
code, only its unit. Any other metric is one `Statistic`; it is callable, so a task YAML can name it as the aggregation:

```python
kappa = Statistic("kappa", unit="share", low=-1, high=1, numbers=label_pair, expand=..., score=...)
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import MetricError

Floats = NDArray[np.float64]
Numbers = Callable[[Any], Sequence[float]]  # from one logged value; TypeError or ValueError if it has another form
Scale = Literal["linear", "log"]

_BLOCK = 4096  # documents whose summands are in memory at once; with hundreds of classes the rows are wide
SHARE, POINTS = "share", "points"  # 0–1 and 0–100; both are shown as points


def one_number(logged: Any) -> tuple[float]:
    """The logged number, for metrics that are plain means."""
    if isinstance(logged, (bool, int, float)):
        return (float(logged),)
    raise TypeError(f"not a number: {type(logged).__name__}")


@dataclass(frozen=True)
class Statistic:
    """A metric: the numbers it takes from each document, how they become a value, and its unit.

    Attributes:
        metric: its name in results.
        unit: `share` (0–1), `points` (0–100), or the name of another unit; empty if none is declared.
        low: smallest possible value; None if there is none.
        high: largest possible value; None if there is none.
        higher_is_better: None means that the results say so.
        margin: difference up to which two values are equivalent, in the unit; None means never equivalent.
        scale: `log` compares ratios, as is usual for perplexities; the margin then applies to the logarithm.
        numbers: the k numbers that are taken from a document's logged value.
        score: maps sums over documents, (r, K), to values of the metric, (r,); None means the mean of the only number.
        expand: maps the numbers, (n, k), and the number of classes to summands, (n, K); None means no change.
        ranks_classes: the numbers are (class, score), and the value is the area under the ROC curve.
        describes: it describes data or model (a floor, a threshold), so it is shown but never better or worse.
    """

    metric: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None
    margin: float | None = None
    scale: Scale = "linear"
    numbers: Numbers = one_number
    score: Callable[[Floats], Floats] | None = None
    expand: Callable[[Floats, int], Floats] | None = None
    ranks_classes: bool = False
    describes: bool = False

    @property
    def is_mean(self) -> bool:
        """Whether the value is the mean of one score per document."""
        return self.score is None and not self.ranks_classes

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Smallest and largest possible value."""
        return self.low, self.high

    def in_shares(self) -> Statistic:
        """The same metric on 0–1 if it is on 0–100, otherwise unchanged."""
        return self._rescaled(SHARE, 0.01) if self.unit == POINTS else self

    def in_points(self) -> Statistic:
        """The same metric on 0–100 if it is on 0–1, otherwise unchanged."""
        return self._rescaled(POINTS, 100) if self.unit == SHARE else self

    def _rescaled(self, unit: str, factor: float) -> Statistic:
        score = self.score
        limits = (self.low, self.high, self.margin)
        low, high, margin = (None if limit is None else factor * limit for limit in limits)
        return replace(
            self, unit=unit, low=low, high=high, margin=margin,
            score=None if score is None else lambda sums: factor * score(sums),
        )  # fmt: skip

    def summands(self, rows: Floats, classes: int | None = None) -> Floats:
        """The terms that are summed over documents, (n, k) -> (n, K)."""
        if self.expand is None:
            return rows
        return self.expand(rows, classes_in(rows) if classes is None else classes)

    def value(self, rows: Floats) -> float:
        """The metric's value for the numbers (n, k) of n documents."""
        if self.ranks_classes:
            return _auroc(rows)
        if self.score is None:
            return float(rows[:, 0].mean())
        classes = 0 if self.expand is None else classes_in(rows)
        blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
        sums = sum(self.summands(block, classes).sum(axis=0) for block in blocks)
        return float(self.score(np.asarray(sums)[None])[0])

    def __call__(self, logged: Sequence[Any]) -> float:
        """The metric's value for the logged values of all documents, as an aggregation of lm-eval.

        Raises:
            MetricError: there are no documents, or a logged value has another form.
        """
        if not len(logged):
            raise MetricError(f"{self.metric}: no documents; pass the logged values of at least one")
        try:
            return self.value(np.array([self.numbers(value) for value in logged], dtype=float))
        except (TypeError, ValueError) as error:
            raise MetricError(f"{self.metric}: {error}; correct what the documents log") from error


def classes_in(*rows: Floats) -> int:
    """Number of classes in arrays of label pairs, at least two."""
    return max(2, *(int(pairs.max()) + 1 for pairs in rows))


def _auroc(rows: Floats) -> float:
    from scipy.stats import rankdata

    positive = rows[:, 0] == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return math.nan
    return float((rankdata(rows[:, 1])[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
