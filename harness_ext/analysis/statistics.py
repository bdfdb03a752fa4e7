"""Intervals, paired tests and verdicts, on plain arrays of per-document scores.

Scores are fractions (0..1), one per document; `clusters` names the passage of each document, so that
questions on one passage are not counted as independent evidence. Everything is two-sided at 95 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
PERMUTATIONS = 10_000
EXACT_CLUSTERS = 16  # up to here all 2**C sign flips are counted, beyond they are drawn
FEW_CLUSTERS = 40  # below this the cluster standard error is shaky (METRICS.md): say so
_CHUNK_CELLS = 1 << 22  # sign-flip cells held at once: 32 MB of float64

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, both ends included."""

    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Both ends times `factor` (100 turns fractions into points; -1 mirrors the interval)."""
        ends = self.low * factor, self.high * factor
        return Interval(min(ends), max(ends))

    def within(self, margin: float) -> bool:
        """Whether every value of the interval is at most `margin` away from zero."""
        return -margin <= self.low and self.high <= margin


@dataclass(frozen=True)
class Mean:
    """The mean of one run's scores and how its interval was made."""

    value: float
    interval: Interval
    method: str


@dataclass(frozen=True)
class PairedDifference:
    """Mean of after - before over the same documents."""

    difference: float
    interval: Interval
    p_value: float
    n: int  # documents
    units: int  # independent units: passages where clustered, else documents
    standard_error: float  # of the difference when there is none; what power is computed from
    method: str
    gained: int | None = None  # documents that became right (binary scores only)
    lost: int | None = None  # documents that became wrong (binary scores only)
    mcnemar_p: float | None = None  # binary scores only; secondary where documents are clustered

    def scaled(self, factor: float) -> PairedDifference:
        """The same in another unit: 100 turns fractions into points."""
        return replace(
            self,
            difference=self.difference * factor,
            interval=self.interval.scaled(factor),
            standard_error=self.standard_error * abs(factor),
        )


def is_binary(scores: ArrayLike) -> bool:
    """Whether every score is exactly 0 or 1.

    >>> is_binary([0, 1.0, True]), is_binary([0, 0.5])
    (True, False)
    """
    values = np.asarray(scores, dtype=float)
    return bool(np.all((values == 0) | (values == 1)))


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


def mean_interval(scores: ArrayLike, clusters: ArrayLike | None = None) -> Interval:
    """Interval of a mean: cluster-robust standard error, t with C - 1 degrees of freedom.

    SE = sqrt(C / (C - 1) * sum_c (sum_{i in c} (s_i - mean))**2) / n. Without `clusters` every document
    is its own and this is the textbook t interval.

    Args:
        scores: (n,) per-document scores.
        clusters: (n,) labels of any kind, equal for documents that belong together.

    Raises:
        ValueError: fewer than two clusters.
    """
    values = _column(scores)
    sums = _cluster_sums(values - values.mean(), clusters)
    if len(sums) < 2:
        raise ValueError(f"an interval needs two independent documents or passages, got {len(sums)}")
    count = len(sums)
    standard_error = math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values)
    half_width = float(stats.t.ppf(1 - ALPHA / 2, count - 1)) * standard_error
    mean = float(values.mean())
    return Interval(mean - half_width, mean + half_width)


def describe_mean(scores: ArrayLike, clusters: ArrayLike | None = None) -> Mean:
    """Mean of one run with the interval that suits its scores.

    Right/wrong scores of independent documents are a proportion; so are scores that are all 0 or all 1,
    where a standard error would be zero. A single passage cannot show how passages differ: its documents
    are then taken as independent.

    Raises:
        ValueError: no scores, or a single graded one.
    """
    values, groups = _column(scores), _effective_clusters(clusters)
    mean = float(values.mean())
    if is_binary(values) and (groups is None or mean in (0.0, 1.0)):
        exact = len(values) < 100 or mean in (0.0, 1.0)
        method = "Clopper–Pearson" if exact else "Wilson"
        return Mean(mean, proportion_interval(int(values.sum()), len(values)), method)
    method = "t interval" if groups is None else "t interval clustered by passage"
    return Mean(mean, mean_interval(values, groups), method)


def normal_half_width(standard_error: float) -> float:
    """Half the width of a 95 % normal interval, where only a standard error is known."""
    return float(stats.norm.ppf(1 - ALPHA / 2)) * standard_error


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided McNemar p-value of two runs that are right or wrong on the same documents.

    >>> mcnemar([0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1])  # six gained, none lost: 2 / 2**6
    0.03125
    >>> mcnemar([0, 1], [0, 1])
    1.0
    """
    gained, lost = _discordant(_column(before), _column(after))
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue)


def bonett_price(before: ArrayLike, after: ArrayLike) -> Interval:
    """Interval of the difference of two paired proportions.

    Bonett & Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", J. Educ. Behav. Stat. 37 (2012): one document is added to either discordant cell.
    """
    gained, lost = _discordant(_column(before), _column(after))
    return _bonett_price(gained, lost, len(_column(before)))


def paired_difference(
    before: ArrayLike, after: ArrayLike, clusters: ArrayLike | None = None, *, seed: int = 0
) -> PairedDifference:
    """Compare two runs on the same documents, by the test that suits their scores.

    Right/wrong and independent: exact McNemar and Bonett–Price. Graded or clustered: sign flips of the
    cluster sums, and the interval of `mean_interval`. When no document differs a standard error would be
    zero whatever n is; the interval is then Bonett–Price's with no discordant document, taking scores
    as fractions. A single passage cannot show how passages differ: its documents are taken as independent.

    Args:
        before: (n,) scores of the baseline, fractions.
        after: (n,) scores of the other run, document for document.
        clusters: (n,) passage of each document, or None.
        seed: of the drawn sign flips; unused when they can all be counted.

    Raises:
        ValueError: lengths differ, or fewer than two documents.
    """
    first, second, groups = _column(before), _column(after), _effective_clusters(clusters)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired test needs the same two or more documents, got {len(first)} and {len(second)}")
    delta = second - first
    sums = _cluster_sums(delta, groups)
    binary = is_binary(first) and is_binary(second)
    gained, lost = _discordant(first, second) if binary else (None, None)
    mcnemar_p = mcnemar(first, second) if binary else None
    if mcnemar_p is not None and groups is None:
        interval, p_value, method = bonett_price(first, second), mcnemar_p, "exact McNemar, Bonett–Price interval"
    elif not delta.any():
        interval, p_value, method = _bonett_price(0, 0, len(delta)), 1.0, "no document differs, Bonett–Price interval"
    else:
        interval, p_value = mean_interval(delta, groups), sign_flip_p(sums, seed=seed)
        method = "sign-flip permutation, " + (
            "paired t interval" if groups is None else "t interval clustered by passage"
        )
    return PairedDifference(
        difference=float(delta.mean()),
        interval=interval,
        p_value=p_value,
        n=len(delta),
        units=len(sums),
        standard_error=math.sqrt(float(sums @ sums)) / len(delta),
        method=method,
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_p,
    )


def sign_flip_p(sums: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value of the total under random signs of the cluster sums.

    All 2**C sign patterns are counted up to 16 non-zero sums; beyond, 10,000 are drawn and
    p = (1 + extreme) / (10,000 + 1). Zero sums change nothing and are left out.

    >>> sign_flip_p([1.0, 1.0, 1.0, 0.0])  # +++ and --- out of 8
    0.25
    """
    values = _column(sums)
    values = values[values != 0]
    if not len(values):
        return 1.0
    if len(values) <= EXACT_CLUSTERS:
        patterns = np.arange(1 << len(values))[:, None] >> np.arange(len(values)) & 1  # (2**C, C)
        return _count_extreme(patterns.astype(float), values) / len(patterns)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_CELLS // len(values))
    extreme, left = 0, PERMUTATIONS
    while left:
        size = min(rows, left)
        extreme += _count_extreme(rng.integers(0, 2, (size, len(values)), dtype=np.int8), values)
        left -= size
    return (1 + extreme) / (PERMUTATIONS + 1)


def verdict(interval: Interval, *, margin: float, p_value: float | None = None) -> Verdict:
    """One word for a difference: is it better, worse, too small to matter, or not known?

    `equivalent` comes first: an interval that lies wholly within +-margin shows that whatever difference
    there is does not matter, also when it is significant (the p-value stands beside it). It is never said
    merely because a test was not significant; that is `undecided`. `better` and `worse` need an interval
    off zero and, where `p_value` is given, p < .05.

    Args:
        interval: of the difference, oriented so that positive is good.
        margin: in the interval's unit.

    >>> verdict(Interval(0.2, 0.8), margin=1.0), verdict(Interval(0.2, 1.8), margin=1.0, p_value=0.01)
    ('equivalent', 'better')
    """
    if interval.within(margin):
        return "equivalent"
    if p_value is None or p_value < ALPHA:
        if interval.low > 0:
            return "better"
        if interval.high < 0:
            return "worse"
    return "undecided"


def minimum_detectable_difference(paired: PairedDifference) -> float:
    """Smallest true difference that n documents like these find with 80 % power, in the scores' unit.

    Normal approximation with the standard error under no difference: for right/wrong scores
    (1.96 + 0.84) * sqrt(discordant share / n).
    """
    return _z_total() * max(paired.standard_error, math.sqrt(2) / (paired.n + 2))


def needed_n(paired: PairedDifference, *, margin: float) -> int | None:
    """Documents that would decide, with 80 % power, if the true difference is the observed one.

    Whichever comes first: enough to tell it from zero, or enough for the interval to fit within +-margin.
    Always more than `paired.n`; at least six passages, since fewer sign flips cannot reach p < .05.
    None when no number would: no difference at all and a margin of zero.
    """
    distance = abs(paired.difference)
    gap = max(distance, margin - distance)
    if gap <= 0:
        return None
    if paired.standard_error == 0:  # Bonett–Price without a discordant document: half width z * sqrt(2) / (n + 2)
        decided = math.ceil(normal_half_width(math.sqrt(2)) / gap) - 2
    else:
        decided = math.ceil(paired.n * (_z_total() * paired.standard_error / gap) ** 2)
    least_units = math.ceil(1 - math.log2(ALPHA))  # 2 / 2**C < .05
    return max(decided, math.ceil(paired.n * least_units / paired.units), paired.n + 1)


def _z_total() -> float:
    return float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))


def _column(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=float).reshape(-1)


def _effective_clusters(clusters: ArrayLike | None) -> NDArray[Any] | None:
    """Cluster labels that matter: more than one cluster, and fewer clusters than documents."""
    if clusters is None:
        return None
    labels = np.asarray(clusters)
    return labels if 1 < len(np.unique(labels)) < len(labels) else None


def _cluster_sums(values: Floats, clusters: ArrayLike | None) -> Floats:
    """Sum of each cluster, in sorted order of the labels: (n,) -> (C,)."""
    if clusters is None:
        return values
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(inverse.reshape(-1), weights=values).astype(float)


def _discordant(before: Floats, after: Floats) -> tuple[int, int]:
    """Documents that became right, and documents that became wrong."""
    return int(np.sum((before == 0) & (after == 1))), int(np.sum((before == 1) & (after == 0)))


def _bonett_price(gained: int, lost: int, n: int) -> Interval:
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half_width = normal_half_width(math.sqrt((up + down - (up - down) ** 2) / (n + 2)))
    return Interval(max(-1.0, up - down - half_width), min(1.0, up - down + half_width))


def _count_extreme(flips: NDArray[Any], values: Floats) -> int:
    """How many rows of 0/1 flips give a total at least as far from zero as the observed one."""
    observed = abs(float(values.sum()))
    totals = values.sum() - 2 * (flips @ values)  # (rows,)
    return int(np.sum(np.abs(totals) >= observed - 1e-9 * float(np.abs(values).sum())))
