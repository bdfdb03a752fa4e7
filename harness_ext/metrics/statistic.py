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

import importlib.metadata
import math
import os
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import MetricError, suggest

Floats = NDArray[np.float64]
Numbers = Callable[[Any], Sequence[float]]  # of one logged value; TypeError or ValueError: logged in another form
Scale = Literal["linear", "log"]

SHARE, POINTS = "share", "points"  # 0–1 and 0–100; both are shown as points
ENTRY_POINTS = "harness_ext.statistics"  # of packages that bring metrics
_MARGIN_OF_SHARES = 0.01
_DECLARABLE = ("unit", "range", "margin", "higher_is_better", "scale")


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

    @property
    def default_margin(self) -> float | None:
        """The declared margin; a point of shares and points."""
        if self.margin is not None:
            return self.margin
        return {SHARE: _MARGIN_OF_SHARES, POINTS: 100 * _MARGIN_OF_SHARES}.get(self.unit)

    def in_shares(self) -> Statistic:
        """The same metric on 0–1 where it is on 0–100; others as they are."""
        if self.unit != POINTS:
            return self
        score = self.score
        low, high, margin = (None if each is None else each / 100 for each in (self.low, self.high, self.margin))
        return replace(
            self, unit=SHARE, low=low, high=high, margin=margin,
            score=None if score is None else lambda sums: score(sums) / 100,
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
        return float(self.score(self.summands(rows).sum(axis=0)[None])[0])

    def __call__(self, logged: Sequence[Any]) -> float:
        """The metric of what all documents logged: lm-eval's aggregation."""
        return self.value(np.array([self.numbers(each) for each in logged], dtype=float))


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


# -- which declaration holds for a metric of a task ---------------------------------------------------------------


def declared(
    metric: str,
    metadata: Mapping[str, Any] | None = None,
    siblings: Sequence[str] = (),
    given: Sequence[Statistic] = (),
) -> tuple[Statistic, ...]:
    """The declarations of a metric, the likeliest first; never from its values.

    The task's own YAML (`metadata: metrics: {NAME: {unit: ..., margin: ...}}`, else `metric_scale`) goes before
    installed packages, these before the table of lm-eval's and our metrics. A metric nobody declares has no unit and
    no margin: it can be better or worse, not equivalent. A name may have several declarations that keep different
    numbers (`f1` as a number or as a pair of labels); the first that fits what was logged counts.

    Args:
        metric: its name.
        metadata: of the task's config.
        siblings: the task's other metrics: beside `exact`, SQuAD's `f1` is on 0–100.
        given: declarations that go before all others but the YAML's.

    Raises:
        MetricError: the YAML declares something that no metric has.
    """
    known = (
        tuple(each for each in given if each.metric == metric)
        or _installed().get(metric)
        or _table_entry(metric, siblings)
        or (Statistic(metric),)
    )
    metadata = metadata or {}
    own, scale = metadata.get("metrics"), metadata.get("metric_scale")
    if isinstance(own, Mapping) and isinstance(own.get(metric), Mapping):
        return tuple(_redeclared(each, own[metric]) for each in known)
    if scale in (1, 100) and all(each.unit in ("", SHARE, POINTS) and not each.describes for each in known):
        unit, top = (SHARE, 1.0) if scale == 1 else (POINTS, 100.0)
        return tuple(_rescaled(each, unit, top) for each in known)
    return known


def _rescaled(statistic: Statistic, unit: str, top: float) -> Statistic:
    """A metric on the scale that its task declares; what is computed from sums keeps its own."""
    if statistic.unit == unit or not statistic.is_mean:
        return statistic
    low = 0.0 if statistic.low is None or statistic.low >= 0 else -top
    return replace(statistic, unit=unit, low=low, high=top, margin=None)


def _redeclared(statistic: Statistic, own: Mapping[str, Any]) -> Statistic:
    for name in own:
        if name not in _DECLARABLE:
            raise MetricError(
                f"metadata: metrics: {statistic.metric}: no field {name!r}{suggest(str(name), _DECLARABLE)}; it has "
                f"{', '.join(_DECLARABLE)}"
            )
    unit = str(own.get("unit", statistic.unit))
    low, high = own.get("range", {SHARE: (0, 1), POINTS: (0, 100)}.get(unit, statistic.limits))
    margin = own.get("margin", statistic.margin if unit == statistic.unit else None)
    return replace(
        statistic,
        unit=unit,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        margin=None if margin is None else float(margin),
        higher_is_better=own.get("higher_is_better", statistic.higher_is_better),
        scale=own.get("scale", statistic.scale),
    )


def _table_entry(metric: str, siblings: Sequence[str]) -> tuple[Statistic, ...]:
    from harness_ext.metrics.known import known_statistics

    return known_statistics(metric, siblings)


def load_statistics(path: str | os.PathLike[str]) -> list[Statistic]:
    """The metrics that a Python file declares, such as the one that a task names in its YAML.

    Raises:
        MetricError: the file cannot be run, or declares none.
    """
    try:
        names = runpy.run_path(os.fspath(path))
    except Exception as error:  # whatever the file's own code raises
        raise MetricError(f"{path} cannot be run: {type(error).__name__}: {error}; correct it") from error
    found = [value for value in names.values() if isinstance(value, Statistic)]
    if not found:
        raise MetricError(f"{path} declares no Statistic; see harness_ext.metrics.statistic")
    return found


@cache
def _installed() -> dict[str, tuple[Statistic, ...]]:
    """Metrics of installed packages, by name: entry points that load a `Statistic`."""
    found: dict[str, tuple[Statistic, ...]] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        statistic = point.load()
        if not isinstance(statistic, Statistic):
            raise MetricError(f"entry point {point.name!r} of {ENTRY_POINTS} is no Statistic; correct {point.value}")
        found[statistic.metric] = (*found.get(statistic.metric, ()), statistic)
    return found
