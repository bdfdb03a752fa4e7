"""The course of a sequential evaluation on a terminal: how each row's interval closes in on a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from harness_ext.formatting import format_difference, format_difference_interval
from harness_ext.metrics.statistic import SHARE
from harness_ext.names import visible
from harness_ext.stats.sequential import Look

GAUGE = 21  # characters
NARROW = 76  # columns of a terminal below which there is no room for it
_STYLES = {
    "better": "bold green", "worse": "bold red", "equivalent": "bold blue", "cannot decide": "bold yellow",
    "undecided": "bold yellow",
}  # fmt: skip


@dataclass(frozen=True)
class LookRow:
    """One adapter on one task, as far as it has been asked."""

    task: str
    adapter: str
    planned: int  # documents
    look: Look | None  # the last one
    margin: float | None
    unit: str = SHARE
    failure: str | None = None

    @property
    def status(self) -> str:
        """The verdict, or that there is none yet."""
        if self.failure is not None:
            return f"not decided early: {visible(self.failure)}"
        return "open" if self.look is None or self.look.outcome is None else self.look.outcome

    @property
    def difference(self) -> str:
        """The difference so far with its interval, which holds at every look."""
        if self.look is None:
            return "–"
        interval = format_difference_interval(self.look.interval, self.unit)
        return f"{format_difference(self.look.estimate, self.unit)} {interval}"

    @property
    def documents(self) -> str:
        """How many of the planned documents were asked."""
        return f"{self.look.documents if self.look else 0:,} of {self.planned:,}"


def looks_table(rows: Sequence[LookRow], width: int) -> Table:
    """The difference of each row, its interval against zero and the margin, documents, and verdict.

    Args:
        rows: one adapter on one task each.
        width: of the terminal, in characters.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task\nadapter", overflow="fold", min_width=12)
    table.add_column("difference", justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column("below 0 │ above 0", justify="center", no_wrap=True)
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=7)
    for row in rows:
        limit = _limit([other for other in rows if other.unit == row.unit])
        status = Text(row.status, style=_STYLES.get(row.status, ""))
        difference, _, interval = row.difference.partition(" ")
        documents = row.documents.replace(" of", "\nof")
        names = Text(f"{visible(row.task)}\n{visible(row.adapter)}")
        drawn = [gauge(row, limit)] if width >= NARROW else []
        table.add_row(names, Text(f"{difference}\n{interval}"), *drawn, documents, status)
    return table


def _limit(rows: Sequence[LookRow]) -> float:
    """The end of the scale: the widest interval."""
    ends = [max(abs(row.look.interval.low), abs(row.look.interval.high)) for row in rows if row.look is not None]
    return max([*(end for end in ends if end < float("inf")), *(row.margin or 0.0 for row in rows), 1e-9])


def gauge(row: LookRow, limit: float) -> str:
    """The interval on a scale from -limit to +limit, with zero in the middle and the margins beside it.

    >>> from harness_ext.stats.intervals import Interval
    >>> look = Look(
    ...     documents=100, units=100, fraction=0.5, estimate=0.05, centre=0.05, standard_error=0.01, degrees=9, z=5.0,
    ...     boundary=2.0, limit=2.0, interval=Interval(0.02, 0.08), z_equivalent=None, boundary_equivalent=None,
    ...     power=0.9, outcome=None,
    ... )
    >>> gauge(LookRow("t", "a", 200, look, None), 0.1)
    '          │ ├──●──┤  '
    """
    marks = [" "] * GAUGE

    def place(value: float) -> int:
        return round((min(max(value / limit, -1.0), 1.0) + 1) / 2 * (GAUGE - 1))

    if row.margin:
        marks[place(-row.margin)] = marks[place(row.margin)] = "┊"
    marks[place(0.0)] = "│"
    if row.look is not None:
        low, high = place(row.look.interval.low), place(row.look.interval.high)
        marks[low : high + 1] = ["─"] * (high + 1 - low)
        if low <= place(0.0) <= high:
            marks[place(0.0)] = "┼"
        marks[low], marks[high] = "├", "┤"
        marks[place(row.look.estimate)] = "●"
    return "".join(marks)


def look_lines(rows: Sequence[LookRow], number: int) -> list[str]:
    """What a look has shown, for output that is not a terminal."""
    return [
        f"look {number}: {visible(row.task)}, {visible(row.adapter)}: {row.difference}, {row.documents} documents, "
        f"{row.status}"
        for row in rows
    ]
