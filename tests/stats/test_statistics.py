from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness_ext.stats import resampling
from harness_ext.stats.intervals import (
    Interval,
    bonett_price,
    describe_mean,
    mcnemar,
    mean_interval,
    proportion_interval,
)
from harness_ext.stats.paired import minimum_detectable_difference, needed_n, paired_difference, verdict
from harness_ext.stats.resampling import sign_flip_p


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right/wrong scores of two runs with the given 2 x 2 table."""
    before = np.repeat([1.0, 0.0, 1.0, 0.0], [both, gained, lost, neither])
    after = np.repeat([1.0, 1.0, 0.0, 0.0], [both, gained, lost, neither])
    return before, after


# Oracle: the Wilson formula by hand, and the beta quantiles of Clopper–Pearson.
@pytest.mark.parametrize(("k", "n"), [(444, 872), (13, 100), (1, 5000)])
def test_large_samples_get_wilson(k, n):
    z, p = 1.959963984540054, k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = proportion_interval(k, n)
    assert (found.low, found.high) == pytest.approx(
        ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    )


@pytest.mark.parametrize(("k", "n"), [(0, 872), (872, 872), (7, 20), (0, 1), (99, 99)])
def test_small_or_extreme_samples_get_clopper_pearson(k, n):
    low = 0.0 if k == 0 else stats.beta.ppf(0.025, k, n - k + 1)
    high = 1.0 if k == n else stats.beta.ppf(0.975, k + 1, n - k)
    found = proportion_interval(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


# Oracle: scipy's one-sample t interval.
def test_unclustered_mean_interval_is_the_t_interval():
    scores = np.random.default_rng(0).beta(2, 3, 57)
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    found = mean_interval(scores)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


# Oracle: by hand. Clusters {1, 1} and {0, 0}: mean 1/2, residual sums 1 and -1,
# SE = sqrt(2/1 * (1 + 1)) / 4 = 1/2, t(.975, 1 df) = 12.7062.
def test_clustered_mean_interval_by_hand():
    found = mean_interval([1, 1, 0, 0], ["a", "a", "b", "b"])
    assert (found.low, found.high) == pytest.approx((0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2), abs=1e-4)


def test_a_single_cluster_has_no_interval():
    with pytest.raises(ValueError, match="two independent"):
        mean_interval([0.1, 0.9], ["a", "a"])


# Oracle: scipy.stats.binomtest on the discordant pairs.
@pytest.mark.parametrize(("gained", "lost"), [(6, 0), (10, 4), (4, 10), (30, 30), (0, 0), (1, 0)])
def test_mcnemar_is_exact(gained, lost):
    expected = stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(*pairs(40, gained, lost, 9)) == pytest.approx(expected)


# Oracle: the formula of Bonett & Price (2012) worked out by hand. n = 100, gained 20, lost 8:
# p+ = 21/102, p- = 9/102, difference 12/102 = .117647, SE = sqrt((30/102 - .117647**2) / 102) = .052419,
# interval .117647 -+ 1.959964 * .052419 = (.01491, .22039).
def test_bonett_price_by_hand():
    found = bonett_price(20, 8, 100)
    assert (found.low, found.high) == pytest.approx((0.014907, 0.220387), abs=2e-5)


# Oracle: every sign pattern, counted one by one.
@pytest.mark.parametrize("sums", [[1.0, 1.0, 1.0], [0.3, -0.1, 0.2, 0.5, 0.0], [2.0], [1.0, -1.0]])
def test_sign_flip_counts_all_patterns(sums):
    patterns = list(itertools.product([1, -1], repeat=len(sums)))
    extreme = [abs(np.dot(p, sums)) >= abs(sum(sums)) - 1e-12 for p in patterns]
    assert sign_flip_p(sums) == pytest.approx(np.mean(extreme))


# Oracle: scipy.stats.permutation_test over the signs of paired samples.
def test_drawn_sign_flips_agree_with_scipy():
    sums = np.random.default_rng(3).normal(0.25, 1, 60)
    expected = stats.permutation_test(
        (sums, np.zeros(60)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert sign_flip_p(sums) == pytest.approx(expected, abs=0.01)


def test_sign_flips_are_seeded_and_chunks_do_not_matter(monkeypatch):
    sums = np.random.default_rng(3).normal(0.1, 1, 500)
    whole = sign_flip_p(sums, seed=5)
    assert whole == sign_flip_p(sums, seed=5) != sign_flip_p(sums, seed=6)
    monkeypatch.setattr(resampling, "_CHUNK_CELLS", 500 * 7)
    assert sign_flip_p(sums, seed=5) == pytest.approx(whole, abs=0.02)


# The two regression cases of METRICS.md.
def test_from_unparsed_to_trained_is_better():
    found = paired_difference(*pairs(100, 728, 13, 31))  # 13 % -> 95 % on 872
    assert found.p_value < 1e-100
    assert verdict(found.interval, margin=0.01, p_value=found.p_value) == "better"


def test_a_mean_gain_of_18_points_is_better():
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 0.7, 500)
    after = np.clip(before + 0.18 + rng.normal(0, 0.2, 500), 0, 1)
    found = paired_difference(before, after)
    assert found.difference == pytest.approx(0.18, abs=0.02)
    assert verdict(found.interval, margin=0.01, p_value=found.p_value) == "better"


@pytest.mark.parametrize("clusters", [None, np.arange(872) // 8])
@pytest.mark.parametrize("graded", [False, True])
def test_the_same_scores_twice_are_equivalent(graded, clusters):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 872) if graded else rng.integers(0, 2, 872).astype(float)
    found = paired_difference(scores, scores, clusters)
    assert (found.difference, found.p_value) == (0, 1)
    assert found.interval.low < 0 < found.interval.high  # never a zero-width claim
    assert verdict(found.interval, margin=0.01, p_value=found.p_value) == "equivalent"


def test_ten_equal_documents_show_nothing():
    found = paired_difference(np.full(10, 0.5), np.full(10, 0.5))
    assert verdict(found.interval, margin=0.01, p_value=found.p_value) == "undecided"
    assert needed_n(found, margin=0.01) == 276  # 1.96 * sqrt(2) / (276 + 2) < .01


def test_binary_scores_on_passages_keep_mcnemar_as_secondary():
    before, after = pairs(20, 12, 4, 24)
    found = paired_difference(before, after, np.arange(60) // 3)  # gains and losses share passages
    assert found.units == 20
    assert "cluster" in found.method
    assert found.mcnemar_p == mcnemar(before, after)
    assert found.p_value != found.mcnemar_p


def test_clusters_of_one_document_change_nothing():
    before, after = pairs(20, 12, 4, 24)
    assert paired_difference(before, after, np.arange(60)) == paired_difference(before, after)


def test_one_passage_falls_back_to_documents():
    before, after = pairs(20, 12, 4, 24)
    assert paired_difference(before, after, ["only"] * 60) == paired_difference(before, after)


@pytest.mark.parametrize(("before", "after"), [([1.0], [0.0]), ([1.0, 0.0], [1.0])])
def test_what_cannot_be_paired_is_refused(before, after):
    with pytest.raises(ValueError, match="two or more"):
        paired_difference(before, after)


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.5, 2.0, 0.01, "better"),
        (-2.0, -0.5, 0.01, "worse"),
        (-0.4, 0.9, 0.5, "equivalent"),
        (0.2, 0.8, 0.001, "equivalent"),  # significant, and too small to matter
        (-1.0, 1.0, 1.0, "equivalent"),
        (-0.4, 1.1, 0.3, "undecided"),
        (0.1, 2.0, 0.06, "undecided"),  # interval and test disagree
        (0.0, 2.0, 0.04, "undecided"),
    ],
)
def test_verdict(low, high, p, word):
    assert verdict(Interval(low, high), margin=1.0, p_value=p) == word


# Oracle: METRICS.md, n = 872: 2.1 / 3.0 / 4.2 points at 5 / 10 / 20 % discordant pairs.
@pytest.mark.parametrize(("share", "points"), [(0.05, 2.1), (0.10, 3.0), (0.20, 4.2)])
def test_minimum_detectable_difference(share, points):
    discordant = round(872 * share / 2)
    found = paired_difference(*pairs(400, discordant, discordant, 472 - 2 * discordant))
    assert 100 * minimum_detectable_difference(found) == pytest.approx(points, abs=0.05)


# Oracle: simulation. With the n it names, four of five repetitions find the observed difference.
def test_needed_n_gives_80_percent_power():
    found = paired_difference(*pairs(100, 22, 14, 64))  # 4 points, p = .24
    n = needed_n(found, margin=0.01)
    rng = np.random.default_rng(0)
    cells = rng.multinomial(n, [0.11, 0.07, 0.82], 1000)
    detected = [stats.binomtest(int(min(up, down)), int(up + down), 0.5).pvalue < 0.05 for up, down, _ in cells]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.04)


def test_needed_n_asks_for_six_passages_and_more_documents_than_there_are():
    found = paired_difference([0.0] * 8, [0.9] * 7 + [0.8], [1, 1, 2, 2, 3, 3, 4, 4])
    assert found.p_value == 0.125  # 2 / 2**4
    assert needed_n(found, margin=0.01) >= 12


# Simulated coverage of the 95 % interval of a paired difference: the truth is inside in about 95 % of the draws.
def test_coverage_of_independent_binary_differences():
    rng = np.random.default_rng(1)
    hits = 0
    for gained, lost, rest in rng.multinomial(200, [0.15, 0.05, 0.80], 1000):
        found = paired_difference(*pairs(rest // 2, gained, lost, rest - rest // 2)).interval
        hits += found.low <= 0.10 <= found.high
    assert 0.93 <= hits / 1000 <= 0.975


def test_coverage_of_clustered_differences(monkeypatch):
    monkeypatch.setattr(resampling, "PERMUTATIONS", 9)  # only the interval is judged here
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(50), 8)
    clustered = naive = 0
    for _ in range(1000):
        before = rng.uniform(0, 1, 400)
        after = before + 0.05 + rng.normal(0, 0.2, 50)[clusters] + rng.normal(0, 0.2, 400)
        found, plain = (paired_difference(before, after, groups).interval for groups in (clusters, None))
        clustered += found.low <= 0.05 <= found.high
        naive += plain.low <= 0.05 <= plain.high
    assert 0.93 <= clustered / 1000 <= 0.97
    assert naive / 1000 < 0.75  # what ignoring the passages would do


def test_false_alarms_of_the_sign_flip_stay_below_five_percent(monkeypatch):
    monkeypatch.setattr(resampling, "PERMUTATIONS", 499)
    draws = np.random.default_rng(4).exponential(1, (500, 30)) - 1
    signs = np.random.default_rng(5).choice([-1, 1], (500, 30))
    assert np.mean([sign_flip_p(row, seed=i) < 0.05 for i, row in enumerate(draws * signs)]) <= 0.075


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60), st.booleans())
def test_swapping_the_runs_mirrors_the_result(rows, clustered):
    before, after = np.array(rows, dtype=float).T
    clusters = np.arange(len(rows)) // 3 if clustered else None
    there, back = paired_difference(before, after, clusters), paired_difference(after, before, clusters)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.difference == pytest.approx(-back.difference)
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.low - 1e-12 <= there.difference <= there.interval.high + 1e-12


@pytest.mark.parametrize(
    ("scores", "clusters", "method"),
    [
        ([0.0, 1.0] * 100, None, "Wilson"),
        ([0.0, 1.0] * 10, None, "Clopper–Pearson"),
        ([0.0] * 200, np.arange(200) // 4, "Clopper–Pearson"),
        ([0.5, 0.4, 0.6], None, "t interval"),
        ([0.1, 0.0, 0.0, 0.3], None, "logit t interval"),  # t would begin below 0
        ([0.0, 1.0, 1.0, 0.0], [1, 1, 2, 2], "t interval clustered by passage"),
    ],
)
def test_describe_mean_names_its_method(scores, clusters, method):
    found = describe_mean(scores, clusters)
    assert found.method == method
    assert found.interval.low <= found.value <= found.interval.high
