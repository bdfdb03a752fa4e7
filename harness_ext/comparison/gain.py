"""Decompose a difference into form (parsing, stopping, abstaining) and skill."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness_ext.comparison.rows import Gain, Part
from harness_ext.results.samples import SampleScores
from harness_ext.stats.intervals import Interval, jackknife
from harness_ext.stats.units import Clusters, Floats, real_clusters

FORMS = ("parsing", "stopping", "abstaining")
SKILL = "skill"


def decompose(
    before: SampleScores,
    after: SampleScores,
    scores: tuple[Floats, Floats],
    clusters: Clusters | None,
) -> Gain | None:
    """Decompose a difference of means by document; None if the samples log nothing about form.

    Each document counts for the first reason that applies: one of its two outputs did not parse; one was cut off at the
    token limit; only one of them abstained. Otherwise both outputs have the same form, and the document counts for
    skill. The parts add up to the difference.

    Args:
        before: the baseline's samples.
        after: the other run's samples, in the same order.
        scores: (n,) scores of both.
        clusters: units of the documents, or None.
    """
    reasons = _reasons(before, after)
    if reasons is None:
        return None
    first, second = scores
    groups, delta = real_clusters(clusters), second - first
    parts = {name: _part(delta, reasons == index, groups) for index, name in enumerate((*FORMS, SKILL))}
    same_form = reasons == len(FORMS)
    return Gain(
        parts={name: part for name, part in parts.items() if part.n},
        skill_before=float(first[same_form].mean()) if same_form.any() else None,
        skill_after=float(second[same_form].mean()) if same_form.any() else None,
    )


def _reasons(before: SampleScores, after: SampleScores) -> NDArray[np.int8] | None:
    """Index of each document's reason in FORMS, or len(FORMS) for skill; None if nothing about form was logged."""
    unreadable = _known(before.parsed, after.parsed) & ((before.parsed == 0) | (after.parsed == 0))
    cut = _known(before.cut, after.cut) & ((before.cut == 1) | (after.cut == 1))
    abstained = _known(before.abstained, after.abstained)
    if not (_known(before.parsed, after.parsed).any() or _known(before.cut, after.cut).any() or abstained.any()):
        return None
    one_abstained = abstained & (before.abstained != after.abstained)
    return np.select([unreadable, cut, one_abstained], [0, 1, 2], default=len(FORMS)).astype(np.int8)


def _known(first: NDArray[np.int8], second: NDArray[np.int8]) -> NDArray[np.bool_]:
    return (first >= 0) & (second >= 0)


def _part(delta: Floats, mask: NDArray[np.bool_], groups: Clusters | None) -> Part:
    contribution = np.where(mask, delta, 0.0)
    mean = float(contribution.mean())
    interval = jackknife(contribution, groups).interval() if contribution.any() else Interval(0.0, 0.0)
    return Part(mean, interval, int(mask.sum()))
