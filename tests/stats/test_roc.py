"""Areas under ROC curves, against scikit-learn, and their variances, against DeLong's definition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from harness_ext.stats.paired import paired_auroc
from harness_ext.stats.roc import auroc, auroc_estimate
from harness_ext.stats.units import Clusters


@pytest.fixture
def ranked() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold labels, and scores of two runs with ties."""
    rng = np.random.default_rng(7)
    gold, scores = rng.integers(0, 2, 70), rng.integers(0, 12, 70) / 3.0
    return gold, scores + gold, scores + 3 * gold


def test_the_area_is_that_of_scikit_learn(ranked):
    gold, *sides = ranked
    for side in sides:
        assert auroc(gold, side) == pytest.approx(metrics.roc_auc_score(gold, side))
        assert auroc_estimate(gold, side).value == pytest.approx(auroc(gold, side))


# Oracle: DeLong's components by comparing every positive with every negative.
def test_the_variance_is_delongs(ranked):
    gold, scores, _ = ranked
    up, down = scores[gold == 1], scores[gold == 0]
    wins = (up[:, None] > down) + (up[:, None] == down) / 2
    expected = wins.mean(axis=1).var(ddof=1) / len(up) + wins.mean(axis=0).var(ddof=1) / len(down)
    assert auroc_estimate(gold, scores).variances[0][0] == pytest.approx(expected)


def test_two_areas(ranked):
    gold, before, after = ranked
    paired = paired_auroc(gold, before, after)
    assert paired.difference == pytest.approx(metrics.roc_auc_score(gold, after) - metrics.roc_auc_score(gold, before))
    assert paired.interval.low < paired.difference < paired.interval.high
    assert paired.least_class == min(gold.sum(), 70 - gold.sum())
    same = paired_auroc(gold, before, before, Clusters(np.arange(70) // 7))
    assert (same.difference, same.p_value, same.units) == (0, 1, 10)


def test_without_both_classes_there_is_no_area():
    assert np.isnan(auroc([1, 1], [0.1, 0.2]))
    with pytest.raises(ValueError, match="each class"):
        paired_auroc([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
