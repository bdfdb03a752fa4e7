"""Intervals of one mean, of two paired proportions, and Holm's correction, against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness_ext.stats.intervals import bonett_price, describe_mean, holm, jackknife, proportion_interval
from harness_ext.stats.units import Clusters


# Oracle: the Wilson formula by hand, and the beta quantiles of Clopper–Pearson.
@pytest.mark.parametrize(("k", "n"), [(444, 872), (13, 100), (1, 5000)])
def test_large_samples_get_wilson(k, n):
    z, p = 1.959963984540054, k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = proportion_interval(k, n)
    assert (interval.low, interval.high) == pytest.approx(
        ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    )


@pytest.mark.parametrize(("k", "n"), [(0, 872), (872, 872), (7, 20), (0, 1), (99, 99)])
def test_small_or_extreme_samples_get_clopper_pearson(k, n):
    low = 0.0 if k == 0 else stats.beta.ppf(0.025, k, n - k + 1)
    high = 1.0 if k == n else stats.beta.ppf(0.975, k + 1, n - k)
    interval = proportion_interval(k, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("k", "n", "method"), [(444, 872, "wilson"), (7, 20, "beta"), (0, 300, "beta")])
def test_proportions_are_those_of_statsmodels(k, n, method):
    interval = proportion_interval(k, n)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(k, n, method=method), abs=1e-9)


# Oracle: scipy's one-sample t interval.
def test_unclustered_mean_interval_is_the_t_interval():
    scores = np.random.default_rng(0).beta(2, 3, 57)
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    interval = jackknife(scores, None).interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


# Oracle: by hand. Clusters {1, 1} and {0, 0}: the mean without the one is 0, without the other 1,
# variance = 1/2 * (1/4 + 1/4), SE = 1/2, t(.975, 1 df) = 12.7062.
def test_clustered_mean_interval_by_hand():
    interval = jackknife(np.array([1.0, 1.0, 0.0, 0.0]), Clusters(["a", "a", "b", "b"])).interval()
    assert (interval.low, interval.high) == pytest.approx((0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2), abs=1e-4)


# Oracle: an intercept-only regression with cluster-robust errors, which equal clusters have in common with the
# jackknife; statsmodels also multiplies by (n - 1) / (n - K).
def test_equal_clusters_have_the_cluster_robust_standard_error():
    scores, passages = np.random.default_rng(0).random(90), np.arange(90) % 15
    fit = sm.OLS(scores, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": passages})
    estimate = jackknife(scores, Clusters(passages))
    assert estimate.standard_error == pytest.approx(float(fit.bse[0]))
    assert estimate.variances[0][1] == pytest.approx(14)


# Oracle: the mean without each cluster, one by one.
def test_unequal_clusters_are_left_out_one_by_one():
    rng = np.random.default_rng(1)
    scores, passages = rng.random(90), np.minimum(rng.integers(0, 30, 90), 13)  # the last is more than half
    without = np.array([scores[passages != each].mean() for each in range(14)])
    sizes = np.bincount(passages)
    estimate = jackknife(scores, Clusters(passages))
    assert estimate.value == pytest.approx(scores.mean())
    assert estimate.variances == (
        (pytest.approx(13 / 14 * ((without - scores.mean()) ** 2).sum()), pytest.approx(90**2 / (sizes**2).sum() - 1)),
    )


@pytest.mark.parametrize("of", [lambda s, c: jackknife(s, Clusters(c)), describe_mean])
def test_a_single_cluster_has_no_interval(of):
    with pytest.raises(ValueError, match="two independent"):
        of(np.array([0.1, 0.9]), ["a", "a"])


# Oracle: the formula of Bonett & Price (2012) worked out by hand. n = 100, gained 20, lost 8:
# p+ = 21/102, p- = 9/102, difference 12/102 = .117647, SE = sqrt((30/102 - .117647**2) / 102) = .052419,
# interval .117647 -+ 1.959964 * .052419 = (.01491, .22039).
def test_bonett_price_by_hand():
    estimate = bonett_price(20, 8, 100)
    interval = estimate.interval()
    assert (estimate.value, estimate.standard_error) == pytest.approx((0.117647, 0.052419), abs=1e-6)
    assert (interval.low, interval.high) == pytest.approx((0.014907, 0.220387), abs=2e-5)


# Oracle: statsmodels multipletests.
@pytest.mark.parametrize("seed", range(4))
def test_holm(seed):
    p = np.random.default_rng(seed).beta(0.5, 3, 12).tolist()
    p[3] = p[7]  # ties
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


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
    mean = describe_mean(scores, clusters)
    assert mean.method == method
    assert mean.interval.low <= mean.value <= mean.interval.high


def test_passages_that_are_all_wrong_count_as_passages_not_as_documents():
    mean = describe_mean([0.0] * 200, np.arange(200) // 4)
    assert mean.interval == proportion_interval(0, 50)
