"""Two runs on the same documents: difference, interval, test, verdict, power."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from harness_ext.analysis import resampling
from harness_ext.analysis.statistics import (
    ALPHA,
    POWER,
    Clusters,
    Floats,
    Interval,
    bonett_price,
    column,
    discordant,
    effective_clusters,
    is_binary,
    mcnemar_p,
    mean_interval,
    normal_half_width,
)

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Retention = Literal["kept", "lost", "open"]


@dataclass(frozen=True)
class PairedDifference:
    """A metric of one run minus the baseline's, over the same documents."""

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


def paired_difference(
    before: ArrayLike, after: ArrayLike, clusters: ArrayLike | Clusters | None = None, *, seed: int = 0
) -> PairedDifference:
    """Compare two runs' means on the same documents, by the test that suits their scores.

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
    first, second, groups = column(before), column(after), effective_clusters(clusters)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired test needs the same two or more documents, got {len(first)} and {len(second)}")
    delta = second - first
    sums = delta if groups is None else groups.sums(delta)
    gained, lost = discordant(first, second) if is_binary(first) and is_binary(second) else (None, None)
    exact_p = None if gained is None or lost is None else mcnemar_p(gained, lost)
    if exact_p is not None and groups is None:
        interval = bonett_price(gained or 0, lost or 0, len(delta))
        p_value, method = exact_p, "exact McNemar, Bonett–Price interval"
    elif not delta.any():
        interval, p_value, method = bonett_price(0, 0, len(delta)), 1.0, "no document differs, Bonett–Price interval"
    else:
        interval, p_value = mean_interval(delta, groups), resampling.sign_flip_p(sums, seed=seed)
        kind = "paired t interval" if groups is None else "t interval clustered by passage"
        method = f"sign-flip permutation ({resampling.drawn(int(np.count_nonzero(sums)))}), {kind}"
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
        mcnemar_p=exact_p,
    )


def paired_aggregates(
    before: Floats, after: Floats, score: resampling.Score, *, n: int, by_passage: bool, seed: int = 0
) -> PairedDifference:
    """Compare a metric that is computed from sums over all documents (macro-F1, MCC, BLEU, bits per byte).

    Args:
        before: (C, K) the baseline's statistics, summed over each unit.
        after: (C, K) the other run's, unit for unit.
        score: from sums over all units, (r, K), to the metric, (r,).
        n: documents.
        by_passage: whether units are passages, for the name of the method.
        seed: of swaps and resamples.

    Raises:
        ValueError: fewer than two units.
    """
    if len(before) < 2:
        raise ValueError(f"a paired bootstrap needs two independent documents or passages, got {len(before)}")
    first, second = resampling.pooled(before, seed=seed), resampling.pooled(after, seed=seed)
    p_value = resampling.swap_p(before, after, score, seed=seed)
    found = _bootstrapped(
        len(first), lambda weights: score(weights @ second) - score(weights @ first),
        n=n, units=len(before), by_passage=by_passage, seed=seed,
    )  # fmt: skip
    swaps = resampling.drawn(int(np.any(before != after, axis=1).sum()))
    return replace(found, p_value=p_value, method=f"approximate randomisation ({swaps}), {found.method}")


def paired_statistic(
    statistic: Callable[[Floats], Floats], *, n: int, units: int, by_passage: bool, seed: int, resamples: int
) -> PairedDifference:
    """Compare a metric that needs all documents at once (AUROC): interval and p-value by bootstrap.

    Args:
        statistic: difference of the metric when units are drawn so often, (r, C) -> (r,).
        n: documents.
        units: independent units, C.
        by_passage: whether units are passages.
        seed: of the resamples.
        resamples: how many.
    """
    return _bootstrapped(units, statistic, n=n, units=units, by_passage=by_passage, seed=seed, resamples=resamples)


def _bootstrapped(
    drawn: int,
    statistic: Callable[[Floats], Floats],
    *,
    n: int,
    units: int,
    by_passage: bool,
    seed: int,
    resamples: int | None = None,
) -> PairedDifference:
    observed = float(statistic(np.ones((1, drawn)))[0])
    replicates = resampling.bootstrap(drawn, statistic, seed=seed, resamples=resamples)
    interval, error = resampling.percentile_interval(replicates), float(np.nanstd(replicates))
    if error == 0:  # no document differs, or none that matters: as for a mean
        interval = bonett_price(0, 0, n)
    of_what = "passages" if by_passage else "documents"
    return PairedDifference(
        difference=observed,
        interval=Interval(min(interval.low, observed), max(interval.high, observed)),
        p_value=resampling.bootstrap_p(replicates) if error else 1.0,
        n=n,
        units=units,
        standard_error=error,
        method=f"paired bootstrap of {of_what} (R = {len(replicates):,})",
    )


def verdict(interval: Interval, *, margin: float, p_value: float | None = None) -> Verdict:
    """One word for a difference: is it better, worse, too small to matter, or not known?

    `equivalent` comes first: an interval that lies wholly within +-margin shows that whatever difference
    there is does not matter, also when it is significant (the p-value stands beside it). It is never said
    merely because a test was not significant; that is `undecided`. `better` and `worse` need an interval
    off zero and, where `p_value` is given, p < .05.

    Args:
        interval: of the difference, oriented so that positive is good.
        margin: in the interval's unit.
        p_value: corrected for the number of comparisons made.

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


def retention(interval: Interval, *, margin: float) -> Retention:
    """Non-inferiority: `kept` when at most `margin` can be missing, `lost` when more than that surely is.

    >>> [retention(Interval(*ends), margin=1.0) for ends in ((-0.5, 2.0), (-5.0, -1.5), (-1.5, 1.0))]
    ['kept', 'lost', 'open']
    """
    if interval.low > -margin:
        return "kept"
    return "lost" if interval.high < -margin else "open"


def minimum_detectable_difference(paired: PairedDifference, *, alpha: float = ALPHA) -> float:
    """Smallest true difference that n documents like these find with 80 % power, in the scores' unit.

    Normal approximation with the standard error under no difference: for right/wrong scores
    (1.96 + 0.84) * sqrt(discordant share / n).

    Args:
        paired: of fractions.
        alpha: level of one test; .05 / m where m tests share .05.
    """
    return _z_total(alpha) * max(paired.standard_error, math.sqrt(2) / (paired.n + 2))


def needed_n(paired: PairedDifference, *, margin: float, alpha: float = ALPHA) -> int | None:
    """Documents that would decide, with 80 % power, if the true difference is the observed one.

    Whichever comes first: enough to tell it from zero at level `alpha`, or enough for the 95 % interval to
    fit within +-margin. Always more than `paired.n`; at least as many passages as it takes for sign flips to
    reach `alpha` (six for .05). None when no number would: no difference at all and a margin of zero.
    """
    distance = abs(paired.difference)
    if paired.standard_error == 0:  # Bonett–Price without a discordant document: half width z * sqrt(2) / (n + 2)
        if margin <= 0:
            return None
        decided = math.ceil(normal_half_width(math.sqrt(2)) / margin) - 2
    else:
        ways = [(_z_total(alpha), distance), (_z_total(ALPHA), margin - distance)]
        needed = [paired.n * (z * paired.standard_error / gap) ** 2 for z, gap in ways if gap > 0]
        if not needed:
            return None
        decided = math.ceil(min(needed))
    least_units = math.ceil(1 - math.log2(alpha))  # 2 / 2**C < alpha
    return max(decided, math.ceil(paired.n * least_units / paired.units), paired.n + 1)


def _z_total(alpha: float) -> float:
    return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER))
