"""Estimates with standard errors, 95 % intervals and Holm's correction. All tests and intervals are two-sided."""

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
    """A 95 % confidence interval; both ends belong to it."""

    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Multiply both ends by `factor` (100 turns shares into points; -1 mirrors the interval)."""
        ends = self.low * factor, self.high * factor
        return Interval(min(ends), max(ends))

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies between -margin and +margin."""
        return -margin <= self.low and self.high <= margin

    @property
    def side(self) -> int:
        """1 if the interval lies above zero, -1 if it lies below, 0 if it contains zero."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Estimate:
    """A value, and its variance split by independent sources, each with its own degrees of freedom.

    With one source, intervals and tests are Student's t. With several (documents and seeds), the interval follows
    Graybill and Wang, "Confidence intervals on nonnegative linear combinations of variances", JASA 75 (1980), which
    takes each variance at its own quantile.
    """

    value: float
    variances: tuple[tuple[float, float], ...]  # (variance, degrees of freedom; inf: normal)

    @property
    def standard_error(self) -> float:
        """Square root of the total variance."""
        return math.sqrt(sum(variance for variance, _ in self.variances))

    def half_width(self, alpha: float = ALPHA) -> float:
        """Half the width of the 1 - `alpha` interval."""
        return math.sqrt(sum(v * _quantile(alpha, df) ** 2 for v, df in self.variances if v > 0))

    def interval(self, alpha: float = ALPHA) -> Interval:
        """The value plus and minus the half width."""
        half = self.half_width(alpha)
        return Interval(self.value - half, self.value + half)

    def p_value(self, null: float = 0.0) -> float:
        """The level at which the interval just reaches `null`; 1 where the value is `null` itself."""
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
        """The estimate with two units added, one at +`limit` and one at -`limit`.

        Bonett and Price make this adjustment for proportions: a difference that has not occurred in `units` units may
        still occur in the next one. Without it, intervals are too short where nearly all units agree; with many units
        it makes no difference.

        Args:
            units: number of units that the estimate is a mean of; they are the first source of variance.
            limit: the largest difference a single unit can have.
        """
        shrink = units / (units + 2)
        (first, df), *further = self.variances
        enlarged = first * shrink**2 + 2 * limit**2 / (units + 2) ** 2
        shrunk = tuple((variance * shrink**2, degrees) for variance, degrees in further)
        return Estimate(self.value * shrink, ((enlarged, df), *shrunk))

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit."""
        return Estimate(self.value * factor, tuple((v * factor**2, df) for v, df in self.variances))


def _quantile(alpha: float, degrees: float) -> float:
    """Half the width of a two-sided t (or, at inf, normal) interval, in standard errors."""
    if math.isinf(degrees):
        return float(stats.norm.isf(alpha / 2))
    return float(-stdtrit(degrees, alpha / 2))


def _tail(distance: float, degrees: float) -> float:
    return float(stats.norm.sf(distance)) if math.isinf(degrees) else float(stdtr(degrees, -distance))


def normal_half_width(standard_error: float) -> float:
    """Half the width of a 95 % normal interval, for use where only a standard error is known."""
    return _quantile(ALPHA, math.inf) * standard_error


# -- one mean ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """The mean of one run's scores, its interval, and the name of the interval's method."""

    value: float
    interval: Interval
    method: str


def proportion_interval(k: int, n: int) -> Interval:
    """Interval for k successes out of n: Wilson; Clopper–Pearson if n < 100 or k is 0 or n.

    Raises:
        ValueError: n < 1, or k is not in 0..n.

    >>> majority = proportion_interval(444, 872)  # of SST-2's dev set
    >>> round(majority.low, 3), round(majority.high, 3)
    (0.476, 0.542)
    """
    method = "exact" if k in (0, n) or n < 100 else "wilson"
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=CONFIDENCE, method=method)
    return Interval(float(interval.low), float(interval.high))


def jackknife(values: Floats, clusters: Clusters | None) -> Estimate:
    """The mean with its delete-one-unit jackknife variance, and effective units - 1 degrees of freedom.

    Without clusters, or with clusters of equal size, this is the textbook standard error. A cluster that holds a large
    share of the documents raises the variance and lowers the degrees of freedom.

    Raises:
        ValueError: fewer than two units.
    """
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if clusters is None:
        if n < 2:
            raise ValueError(f"an interval needs at least two independent documents or passages, got {n}")
        return Estimate(mean, ((float(values.var(ddof=1)) / n, n - 1.0),))
    if clusters.count < 2:
        raise ValueError(f"an interval needs at least two independent documents or passages, got {clusters.count}")
    sizes, count = clusters.sizes, clusters.count
    changes = (clusters.sums(values - mean)) / (n - sizes)  # by how much the mean falls when a cluster is left out
    variance = (count - 1) / count * float((changes**2).sum())
    return Estimate(mean, ((variance, max(effective_number(sizes) - 1, 1.0)),))


def describe_mean(
    scores: ArrayLike,
    clusters: ArrayLike | Clusters | None = None,
    *,
    limits: tuple[float | None, float | None] = (0, 1),
) -> Mean:
    """Mean of one run's scores, with the interval that fits them.

    Right/wrong scores of independent documents are a proportion (Wilson or Clopper–Pearson). All others get a jackknife
    t interval. If it would leave the metric's range, it is computed on the logit scale with the same standard error (as
    `svyciprop` in R's survey package does). If all clustered scores are 0, or all are 1, the standard error is zero;
    the interval is then Clopper–Pearson's, with clusters as the trials.

    Args:
        scores: (n,) in the metric's unit.
        clusters: (n,) label of each document's unit, or None.
        limits: smallest and largest value of the metric; None where there is no limit.

    Raises:
        ValueError: there are no scores, or only one graded score.
    """
    values, groups = column(scores), real_clusters(clusters)
    low, high = limits
    mean = float(values.mean())
    is_share = (low, high) == (0, 1)
    units = len(values) if groups is None else groups.count
    if is_share and is_binary(values) and (groups is None or mean in (0.0, 1.0)):
        exact = units < 100 or mean in (0.0, 1.0)
        successes = int(values.sum()) if groups is None else round(mean * units)
        return Mean(mean, proportion_interval(successes, units), "Clopper–Pearson" if exact else "Wilson")
    by_passage = "" if groups is None else " clustered by passage"
    estimate = jackknife(values, groups)
    interval, is_logit = bounded(estimate, low, high)
    return Mean(mean, interval, f"{'logit ' if is_logit else ''}t interval{by_passage}")


def bounded(estimate: Estimate, low: float | None, high: float | None) -> tuple[Interval, bool]:
    """The t interval, computed on the logit scale if it would leave `low`..`high`; and whether that was done."""
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
    """The difference of two paired proportions, with one document added to each discordant cell.

    Bonett & Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", J. Educ. Behav. Stat. 37 (2012).

    >>> interval = bonett_price(20, 8, 100).interval()
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.0149, 0.2204)
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return Estimate(up - down, (((up + down - (up - down) ** 2) / (n + 2), math.inf),))


# -- many tests --------------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; reject where the adjusted value is below .05.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    step_down = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(step_down, 1.0)
    return [float(value) for value in adjusted]


def combined(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """The weighted sum of independent estimates; degrees of freedom by Satterthwaite.

    Args:
        estimates: one per stratum; only the first source of variance of each is used.
        weights: one per stratum.
    """
    strata = list(zip(weights, estimates, strict=True))
    parts = [(w**2 * stratum.variances[0][0], stratum.variances[0][1]) for w, stratum in strata]
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / df for variance, df in parts if variance > 0)
    value = sum(w * stratum.value for w, stratum in strata)
    return Estimate(value, ((total, total**2 / spread if spread > 0 else math.inf),))


def solve_increasing(function: Callable[[float], float], low: float, high: float) -> float | None:
    """Where an increasing function reaches zero between `low` and `high`, searched on a log scale; None if nowhere."""
    if function(low) >= 0:
        return low
    if function(high) < 0:
        return None
    return math.exp(float(brentq(lambda log: function(math.exp(log)), math.log(low), math.log(high), xtol=1e-4)))
