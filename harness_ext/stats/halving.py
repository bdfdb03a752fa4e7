"""Successive halving: a tournament of trainings that share documents, with paired tests between its rungs.

```
rung        1 of 12   1 of 6   1 of 3   whole training
8 entries      8   ──>  4  ──>   2  ──>      1            a quarter of eight trainings
```

At each rung all entries that are left have been trained for the same share of their steps. The better half goes on
(Karnin, Koren & Somekh, ICML 2013; Jamieson & Talwalkar, AISTATS 2016), without those that are significantly worse than
the best. The winner is the highest mean, as in Bechhofer's selection of the best (Ann. Math. Stat. 25, 1954): the
probability that it is the right one depends on the number of documents, see docs/tuning.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.stats.intervals import Interval, holm
from harness_ext.stats.paired import Limits, paired_difference
from harness_ext.stats.units import Clusters, real_clusters
from harness_ext.stats.verdicts import significant_direction

FIRST_RUNG = 1 / 12  # of each training; eight entries then cost a quarter
LAST_RUNG = 2 / 3  # at most, where nothing else is asked for

Standing = Literal["better", "worse", "not distinguishable"]


def rung_count(entries: int) -> int:
    """Number of halvings until one entry is left.

    >>> [rung_count(entries) for entries in (2, 3, 4, 8, 9)]
    [1, 2, 2, 3, 4]
    """
    return (entries - 1).bit_length()


def default_first_rung(entries: int) -> float:
    """Share of the training at which the first rung ends, where nothing else is asked for.

    >>> round(1 / default_first_rung(8)), round(1 / default_first_rung(32))
    (12, 24)
    """
    return min(FIRST_RUNG, LAST_RUNG / 2 ** (rung_count(entries) - 1))


def rung_shares(entries: int, first: float) -> list[float]:
    """Share of the training at which each rung ends: doubled from rung to rung.

    >>> rung_shares(8, 0.1)
    [0.1, 0.2, 0.4]
    """
    return [first * 2**rung for rung in range(rung_count(entries))]


def places(entries: int) -> list[int]:
    """How many entries at most go on after each rung.

    >>> places(8), places(5)
    ([4, 2, 1], [3, 2, 1])
    """
    return [math.ceil(entries / 2 ** (rung + 1)) for rung in range(rung_count(entries))]


def largest_cost(entries: int, first: float) -> float:
    """Training of a tournament and of its winner, as a share of training all entries; less if some are dropped early.

    >>> [round(largest_cost(entries, default_first_rung(entries)), 2) for entries in (2, 4, 6, 8, 16, 32)]
    [0.54, 0.33, 0.29, 0.25, 0.23, 0.14]
    """
    shares = [0.0, *rung_shares(entries, first), 1.0]
    trained = [entries, *places(entries)]  # in each part
    return sum(count * (end - start) for count, start, end in zip(trained, shares, shares[1:], strict=False)) / entries


@dataclass(frozen=True)
class Rung:
    """What was decided at a rung."""

    order: tuple[int, ...]  # entries from the best to the last
    kept: tuple[int, ...]  # that go on, the best first
    worse: frozenset[int]  # significantly worse than the best


def decide_rung(
    scores: Mapping[int, ArrayLike],
    costs: Sequence[Any],
    clusters: ArrayLike | Clusters | None = None,
    *,
    most: int,
    limits: Limits = (0, 1),
    higher_is_better: bool = True,
    seed: int = 0,
) -> Rung:
    """Which entries go on: the best `most` without those that are significantly worse than the best one.

    Entries with the same mean are ordered by the cost of their training, then by their number.

    Args:
        scores: of each entry, by its number: (n,) on the same n documents.
        costs: of each entry's training, in the order of `scores`: anything that sorts.
        clusters: (n,) label of each document's unit, or None.
        most: number of entries that may go on.
        limits: smallest and largest value of the metric.
        higher_is_better: direction of the metric.
        seed: for drawing sign flips.

    Raises:
        ValueError: there are fewer than two documents or units, or not as many for each entry.
    """
    rows = {entry: np.asarray(row, dtype=float) for entry, row in scores.items()}
    sign = 1 if higher_is_better else -1
    rank = {
        entry: (-sign * math.fsum(row), cost, entry)  # an exact sum, so that equal means are equal
        for (entry, row), cost in zip(rows.items(), costs, strict=True)
    }
    best, *others = sorted(rows, key=rank.__getitem__)
    pairs = [(rows[best], rows[entry]) for entry in others]
    comparisons = compare_entries(pairs, clusters, limits=limits, higher_is_better=higher_is_better, seed=seed)
    worse = frozenset(entry for entry, each in zip(others, comparisons, strict=True) if each.standing == "worse")
    order = (best, *others)
    return Rung(order, tuple(entry for entry in order[:most] if entry not in worse), worse)


@dataclass(frozen=True)
class EntryComparison:
    """An entry minus another one, on the same documents."""

    difference: float
    interval: Interval
    p_value: float  # Holm-corrected over all that are compared together
    standing: Standing


def compare_entries(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    clusters: ArrayLike | Clusters | None = None,
    *,
    limits: Limits = (0, 1),
    higher_is_better: bool = True,
    seed: int = 0,
) -> list[EntryComparison]:
    """Compare entries with others, by the paired tests of a comparison of runs.

    Args:
        pairs: of scores (n,), of the entry that is compared with and of the one that is compared.
        clusters: (n,) label of each document's unit, or None.
        limits: smallest and largest value of the metric.
        higher_is_better: direction of the metric.
        seed: for drawing sign flips.
    """
    groups, sign = real_clusters(clusters), 1 if higher_is_better else -1
    tests = [paired_difference(first, second, groups, limits=limits, seed=seed) for first, second in pairs]
    corrected = holm([test.p_value for test in tests])
    words: dict[int, Standing] = {1: "better", -1: "worse", 0: "not distinguishable"}
    return [
        EntryComparison(test.difference, test.interval, p, words[sign * significant_direction(test, p)])
        for test, p in zip(tests, corrected, strict=True)
    ]
