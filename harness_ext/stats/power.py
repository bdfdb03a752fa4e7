"""Power: the difference that a comparison of this size detects, and the size that would decide it."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import ndtr, stdtr

from harness_ext.stats.intervals import ALPHA, Estimate, solve_increasing
from harness_ext.stats.paired import PairedDifference
from harness_ext.stats.units import LEAST_UNITS

POWER = 0.8
MOST_DOCUMENTS = 1e9
MOST_SEEDS = 1_000
_EXACT_DISCORDANT = 100  # up to so many expected discordant documents, McNemar's power is summed exactly
_NORMAL_FROM = 300  # above so many degrees of freedom, t is taken as normal


@dataclass(frozen=True)
class Needed:
    """The size that would decide, if the true difference is the observed one or lies anywhere in its interval."""

    number: int | None  # for the observed difference; None: no size would decide
    low: int | None  # smallest size over the interval of the difference
    high: int | None  # largest size over the interval
    of: str  # "documents" or "seeds"


def detectable_difference(paired: PairedDifference, *, alpha: float = ALPHA) -> float | None:
    """Smallest true difference that is detected with 80 % power at this size; None if none can be.

    Args:
        paired: its variance (or share of discordant documents) is taken as the true one.
        alpha: level of the test; .05 / m if m tests share .05.
    """
    if paired.effective_units < LEAST_UNITS or paired.least_p >= alpha:
        return None
    return solve_increasing(lambda d: _power_of_difference(paired, d, alpha) - POWER, 1e-7 * paired.span, paired.span)


def needed_size(
    paired: PairedDifference, *, margin: float | None, alpha: float = ALPHA, alpha_equivalence: float = ALPHA
) -> Needed:
    """Number of documents (or of seeds, if three or more were run) that would decide with 80 % power.

    "Decide" means: detect the difference, or show equivalence. A single number would be misleading: if the true
    difference is half the observed one, four times as many documents are needed. So the sizes over the whole interval
    of the difference are reported, too.

    Args:
        paired: an undecided difference.
        margin: of equivalence; None if there is none.
        alpha: level of the test of a difference.
        alpha_equivalence: level of the test of equivalence.
    """
    seeds = len(paired.estimate.variances) > 1 and paired.estimate.variances[1][0] > 0
    size_for = _seeds_for if seeds else _documents_for
    observed, interval = abs(paired.difference), paired.interval
    largest = max(abs(interval.low), abs(interval.high))
    smallest = 0.0 if interval.low <= 0 <= interval.high else min(abs(interval.low), abs(interval.high))
    differences = {smallest, observed, largest, *np.linspace(smallest, largest, 7).tolist()}
    if margin is not None and smallest < 0.6 * margin < largest:
        differences |= {0.5 * margin, 0.6 * margin}  # the hardest: too large for equivalence, too small to detect
    sizes = {d: size_for(paired, d, margin, alpha, alpha_equivalence) for d in differences}
    known = [number for number in sizes.values() if number is not None]
    return Needed(
        number=sizes[observed],
        low=min(known) if known else None,
        high=max(known) if len(known) == len(sizes) else None,
        of="seeds" if seeds else "documents",
    )


def _documents_for(
    paired: PairedDifference, difference: float, margin: float | None, alpha: float, alpha_equivalence: float
) -> int | None:
    def excess_power(n: float) -> float:
        larger = _resized(paired, n / paired.n)
        power = _power_of_difference(larger, difference, alpha)
        return max(power, _power_of_equivalence(larger, difference, margin, alpha_equivalence)) - POWER

    n = solve_increasing(excess_power, paired.n + 1, MOST_DOCUMENTS)
    return None if n is None else math.ceil(n - 1e-6)


def _seeds_for(
    paired: PairedDifference, difference: float, margin: float | None, alpha: float, alpha_equivalence: float
) -> int | None:
    documents, (variance, _) = paired.estimate.variances[0], paired.estimate.variances[1]

    def decides(count: int) -> bool:
        sources = (documents, (variance * paired.seeds / count, count - 1.0))
        larger = replace(paired, estimate=Estimate(paired.difference, sources))
        power = _power_of_difference(larger, difference, alpha)
        return max(power, _power_of_equivalence(larger, difference, margin, alpha_equivalence)) >= POWER

    counts = range(paired.seeds + 1, MOST_SEEDS)
    place = bisect.bisect_left(counts, True, key=decides)
    return counts[place] if place < len(counts) else None


def _resized(paired: PairedDifference, factor: float) -> PairedDifference:
    """The same difference with `factor` times as many units."""
    (variance, df), *further = paired.estimate.variances
    resized = Estimate(paired.difference, ((variance / factor, (df + 1) * factor - 1), *further))
    return replace(
        paired,
        estimate=resized,
        n=max(2, round(paired.n * factor)),
        units=max(2, round(paired.units * factor)),
        effective_units=paired.effective_units * factor,
        gained=None if paired.gained is None else round(paired.gained * factor),
        lost=None if paired.lost is None else round(paired.lost * factor),
        least_class=None if paired.least_class is None else round(paired.least_class * factor),
        least_p=0.0 if paired.least_p == 0 else 2.0 ** (1 - min(paired.units * factor, 1_000)),
    )


# -- the probability of each verdict -----------------------------------------------------------------------------


def _power_of_difference(paired: PairedDifference, difference: float, alpha: float) -> float:
    """Probability of the verdict `better` if this is the true difference."""
    if paired.effective_units < LEAST_UNITS or paired.least_p >= alpha:
        return 0.0
    if paired.is_exact and paired.n * max(_discordance(paired), difference) <= _EXACT_DISCORDANT:
        return mcnemar_power(paired.n, _discordance(paired), difference, alpha=alpha)
    shrink = paired.n / (paired.n + 2) if paired.least_class is None else 1.0
    critical = paired.decisive.half_width(alpha) / shrink
    if paired.is_exact:  # counts of documents are integers
        critical += 1 / paired.n
    error, degrees = paired.estimate.standard_error, paired.estimate.variances[0][1]
    if error == 0:
        return float(difference > critical)
    if degrees > _NORMAL_FROM:
        return float(ndtr((difference - critical) / error))
    return float(stats.nct.sf(critical / error, degrees, difference / error))


def _power_of_equivalence(paired: PairedDifference, difference: float, margin: float | None, alpha: float) -> float:
    """Probability of the verdict `equivalent` if this is the true difference."""
    if not margin or paired.effective_units < LEAST_UNITS:
        return 0.0
    cautious, units = paired.cautious, paired.least_class or paired.units
    room = (margin - cautious.half_width(alpha)) * (units + 2) / units
    if room <= 0:
        return 0.0
    return max(
        0.0, _errs_below(paired.estimate, room - difference) + _errs_below(paired.estimate, room + difference) - 1
    )


def _errs_below(estimate: Estimate, distance: float) -> float:
    """Probability that an estimate with this standard error errs by less than `distance` in one direction."""
    error = estimate.standard_error
    if error == 0:
        return float(distance > 0)
    degrees = estimate.variances[0][1]
    return float(ndtr(distance / error) if math.isinf(degrees) else stdtr(degrees, distance / error))


def _discordance(paired: PairedDifference) -> float:
    """Share of discordant documents; if there are none, as if one were added in each direction."""
    assert paired.gained is not None
    assert paired.lost is not None
    discordant = paired.gained + paired.lost
    return discordant / paired.n if discordant else 2 / (paired.n + 2)


def mcnemar_power(n: int, discordance: float, difference: float, *, alpha: float = ALPHA) -> float:
    """Probability that exact McNemar and the Bonett–Price interval both detect a gain.

    Args:
        n: number of documents.
        discordance: share of documents on which the runs differ; at least the difference.
        difference: the true gain, as a share.
        alpha: level of the test.
    """
    total = min(1.0, max(discordance, difference))
    spread = 8 * math.sqrt(n * total * (1 - total)) + 8
    k = np.arange(max(0, math.floor(n * total - spread)), min(n, math.ceil(n * total + spread)) + 1)  # discordant
    for_test = np.floor(stats.binom.isf(alpha / 2, k, 0.5)) + 1  # documents gained that give McNemar's p <= alpha
    z2 = stats.norm.isf(ALPHA / 2) ** 2
    for_interval = np.floor((k + np.sqrt(z2 * (k + 2) / (1 + z2 / (n + 2)))) / 2) + 1  # … that exclude zero
    weights = stats.binom.pmf(k, n, total)
    power = stats.binom.sf(np.maximum(for_test, for_interval) - 1, k, (1 + difference / total) / 2)
    return float((weights * power).sum() / weights.sum())
