"""What a metric is: declared once, read by hooks, by `compare`, by `check` and by the documentation.

As in sacrebleu a metric is two steps: a few numbers for each document, and a value from their sums. Tests and intervals
only resample or swap the sums, so every metric is tested alike. A metric that lm-eval averages needs no code, only its
unit. A new metric that is no mean is one `Statistic` in one file; it is callable, so a task YAML names it as the
aggregation:

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
Numbers = Callable[[Any], Sequence[float]]  # of one logged value; TypeError or ValueError: logged in another form
Scale = Literal["linear", "log"]

_BLOCK = 4096  # documents whose summands are in memory at once: with hundreds of classes they are wide
SHARE, POINTS = "share", "points"  # 0–1 and 0–100; both are shown as points


def one_number(logged: Any) -> tuple[float]:
    """The number that a document logged; what a plain mean is made of."""
    if isinstance(logged, (bool, int, float)):
        return (float(logged),)
    raise TypeError(f"not a number: {type(logged).__name__}")


@dataclass(frozen=True)
class Statistic:
    """One metric: what it keeps of a document, how documents become a value, and in which unit.

    Attributes:
        metric: its name in results.
        unit: `share` (0–1), `points` (0–100), or the name of a unit of its own; empty when nobody declared one.
        low: least possible value; None where there is none.
        high: largest possible value; None where there is none.
        higher_is_better: None: as the results say.
        margin: difference up to which two values are equivalent, in the unit; None: nothing is equivalent.
        scale: `log` compares ratios, as perplexities are compared; the margin is then of the logarithm.
        numbers: what is kept of a document's logged value; k numbers.
        score: from sums over documents, (r, K), to the metric's value, (r,); None: the mean of the only number.
        expand: from the numbers, (n, k), and the number of classes to summands, (n, K); None: as they are.
        ranks_classes: the numbers are (class, score), and the value is the area under the ROC curve.
        describes: a property of data or model (a floor, a threshold): shown, never better or worse.
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
        """Whether every document has a score of its own, which is averaged."""
        return self.score is None and not self.ranks_classes

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Least and largest possible value."""
        return self.low, self.high

    def in_shares(self) -> Statistic:
        """The same metric on 0–1 where it is on 0–100; others as they are."""
        return self._rescaled(SHARE, 0.01) if self.unit == POINTS else self

    def in_points(self) -> Statistic:
        """The same metric on 0–100 where it is on 0–1; others as they are."""
        return self._rescaled(POINTS, 100) if self.unit == SHARE else self

    def _rescaled(self, unit: str, factor: float) -> Statistic:
        score = self.score
        low, high, margin = (None if each is None else factor * each for each in (self.low, self.high, self.margin))
        return replace(
            self, unit=unit, low=low, high=high, margin=margin,
            score=None if score is None else lambda sums: factor * score(sums),
        )  # fmt: skip

    def summands(self, rows: Floats, classes: int | None = None) -> Floats:
        """What is summed over documents, (n, k) -> (n, K)."""
        if self.expand is None:
            return rows
        return self.expand(rows, classes_in(rows) if classes is None else classes)

    def value(self, rows: Floats) -> float:
        """The metric of documents, from their numbers (n, k)."""
        if self.ranks_classes:
            return _auroc(rows)
        if self.score is None:
            return float(rows[:, 0].mean())
        classes = 0 if self.expand is None else classes_in(rows)
        blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
        sums = sum(self.summands(block, classes).sum(axis=0) for block in blocks)
        return float(self.score(np.asarray(sums)[None])[0])

    def __call__(self, logged: Sequence[Any]) -> float:
        """The metric of what all documents logged: lm-eval's aggregation.

        Raises:
            MetricError: no documents, or one that logged something else.
        """
        if not len(logged):
            raise MetricError(f"{self.metric}: no documents; pass what at least one has logged")
        try:
            return self.value(np.array([self.numbers(each) for each in logged], dtype=float))
        except (TypeError, ValueError) as error:
            raise MetricError(f"{self.metric}: {error}; correct what the documents log") from error


def classes_in(*rows: Floats) -> int:
    """How many classes the label columns of numbers name; at least two."""
    return max(2, *(int(each.max()) + 1 for each in rows))


def _auroc(rows: Floats) -> float:
    from scipy.stats import rankdata

    positive = rows[:, 0] == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return math.nan
    return float((rankdata(rows[:, 1])[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
