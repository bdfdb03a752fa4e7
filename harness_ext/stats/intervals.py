"""Estimates with a standard error, 95 % intervals, and Holm's correction. Everything is two-sided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit, stdtr, stdtrit

from harness_ext.stats.units import Clusters, Floats, column, effective_number, is_binary, real_clusters

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
_LEAST_P = 1e-300


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, both ends included."""

    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Both ends times `factor` (100 turns shares into points; -1 mirrors the interval)."""
        ends = self.low * factor, self.high * factor
        return Interval(min(ends), max(ends))

    def within(self, margin: float) -> bool:
        """Whether every value of the interval is at most `margin` away from zero."""
        return -margin <= self.low and self.high <= margin

    @property
    def side(self) -> int:
        """1 when the interval lies above zero, -1 when below, 0 when zero is within."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Estimate:
    """A value and the variances that independent sources add to it, each with its degrees of freedom.

    With one source this is Student's t. With several (documents and seeds) the interval is that of Graybill and
    Wang, "Confidence intervals on nonnegative linear combinations of variances", JASA 75 (1980): every variance is
    taken at its own quantile.
    """

    value: float
    variances: tuple[tuple[float, float], ...]  # (variance, degrees of freedom; inf: normal)

    @property
    def standard_error(self) -> float:
        """Root of the total variance."""
        return math.sqrt(sum(variance for variance, _ in self.variances))

    def half_width(self, alpha: float = ALPHA) -> float:
        """Half the width of the 1 - `alpha` interval."""
        return math.sqrt(sum(v * _quantile(alpha, df) ** 2 for v, df in self.variances if v > 0))

    def interval(self, alpha: float = ALPHA) -> Interval:
        """value +- half width."""
        half = self.half_width(alpha)
        return Interval(self.value - half, self.value + half)

    def p_value(self, null: float = 0.0) -> float:
        """The level at which the interval just touches `null`; 1 for the value itself."""
        distance = abs(self.value - null)
        sources = [(v, df) for v, df in self.variances if v > 0]
        if distance == 0:
            return 1.0
        if not sources:
            return 0.0
        if len(sources) == 1:
            variance, df = sources[0]
            return max(float(2 * _tail(distance / math.sqrt(variance), df)), _LEAST_P)
        if self.half_width(_LEAST_P) < distance:
            return _LEAST_P
        level = brentq(lambda log: self.half_width(math.exp(log)) - distance, math.log(_LEAST_P), 0.0)
        return math.exp(float(level))

    def with_pseudo_units(self, units: float, limit: float) -> Estimate:
        """The estimate after two more units, one at +`limit` and one at -`limit`.

        Bonett and Price's idea, carried over from proportions: what was not seen in so many units may still be in
        the next. It keeps intervals honest where nearly all units agree, and costs nothing where there are many.

        Args:
            units: that the estimate is a mean of; counted in the first source of variance.
            limit: the largest difference a unit can have.
        """
        shrink = units / (units + 2)
        (first, df), *others = self.variances
        enlarged = first * shrink**2 + 2 * limit**2 / (units + 2) ** 2
        rest = tuple((variance * shrink**2, degrees) for variance, degrees in others)
        return Estimate(self.value * shrink, ((enlarged, df), *rest))

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.value * factor, tuple((v * factor**2, df) for v, df in self.variances))


def _quantile(alpha: float, degrees: float) -> float:
    """Half the width of a two-sided t (or, at inf, normal) interval, in standard errors."""
    if math.isinf(degrees):
        return float(stats.norm.isf(alpha / 2))
    return float(-stdtrit(degrees, alpha / 2))


def _tail(distance: float, degrees: float) -> float:
    return float(stats.norm.sf(distance)) if math.isinf(degrees) else float(stdtr(degrees, -distance))


def normal_half_width(standard_error: float) -> float:
    """Half the width of a 95 % normal interval, where only a standard error is known."""
    return _quantile(ALPHA, math.inf) * standard_error


# -- one mean ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """The mean of one run's scores and how its interval was made."""

    value: float
    interval: Interval
    method: str


def proportion_interval(k: int, n: int) -> Interval:
    """Interval of k right out of n: Wilson, or Clopper–Pearson when k is 0 or n, or n < 100.

    Raises:
        ValueError: n < 1 or k outside 0..n.

    >>> majority = proportion_interval(444, 872)  # of SST-2's dev set
    >>> round(majority.low, 3), round(majority.high, 3)
    (0.476, 0.542)
    """
    method = "exact" if k in (0, n) or n < 100 else "wilson"
    found = stats.binomtest(k, n).proportion_ci(confidence_level=CONFIDENCE, method=method)
    return Interval(float(found.low), float(found.high))


def jackknife(values: Floats, clusters: Clusters | None) -> Estimate:
    """A mean with its delete-one-unit jackknife variance and effective units - 1 degrees of freedom.

    Without clusters, or with equal ones, this is the textbook standard error; with a cluster that holds a large part
    of the documents both the variance and the degrees of freedom tell so.

    Raises:
        ValueError: fewer than two units.
    """
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if clusters is None:
        if n < 2:
            raise ValueError(f"an interval needs two independent documents or passages, got {n}")
        return Estimate(mean, ((float(values.var(ddof=1)) / n, n - 1.0),))
    if clusters.count < 2:
        raise ValueError(f"an interval needs two independent documents or passages, got {clusters.count}")
    sizes, count = clusters.sizes, clusters.count
    without = (clusters.sums(values - mean)) / (n - sizes)  # minus the change of the mean when a cluster is left out
    variance = (count - 1) / count * float((without**2).sum())
    return Estimate(mean, ((variance, max(effective_number(sizes) - 1, 1.0)),))


def describe_mean(
    scores: ArrayLike,
    clusters: ArrayLike | Clusters | None = None,
    *,
    limits: tuple[float | None, float | None] = (0, 1),
) -> Mean:
    """Mean of one run with the interval that suits its scores.

    Right/wrong scores of independent documents are a proportion. Others have a jackknife t interval; where it would
    leave the metric's range it is taken on the logit scale, with the same standard error (as `svyciprop` of R's
    survey does). Where all scores are alike the standard error is zero and says nothing: with scores at an end of
    the range, the interval is Clopper–Pearson's of the units.

    Args:
        scores: (n,) in the metric's unit.
        clusters: (n,) labels of units, or None.
        limits: of the metric; None where it has none.

    Raises:
        ValueError: no scores, or a single graded one.
    """
    values, groups = column(scores), real_clusters(clusters)
    low, high = limits
    mean = float(values.mean())
    is_share = (low, high) == (0, 1)
    units = len(values) if groups is None else groups.count
    if is_share and is_binary(values) and (groups is None or mean in (0.0, 1.0)):
        exact = units < 100 or mean in (0.0, 1.0)
        right = int(values.sum()) if groups is None else round(mean * units)
        return Mean(mean, proportion_interval(right, units), "Clopper–Pearson" if exact else "Wilson")
    by_passage = "" if groups is None else " clustered by passage"
    estimate = jackknife(values, groups)
    interval, is_logit = bounded(estimate, low, high)
    return Mean(mean, interval, f"{'logit ' if is_logit else ''}t interval{by_passage}")


def bounded(estimate: Estimate, low: float | None, high: float | None) -> tuple[Interval, bool]:
    """The t interval; on the logit scale between `low` and `high` where it would leave them, and whether it did."""
    interval = estimate.interval()
    if low is None or high is None or (interval.low >= low and interval.high <= high):
        return interval, False
    width = high - low
    share = (estimate.value - low) / width
    if not 0 < share < 1:
        return Interval(max(interval.low, low), min(interval.high, high)), False
    half = estimate.half_width() / width / (share * (1 - share))  # by the delta method
    centre = float(logit(share))
    return Interval(*(low + width * float(expit(end)) for end in (centre - half, centre + half))), True


# -- two paired proportions --------------------------------------------------------------------------------------


def bonett_price(gained: int, lost: int, n: int) -> Estimate:
    """The difference of two paired proportions, with one document added to either discordant cell.

    Bonett & Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", J. Educ. Behav. Stat. 37 (2012).

    >>> found = bonett_price(20, 8, 100).interval()
    >>> round(found.low, 4), round(found.high, 4)
    (0.0149, 0.2204)
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return Estimate(up - down, (((up + down - (up - down) ** 2) / (n + 2), math.inf),))


# -- many tests --------------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is below .05.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def combined(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """A weighted sum of independent estimates; degrees of freedom by Satterthwaite.

    Args:
        estimates: one for each stratum, of one source of variance.
        weights: of the strata.
    """
    parts = [(w**2 * each.variances[0][0], each.variances[0][1]) for each, w in zip(estimates, weights, strict=True)]
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / df for variance, df in parts if variance > 0)
    value = sum(w * each.value for each, w in zip(estimates, weights, strict=True))
    return Estimate(value, ((total, total**2 / spread if spread > 0 else math.inf),))


def solve_increasing(function: Callable[[float], float], low: float, high: float) -> float | None:
    """Where an increasing function crosses zero on a log scale of its argument; None when it stays below."""
    if function(low) >= 0:
        return low
    if function(high) < 0:
        return None
    return math.exp(float(brentq(lambda log: function(math.exp(log)), math.log(low), math.log(high), xtol=1e-4)))
