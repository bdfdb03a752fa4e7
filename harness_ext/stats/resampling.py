"""Sign-flip tests, swap tests and bootstraps of units: vectorised, seeded, in bounded memory.

Every method works on a (C, K) matrix: for each of C units, the K statistics that the metric is computed from, summed
over the unit's documents. More than 4,096 units are first pooled at random into 4,096. Sums of independent units are
independent again, so tests keep their level and lose almost no power (a t test would have 4,095 degrees of freedom
instead of more), and a million documents take no longer than four thousand.

A p-value is the share of draws that are at least as extreme as the observed value. If fewer than ten are, the tail is
fitted by a generalised Pareto distribution (Knijnenburg et al., "Fewer permutations, more accurate P-values",
Bioinformatics 25, 2009), so that p-values can be smaller than 1 / draws and survive corrections over hundreds of tests.
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
EXACT_UNITS = 16  # up to so many units all 2**C sign patterns are counted; beyond, patterns are drawn
POOLED_UNITS = 4_096
_ENOUGH_EXTREME = 10  # with fewer extreme draws, the tail is fitted
_TAIL_DRAWS = 250  # number of largest draws that the tail is fitted to
_CHUNK_CELLS = 1 << 21  # cells of signs or weights held at once: 16 MB of float64
_TIES = 1e-9  # relative tolerance: sums that differ only by the order of addition are equal

MetricOfSums = Callable[[Floats], Floats]  # summed statistics (r, K) -> metric values (r,)


def sign_flip_test(sums: ArrayLike, sizes: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Two-sided p-value of a mean under random signs of the units' sums: a test of symmetry about zero.

    The statistic is studentised with the jackknife. If all units have the same size, it orders the sign patterns like
    the plain total, which is used instead.

    Args:
        sums: (C,) sum of the differences in each unit.
        sizes: (C,) number of documents in each unit; None: all the same.
        seed: for drawing signs; unused if all patterns are counted.

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
    """p-value with the statistic mean / jackknife standard error, for units of different sizes."""
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


def swap_test(before: Floats, after: Floats, score: MetricOfSums, *, seed: int = 0) -> float:
    """Two-sided p-value of the difference of two scores, from swapping units between the runs at random.

    Approximate randomisation: Noreen, "Computer-intensive methods for testing hypotheses" (1989). For a mean this is
    the sign-flip test.

    Args:
        before: (C, K) summed statistics of the baseline's units.
        after: (C, K) of the other run's, in the same order.
        score: maps sums over all units, (r, K), to values of the metric, (r,).
        seed: for drawing swaps.
    """
    differing = np.any(before != after, axis=1)
    if not differing.any():
        return 1.0
    total = before.sum(axis=0) + after.sum(axis=0)  # (K,)
    delta = pooled((after - before)[differing], seed=seed)
    observed = abs(_swapped_difference(delta.sum(axis=0)[None], total, score)[0]) * (1 - _TIES)
    draws = (np.abs(_swapped_difference(signs @ delta, total, score)) for signs in _signs(len(delta), seed))
    return _p_value(draws, observed, len(delta))


def _swapped_difference(excess: Floats, total: Floats, score: MetricOfSums) -> Floats:
    """Difference of the two scores, (r,), where the second run's sums exceed the first's by `excess` (r, K)."""
    return score((total + excess) / 2) - score((total - excess) / 2)


def bootstrap(units: int, statistic: MetricOfSums, *, seed: int = 0, resamples: int | None = None) -> Floats:
    """Replicates of a statistic over units resampled with replacement, (resamples,).

    Args:
        units: number of units, C.
        statistic: takes the number of times each unit was drawn, (r, C), and returns (r,).
        seed: for drawing.
        resamples: number of replicates; None: 10,000.
    """
    rng = np.random.default_rng(seed)
    replicates = []
    for rows in _chunks(RESAMPLES if resamples is None else resamples, units):
        indices = rng.integers(0, units, (rows, units), dtype=np.int32) + np.arange(rows)[:, None] * units
        weights = np.bincount(indices.ravel(), minlength=rows * units).reshape(rows, units)
        replicates.append(statistic(weights.astype(float)))
    return np.concatenate(replicates)


def percentile_interval(replicates: Floats) -> Interval:
    """The middle 95 % of bootstrap replicates; NaN replicates (a class was not drawn) are left out."""
    low, high = np.nanquantile(replicates, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(low), float(high))


def pooled(rows: Floats, *, seed: int) -> Floats:
    """The (C, K) matrix unchanged up to 4,096 units; beyond, summed within 4,096 random groups of equal size."""
    if len(rows) <= POOLED_UNITS:
        return rows
    pools = np.random.default_rng([seed, 1]).permutation(len(rows)) % POOLED_UNITS
    return np.stack([np.bincount(pools, weights=part, minlength=POOLED_UNITS) for part in rows.T], axis=1)


def describe_draws(units: int) -> str:
    """How many sign patterns a test of `units` units uses, as text."""
    return "exact" if units <= EXACT_UNITS else f"R = {PERMUTATIONS:,}"


def least_p_value(units: int) -> float:
    """The smallest p-value that a sign-flip test of `units` units can give; 0 if the tail is fitted."""
    return 2.0 ** (1 - units) if units <= EXACT_UNITS else 0.0


def _signs(units: int, seed: int) -> Iterator[Floats]:
    """Rows of +1 / -1, (r, C) at a time: all patterns up to 16 units, else 10,000 drawn ones."""
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
    """The share of draws that are at least as extreme; from the fitted tail if few are."""
    values = np.concatenate(list(draws))
    values = values[~np.isnan(values)]
    extreme = int((values >= observed).sum())
    if units <= EXACT_UNITS:
        return extreme / len(values)
    share = (1 + extreme) / (len(values) + 1)
    return share if extreme >= _ENOUGH_EXTREME else min(share, tail_probability(values, observed))


def tail_probability(draws: Floats, observed: float) -> float:
    """P(draw >= observed) beyond the largest draws, from a generalised Pareto tail fitted by moments.

    A negative shape, which would make the tail end, is replaced by 0 (an exponential tail); this never understates p.

    Args:
        draws: (R,) values of the statistic under the null hypothesis.
        observed: its observed value, at or beyond the largest draws.
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
