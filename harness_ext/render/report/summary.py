"""What a reader wants to know first, in a few lines: what was compared, whether it is real, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.comparison.rows import Comparison, Row
from harness_ext.render import verdict
from harness_ext.reporting.contents import Report, TaskFigures

MOST_LINES = 8  # of one kind; the sections below have all
_ANSWERS = {
    "better": "Yes.", "worse": "Yes.", "equivalent": "No: the difference is too small to matter.",
    "undecided": "It cannot be told.", None: "It was not tested.",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of the summary."""

    lead: str  # in bold
    text: str
    kind: str = ""  # a verdict, which colours the lead


def compared(report: Report) -> list[Line]:
    """What each run is, and which documents of which task were asked."""
    baseline = report.comparison.baseline
    alike: dict[str, list[str]] = {}
    for run in report.runs:
        alike.setdefault(run.what + (", the baseline" if run.name == baseline else ""), []).append(run.name)
    runs = [Line(_named(names), f"each {what}" if len(names) > 1 else what) for what, names in alike.items()]
    tasks = [Line(task.task, _documents(task)) for task in report.tasks]
    return [*_first(runs, "models"), *_first(tasks, "tasks")]


def _named(names: Sequence[str]) -> str:
    more = len(names) - MOST_LINES
    return ", ".join(names[:MOST_LINES]) + (f" and {more} more" if more > 0 else "")


def _documents(task: TaskFigures) -> str:
    row = task.rows[0]
    sizes = sorted({each.n for each in task.rows})
    asked = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    whole = f" of {task.available:,}" if task.available is not None and task.available > sizes[0] else ""
    stopped = ", stopped early" if any(each.sequential is not None for each in task.rows) and whole else ""
    source = f" of {task.data}" if task.data else ""
    return f"the task, scored by {row.metric} on {asked}{whole} documents{source}{stopped}"


def _first(lines: Sequence[Line], what: str) -> list[Line]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([Line("", f"and {more} more {what}")] if more > 0 else [])]


def real(comparison: Comparison) -> list[Line]:
    """Whether the differences are real, and what that rests on."""
    rows = [row for row in comparison.rows if not row.is_group] or comparison.rows
    if len(rows) == 1:
        (row,) = rows
        return [Line(_ANSWERS[row.verdict], verdict.evidence(row), row.verdict or "not tested")]
    lines = [Line(f"{kind.capitalize()}:", f"{named}.", kind) for kind, named in verdict.lines(comparison)]
    return [*lines, *([Line("", _rule(rows))] if any(row.paired for row in rows) else [])]


def _rule(rows: Sequence[Row]) -> str:
    tests = sum(row.paired is not None for row in rows)
    corrected = f" after correction for {tests} tests" if tests > 1 else ""
    return f"Better or worse is said only if the 95 % interval of the difference excludes zero and p < .05{corrected}."


def wrong(findings: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The first error of each run and task, which is the best proved one.

    Args:
        findings: errors first, and among them proved ones first.
    """
    first: dict[str, Line] = {}
    for each in findings:
        if each["level"] == "error":
            what = f"{each['what']}{', proved' if each['proof'] else ''}"
            first.setdefault(each["where"], Line(each["where"], f"{what}: {each['text']}.", "worse"))
    return _first([*first.values()], "with errors")
