"""Sign flips, swaps and bootstraps of passages: vectorised, seeded, in bounded memory.

A unit is what is drawn: a passage, or a document where nothing groups them. Every method works on a matrix
of units: (C, K), the K statistics a metric is computed from, summed over the documents of each unit. Beyond
4,096 units these are first pooled at random into 4,096: sums of independent units are independent units, so
tests keep their level, lose next to no power (t with 4,095 instead of more degrees of freedom), and a
million documents take no longer than four thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness_ext.analysis.statistics import ALPHA, Floats, Interval, column

PERMUTATIONS = 10_000
RESAMPLES = 10_000
EXACT_CLUSTERS = 16  # up to here all 2**C sign patterns are counted, beyond they are drawn
POOLED_UNITS = 4_096
_CHUNK_CELLS = 1 << 21  # cells of signs or weights held at once: 16 MB of float64
_TIES = 1e-9  # relative: sums in another order are the same sum

Score = Callable[[Floats], Floats]  # summed statistics (r, K) -> metric values (r,)


def sign_flip_p(sums: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value of the total under random signs of the cluster sums.

    All 2**C sign patterns are counted up to 16 non-zero sums; beyond, 10,000 are drawn and
    p = (1 + extreme) / (10,000 + 1). Zero sums change nothing and are left out.

    >>> sign_flip_p([1.0, 1.0, 1.0, 0.0])  # +++ and --- out of 8
    0.25
    """
    values = column(sums)
    values = values[values != 0]
    if not len(values):
        return 1.0
    values = pooled(values[:, None], seed=seed)[:, 0]
    observed = abs(float(values.sum())) - _TIES * float(np.abs(values).sum())
    return _p_value((np.abs(signs @ values) >= observed for signs in _signs(len(values), seed)), len(values))


def swap_p(before: Floats, after: Floats, score: Score, *, seed: int = 0) -> float:
    """Two-sided p-value of a difference of two scores when each unit may belong to either run.

    Approximate randomisation: Noreen, "Computer-intensive methods for testing hypotheses" (1989). For a mean
    it is the sign flip.

    Args:
        before: (C, K) summed statistics of the baseline.
        after: (C, K) of the other run, unit for unit.
        score: of sums over all units.
    """
    differing = np.any(before != after, axis=1)
    if not differing.any():
        return 1.0
    whole = before.sum(axis=0) + after.sum(axis=0)  # (K,)
    delta = pooled((after - before)[differing], seed=seed)
    observed = abs(_swapped(delta.sum(axis=0)[None], whole, score)[0])
    extreme = (
        np.abs(_swapped(signs @ delta, whole, score)) >= observed * (1 - _TIES) for signs in _signs(len(delta), seed)
    )
    return _p_value(extreme, len(delta))


def _swapped(moved: Floats, whole: Floats, score: Score) -> Floats:
    """Differences of scores when `moved` (r, K) is what the second run has more than the first."""
    return score((whole + moved) / 2) - score((whole - moved) / 2)


def bootstrap(units: int, statistic: Score, *, seed: int = 0, resamples: int | None = None) -> Floats:
    """A statistic of resamples of units, drawn with replacement.

    Args:
        units: how many there are, C.
        statistic: takes how often each unit was drawn, (r, C), and returns (r,).
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


def bootstrap_p(replicates: Floats) -> float:
    """Two-sided p-value of zero: twice the smaller share of replicates on one side of it, at least 2 / (R + 1)."""
    kept = replicates[~np.isnan(replicates)]
    smaller = min(int(np.sum(kept <= 0)), int(np.sum(kept >= 0)))
    return min(1.0, 2 * (1 + smaller) / (len(kept) + 1))


def pooled(rows: Floats, *, seed: int) -> Floats:
    """At most 4,096 units: (C, K) as it is, or summed within random groups of equal size."""
    if len(rows) <= POOLED_UNITS:
        return rows
    pools = np.random.default_rng([seed, 1]).permutation(len(rows)) % POOLED_UNITS
    return np.stack([np.bincount(pools, weights=part, minlength=POOLED_UNITS) for part in rows.T], axis=1)


def drawn(units: int) -> str:
    """How many sign patterns a test of so many units looks at, in words."""
    return "exact" if units <= EXACT_CLUSTERS else f"R = {PERMUTATIONS:,}"


def _signs(units: int, seed: int) -> Iterator[Floats]:
    """Rows of +1 / -1: every pattern up to 16 units, else 10,000 drawn ones; (r, C) at a time."""
    if units <= EXACT_CLUSTERS:
        patterns = np.arange(1 << units)[:, None] >> np.arange(units) & 1
        yield (1 - 2 * patterns).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    width = -(-units // 8)
    for rows in _chunks(PERMUTATIONS, units):
        drawn = np.frombuffer(rng.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        yield 1.0 - 2.0 * np.unpackbits(drawn, axis=1, count=units).astype(np.float64)


def _chunks(rows: int, units: int) -> Iterator[int]:
    size = max(1, _CHUNK_CELLS // units)
    while rows > 0:
        yield min(size, rows)
        rows -= size


def _p_value(extreme: Iterator[NDArray[np.bool_]], units: int) -> float:
    counts = [(int(found.sum()), len(found)) for found in extreme]
    hits, drawn = (sum(part) for part in zip(*counts, strict=True))
    return hits / drawn if units <= EXACT_CLUSTERS else (1 + hits) / (drawn + 1)
