"""Areas under ROC curves on the same documents, and the variance of their difference.

DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
curves", Biometrics 44 (1988); with units of several documents, Obuchowski, "Nonparametric analysis of clustered ROC
curve data", Biometrics 53 (1997).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from harness_ext.stats.intervals import Estimate
from harness_ext.stats.units import Clusters, Floats, column, effective_number


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive outranks a negative, ties counting half (Mann–Whitney); NaN if a class is missing.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    positive, values = column(labels) == 1, column(scores)
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return math.nan
    return float((rankdata(values)[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def components(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """DeLong's structural components, (n,).

    For a positive: the share of negatives ranked below it. For a negative: the share of positives ranked above it.
    Ties count half.
    """
    positive, values = column(labels) == 1, column(scores)
    ranks = rankdata(values)
    shares = np.empty(len(values))
    for side, other, above in ((positive, ~positive, False), (~positive, positive, True)):
        within = rankdata(values[side])
        below = (ranks[side] - within) / other.sum()  # share of the other class ranked below, ties counting half
        shares[side] = 1 - below if above else below
    return shares


def auroc_difference(
    labels: ArrayLike, before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None
) -> Estimate:
    """The difference of two AUROCs with its variance; degrees of freedom by Satterthwaite over the two classes.

    Raises:
        ValueError: a class has fewer than two units.
    """
    difference = components(labels, after) - components(labels, before)
    return _estimate(column(labels), difference, clusters)


def auroc_estimate(labels: ArrayLike, scores: ArrayLike, clusters: Clusters | None = None) -> Estimate:
    """One AUROC with its variance; see `auroc_difference`."""
    return _estimate(column(labels), components(labels, scores), clusters)


def _estimate(labels: Floats, parts: Floats, clusters: Clusters | None) -> Estimate:
    positive = labels == 1
    value = float(parts[positive].mean())
    if least_class_units(labels, clusters) < 2:
        raise ValueError("an AUROC needs at least two independent documents or passages of each class")
    influence = np.where(positive, (parts - value) / positive.sum(), (parts - value) / (~positive).sum())
    sources = []
    for side in (positive, ~positive):
        sums = influence[side] if clusters is None else clusters.sums(np.where(side, influence, 0.0))
        count = _units(side, clusters)
        sources.append((count / (count - 1) * float((sums**2).sum()), count - 1))
    if clusters is None:
        variance = sum(part for part, _ in sources)
    else:
        sums, count = clusters.sums(influence), clusters.count
        variance = count / (count - 1) * float((sums**2).sum())
    spread = sum(part**2 / df for part, df in sources if part > 0)
    degrees = sum(part for part, _ in sources) ** 2 / spread if spread > 0 else float(len(labels) - 1)
    if clusters is not None:
        degrees = min(degrees, max(effective_number(clusters.sizes) - 1, 1.0))
    return Estimate(value, ((variance, degrees),))


def _units(side: np.ndarray, clusters: Clusters | None) -> int:
    return int(side.sum()) if clusters is None else len(np.unique(clusters.codes[side]))


def least_class_units(labels: ArrayLike, clusters: Clusters | None = None) -> int:
    """Number of units with a document of the rarer class."""
    positive = column(labels) == 1
    return min(_units(positive, clusters), _units(~positive, clusters))
