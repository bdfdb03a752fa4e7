"""Ranks with ties: a run stands behind those that are significantly better, and beside all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness_ext.analysis.statistics import ALPHA, Clusters, Floats, effective_clusters, holm, is_binary


def ranks(scores: Floats, clusters: Clusters | None = None, *, higher_is_better: bool = True) -> list[int]:
    """1 + the number of runs that are significantly better, over all pairs of runs.

    Right/wrong scores of independent documents: exact McNemar. Others: a paired t test of cluster sums.
    Two-sided, Holm-corrected over the pairs. All pairs come from one matrix product, so fifty runs on a
    million documents take seconds.

    Args:
        scores: (n, M), one column for each run, all on the same documents.
        clusters: passages.
        higher_is_better: whether more is better.

    >>> ranks(np.array([[1.0, 1.0, 0.0]] * 40))
    [1, 1, 3]
    """
    groups = effective_clusters(clusters)
    p_values = _mcnemar_all(scores) if groups is None and is_binary(scores) else _t_tests(scores, groups)
    first, second = np.triu_indices(scores.shape[1], k=1)
    significant = np.zeros(p_values.shape, dtype=bool)
    significant[first, second] = np.array(holm(p_values[first, second].tolist())) < ALPHA
    significant |= significant.T
    means = scores.mean(axis=0) * (1 if higher_is_better else -1)
    better = significant & (means[None, :] > means[:, None])  # (M, M): the column is better than the row
    return [1 + int(count) for count in better.sum(axis=1)]


def _mcnemar_all(scores: Floats) -> Floats:
    """Exact p-values of every pair, (M, M): twice the tail of the smaller discordant count, at most 1."""
    right = scores.T @ scores  # both right
    only_first = np.diag(right)[:, None] - right
    smaller, total = np.minimum(only_first, only_first.T), only_first + only_first.T
    return np.minimum(1.0, 2 * stats.binom.cdf(smaller, total, 0.5))


def _t_tests(scores: Floats, groups: Clusters | None) -> Floats:
    """Paired t tests of every pair, (M, M), from the products of cluster sums of residuals."""
    residuals = scores - scores.mean(axis=0)
    sums = residuals if groups is None else groups.sums(residuals)
    products: NDArray[np.float64] = sums.T @ sums
    own = np.diag(products)
    count = len(sums)
    spread = np.maximum(own[:, None] + own[None, :] - 2 * products, 0) * count / (count - 1)
    errors = np.sqrt(spread) / len(scores)
    distance = np.abs(scores.mean(axis=0)[:, None] - scores.mean(axis=0)[None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2 * stats.t.sf(distance / errors, count - 1)
    return np.where(distance > 1e-12, found, 1.0)
