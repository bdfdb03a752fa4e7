"""Two runs on the same documents: the test that fits their scores, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar

from harness_ext.stats import resampling
from harness_ext.stats.paired import PairedDifference, discordant, mcnemar, paired_difference
from harness_ext.stats.verdicts import Decision, Hypothesis, decide

MARGIN = 0.01


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right/wrong scores of two runs with the given 2 x 2 table."""
    before = np.repeat([1.0, 0.0, 1.0, 0.0], [both, gained, lost, neither])
    after = np.repeat([1.0, 1.0, 0.0, 0.0], [both, gained, lost, neither])
    return before, after


def decided(paired: PairedDifference) -> Decision:
    (decision,) = decide([Hypothesis(paired, MARGIN)])
    return decision


# Oracle: scipy.stats.binomtest on the discordant pairs, and statsmodels.
@pytest.mark.parametrize(("gained", "lost"), [(6, 0), (10, 4), (4, 10), (30, 30), (0, 0), (1, 0), (40, 41), (0, 9)])
def test_mcnemar_is_exact(gained, lost):
    assert discordant(*pairs(40, gained, lost, 9)) == (gained, lost)
    expected = stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(gained, lost) == pytest.approx(their_mcnemar([[50, gained], [lost, 20]], exact=True).pvalue)


# Two cases that another tool got wrong.
def test_from_unparsed_to_trained_is_better():
    paired = paired_difference(*pairs(100, 728, 13, 31))  # 13 % -> 95 % on 872
    assert paired.p_value < 1e-100
    assert (paired.gained, paired.lost) == (728, 13)
    assert decided(paired).verdict == "better"


def test_a_mean_gain_of_18_points_is_better():
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 0.7, 500)
    after = np.clip(before + 0.18 + rng.normal(0, 0.2, 500), 0, 1)
    paired = paired_difference(before, after)
    assert paired.difference == pytest.approx(0.18, abs=0.02)
    assert decided(paired).verdict == "better"


@pytest.mark.parametrize("graded", [False, True])
def test_the_same_scores_twice_are_equivalent(graded):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 872) if graded else rng.integers(0, 2, 872).astype(float)
    paired = paired_difference(scores, scores)
    assert (paired.difference, paired.p_value) == (0, 1)
    assert paired.interval.low < 0 < paired.interval.high  # never a zero-width claim
    assert decided(paired).verdict == "equivalent"


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize(("passages", "word"), [(109, "undecided"), (436, "equivalent")])
def test_the_same_scores_on_passages_show_as_much_as_the_passages(passages, word, graded):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 872) if graded else rng.integers(0, 2, 872).astype(float)
    paired = paired_difference(scores, scores, np.arange(872) % passages)
    assert (paired.difference, paired.p_value, paired.units) == (0, 1, passages)
    assert paired.interval.low < 0 < paired.interval.high
    assert decided(paired).verdict == word


def test_ten_equal_documents_show_nothing():
    assert decided(paired_difference(np.full(10, 0.5), np.full(10, 0.5))).verdict == "undecided"


def test_binary_scores_on_passages_keep_mcnemar_as_secondary():
    paired = paired_difference(*pairs(20, 12, 4, 24), np.arange(60) // 3)  # gains and losses share passages
    assert (paired.units, paired.effective_units) == (20, pytest.approx(20))
    assert "by passage" in paired.method
    assert paired.mcnemar_p == mcnemar(12, 4)
    assert paired.p_value != paired.mcnemar_p
    assert not paired.is_exact


def test_clusters_of_one_document_change_nothing():
    before, after = pairs(20, 12, 4, 24)
    assert paired_difference(before, after, np.arange(60)) == paired_difference(before, after)


def test_one_passage_shows_nothing_about_others():
    with pytest.raises(ValueError, match="two independent"):
        paired_difference(*pairs(20, 12, 4, 24), ["only"] * 60)


@pytest.mark.parametrize(("before", "after"), [([1.0], [0.0]), ([1.0, 0.0], [1.0])])
def test_what_cannot_be_paired_is_refused(before, after):
    with pytest.raises(ValueError, match="two or more"):
        paired_difference(before, after)


# Simulated coverage of the 95 % interval of a paired difference: the truth is inside in about 95 % of the draws.
def test_coverage_of_independent_binary_differences():
    rng = np.random.default_rng(1)
    hits = 0
    for gained, lost, rest in rng.multinomial(200, [0.15, 0.05, 0.80], 1000):
        interval = paired_difference(*pairs(rest // 2, gained, lost, rest - rest // 2)).interval
        hits += interval.low <= 0.10 <= interval.high
    assert 0.93 <= hits / 1000 <= 0.975


def test_coverage_of_clustered_differences(monkeypatch):
    monkeypatch.setattr(resampling, "PERMUTATIONS", 9)  # only the interval is judged here
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(50), 8)
    clustered = naive = 0
    for _ in range(1000):
        before = rng.uniform(0, 1, 400)
        after = before + 0.05 + rng.normal(0, 0.2, 50)[clusters] + rng.normal(0, 0.2, 400)
        interval, plain = (paired_difference(before, after, groups).interval for groups in (clusters, None))
        clustered += interval.low <= 0.05 <= interval.high
        naive += plain.low <= 0.05 <= plain.high
    assert 0.93 <= clustered / 1000 <= 0.97
    assert naive / 1000 < 0.75  # coverage if the passages are ignored


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=60), st.booleans())
def test_swapping_the_runs_mirrors_the_result(rows, clustered):
    before, after = np.array(rows, dtype=float).T
    clusters = np.arange(len(rows)) // 3 if clustered else None
    there, back = paired_difference(before, after, clusters), paired_difference(after, before, clusters)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.difference == pytest.approx(-back.difference)
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.low - 1e-12 <= there.difference <= there.interval.high + 1e-12


@pytest.mark.parametrize("clusters", [np.arange(60) // 3, None])
def test_the_interval_holds_a_difference_of_all_there_is(clusters):
    paired = paired_difference(np.zeros(60), np.full(60, 1.0 if clusters is not None else 0.99), clusters)
    assert paired.interval.low <= paired.difference <= paired.interval.high
