"""Several runs of one recipe, differing only in the seed, against one baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness_ext.stats.intervals import Estimate, jackknife
from harness_ext.stats.paired import UNBOUNDED, Limits, PairedDifference, from_estimate, paired_difference, span_of
from harness_ext.stats.units import Clusters, Floats, real_clusters

ENOUGH_SEEDS = 3  # fewer do not support a statement about the method


def two_level_difference(
    before: Floats, afters: Floats, clusters: Clusters | None = None, *, limits: Limits = UNBOUNDED, seed: int = 0
) -> PairedDifference:
    """Mean difference over seeds, with an interval over documents and, given three or more seeds, over seeds.

    Documents and seeds are two sources of variance; both are estimated and added (Graybill–Wang). Their interaction is
    already part of the variance of documents, so it is subtracted from the variance of seeds. With one or two seeds the
    interval covers document sampling only.

    Args:
        before: (n,) scores of the baseline.
        afters: (S, n) scores of each seed.
        clusters: units of the documents, or None.
        limits: smallest and largest value of the metric.
        seed: for drawing sign flips, which test one or two seeds.

    Raises:
        ValueError: there are fewer than two documents or units.
    """
    delta = afters - before
    count = len(afters)
    if count < ENOUGH_SEEDS or not delta.any():
        return replace(paired_difference(before, afters.mean(axis=0), clusters, limits=limits, seed=seed), seeds=count)
    groups = real_clusters(clusters)
    documents = jackknife(delta.mean(axis=0), groups)
    estimate = Estimate(documents.value, (*documents.variances, seed_variance(delta, groups)))
    paired = from_estimate(
        estimate,
        1.0,
        n=len(before),
        clusters=groups,
        span=span_of(before, afters, limits),
        method=f"two-level t interval over {'documents' if groups is None else 'passages'} and seeds (Graybill–Wang)",
    )
    paired = replace(paired, seeds=count)
    return replace(paired, p_value=paired.decisive.p_value())


def seed_variance(scores: Floats, clusters: Clusters | None) -> tuple[float, float]:
    """The variance that the choice of seeds adds to a mean, and its degrees of freedom.

    The interaction of documents and seeds (the residuals) is already part of the variance of documents, so it is
    subtracted here.

    Args:
        scores: (S, n) scores of each seed, or their differences from the baseline.
        clusters: units of the documents, or None.
    """
    count, n = scores.shape
    units = n if clusters is None else clusters.count
    by_seed, mean = scores.mean(axis=1), scores.mean()
    of_seeds = float(((by_seed - mean) ** 2).sum()) / (count - 1) / count
    residuals = scores - scores.mean(axis=0) - by_seed[:, None] + mean
    sums = residuals if clusters is None else np.stack([clusters.sums(row) for row in residuals])
    interaction = units / (units - 1) / n**2 * float((sums**2).sum()) / (count - 1) / count
    return max(of_seeds - interaction, 0.0), count - 1.0
