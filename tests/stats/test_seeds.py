"""Differences over documents and seeds."""

from __future__ import annotations

import numpy as np

from harness_ext.stats.paired import paired_difference
from harness_ext.stats.seeds import two_level_difference


def test_equal_seeds_differ_by_nothing():
    same = np.ones((3, 50)) * np.arange(50) % 2
    paired = two_level_difference(same[0], same)
    assert (paired.difference, paired.p_value, paired.seeds) == (0, 1, 3)


def test_one_seed_is_the_plain_paired_test():
    rng = np.random.default_rng(0)
    before, after = rng.random(40), rng.random(40)
    assert two_level_difference(before, after[None], limits=(0, 1)) == paired_difference(before, after)


def test_from_three_seeds_on_seeds_are_a_source_of_variance():
    rng = np.random.default_rng(1)
    before, afters = rng.random(40), rng.random((4, 40)) + rng.normal(0.2, 0.1, (4, 1))
    two, four = (two_level_difference(before, afters[:count]) for count in (2, 4))
    assert (len(two.estimate.variances), "two-level" in two.method) == (1, False)
    assert (len(four.estimate.variances), "two-level" in four.method) == (2, True)
    assert four.estimate.variances[1][1] == 3  # degrees of freedom
    assert four.p_value == four.decisive.p_value()
