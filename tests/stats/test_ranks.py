from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness_ext.stats.intervals import Clusters, mcnemar, mean_standard_error
from harness_ext.stats.ranks import _mcnemar_all, _t_tests, ranks


# Oracle: every pair by itself.
def test_all_pairs_at_once_are_the_pairs_one_by_one():
    scores = (np.random.default_rng(0).random((200, 4)) < [0.5, 0.6, 0.7, 0.7]).astype(float)
    found = _mcnemar_all(scores)
    for i, j in ((0, 1), (0, 3), (2, 3)):
        assert found[i, j] == found[j, i] == pytest.approx(mcnemar(scores[:, i], scores[:, j]))
    assert np.diag(found).tolist() == [1] * 4


def test_clustered_pairs_use_the_cluster_standard_error():
    rng = np.random.default_rng(1)
    scores, groups = rng.random((90, 3)) + np.array([0, 0.1, 0.3]), Clusters(np.arange(90) // 6)
    delta = scores[:, 2] - scores[:, 0]
    error, units = mean_standard_error(delta, groups)
    expected = 2 * stats.t.sf(abs(delta.mean()) / error, units - 1)
    assert _t_tests(scores, groups)[0, 2] == pytest.approx(expected)


def test_ties_share_a_rank_and_lower_can_be_better():
    rng = np.random.default_rng(2)
    scores = rng.random((400, 1)) + rng.normal(0, 0.05, (400, 4)) + [0.0, 0.2, 0.2, 0.4]
    assert ranks(scores) == [4, 2, 2, 1]
    assert ranks(scores, higher_is_better=False) == [1, 2, 2, 4]
    assert ranks(scores[:, :1].repeat(3, axis=1)) == [1, 1, 1]
