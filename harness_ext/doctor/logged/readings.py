"""The logged outputs, scored again in other readings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from harness_ext.comparison.units import cluster_column
from harness_ext.doctor.alternatives import READINGS
from harness_ext.doctor.case import Case
from harness_ext.doctor.evidence import Gain, gains
from harness_ext.stats.units import Clusters


def rescored(case: Case) -> Mapping[str, Gain]:
    """Readings of the outputs that score significantly more than the outputs as they are, the best first."""
    if case.rescorer is None or not case.is_generated:
        return {}
    docs = [output.doc for output in case.outputs]
    as_logged = case.rescorer.scores(docs, [output.text or "" for output in case.outputs]) * case.factor
    scored = ~np.isnan(as_logged) & ~np.isnan(case.values)
    if not scored.any() or not np.allclose(as_logged[scored], case.values[scored], atol=1e-4):
        return {}  # the installed task scores differently from the one that was evaluated
    changes = {}
    for name, reading in READINGS.items():
        texts = [reading(output) for output in case.outputs]
        if texts != [output.text for output in case.outputs]:
            changes[name] = (case.rescorer.scores(docs, texts) * case.factor)[scored]
    gained = gains(as_logged[scored], changes, clusters_of(case, scored))
    return {gain.change: gain for gain in gained if gain.is_proved}


def clusters_of(case: Case, scored: NDArray[np.bool_]) -> Clusters | None:
    """The units of the scored documents; None if any document lacks the column."""
    column = cluster_column(case.result.task, case.result.metadata, {})
    labels = [output.doc.get(column) for output in case.outputs]
    return None if None in labels else Clusters([str(label) for label in labels]).take(scored)


def best(proved: Mapping[str, Gain], readings: Collection[str]) -> Gain | None:
    """The largest gain of some readings; None if none of them is proved."""
    return next((gain for name, gain in proved.items() if name in readings), None)


def numbers_of(gain: Gain) -> dict[str, object]:
    """What a finding tells of a proof."""
    return {
        "change": gain.change, "before": gain.before, "after": gain.after, "low": gain.interval.low,
        "high": gain.interval.high, "p": gain.p_value, "n": gain.n, "proved": True,
    }  # fmt: skip
