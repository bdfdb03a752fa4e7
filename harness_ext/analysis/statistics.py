"""Intervals, closed-form tests and Holm's correction, on plain arrays of per-document scores.

Scores are fractions (0..1), one per document; `clusters` names the passage of each document, so that
questions on one passage are not counted as independent evidence. Everything is two-sided at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
FEW_CLUSTERS = 40  # below this the cluster standard error is shaky (METRICS.md): say so

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


class Clusters:
    """Documents grouped by passage: a code for each document, 0..count-1.

    Args:
        labels: (n,) of any kind, equal for documents that belong together.

    >>> groups = Clusters(["b", "a", "b"])
    >>> groups.codes.tolist(), groups.count, groups.sums(np.array([1.0, 2.0, 3.0])).tolist()
    ([1, 0, 1], 2, [2.0, 4.0])
    """

    def __init__(self, labels: ArrayLike) -> None:
        distinct, codes = np.unique(np.asarray(labels), return_inverse=True)
        self.codes: NDArray[np.intp] = codes.reshape(-1)
        self.count = len(distinct)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.codes)

    def take(self, rows: NDArray[Any]) -> Clusters:
        """The clusters of some of the documents (indices or a mask)."""
        return Clusters(self.codes[rows])

    def sums(self, values: Floats) -> Floats:
        """Sum of each cluster: (n,) -> (C,), or (n, K) -> (C, K)."""
        if values.ndim == 1:
            return np.bincount(self.codes, weights=values, minlength=self.count).astype(float)
        return np.stack([self.sums(column) for column in values.T], axis=1)


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


def mean_interval(scores: ArrayLike, clusters: ArrayLike | Clusters | None = None) -> Interval:
    """Interval of a mean: cluster-robust standard error, t with C - 1 degrees of freedom.

    SE = sqrt(C / (C - 1) * sum_c (sum_{i in c} (s_i - mean))**2) / n. Without `clusters` every document
    is its own and this is the textbook t interval.

    Args:
        scores: (n,) per-document scores.
        clusters: (n,) labels of any kind, equal for documents that belong together.

    Raises:
        ValueError: fewer than two clusters.
    """
    values = column(scores)
    standard_error, units = mean_standard_error(values, as_clusters(clusters))
    half_width = t_quantile(units - 1) * standard_error
    mean = float(values.mean())
    return Interval(mean - half_width, mean + half_width)


def mean_standard_error(values: Floats, clusters: Clusters | None) -> tuple[float, int]:
    """Cluster-robust standard error of a mean, and the number of clusters it rests on."""
    residuals = values - values.mean()
    sums = residuals if clusters is None else clusters.sums(residuals)
    count = len(sums)
    if count < 2:
        raise ValueError(f"an interval needs two independent documents or passages, got {count}")
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values), count


def describe_mean(scores: ArrayLike, clusters: ArrayLike | Clusters | None = None) -> Mean:
    """Mean of one run with the interval that suits its scores.

    Right/wrong scores of independent documents are a proportion; so are scores that are all 0 or all 1,
    where a standard error would be zero. A t interval that would leave 0..1 is taken on the logit scale
    instead, with the same standard error (as `svyciprop` of R's survey does). A single passage cannot show
    how passages differ: its documents are then taken as independent.

    Raises:
        ValueError: no scores, or a single graded one.
    """
    values, groups = column(scores), effective_clusters(clusters)
    mean = float(values.mean())
    if is_binary(values) and (groups is None or mean in (0.0, 1.0)):
        exact = len(values) < 100 or mean in (0.0, 1.0)
        method = "Clopper–Pearson" if exact else "Wilson"
        return Mean(mean, proportion_interval(int(values.sum()), len(values)), method)
    by_passage = "" if groups is None else " clustered by passage"
    interval = mean_interval(values, groups)
    is_share = bool(values.min() >= 0 and values.max() <= 1) and 0 < mean < 1
    if is_share and not (interval.low >= 0 and interval.high <= 1):
        return Mean(mean, _logit_interval(mean, *mean_standard_error(values, groups)), f"logit t interval{by_passage}")
    return Mean(mean, interval, f"t interval{by_passage}")


def _logit_interval(mean: float, standard_error: float, units: int) -> Interval:
    """A t interval of log(m / (1 - m)), by the delta method, brought back to 0..1."""
    half_width = t_quantile(units - 1) * standard_error / (mean * (1 - mean))
    centre = math.log(mean / (1 - mean))
    return Interval(*(float(expit(end)) for end in (centre - half_width, centre + half_width)))


def t_quantile(degrees: float) -> float:
    """Half the width of a 95 % t interval, in standard errors."""
    return float(stats.t.ppf(1 - ALPHA / 2, degrees))


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
    return mcnemar_p(*discordant(column(before), column(after)))


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value of the numbers of discordant documents."""
    return float(stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue) if gained + lost else 1.0


def discordant(before: Floats, after: Floats) -> tuple[int, int]:
    """Documents that became right, and documents that became wrong."""
    return int(np.sum((before == 0) & (after == 1))), int(np.sum((before == 1) & (after == 0)))


def bonett_price(gained: int, lost: int, n: int) -> Interval:
    """Interval of the difference of two paired proportions.

    Bonett & Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", J. Educ. Behav. Stat. 37 (2012): one document is added to either discordant cell.

    >>> found = bonett_price(20, 8, 100)
    >>> round(found.low, 4), round(found.high, 4)
    (0.0149, 0.2204)
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half_width = normal_half_width(math.sqrt((up + down - (up - down) ** 2) / (n + 2)))
    return Interval(max(-1.0, up - down - half_width), min(1.0, up - down + half_width))


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


def column(values: ArrayLike) -> Floats:
    """Any sequence of numbers as a float array (n,)."""
    return np.asarray(values, dtype=float).reshape(-1)


def as_clusters(clusters: ArrayLike | Clusters | None) -> Clusters | None:
    """Labels as coded clusters; coded ones as they are."""
    return clusters if clusters is None or isinstance(clusters, Clusters) else Clusters(clusters)


def effective_clusters(clusters: ArrayLike | Clusters | None) -> Clusters | None:
    """Clusters that matter: more than one, and fewer than documents; else None."""
    groups: Any = as_clusters(clusters)
    return groups if groups is not None and 1 < groups.count < len(groups) else None
