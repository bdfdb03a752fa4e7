"""Whether a comparison passes the condition of --fail-on, for use in CI."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness_ext.comparison.choices import Bar
from harness_ext.comparison.rows import Comparison, Row
from harness_ext.formatting import format_difference, format_difference_interval, format_p

# Findings that say that a run, a task or documents are missing: whatever the bar, nothing is known about them.
_MISSING = ("R11", "R16", "R17")
_FAILS: Mapping[str, Callable[[Row], bool]] = {
    "worse": lambda row: row.verdict == "worse",
    "undecided": lambda row: row.verdict in ("worse", "undecided", None),
    "not-better": lambda row: row.verdict != "better",
}


def why_it_fails(comparison: Comparison, bar: Bar) -> str | None:
    """One line that names the worst failing row; None if all rows pass.

    A row without samples passes `worse` only, since nothing is known about it. A group that is not tested is ignored,
    since its tasks have rows of their own. A run that was cut short, that lacks a task or that cannot be read fails.

    Args:
        comparison: the comparison to judge.
        bar: fail if a row is `worse`; if it is `undecided` or worse; if it is `not-better`.
    """
    rows = [row for row in comparison.rows if row.verdict is not None or not row.is_group]
    failing = sorted(
        (row for row in rows if _FAILS[bar](row)), key=lambda row: (row.verdict != "worse", row.task, row.run)
    )
    if not failing:
        missing = [finding.text for finding in comparison.findings if finding.id in _MISSING]
        return f"fails --fail-on {bar}: {missing[0]}{_and_more(len(missing) - 1)}" if missing else None
    return f"fails --fail-on {bar}: {_describe(failing[0])}{_and_more(len(failing) - 1)}"


def _and_more(count: int) -> str:
    return f"; and {count} more" if count else ""


def _describe(row: Row) -> str:
    verdict = f"{row.run} on {row.task} is {row.verdict or 'not tested'}"
    if row.paired is None or row.decision is None:
        return f"{verdict} ({row.note})"
    difference = format_difference(row.difference, row.unit, row.scale)
    interval = format_difference_interval(row.paired.interval, row.unit, row.scale)
    return f"{verdict} ({row.metric} {difference} {interval}, p {format_p(row.decision.p_holm)}, n {row.n:,})"
