"""The verdict on each difference, and the condition that is missing where it is undecided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness_ext.stats.intervals import Estimate, Interval
from harness_ext.stats.paired import PairedDifference, paired_difference
from harness_ext.stats.verdicts import Hypothesis, decide, retention

MARGIN = 0.01
MANY = 10**6  # units: adding one in each direction makes no visible difference


def difference(low: float, high: float, p: float) -> PairedDifference:
    """A normal estimate of many units whose interval is (low, high), in points."""
    centre, error = (low + high) / 200, (high - low) / 200 / 1.959964
    return PairedDifference(
        estimate=Estimate(centre, ((error**2, float("inf")),)), interval=Interval(low / 100, high / 100), p_value=p,
        n=MANY, units=MANY, effective_units=float(MANY), span=1.0, method="given",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "p", "word", "direction", "lacking"),
    [
        (0.5, 2.0, 0.01, "better", 1, None),
        (-2.0, -0.5, 0.01, "worse", -1, None),
        (-0.4, 0.9, 0.5, "equivalent", 0, None),
        (0.2, 0.8, 0.001, "equivalent", 1, None),  # significant, and too small to matter
        (-0.8, -0.2, 0.001, "equivalent", -1, None),
        (-0.99, 0.99, 1.0, "equivalent", 0, None),
        (-0.4, 1.1, 0.3, "undecided", 0, None),
        (0.1, 2.0, 0.06, "undecided", 0, "p"),  # interval and test disagree
        (-0.01, 2.0, 0.04, "undecided", 0, "interval"),
    ],
)
def test_verdict(low, high, p, word, direction, lacking):
    (decision,) = decide([Hypothesis(difference(low, high, p), MARGIN)])
    assert (decision.verdict, decision.direction, decision.lacking) == (word, direction, lacking)
    assert decision.p_holm == p


@pytest.mark.parametrize(("low", "high", "word"), [(0.5, 2.0, "worse"), (-2.0, -0.5, "better")])
def test_lower_can_be_better(low, high, word):
    (decision,) = decide([Hypothesis(difference(low, high, 0.01), MARGIN, higher_is_better=False)])
    assert (decision.verdict, decision.direction) == (word, 1 if word == "better" else -1)


def test_without_a_margin_nothing_is_equivalent():
    (decision,) = decide([Hypothesis(difference(-0.1, 0.1, 1.0), None)])
    assert (decision.verdict, decision.p_equivalent) == ("undecided", None)


def test_both_p_values_are_corrected_each_over_its_own_tests():
    clear, small, flat = difference(0.5, 2.0, 0.03), difference(-0.9, 0.9, 1.0), difference(-0.2, 0.2, 1.0)
    alone = [decide([Hypothesis(paired, MARGIN)])[0] for paired in (clear, small, flat)]
    assert [decision.verdict for decision in alone] == ["better", "equivalent", "equivalent"]
    together = decide([Hypothesis(clear, None), Hypothesis(small, MARGIN), Hypothesis(flat, MARGIN)])
    assert [decision.p_holm for decision in together] == pytest.approx([0.09, 1, 1])
    assert [decision.verdict for decision in together] == ["undecided", "equivalent", "equivalent"]
    assert together[1].p_equivalent == pytest.approx(alone[1].p_equivalent)  # the larger of two: times one
    assert together[2].p_equivalent == pytest.approx(2 * alone[2].p_equivalent)
    more = decide([Hypothesis(small, MARGIN), Hypothesis(small, MARGIN)])
    assert [decision.verdict for decision in more] == ["undecided", "undecided"]


def test_fewer_than_six_units_decide_nothing():
    paired = paired_difference([0.0] * 8, [0.9] * 7 + [0.8], [1, 1, 2, 2, 3, 3, 4, 4])
    assert paired.p_value == 0.125  # 2 / 2**4
    few = replace(difference(0.5, 2.0, 1e-9), effective_units=5.9)
    for decision in decide([Hypothesis(paired, MARGIN), Hypothesis(few, MARGIN)]):
        assert (decision.verdict, decision.lacking, decision.needed, decision.detectable) == (
            "undecided", "units", None, None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.5, 2.0, "kept"), (-5.0, -1.5, "lost"), (-1.5, 1.0, "open"), (-1.5, -1.1, "lost")]
)
def test_retention(low, high, word):
    paired = difference(low, high, 0.5)
    assert retention(paired, margin=MARGIN) == word
    mirrored = difference(-high, -low, 0.5)
    assert retention(mirrored, margin=MARGIN, higher_is_better=False) == word
    assert retention(replace(paired, effective_units=5.0), margin=MARGIN) == "open"
