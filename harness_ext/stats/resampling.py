"""Sign flips, swaps and bootstraps of units: vectorised, seeded, in bounded memory.

Every method works on a matrix of units: (C, K), the K statistics a metric is computed from, summed over the documents
of each unit. Beyond 4,096 units these are first pooled at random into 4,096: sums of independent units are independent
units, so tests keep their level, lose next to no power (t with 4,095 instead of more degrees of freedom), and a million
documents take no longer than four thousand.

A p-value is the share of draws that are as extreme as what was observed. Where fewer than ten are, the tail beyond the
largest draws is a generalised Pareto distribution (Knijnenburg et al., "Fewer permutations, more accurate P-values",
Bioinformatics 25, 2009), so that corrections over hundreds of tests are not bounded by the number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.stats.intervals import ALPHA, Interval
from harness_ext.stats.units import Floats, column

PERMUTATIONS = 10_000
RESAMPLES = 10_000
EXACT_UNITS = 16  # up to here all 2**C sign patterns are counted, beyond they are drawn
POOLED_UNITS = 4_096
_ENOUGH_EXTREME = 10  # draws: with fewer, their share is a poor p-value
_TAIL_DRAWS = 250  # the largest ones, to fit the tail to
_CHUNK_CELLS = 1 << 21  # cells of signs or weights held at once: 16 MB of float64
_TIES = 1e-9  # relative: sums in another order are the same sum

Score = Callable[[Floats], Floats]  # summed statistics (r, K) -> metric values (r,)


def sign_flip_test(sums: ArrayLike, sizes: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Two-sided p-value of a mean under random signs of the units' sums: a test of symmetry about zero.

    The statistic is studentised by the jackknife. With units of one size that orders the patterns as the plain total
    does, which is then used.

    Args:
        sums: (C,) of the differences in each unit.
        sizes: (C,) documents of each unit; None: all alike.
        seed: of the drawn signs; unused where all patterns are counted.

    >>> sign_flip_test([1.0, 1.0, 1.0, 0.0])  # +++ and --- out of 8
    0.25
    """
    values = column(sums)
    if not values.any():
        return 1.0
    if sizes is not None and len(set(column(sizes).tolist())) > 1 and len(values) <= POOLED_UNITS:
        return _studentised_p(values, column(sizes), seed)
    values = values[values != 0]  # flipping zero changes nothing
    values = pooled(values[:, None], seed=seed)[:, 0]
    observed = abs(float(values.sum())) - _TIES * float(np.abs(values).sum())
    return _p_value((np.abs(signs @ values) for signs in _signs(len(values), seed)), observed, len(values))


def _studentised_p(sums: Floats, sizes: Floats, seed: int) -> float:
    """With t = mean / jackknife standard error, for units of several sizes."""
    n = sizes.sum()
    weights = 1 / (n - sizes) ** 2

    def statistic(signs: Floats) -> Floats:
        mean = signs @ sums / n
        squares = (
            (weights * sums**2).sum()
            - 2 * mean * (signs @ (weights * sums * sizes))
            + mean**2 * (weights * sizes**2).sum()
        )
        least = _TIES * float((weights * sums**2).sum())
        return np.asarray(np.abs(mean) / np.sqrt(np.maximum(squares, least)))

    observed = float(statistic(np.ones((1, len(sums))))[0]) * (1 - _TIES)
    return _p_value((statistic(signs) for signs in _signs(len(sums), seed)), observed, len(sums))


def swap_test(before: Floats, after: Floats, score: Score, *, seed: int = 0) -> float:
    """Two-sided p-value of a difference of two scores when each unit may belong to either run.

    Approximate randomisation: Noreen, "Computer-intensive methods for testing hypotheses" (1989). For a mean
    it is the sign flip.

    Args:
        before: (C, K) summed statistics of the baseline.
        after: (C, K) of the other run, unit for unit.
        score: of sums over all units.
        seed: of the drawn swaps.
    """
    differing = np.any(before != after, axis=1)
    if not differing.any():
        return 1.0
    whole = before.sum(axis=0) + after.sum(axis=0)  # (K,)
    delta = pooled((after - before)[differing], seed=seed)
    observed = abs(_swapped(delta.sum(axis=0)[None], whole, score)[0]) * (1 - _TIES)
    draws = (np.abs(_swapped(signs @ delta, whole, score)) for signs in _signs(len(delta), seed))
    return _p_value(draws, observed, len(delta))


def _swapped(moved: Floats, whole: Floats, score: Score) -> Floats:
    """Differences of scores when `moved` (r, K) is what the second run has more than the first."""
    return score((whole + moved) / 2) - score((whole - moved) / 2)


def bootstrap(units: int, statistic: Score, *, seed: int = 0, resamples: int | None = None) -> Floats:
    """A statistic of resamples of units, drawn with replacement.

    Args:
        units: how many there are, C.
        statistic: takes how often each unit was drawn, (r, C), and returns (r,).
        seed: of the draws.
        resamples: 10,000 unless a dear statistic asks for fewer.
    """
    rng = np.random.default_rng(seed)
    found = []
    for rows in _chunks(RESAMPLES if resamples is None else resamples, units):
        drawn = rng.integers(0, units, (rows, units), dtype=np.int32) + np.arange(rows)[:, None] * units
        weights = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        found.append(statistic(weights.astype(float)))
    return np.concatenate(found)


def percentile_interval(replicates: Floats) -> Interval:
    """The middle 95 % of bootstrap replicates; NaN replicates (a class not drawn) are left out."""
    low, high = np.nanquantile(replicates, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(low), float(high))


def pooled(rows: Floats, *, seed: int) -> Floats:
    """At most 4,096 units: (C, K) as it is, or summed within random groups of equal size."""
    if len(rows) <= POOLED_UNITS:
        return rows
    pools = np.random.default_rng([seed, 1]).permutation(len(rows)) % POOLED_UNITS
    return np.stack([np.bincount(pools, weights=part, minlength=POOLED_UNITS) for part in rows.T], axis=1)


def drawn(units: int) -> str:
    """How many sign patterns a test of so many units looks at, in words."""
    return "exact" if units <= EXACT_UNITS else f"R = {PERMUTATIONS:,}"


def least_p_value(units: int) -> float:
    """The smallest p-value that sign flips of so many units can give; 0 where the tail is fitted."""
    return 2.0 ** (1 - units) if units <= EXACT_UNITS else 0.0


def _signs(units: int, seed: int) -> Iterator[Floats]:
    """Rows of +1 / -1: every pattern up to 16 units, else 10,000 drawn ones; (r, C) at a time."""
    if units <= EXACT_UNITS:
        patterns = np.arange(1 << units)[:, None] >> np.arange(units) & 1
        yield (1 - 2 * patterns).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    width = -(-units // 8)
    for rows in _chunks(PERMUTATIONS, units):
        bits = np.frombuffer(rng.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        yield 1.0 - 2.0 * np.unpackbits(bits, axis=1, count=units).astype(np.float64)


def _chunks(rows: int, units: int) -> Iterator[int]:
    size = max(1, _CHUNK_CELLS // units)
    while rows > 0:
        yield min(size, rows)
        rows -= size


def _p_value(draws: Iterable[Floats], observed: float, units: int) -> float:
    """The share of draws that are at least as extreme; from the fitted tail where few are."""
    values = np.concatenate(list(draws))
    values = values[~np.isnan(values)]
    extreme = int((values >= observed).sum())
    if units <= EXACT_UNITS:
        return extreme / len(values)
    counted = (1 + extreme) / (len(values) + 1)
    return counted if extreme >= _ENOUGH_EXTREME else min(counted, tail_probability(values, observed))


def tail_probability(draws: Floats, observed: float) -> float:
    """P(draw >= observed) beyond the largest draws, from a generalised Pareto tail fitted by moments.

    A shape below zero, which would end the tail, is taken as zero (an exponential tail): that never understates p.

    Args:
        draws: (R,) of the statistic under the null hypothesis.
        observed: at or beyond the largest draws.
    """
    count = min(_TAIL_DRAWS, len(draws) // 4)
    ordered = np.sort(draws)
    threshold = (ordered[-count - 1] + ordered[-count]) / 2
    excess = ordered[-count:] - threshold
    mean, variance = float(excess.mean()), float(excess.var())
    if mean <= 0:
        return 1.0
    shape = max(0.0, (1 - mean**2 / variance) / 2) if variance > 0 else 0.0
    scale = mean * (1 - shape)
    beyond = (observed - threshold) / scale
    tail = math.exp(-beyond) if shape < _TIES else (1 + shape * beyond) ** (-1 / shape)
    return count / len(draws) * tail
