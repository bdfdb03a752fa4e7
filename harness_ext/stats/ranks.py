"""Ranks with ties: a run ranks below the runs that are significantly better, and level with all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness_ext.stats.intervals import ALPHA, Estimate, holm
from harness_ext.stats.paired import UNBOUNDED, Limits, span_of
from harness_ext.stats.units import LEAST_UNITS, Clusters, Floats, effective_number, is_binary, real_clusters

Bools = NDArray[np.bool_]


def better_pairs(
    scores: Floats,
    clusters: Clusters | None = None,
    *,
    higher_is_better: bool = True,
    limits: Limits = UNBOUNDED,
    seed_variances: Mapping[int, tuple[float, float]] | None = None,
) -> Bools:
    """Which runs are significantly better than which, (M, M): True where the column's run beats the row's run.

    Two runs are compared like a run and the baseline: exact McNemar for right/wrong scores of independent documents,
    else a t test with the jackknife variance, the variance between seeds, and one document added in each direction.
    Tests are two-sided and Holm-corrected over the pairs; with fewer than six effective units nothing is significant.
    All pairs come from one matrix product, so fifty runs on a million documents take seconds.

    Args:
        scores: (n, M), one column per run, all on the same documents.
        clusters: units of the documents, or None.
        higher_is_better: whether a higher score is better.
        limits: smallest and largest value of the metric.
        seed_variances: column -> (variance, degrees of freedom), for runs that are means over seeds.

    >>> better_pairs(np.array([[1.0, 1.0, 0.0]] * 40), limits=(0, 1)).astype(int).tolist()
    [[0, 0, 0], [0, 0, 0], [1, 1, 0]]
    """
    groups, runs = real_clusters(clusters), scores.shape[1]
    units = float(len(scores)) if groups is None else effective_number(groups.sizes)
    better = np.zeros((runs, runs), dtype=bool)
    if units < LEAST_UNITS or runs < 2:
        return better
    if groups is None and limits == (0, 1) and not seed_variances and is_binary(scores):
        p_values = _mcnemar_all(scores)
    else:
        p_values = _t_tests(scores, groups, limits, seed_variances or {})
    first, second = np.triu_indices(runs, k=1)
    significant = np.array(holm(p_values[first, second].tolist())) < ALPHA
    means = scores.mean(axis=0) * (1 if higher_is_better else -1)
    for a, b in zip(first[significant], second[significant], strict=True):
        better[(a, b) if means[b] > means[a] else (b, a)] = True
    return better


def ranks(better: Bools, verdicts: Sequence[str | None]) -> list[int]:
    """Ranks of the baseline and of the runs compared with it: 1 + the number of runs that are significantly better.

    Between a run and the baseline the verdict decides, so ranks and verdicts never contradict each other.

    Args:
        better: (M, M) among the runs, as `better_pairs` returns it.
        verdicts: (M,) of each run against the baseline.

    >>> ranks(np.array([[False, True], [False, False]]), ["undecided", "better"])
    [2, 2, 1]
    """
    beats_baseline = np.array([verdict == "better" for verdict in verdicts], dtype=bool)
    loses_to_baseline = np.array([verdict == "worse" for verdict in verdicts], dtype=bool)
    return [1 + int(beats_baseline.sum()), *(1 + int(count) for count in better.sum(axis=1) + loses_to_baseline)]


def _mcnemar_all(scores: Floats) -> Floats:
    """Exact McNemar p-value of every pair, (M, M): twice the tail of the smaller discordant count, at most 1."""
    both_right = scores.T @ scores
    only_first = np.diag(both_right)[:, None] - both_right
    smaller, total = np.minimum(only_first, only_first.T), only_first + only_first.T
    return np.asarray(np.minimum(1.0, 2 * stats.binom.cdf(smaller, total, 0.5)))


def _t_tests(
    scores: Floats, groups: Clusters | None, limits: Limits, seed_variances: Mapping[int, tuple[float, float]]
) -> Floats:
    """p-value of the paired t test of every pair, (M, M), from the units' influences on the means."""
    n = len(scores)
    residuals = scores - scores.mean(axis=0)
    if groups is None:
        influences, degrees = residuals / np.sqrt(n * (n - 1.0)), n - 1.0
    else:
        sizes = groups.sizes
        scale = np.sqrt((groups.count - 1) / groups.count)
        influences = scale * groups.sums(residuals) / (n - sizes)[:, None]
        degrees = max(effective_number(sizes) - 1, 1.0)
    products: Floats = influences.T @ influences
    own = np.diag(products)
    variances = np.maximum(own[:, None] + own[None, :] - 2 * products, 0)
    shrink, span = n / (n + 2), span_of(scores, scores, limits)
    enlarged = variances * shrink**2 + 2 * span**2 / (n + 2) ** 2
    means = scores.mean(axis=0)
    distance = shrink * np.abs(means[:, None] - means[None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * stats.t.sf(distance / np.sqrt(enlarged), degrees)
    for run, source in seed_variances.items():
        for other in range(scores.shape[1]):
            sources = [(v * shrink**2, df) for v, df in (source, seed_variances.get(other, (0.0, 1.0)))]
            estimate = Estimate(float(distance[run, other]), ((float(enlarged[run, other]), degrees), *sources))
            p_values[run, other] = p_values[other, run] = estimate.p_value()
    return np.where(distance > 1e-12, p_values, 1.0)
