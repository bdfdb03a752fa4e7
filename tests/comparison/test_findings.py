"""A score at or near what a constant answer gets is named as such."""

from __future__ import annotations

import pytest

from harness_ext.comparison.findings import _floor_warnings
from harness_ext.comparison.rows import Floor, Score
from harness_ext.stats.intervals import Interval


# The first is the founding experiment's 4.97 exact against 50.07; the third the shipped SQuAD v2 adapter.
@pytest.mark.parametrize(
    ("value", "low", "floor", "kind", "says"),
    [
        (4.97, 4.6, 50.07, "abstain", "exact 5.0 is worse than always abstaining (50.1)"),
        (50.0, 45.0, 50.0, "majority", "exact 50.0 is no better than always giving the most frequent answer (50.0)"),
        (
            49.65,
            47.6,
            49.58,
            "abstain",
            "exact 49.6 cannot be told from always abstaining (49.6): its interval begins at 47.6",
        ),
        (13.0, 10.9, 50.0, "chance", "exact 13.0 is below guessing (50.0)"),
        (92.1, 90.1, 50.9, "majority", None),
    ],
)
def test_floor_warnings(value: float, low: float, floor: float, kind: str, says: str | None) -> None:
    score = Score(value, Interval(low, 2 * value - low))
    found = _floor_warnings(f"exact {value:.1f}", score, Floor(floor, kind))
    assert found == ([] if says is None else [says])
