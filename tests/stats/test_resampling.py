"""Sign-flip tests, swap tests and bootstraps, against counting by hand and against scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from harness_ext.stats import resampling
from harness_ext.stats.intervals import jackknife
from harness_ext.stats.resampling import bootstrap, least_p_value, percentile_interval, sign_flip_test, swap_test
from harness_ext.stats.units import Clusters


# Oracle: every sign pattern, counted one by one.
@pytest.mark.parametrize("sums", [[1.0, 1.0, 1.0], [0.3, -0.1, 0.2, 0.5, 0.0], [2.0], [1.0, -1.0]])
def test_sign_flip_counts_all_patterns(sums):
    patterns = list(itertools.product([1, -1], repeat=len(sums)))
    extreme = [abs(np.dot(p, sums)) >= abs(sum(sums)) - 1e-12 for p in patterns]
    assert sign_flip_test(sums) == pytest.approx(np.mean(extreme))


# Oracle: the same, with the mean over its jackknife standard error of each pattern.
@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_of_unequal_units_are_studentised(seed):
    rng = np.random.default_rng(seed)
    passages = np.repeat(np.arange(9), [1, 1, 2, 2, 3, 3, 4, 5, 20])
    delta, groups = rng.normal(0.3, 1, len(passages)), Clusters(passages)

    def distance(signs: tuple[int, ...]) -> float:
        estimate = jackknife(np.array(signs)[passages] * delta, groups)
        return abs(estimate.value) / estimate.standard_error

    observed = distance((1,) * 9)
    extreme = [distance(p) >= observed * (1 - 1e-9) for p in itertools.product([1, -1], repeat=9)]
    assert sign_flip_test(groups.sums(delta), groups.sizes) == pytest.approx(np.mean(extreme))


def test_the_least_p_value_is_that_of_units_which_all_agree():
    for units in (1, 5, 6, 16):
        assert sign_flip_test([1.0] * units) == least_p_value(units)


# Oracle: scipy.stats.permutation_test over the signs of paired samples.
def test_drawn_sign_flips_agree_with_scipy():
    sums = np.random.default_rng(3).normal(0.25, 1, 60)
    expected = stats.permutation_test(
        (sums, np.zeros(60)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert sign_flip_test(sums) == pytest.approx(expected, abs=0.01)


def test_sign_flips_are_seeded_and_chunks_do_not_matter(monkeypatch):
    sums = np.random.default_rng(3).normal(0.1, 1, 500)
    whole = sign_flip_test(sums, seed=5)
    assert whole == sign_flip_test(sums, seed=5) != sign_flip_test(sums, seed=6)
    monkeypatch.setattr(resampling, "_CHUNK_CELLS", 500 * 7)
    assert sign_flip_test(sums, seed=5) == pytest.approx(whole, abs=0.02)


def test_false_alarms_of_the_sign_flip_stay_below_five_percent(monkeypatch):
    monkeypatch.setattr(resampling, "PERMUTATIONS", 499)
    draws = np.random.default_rng(4).exponential(1, (500, 30)) - 1
    signs = np.random.default_rng(5).choice([-1, 1], (500, 30))
    assert np.mean([sign_flip_test(row, seed=i) < 0.05 for i, row in enumerate(draws * signs)]) <= 0.075


# Oracle: scipy.stats.bootstrap of a mean.
def test_bootstrap_of_a_mean():
    values = np.random.default_rng(1).exponential(1, 80)
    interval = percentile_interval(bootstrap(80, lambda weights: weights @ values / weights.sum(axis=1), seed=3))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


@pytest.mark.parametrize("units", [12, 40])
def test_swapping_a_mean_is_flipping_its_signs(units):
    rng = np.random.default_rng(4)
    before, after = rng.random((units, 1)), rng.random((units, 1)) + 0.1
    p_value = swap_test(before, after, lambda sums: sums[:, 0] / units, seed=5)
    assert p_value == pytest.approx(sign_flip_test(after - before, seed=5))


def test_pooling_keeps_totals_and_hardly_moves_the_p_value():
    draws = np.random.default_rng(6).normal(0.02, 1, (6_000, 1))
    pooled = resampling.pooled(draws, seed=0)
    assert len(pooled) == resampling.POOLED_UNITS
    assert pooled.sum() == pytest.approx(draws.sum())
    assert sign_flip_test(draws) == pytest.approx(stats.ttest_1samp(draws[:, 0], 0).pvalue, abs=0.02)
