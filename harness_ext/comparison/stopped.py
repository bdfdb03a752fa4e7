"""Runs that were stopped early: what their design covers is estimated by it, anything else is not tested.

How many documents such a run has depends on what they showed, so that tests and intervals of a fixed sample do not
hold for it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from harness_ext.comparison.pair import Pair
from harness_ext.comparison.rows import Sequential
from harness_ext.results.run import TaskResult
from harness_ext.stats.intervals import Estimate
from harness_ext.stats.paired import PairedDifference
from harness_ext.stats.sequential.record import Record
from harness_ext.stats.verdicts import Stopped

_ROUNDING = 1e-6  # of a logged estimate


def stopped_record(pair: Pair) -> Record | None:
    """The record of the candidate's row, if the design covers this comparison in principle: its metric and baseline.

    A run that was asked all planned documents while it was watched is tested by its design, too; every other comparison
    of it is an ordinary one.
    """
    base, record = pair.base.result.sequential, pair.first.result.sequential
    if len(pair.runs) > 1 or base is None or record is None or base.design.digest != record.design.digest:
        return None
    is_row = not base.looks and record.outcome is not None
    return record if is_row and pair.base.metric.metric == record.planned.metric else None


def why_not_covered(pair: Pair, margin: float | None) -> str | None:
    """Why the design of a stopped run does not cover a comparison; None if it does, or if nothing was stopped.

    Args:
        pair: of one task.
        margin: of equivalence, in the unit of the metric.
    """
    stopped = [each for each in (pair.base, *pair.runs.values()) if is_stopped(each.result)]
    if not stopped:
        return None
    first = stopped[0].result.sequential
    assert first is not None
    what = f"{stopped[0].run.name} was stopped early, {_share(first)}"
    base, record = pair.base.result.sequential, pair.first.result.sequential
    if len(pair.runs) > 1:
        return f"{what}, so that seeds cannot be averaged; compare each seed with --each-seed"
    if base is None or record is None or base.design.digest != record.design.digest:
        return f"{what}, by a design that does not cover this pair; evaluate both to the end"
    if base.looks or record.outcome is None:
        text = f"{what}, by a design whose baseline is {record.baseline!r}" if base.looks else f"{what}, before a look"
        return f"{text}; {'evaluate both to the end' if base.looks else 'go on with --until-decided'}"
    if pair.base.metric.metric != record.planned.metric:
        return f"{what}, by {record.planned.metric}; compare that metric, or evaluate to the end"
    if not _same(margin, record.planned.margin):
        return f"{what}, with a margin of {_margin(record.planned.margin)}; choose the same margin"
    return _contradiction(pair, record)


def is_stopped(result: TaskResult) -> bool:
    """Whether a run was stopped early on this task."""
    return result.sequential is not None and result.sequential.is_stopped_early


def sequential_difference(fixed: PairedDifference, record: Record) -> PairedDifference:
    """The difference as the design estimates it: median-unbiased, with the stage-wise interval and p-value.

    Args:
        fixed: the same difference as if the number of documents had been fixed.
        record: of the candidate's row.
    """
    final, look = record.final(), record.looks[-1]
    variance = ((look.standard_error**2, look.degrees),)
    return replace(
        fixed,
        estimate=Estimate(final.estimate, variance),
        interval=final.interval,
        p_value=final.p_value,
        least_p=0.0,
        method=f"group-sequential ({'exact sign test' if look.gained is not None else 'jackknife t'} at each look), "
        "stage-wise interval, median-unbiased estimate",
    )


def stopped_as(record: Record | None) -> Stopped | None:
    """What a verdict has to know of a sequential evaluation."""
    if record is None or record.outcome is None:
        return None
    spent = record.design.spending_equivalence.spent(record.looks[-1].fraction, record.level)
    return Stopped(record.outcome, spent)


def row_of(record: Record) -> Sequential:
    """What a row shows of its sequential evaluation."""
    assert record.outcome is not None
    look = record.looks[-1]
    return Sequential(look.documents, record.planned.documents, len(record.looks), record.outcome, look.interval)


def _contradiction(pair: Pair, record: Record) -> str | None:
    """What contradicts the record in the samples."""
    before, (after, *_) = pair.numbers()
    difference, look = float(np.mean(after[:, 0] - before[:, 0])), record.looks[-1]
    if pair.n != look.documents or abs(difference - look.estimate) > _ROUNDING * max(1.0, abs(look.estimate)):
        return "the samples are not those of the last look of its sequential evaluation; evaluate again"
    units = pair.n if pair.clusters is None else pair.clusters.count
    if units != look.units:
        return f"{units} units of evidence here, but {look.units} when it was stopped; choose the same --cluster"
    return None


def _share(record: Record) -> str:
    return f"after {record.documents:,} of {record.planned.documents:,} documents"


def _same(first: float | None, second: float | None) -> bool:
    if not first or not second:
        return not first and not second
    return math.isclose(first, second, rel_tol=1e-6)


def _margin(margin: float | None) -> str:
    return "none" if margin is None else f"{margin:g}"
