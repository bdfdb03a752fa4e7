"""The verdict of a comparison in words: one sentence, and a line for each kind of verdict."""

from __future__ import annotations

from collections.abc import Sequence

from harness_ext.comparison.rows import Comparison, Row
from harness_ext.formatting import (
    format_difference,
    format_difference_interval,
    format_n,
    format_p,
    format_score,
    in_display_unit,
)
from harness_ext.metrics.statistic import SHARE
from harness_ext.stats.verdicts import Verdict

ORDER: tuple[Verdict | None, ...] = ("better", "worse", "equivalent", "undecided", None)
_MOST_NAMED = 6  # rows that are named one by one


def sentence(comparison: Comparison) -> str:
    """What the comparison says, in one sentence."""
    rows = [row for row in comparison.rows if not row.is_group] or comparison.rows
    if len(rows) == 1:
        return of_row(rows[0], comparison.baseline)
    if not rows:
        return f"Nothing was compared with {comparison.baseline}."
    runs, tasks = {row.run for row in rows}, {row.task for row in rows}
    counts = [(verdict, count) for verdict in ORDER if (count := sum(row.verdict == verdict for row in rows))]
    if len(runs) == 1:
        return f"{_of_one_run(rows[0].run, counts, comparison.baseline)}."
    subject = f"{'runs' if len(tasks) == 1 else 'comparisons'} against {comparison.baseline}"
    where = f" on {rows[0].task}" if len(tasks) == 1 else f" ({len(runs)} runs, {len(tasks)} tasks)"
    if len(counts) == 1:
        return f"{_all(len(rows))} {subject}{where} are {_word(counts[0][0])}."
    parts = [f"{count} {'is' if count == 1 else 'are'} {_word(verdict)}" for verdict, count in counts]
    return f"Of {len(rows)} {subject}{where}, {_listed(parts)}."


def _of_one_run(run: str, counts: Sequence[tuple[Verdict | None, int]], baseline: str) -> str:
    """One run on several tasks."""
    if len(counts) == 1:
        ((verdict, count),) = counts
        where = f"on {_all(count).lower()} tasks"
        if verdict in ("better", "worse"):
            return f"{run} is {verdict} than {baseline} {where}"
        if verdict == "equivalent":
            return f"{run} and {baseline} are equivalent {where}"
        return f"{run} against {baseline} is {_word(verdict)} {where}"
    parts = [f"{_word(verdict)} on {count} {'task' if count == 1 else 'tasks'}" for verdict, count in counts]
    return f"{run} against {baseline} is {_listed(parts)}"


def _all(count: int) -> str:
    return "Both" if count == 2 else f"All {count}"


def _word(verdict: Verdict | None) -> str:
    return verdict or "not tested"


def lines(comparison: Comparison) -> list[tuple[str, str]]:
    """(verdict, the rows that have it) in words; empty for a single row, whose sentence says it all."""
    rows = [row for row in comparison.rows if not row.is_group] or comparison.rows
    if len(rows) < 2:
        return []
    by_verdict = {verdict: [row for row in rows if row.verdict == verdict] for verdict in ORDER}
    return [(_word(verdict), _named(of)) for verdict, of in by_verdict.items() if of]


def of_row(row: Row, baseline: str) -> str:
    """The verdict on one row, with its numbers, in one sentence."""
    if row.paired is None or row.decision is None:
        why = f" ({row.note})" if row.note else ""
        return f"{row.run} was not tested against {baseline} on {row.task}{why}: {_scores(row)}."
    numbers = f"{_scores(row)}, {_difference(row)}, p {_p(row.decision.p_holm)}, {row.n:,} documents"
    verdict = row.decision.verdict
    if verdict in ("better", "worse"):
        return f"{row.run} is {verdict} than {baseline} on {row.task}: {numbers}."
    if verdict == "equivalent":
        return f"{row.run} and {baseline} are equivalent on {row.task}, within {_margin(row)}: {numbers}."
    needed = row.decision.needed
    more = ""
    if needed is not None and needed.number is not None:
        more = f"; about {format_n(needed.number)} {needed.of} would decide"
    return f"It is undecided whether {row.run} differs from {baseline} on {row.task}: {numbers}{more}."


def evidence(row: Row) -> str:
    """What the verdict on a row rests on, in one sentence."""
    if row.paired is None or row.decision is None:
        return f"Not tested{f': {row.note}' if row.note else ''}."
    paired = row.paired
    changed = ""
    if paired.gained is not None and paired.lost is not None:
        changed = f"; {paired.gained:,} documents became right and {paired.lost:,} wrong"
    units = f" in {paired.units:,} independent units" if paired.units != paired.n else ""
    return f"{paired.n:,} documents{units}{changed}; {paired.method}: p {_p(row.decision.p_holm)}."


def _scores(row: Row) -> str:
    scores = [format_score(score.value, row.unit) for score in (row.baseline, row.score)]
    return f"{row.metric} {scores[0]} → {scores[1]}"


def _difference(row: Row) -> str:
    assert row.paired is not None
    interval = format_difference_interval(row.paired.interval, row.unit, row.scale)
    return f"{format_difference(row.difference, row.unit, row.scale)} {interval}"


def _p(p: float) -> str:
    text = format_p(p)
    return text if text.startswith("<") else f"= {text}"


def _margin(row: Row) -> str:
    if row.margin is None:
        return "the margin"
    if row.scale == "log":
        return f"a margin of {format_difference(row.margin, row.unit, row.scale).lstrip('+')}"
    return (
        f"a margin of {in_display_unit(row.margin, row.unit):g} {'points' if row.unit == SHARE else row.unit}".rstrip()
    )


def _named(rows: Sequence[Row]) -> str:
    several = len({row.task for row in rows}) > 1
    names = [
        f"{row.run}{f' on {row.task}' if several else ''}"
        + (f" ({format_difference(row.difference, row.unit, row.scale)})" if row.paired else "")
        for row in rows[:_MOST_NAMED]
    ]
    more = [f"{len(rows) - _MOST_NAMED} more"] if len(rows) > _MOST_NAMED else []
    where = "" if several else f" on {rows[0].task}"
    return _listed([*names, *more]) + where


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
