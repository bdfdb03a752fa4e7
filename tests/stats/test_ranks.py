from __future__ import annotations

import numpy as np
import pytest

from harness_ext.stats.paired import discordant, mcnemar, paired_difference
from harness_ext.stats.ranks import _mcnemar_all, _t_tests, better_pairs, ranks
from harness_ext.stats.units import Clusters


# Oracle: every pair by itself.
def test_all_pairs_at_once_are_the_pairs_one_by_one():
    scores = (np.random.default_rng(0).random((200, 4)) < [0.5, 0.6, 0.7, 0.7]).astype(float)
    p_values = _mcnemar_all(scores)
    for i, j in ((0, 1), (0, 3), (2, 3)):
        expected = mcnemar(*discordant(scores[:, i], scores[:, j]))
        assert p_values[i, j] == p_values[j, i] == pytest.approx(expected)
    assert np.diag(p_values).tolist() == [1] * 4


# Oracle: the estimate on which a verdict about the pair would be based.
@pytest.mark.parametrize("passages", [None, np.arange(90) // 6, np.minimum(np.arange(90) // 3, 15)])
def test_graded_pairs_are_tested_like_a_run_and_its_baseline(passages):
    rng = np.random.default_rng(1)
    scores = rng.random((90, 3)) + np.array([0, 0.1, 0.3])
    groups = None if passages is None else Clusters(passages)
    p_values = _t_tests(scores, groups, (0.0, 2.0), {})
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair = paired_difference(scores[:, i], scores[:, j], groups, limits=(0.0, 2.0))
        assert p_values[i, j] == p_values[j, i] == pytest.approx(pair.decisive.p_value())


def test_ties_share_a_rank_and_lower_can_be_better():
    rng = np.random.default_rng(2)
    scores = rng.random((400, 1)) + rng.normal(0, 0.05, (400, 4)) + [0.0, 0.2, 0.2, 0.4]
    candidates = scores[:, 1:]  # the first is the baseline
    assert ranks(better_pairs(candidates), ["better"] * 3) == [4, 2, 2, 1]
    assert ranks(better_pairs(candidates, higher_is_better=False), ["worse"] * 3) == [1, 2, 2, 4]
    same = better_pairs(candidates[:, :1].repeat(3, axis=1))
    assert not same.any()
    assert ranks(same, ["equivalent", "undecided", None]) == [1, 1, 1, 1]


def test_with_too_few_units_nothing_is_significant():
    scores = np.array([[0.0, 1.0]] * 30)
    assert better_pairs(scores).any()
    assert not better_pairs(scores, Clusters(np.arange(30) % 5)).any()
