"""Two runs on the same documents: the difference, its interval and its test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from harness_ext.stats import resampling, roc
from harness_ext.stats.intervals import Estimate, Interval, bonett_price, bounded, jackknife
from harness_ext.stats.units import Clusters, Floats, column, effective_number, is_binary, real_clusters

Limits = tuple[float | None, float | None]  # smallest and largest value of a metric; None: no limit
UNBOUNDED: Limits = (None, None)


@dataclass(frozen=True)
class PairedDifference:
    """One run's metric minus the baseline's over the same documents, in the metric's unit."""

    estimate: Estimate  # the difference, and its variance over documents (and over seeds)
    interval: Interval  # the one that is shown
    p_value: float  # for the hypothesis of no difference
    n: int  # documents
    units: int  # independent units: passages where clustered, else documents
    effective_units: float  # number of equal-sized units that would carry the same evidence
    span: float  # the largest possible difference
    method: str
    gained: int | None = None  # documents that became right (binary scores only)
    lost: int | None = None  # documents that became wrong (binary scores only)
    mcnemar_p: float | None = None  # binary scores only; not the deciding p-value where documents are clustered
    least_p: float = 0.0  # the smallest p-value the test can give
    seeds: int = 1  # number of runs that were averaged
    least_class: int | None = None  # units of the rarer class, for metrics that rank two classes (AUROC)

    @property
    def difference(self) -> float:
        """The run's value minus the baseline's."""
        return self.estimate.value

    @property
    def is_exact(self) -> bool:
        """Whether the test is exact McNemar: right/wrong scores of independent documents, one seed."""
        return self.gained is not None and self.units == self.n and self.seeds == 1

    @property
    def decisive(self) -> Estimate:
        """The estimate that `better` and `worse` are decided on: with one document added in each direction."""
        if self.least_class is not None and self.estimate.standard_error > 0:
            return self.estimate
        return self._with_pseudo_units(self.least_class or self.n)

    @property
    def cautious(self) -> Estimate:
        """The estimate that `equivalent` is decided on: with one unit added in each direction."""
        return self._with_pseudo_units(self.least_class or self.units)

    def _with_pseudo_units(self, units: int) -> Estimate:
        if self.is_exact and self.gained is not None and self.lost is not None:
            return bonett_price(self.gained, self.lost, self.n)
        return self.estimate.with_pseudo_units(units, self.span)

    def equivalence_p(self, margin: float) -> float:
        """p-value for a true difference of `margin` or more either way: twice the larger one-sided p-value (TOST)."""
        cautious = self.cautious
        if abs(cautious.value) >= margin:
            return 1.0
        return max(cautious.p_value(-margin), cautious.p_value(margin))


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: ArrayLike | Clusters | None = None,
    *,
    limits: Limits = (0, 1),
    seed: int = 0,
) -> PairedDifference:
    """Compare the means of two runs on the same documents, with the test that fits their scores.

    Right/wrong scores of independent documents: exact McNemar test and Bonett–Price interval. Graded or clustered
    scores: studentised sign-flip test of the units' sums, and a delete-one-unit jackknife t interval with one document
    added in each direction, as Bonett and Price do. Without these two documents the interval would be far too short
    for a few dozen documents that hardly differ. Near the largest possible difference the interval is computed on the
    logit scale, so that it stays within what is possible.

    Args:
        before: (n,) scores of the baseline, in the metric's unit.
        after: (n,) scores of the other run, in the same order.
        clusters: (n,) label of each document's unit, or None.
        limits: smallest and largest value of the metric.
        seed: for drawing sign flips; unused if all patterns are counted.

    Raises:
        ValueError: the lengths differ, or there are fewer than two documents or units.
    """
    first, second, groups = column(before), column(after), real_clusters(clusters)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"a paired test needs two or more documents, the same for both runs, got {len(first)} and {len(second)}"
        )
    delta, n = second - first, len(first)
    gained, lost, exact_p = None, None, None
    if limits == (0, 1) and is_binary(first) and is_binary(second):
        gained, lost = discordant(first, second)
        exact_p = mcnemar(gained, lost)
    if gained is not None and lost is not None and exact_p is not None and groups is None:
        return PairedDifference(
            estimate=jackknife(delta, None), interval=_clipped(bonett_price(gained, lost, n).interval()),
            p_value=exact_p, n=n, units=n, effective_units=float(n), span=1.0,
            method="exact McNemar, Bonett–Price interval", gained=gained, lost=lost, mcnemar_p=exact_p,
        )  # fmt: skip
    sums = delta if groups is None else groups.sums(delta)
    sizes = None if groups is None else groups.sizes
    draws = resampling.describe_draws(int(np.count_nonzero(sums)))
    paired = from_estimate(
        jackknife(delta, groups),
        resampling.sign_flip_test(sums, sizes, seed=seed),
        n=n,
        clusters=groups,
        span=span_of(first, second, limits),
        method=f"sign-flip permutation ({draws}), "
        f"{'paired t interval' if groups is None else 'jackknife t interval by passage'}",
    )
    return replace(paired, gained=gained, lost=lost, mcnemar_p=exact_p, least_p=resampling.least_p_value(paired.units))


def from_estimate(
    estimate: Estimate, p_value: float, *, n: int, clusters: Clusters | None, span: float, method: str
) -> PairedDifference:
    """Build a paired difference from its estimate, with the interval that is shown.

    Args:
        estimate: of the difference; the variance over documents comes first.
        p_value: for the hypothesis of no difference.
        n: number of documents.
        clusters: their units.
        span: the largest possible difference.
        method: names of the test and the interval.
    """
    units = n if clusters is None else clusters.count
    added_to = units if estimate.standard_error == 0 else n  # if all units agree, only their number is evidence
    interval, is_logit = bounded(estimate.with_pseudo_units(added_to, span), -span, span)
    interval = Interval(min(interval.low, estimate.value), max(interval.high, estimate.value))
    if is_logit:
        method = f"{method} on the logit scale"
    return PairedDifference(
        estimate=estimate,
        interval=interval,
        p_value=p_value,
        n=n,
        units=units,
        effective_units=float(n) if clusters is None else effective_number(clusters.sizes),
        span=span,
        method=method,
    )


def _clipped(interval: Interval) -> Interval:
    return Interval(max(-1.0, interval.low), min(1.0, interval.high))


def span_of(before: Floats, after: Floats, limits: Limits) -> float:
    """The largest possible difference of a document; without limits, the range of all observed scores."""
    low, high = limits
    if low is not None and high is not None:
        return float(high - low)
    scores = np.concatenate([before.reshape(-1), after.reshape(-1)])
    return float(np.ptp(scores))


def paired_aggregates(
    before: Floats,
    after: Floats,
    score: resampling.MetricOfSums,
    *,
    n: int,
    clusters: Clusters | None = None,
    span: float = 1.0,
    seed: int = 0,
) -> PairedDifference:
    """Compare a metric that is computed from sums over all documents (macro-F1, MCC, BLEU, bits per byte).

    Args:
        before: (C, K) the baseline's statistics, summed over each unit.
        after: (C, K) the other run's, in the same order.
        score: maps sums over all units, (r, K), to values of the metric, (r,).
        n: number of documents.
        clusters: the units, if they are not single documents.
        span: the largest possible difference of the metric.
        seed: for drawing swaps and resamples.

    Raises:
        ValueError: there are fewer than two units.
    """
    units = len(before)
    if units < 2:
        raise ValueError(f"a paired bootstrap needs at least two independent documents or passages, got {units}")
    first, second = resampling.pooled(before, seed=seed), resampling.pooled(after, seed=seed)
    replicates = resampling.bootstrap(
        len(first), lambda weights: score(weights @ second) - score(weights @ first), seed=seed
    )
    observed = float(score(after.sum(axis=0)[None])[0] - score(before.sum(axis=0)[None])[0])
    effective = float(units) if clusters is None else effective_number(clusters.sizes)
    error = float(np.nanstd(replicates))
    estimate = Estimate(observed, ((error**2, max(effective - 1, 1.0)),))
    swaps = resampling.describe_draws(int(np.any(before != after, axis=1).sum()))
    resampled = "documents" if clusters is None else "passages"
    paired = from_estimate(
        estimate,
        resampling.swap_test(before, after, score, seed=seed),
        n=n,
        clusters=clusters,
        span=span,
        method=f"approximate randomisation ({swaps}), paired bootstrap of {resampled} (R = {len(replicates):,})",
    )
    if error > 0:
        interval = resampling.percentile_interval(replicates)
        interval = Interval(min(interval.low, observed), max(interval.high, observed))
        paired = replace(paired, interval=interval)
    return replace(paired, least_p=resampling.least_p_value(units))


def paired_auroc(
    labels: ArrayLike, before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None
) -> PairedDifference:
    """Compare the areas under two ROC curves on the same documents, by DeLong's method with sums over units.

    Args:
        labels: (n,) 1 for the positive class, else 0.
        before: (n,) scores of the baseline.
        after: (n,) scores of the other run.
        clusters: units of the documents, or None.

    Raises:
        ValueError: a class has fewer than two units.
    """
    groups = real_clusters(clusters)
    estimate = roc.auroc_difference(labels, before, after, groups)
    paired = from_estimate(
        estimate, 1.0, n=len(column(labels)), clusters=groups, span=1.0,
        method=f"DeLong{'' if groups is None else ' by passage (Obuchowski)'}, t",
    )  # fmt: skip
    units = roc.least_class_units(labels, groups)
    paired = replace(paired, least_class=units, effective_units=min(paired.effective_units, float(units)))
    interval, _ = bounded(paired.decisive, -1.0, 1.0)
    return replace(paired, p_value=paired.decisive.p_value(), interval=interval)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value, from the numbers of documents that became right and that became wrong.

    >>> mcnemar(6, 0)  # 2 / 2**6
    0.03125
    >>> mcnemar(0, 0)
    1.0
    """
    return float(stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue) if gained + lost else 1.0


def discordant(before: Floats, after: Floats) -> tuple[int, int]:
    """Number of documents that became right, and number that became wrong."""
    return int(np.sum((before == 0) & (after == 1))), int(np.sum((before == 1) & (after == 0)))
