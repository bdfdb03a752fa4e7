"""Successive halving: how many entries, for how long, who goes on; and what tournaments promise, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from tournaments import Scenario, all_trained, constant, growing, simulate

from harness_ext.stats.halving import (
    compare_entries,
    decide_rung,
    default_first_rung,
    largest_cost,
    places,
    rung_count,
    rung_shares,
)
from harness_ext.stats.intervals import holm
from harness_ext.stats.paired import paired_difference


def right(count: int, n: int = 100) -> np.ndarray:
    """The first documents right."""
    return np.array([1.0] * count + [0.0] * (n - count))


@pytest.mark.parametrize("entries", range(2, 65))
def test_rungs_end_with_one_entry_within_the_training(entries: int) -> None:
    shares = rung_shares(entries, default_first_rung(entries))
    assert len(shares) == len(places(entries)) == rung_count(entries)
    assert places(entries)[-1] == 1
    assert all(after < before for before, after in zip([entries, *places(entries)], places(entries), strict=False))
    assert shares[-1] <= 1
    assert largest_cost(entries, default_first_rung(entries)) <= (0.3 if entries >= 6 else 0.55)


def test_cost_of_eight_entries_by_hand() -> None:
    """8 entries for 1/12, 4 for another 1/12, 2 for 1/6 more, one for the remaining 2/3: two of eight trainings."""
    assert largest_cost(8, 1 / 12) == pytest.approx((8 / 12 + 4 / 12 + 2 / 6 + 2 / 3) / 8) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("scores", "costs", "most", "kept", "worse"),
    [
        ((50, 52, 51), (1, 1, 1), 2, (1, 2), ()),  # within noise: by the mean
        ((50, 80, 51), (1, 1, 1), 2, (1,), (0, 2)),  # significantly worse ones do not go on, though there is a place
        ((51, 51, 51), (2, 1, 1), 1, (1,), ()),  # equal: the cheaper, then the earlier
        ((51, 51, 51), ((2, 5), (2, 4), (3, 1)), 2, (1, 0), ()),
        ((51,), (1,), 1, (0,), ()),
    ],
)
def test_who_goes_on(
    scores: tuple[int, ...], costs: tuple[object, ...], most: int, kept: tuple[int, ...], worse: tuple[int, ...]
) -> None:
    rows = {entry: right(count) for entry, count in enumerate(scores)}
    rung = decide_rung(rows, costs, most=most)
    assert (rung.kept, rung.worse) == (kept, frozenset(worse))
    assert sorted(rung.order) == list(range(len(scores)))


def test_lower_may_be_better_and_entries_keep_their_numbers() -> None:
    rows = {3: np.linspace(1, 2, 40), 5: np.linspace(1, 2, 40) + 0.5, 9: np.linspace(1, 2, 40) - 0.01}
    rung = decide_rung(rows, (1, 1, 1), most=2, limits=(0, None), higher_is_better=False)
    assert rung.order == (9, 3, 5)
    assert 5 in rung.worse


def test_passages_count_as_one() -> None:
    """Ten documents of one passage are no better evidence than one."""
    rows = {0: right(50, 60), 1: right(40, 60)}
    assert decide_rung(rows, (1, 1), most=1).worse == {1}
    assert decide_rung(rows, (1, 1), np.arange(60) // 10, most=1).worse == frozenset()


def test_comparisons_are_those_of_paired_runs() -> None:
    """Oracle: `paired_difference` and Holm's correction."""
    rng = np.random.default_rng(0)
    rows = [(rng.random(200) < share).astype(float) for share in (0.9, 0.5, 0.88, 0.7)]
    pairs = [paired_difference(rows[0], row) for row in rows[1:]]
    compared = compare_entries([(rows[0], row) for row in rows[1:]])
    assert [each.p_value for each in compared] == pytest.approx(holm([pair.p_value for pair in pairs]))
    assert [each.interval for each in compared] == [pair.interval for pair in pairs]
    assert [each.standing for each in compared] == ["worse", "not distinguishable", "worse"]
    assert compare_entries([(rows[1], rows[0])])[0].standing == "better"
    assert compare_entries([]) == []


def test_simulated_tournaments_find_a_gap_of_three_points() -> None:
    """95 of 100 with the default of documents; 250 tournaments, so three standard errors below that are allowed."""
    rates = simulate(Scenario(8, 1_200, growing), 250)
    assert np.mean(rates.right) >= 0.95 - 3 * (0.95 * 0.05 / 250) ** 0.5
    assert np.mean(rates.cost) <= 0.25 + 1e-9
    assert 0.08 < np.mean(rates.discordant) < 0.14


def test_a_gap_that_grows_is_found_less_often_and_no_gap_by_chance() -> None:
    few = Scenario(4, 200, constant), Scenario(4, 200, growing), Scenario(4, 200, gap=0.0)
    whole, grown, none = (float(np.mean(simulate(scenario, 250).right)) for scenario in few)
    assert grown < whole
    assert abs(none - 0.25) < 3 * (0.25 * 0.75 / 250) ** 0.5 + 0.02  # of equal means the last entry never wins
    assert all_trained(Scenario(4, 200, gap=0.2), 50) == 1.0
