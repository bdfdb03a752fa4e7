"""Proof by changing one thing: the paired gain of each change, corrected for the number of changes tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness_ext.stats.intervals import Interval, holm
from harness_ext.stats.paired import paired_difference
from harness_ext.stats.units import Clusters
from harness_ext.stats.verdicts import significant_direction

MARGIN = 0.01  # a gain within one point explains nothing


@dataclass(frozen=True)
class Gain:
    """How much better a score is after one change, on the same documents; shares."""

    change: str
    before: float
    after: float
    interval: Interval
    p_value: float  # Holm-corrected over all changes tried
    n: int
    is_proved: bool  # significantly better, by more than a point

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    def __str__(self) -> str:
        """`5.0 to 48.4 (+43.4 [+35.1, +52.0], n=128)`, in points."""
        low, high = self.interval.low, self.interval.high
        return (
            f"{100 * self.before:.1f} to {100 * self.after:.1f} "
            f"({100 * self.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], n={self.n:,})"
        )


def gains(
    before: NDArray[np.float64],
    changes: Mapping[str, NDArray[np.float64]],
    clusters: Clusters | None = None,
    *,
    untested: int = 0,
) -> list[Gain]:
    """The gain of each change, the largest first.

    Args:
        before: (n,) scores as they are, shares.
        changes: (n,) scores of the same documents after each change.
        clusters: units of the documents, or None.
        untested: further changes that Holm's correction covers: tried without success, or looked at more than once.
    """
    scored = {name: after for name, after in changes.items() if len(after) == len(before) > 1}
    pairs = {name: paired_difference(before, after, clusters) for name, after in scored.items()}
    corrected = holm([*(pair.p_value for pair in pairs.values()), *[1.0] * untested])[: len(pairs)]
    found = [
        Gain(
            change=name,
            before=float(before.mean()),
            after=float(scored[name].mean()),
            interval=pair.interval,
            p_value=p_holm,
            n=len(before),
            is_proved=significant_direction(pair, p_holm) > 0 and pair.difference > MARGIN,
        )
        for (name, pair), p_holm in zip(pairs.items(), corrected, strict=True)
    ]
    return sorted(found, key=lambda gain: -gain.difference)
