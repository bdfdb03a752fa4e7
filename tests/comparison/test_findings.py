"""Warnings about scores at or near that of a constant answer."""

from __future__ import annotations

import pytest

from harness_ext.comparison.findings import floor_findings
from harness_ext.comparison.rows import Floor, Score
from harness_ext.findings import explain
from harness_ext.stats.intervals import Interval


# The first is the founding experiment's 4.97 exact against 50.07; the third the shipped SQuAD v2 adapter.
@pytest.mark.parametrize(
    ("value", "low", "floor", "kind", "id", "parts"),
    [
        (0.0497, 0.046, 0.5007, "abstain", "R02", ("exact 5.0", "abstaining", "50.1")),
        (0.5, 0.45, 0.5, "majority", "R02", ("exact 50.0", "most frequent answer", "50.0")),
        (0.4965, 0.476, 0.4958, "abstain", "R03", ("exact 49.6", "abstaining", "49.6", "47.6")),
        (0.13, 0.109, 0.5, "chance", "R02", ("exact 13.0", "guessing", "50.0")),
        (0.921, 0.901, 0.509, "majority", None, ()),
    ],
)
def test_floors(value: float, low: float, floor: float, kind: str, id: str | None, parts: tuple[str, ...]) -> None:
    score = Score(value, Interval(low, 2 * value - low))
    findings = floor_findings(f"exact {100 * value:.1f}", "demo, base", score, Floor(floor, kind))
    assert [finding.id for finding in findings] == ([] if id is None else [id])
    for finding in findings:
        assert (finding.level, finding.where) == ("warning", "demo, base")
        assert finding.numbers == {"score": value, "floor": floor}
        assert explain(id)
        assert [part for part in parts if part not in finding.text] == []
