"""A plan on one screen: documents for each difference, what `--until-decided` asks of them, and minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness_ext.formatting import format_difference
from harness_ext.metrics.statistic import SHARE
from harness_ext.render.grid import Column, Grid, cell
from harness_ext.stats.sequential.planning import Need, Spread


def plan_grid(title: str, needs: Sequence[Need], *, unit: str, available: int | None, seconds: float | None) -> Grid:
    """A line for each difference.

    Args:
        title: what is planned.
        needs: one for each difference.
        unit: of the metric.
        available: documents of the data set; None if unknown.
        seconds: for one document, base and adapter together; None if unknown.
    """
    names = ("difference", "fixed size", "until decided: plan", "asked on average", "at worst")
    columns = [Column(cell(name), right=True) for name in (*names, *(("minutes",) if seconds else ()))]
    rows = []
    for need in needs:
        average = need.share * need.planned
        beyond = "more than there are" if available is not None and need.planned > available else None
        row = [
            cell(format_difference(need.difference, unit).lstrip("+")),
            cell(f"{need.fixed:,}"),
            cell(f"{need.planned:,}", beyond),
            cell(f"{average:,.0f}", f"{100 * need.share:.0f} %"),
            cell(f"{need.planned:,}", "100 %"),
        ]
        if seconds:
            times = [_minutes(count * seconds) for count in (average, need.planned, need.fixed)]
            row.append(cell(times[0], f"at worst {times[1]}", f"fixed {times[2]}"))
        rows.append(row)
    return Grid(columns, rows, title)


@dataclass(frozen=True)
class Overview:
    """What the documents of one task can show of one run."""

    task: str
    run: str
    unit: str
    spread: Spread
    documents: int
    detectable: float  # difference found with 80 % power
    share: float  # of the documents, asked on average if that is the difference
    null_share: float  # and if there is none
    seconds: float | None  # for one document


def overview_grid(plans: Sequence[Overview]) -> Grid:
    """A line for each task and run."""
    columns = [Column(cell("task")), Column(cell("run"))]
    columns += [Column(cell(name), right=True) for name in ("n", "shows", "asked", "if null", "ICC", "minutes")]
    rows = []
    for plan in plans:
        correlation, worst = plan.spread.correlation, plan.documents * (plan.seconds or 0.0)
        rows.append(
            [
                cell(plan.task),
                cell(plan.run),
                cell(f"{plan.documents:,}"),
                cell(f"≥ {format_difference(plan.detectable, plan.unit).lstrip('+')}"),
                cell(f"{100 * plan.share:.0f} %"),
                cell(f"{100 * plan.null_share:.0f} %"),
                cell("–" if correlation is None else f"{correlation:.2f}"),
                cell(f"{_minutes(plan.share * worst)}–{_minutes(worst)}" if worst else "–"),
            ]
        )
    return Grid(columns, rows)


def spread_line(spread: Spread, unit: str = SHARE) -> str:
    """What is known of the spread, in one line."""
    parts = [f"standard deviation of a document's difference {format_difference(spread.deviation, unit).lstrip('+')}"]
    if spread.correlation is not None:
        parts.append(
            f"correlation within a passage {spread.correlation:.2f}: {spread.design_effect:.1f} documents count as one"
        )
    source = "assumed" if spread.documents is None else f"from {spread.documents:,} documents"
    return f"{'; '.join(parts)} ({source})"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f}" if seconds < 600 else f"{seconds / 60:,.0f}"
