"""Several runs of one recipe against one baseline: differences over documents and seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness_ext.stats.intervals import Estimate, jackknife
from harness_ext.stats.paired import UNBOUNDED, Limits, PairedDifference, from_estimate, paired_difference, span_of
from harness_ext.stats.units import Clusters, Floats, real_clusters

ENOUGH_SEEDS = 3  # fewer support no statement about the method


def two_level_difference(
    before: Floats, afters: Floats, clusters: Clusters | None = None, *, limits: Limits = UNBOUNDED, seed: int = 0
) -> PairedDifference:
    """Mean difference over seeds, with an interval over documents and, from three seeds on, over seeds.

    Documents and seeds both vary: the variances of both are estimated and added (Graybill–Wang). What documents and
    seeds share is in the variance of documents already, and is taken off the variance of seeds. With fewer seeds the
    interval covers the sampling of documents only.

    Args:
        before: (n,) scores of the baseline.
        afters: (S, n) scores of each seed.
        clusters: units.
        limits: of the metric.
        seed: of the sign flips that fewer than three seeds are tested with.

    Raises:
        ValueError: fewer than two documents or units.
    """
    delta = afters - before
    count = len(afters)
    if count < ENOUGH_SEEDS or not delta.any():
        return replace(paired_difference(before, afters.mean(axis=0), clusters, limits=limits, seed=seed), seeds=count)
    groups = real_clusters(clusters)
    documents = jackknife(delta.mean(axis=0), groups)
    estimate = Estimate(documents.value, (*documents.variances, seed_variance(delta, groups)))
    found = from_estimate(
        estimate,
        1.0,
        n=len(before),
        clusters=groups,
        span=span_of(before, afters, limits),
        method=f"two-level t interval over {'documents' if groups is None else 'passages'} and seeds (Graybill–Wang)",
    )
    found = replace(found, seeds=count)
    return replace(found, p_value=found.decisive.p_value())


def seed_variance(scores: Floats, clusters: Clusters | None) -> tuple[float, float]:
    """What the draw of seeds adds to the variance of a mean, and its degrees of freedom.

    What documents and seeds share (the residuals) is in the variance of documents already, and is taken off.

    Args:
        scores: (S, n) of each seed, or differences.
        clusters: units.
    """
    count, n = scores.shape
    units = n if clusters is None else clusters.count
    by_seed, mean = scores.mean(axis=1), scores.mean()
    of_seeds = float(((by_seed - mean) ** 2).sum()) / (count - 1) / count
    residuals = scores - scores.mean(axis=0) - by_seed[:, None] + mean
    sums = residuals if clusters is None else np.stack([clusters.sums(row) for row in residuals])
    interaction = units / (units - 1) / n**2 * float((sums**2).sum()) / (count - 1) / count
    return max(of_seeds - interaction, 0.0), count - 1.0
