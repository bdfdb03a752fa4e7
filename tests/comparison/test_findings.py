"""A score at or near what a constant answer gets is named as such."""

from __future__ import annotations

import pytest

from harness_ext.comparison.findings import floor_findings
from harness_ext.comparison.rows import Floor, Score
from harness_ext.findings import explain
from harness_ext.stats.intervals import Interval


# The first is the founding experiment's 4.97 exact against 50.07; the third the shipped SQuAD v2 adapter.
@pytest.mark.parametrize(
    ("value", "low", "floor", "kind", "id", "says"),
    [
        (0.0497, 0.046, 0.5007, "abstain", "R02", ("exact 5.0", "worse than", "abstaining", "50.1")),
        (0.5, 0.45, 0.5, "majority", "R02", ("exact 50.0", "no better", "most frequent answer", "50.0")),
        (0.4965, 0.476, 0.4958, "abstain", "R03", ("exact 49.6", "cannot be told", "abstaining", "49.6", "47.6")),
        (0.13, 0.109, 0.5, "chance", "R02", ("exact 13.0", "below", "guessing", "50.0")),
        (0.921, 0.901, 0.509, "majority", None, ()),
    ],
)
def test_floors(value: float, low: float, floor: float, kind: str, id: str | None, says: tuple[str, ...]) -> None:
    score = Score(value, Interval(low, 2 * value - low))
    found = floor_findings(f"exact {100 * value:.1f}", "demo, base", score, Floor(floor, kind))
    assert [each.id for each in found] == ([] if id is None else [id])
    for each in found:
        assert (each.level, each.where) == ("warning", "demo, base")
        assert each.numbers == {"score": value, "floor": floor}
        assert explain(id)
        for part in says:
            assert part in each.text
