"""Which checkpoint to keep: the earliest that is not worse than the best one beyond noise.

The best of many checkpoints is partly the luckiest. A checkpoint is therefore only passed over for a better one if the
difference is significant on the same documents, corrected for the number of checkpoints; otherwise the earlier one
stays. The last checkpoint, which would be kept without any evaluation, is a comparison planned beforehand: what is kept
must not be significantly worse than it, without a correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.stats.intervals import holm
from harness_ext.stats.paired import Limits, PairedDifference, paired_difference
from harness_ext.stats.units import Clusters, real_clusters
from harness_ext.stats.verdicts import significant_direction


@dataclass(frozen=True)
class Choice:
    """The checkpoint that is kept, by its place in the order of training."""

    kept: int
    best: int  # highest mean, the earliest of several
    p_values: tuple[float, ...]  # of each checkpoint against the best, Holm-corrected; 1 for the best itself


def choose_checkpoint(
    scores: ArrayLike,
    clusters: ArrayLike | Clusters | None = None,
    *,
    limits: Limits = (0, 1),
    higher_is_better: bool = True,
    seed: int = 0,
) -> Choice:
    """Choose the earliest checkpoint that is not significantly worse than the best one, nor than the last one.

    Args:
        scores: (m, n) of m checkpoints in the order of training, on the same n documents.
        clusters: (n,) label of each document's unit, or None.
        limits: smallest and largest value of the metric.
        higher_is_better: direction of the metric.
        seed: for drawing sign flips.

    Raises:
        ValueError: there are no checkpoints, or fewer than two documents or units.
    """
    rows = np.asarray(scores, dtype=float)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"scores must be a table of checkpoints and documents, got the shape {rows.shape}")
    groups, sign, last = real_clusters(clusters), 1 if higher_is_better else -1, len(rows) - 1
    best = int(np.argmax(sign * rows.mean(axis=1)))

    def against(reference: int, place: int) -> PairedDifference:
        return paired_difference(rows[reference], rows[place], groups, limits=limits, seed=seed)

    others = [place for place in range(len(rows)) if place != best]
    pairs = [against(best, place) for place in others]
    corrected = holm([pair.p_value for pair in pairs])
    p_values = {best: 1.0, **dict(zip(others, corrected, strict=True))}
    worse = {
        place
        for place, pair in zip(others, pairs, strict=True)
        if sign * significant_direction(pair, p_values[place]) < 0
    }
    kept = best
    for place in range(best):
        if place not in worse and not _is_worse(against(last, place), sign):
            kept = place
            break
    return Choice(kept, best, tuple(p_values[place] for place in range(len(rows))))


def _is_worse(pair: PairedDifference, sign: int) -> bool:
    return sign * significant_direction(pair, pair.p_value) < 0
