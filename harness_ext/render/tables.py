"""How a comparison is laid out: a line for each run and task, or models against tasks; and what stands below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from harness_ext.comparison.gain import FORMS, SKILL
from harness_ext.comparison.rows import Comparison, Cost, Floor, Gain, Row, Score
from harness_ext.formatting import (
    format_count,
    format_difference,
    format_difference_interval,
    format_interval,
    format_n,
    format_p,
    format_score,
)
from harness_ext.render.grid import Cell, Column, Grid, cell

View = Literal["auto", "rows", "board"]
VIEWS: tuple[str, ...] = get_args(View)
MARKS = {"better": "▲", "worse": "▼", "equivalent": "=", "undecided": "?", None: "–"}
LEGEND = "▲ better, ▼ worse, = equivalent, ? undecided, – not tested or not evaluated."
RANKS = (
    "#rank in its task: 1 + runs that are significantly better; against the baseline by the verdict, among the others "
    "on the documents all have, by the same variances, Holm over pairs. Equal ranks cannot be told apart; bold: rank 1."
)
_BOARD_RUNS = 3  # so many runs beside the baseline are easier to read against tasks


def grids_of(comparison: Comparison, view: View = "auto") -> list[Grid]:
    """The main table in the view asked for, and the tables below it."""
    main = board(comparison) if uses_board(comparison, view) else rows_grid(comparison)
    return [main, *further(comparison)]


def further(comparison: Comparison) -> list[Grid]:
    """What stands below the main table, where there is something to say."""
    return [grid for grid in (gains(comparison.rows), retained(comparison.rows), costs(comparison.costs)) if grid.rows]


def uses_board(comparison: Comparison, view: View) -> bool:
    """Whether models stand against tasks: when asked for, or where lines would be many."""
    runs, tasks = {row.run for row in comparison.rows}, {row.task for row in comparison.rows}
    return view == "board" or (view == "auto" and len(runs) >= (2 if len(tasks) > 1 else _BOARD_RUNS))


def notes_of(comparison: Comparison, view: View = "auto") -> list[str]:
    """The notes of a comparison, and how to read a board."""
    if not uses_board(comparison, view):
        return list(comparison.notes)
    ranked = any(row.rank is not None for row in comparison.rows)
    return [LEGEND, *([RANKS] if ranked else []), *comparison.notes]


# -- a line for each run and task --------------------------------------------------------------------------------


def rows_grid(comparison: Comparison) -> Grid:
    """Task, run, metric, both scores, difference, p and verdict."""
    names = ("task", "run", "metric", "baseline", "score", "difference", "p", "verdict")
    right = {"baseline", "score", "difference", "p"}
    return Grid(
        columns=[Column(cell(name), name in right) for name in names],
        rows=[
            [
                cell(row.task, floor_line(row.floor), sample_line(row)),
                cell(name_of(row)),
                cell(row.metric, *filter_and_n(row)),
                score_cell(row.baseline, row.unit),
                run_cell(row),
                difference_cell(row),
                cell(*p_lines(row)),
                verdict_cell(row),
            ]
            for row in comparison.rows
        ],
        sections=task_ends(comparison.rows),
    )


def task_ends(rows: Sequence[Row]) -> frozenset[int]:
    """Places of the last row of each task."""
    following = [row.task for row in rows[1:]] + [""]
    return frozenset(place for place, (row, task) in enumerate(zip(rows, following, strict=True)) if row.task != task)


def name_of(row: Row) -> str:
    """The run's name; a dagger where its protocol differs."""
    seeds = f" ({len(row.seeds.values)} seeds)" if row.seeds else ""
    return f"{row.run}{seeds}{'†' if row.allowed else ''}"


def floor_line(floor: Floor | None) -> str | None:
    """What a constant answer scores."""
    return f"{floor.kind} {format_score(floor.value)}" if floor else None


def sample_line(row: Row) -> str | None:
    """The mark of the bundled sample."""
    return "SAMPLE data" if row.is_sample else None


def filter_and_n(row: Row) -> list[str | None]:
    """Which filter, on how many documents."""
    return [None if row.filter == "none" else row.filter, f"n={row.n:,}" if row.n else None]


def score_cell(score: Score, unit: str) -> Cell:
    """Value, interval, parsed rate."""
    interval = format_interval(score.interval, unit) if score.interval else None
    return cell(format_score(score.value, unit), interval, _parsed(score))


def _parsed(score: Score) -> str | None:
    return None if score.parsed is None else f"parsed {format_score(score.parsed)}%"


def run_cell(row: Row) -> Cell:
    """The run's score; of several seeds mean ± sd, and each."""
    if row.seeds is None:
        return score_cell(row.score, row.unit)
    return cell(_spread(row), *_seed_lines(row), _parsed(row.score))


def _spread(row: Row) -> str:
    assert row.seeds is not None
    return f"{format_score(row.seeds.mean, row.unit)} ± {format_score(row.seeds.sd, row.unit)}"


def _seed_lines(row: Row) -> list[str]:
    if row.seeds is None:
        return []
    return ["seeds " + " ".join(format_score(value, row.unit) for value in row.seeds.values.values())]


def difference_cell(row: Row) -> Cell:
    """The difference and its interval."""
    interval = format_difference_interval(row.paired.interval, row.unit, row.scale) if row.paired else None
    return cell(format_difference(row.difference, row.unit, row.scale if row.paired else "linear"), interval)


def p_lines(row: Row) -> list[str]:
    """The p-value that decides; the uncorrected one where it differs."""
    if row.paired is None or row.decision is None:
        return ["–"]
    corrected, plain = format_p(row.decision.p_holm), format_p(row.paired.p_value)
    return [corrected] if corrected == plain else [corrected, f"alone {plain}"]


def verdict_cell(row: Row) -> Cell:
    """The verdict, or why there is none, and what would decide."""
    if row.decision is None:
        return cell("not tested", row.note)
    return cell(row.decision.verdict, *_sign_line(row), *_lacking_line(row), *needed_lines(row), *_finds_line(row))


def _sign_line(row: Row) -> list[str]:
    """Of an equivalent row whose small difference is certain: which way."""
    if row.decision is None or row.decision.verdict != "equivalent" or not row.decision.direction:
        return []
    return ["a certain small gain" if row.decision.direction > 0 else "a certain small loss"]


def _lacking_line(row: Row) -> list[str]:
    """Of an undecided row whose interval or p-value alone would decide: what is missing."""
    lacking = row.decision.lacking if row.decision else None
    texts = {
        "units": "too few units to decide",
        "p": "interval off zero, p not < .05",
        "interval": "p < .05, interval not off zero",
    }
    return [texts[lacking]] if lacking else []


def needed_lines(row: Row) -> list[str]:
    """How many documents or seeds would decide, if the difference is the one seen, or anywhere in its interval."""
    needed = row.decision.needed if row.decision else None
    if needed is None or (needed.number is None and needed.low is None):
        return []
    what = "n" if needed.of == "documents" else "seeds"
    ends = [format_n(end) if end is not None else "…" for end in (needed.low, needed.high)]
    number = "…" if needed.number is None else format_n(needed.number)
    return [f"needs {what}≈{number}", f"({ends[0]}–{ends[1]})"]


def _finds_line(row: Row) -> list[str]:
    """The smallest difference that this size finds, of an undecided row."""
    if row.decision is None or row.decision.verdict != "undecided" or row.decision.lacking == "units":
        return []
    found = row.decision.detectable
    if found is None:
        return ["no difference can be found"]
    text = format_difference(found, row.unit, row.scale).lstrip("+")
    return [f"finds ±{text}"]


# -- models against tasks ----------------------------------------------------------------------------------------


def board(comparison: Comparison, tasks: Sequence[str] | None = None) -> Grid:
    """The baseline, every run and every constant answer against tasks, with ranks and marks.

    Args:
        comparison: to show.
        tasks: some of its tasks; None: all.
    """
    shown = list(dict.fromkeys(row.task for row in comparison.rows)) if tasks is None else list(tasks)
    of = {(row.run, row.task): row for row in comparison.rows}
    first = {row.task: row for row in reversed(comparison.rows)}
    runs = _board_order(comparison)
    ranked = [task for task in first if first[task].baseline_rank]
    with_mean = len(ranked) > 1 and any(all((run, task) in of for task in ranked) for run in runs)
    columns = [Column(cell("model"), wraps=True), *([Column(cell("mean rank"), right=True)] if with_mean else [])]
    columns += [Column(_task_heading(comparison.rows, first[task]), right=True) for task in shown]
    ranks = _mean_cell(with_mean, [first[task].baseline_rank for task in ranked])
    lines = [[cell(comparison.baseline), *ranks, *(_baseline_cell(first[task]) for task in shown)]]
    for run in runs:
        of_run = [row for row in comparison.rows if row.run == run]
        head = cell(name_of(max(of_run, key=lambda row: (len(row.allowed), row.task))))
        ranks = _mean_cell(with_mean, [of[run, task].rank if (run, task) in of else None for task in ranked])
        lines.append([head, *ranks, *(_board_cell(of.get((run, task)), comparison.rows) for task in shown)])
    blank = [cell("")] if with_mean else []
    floors = {task: first[task].floor for task in shown}
    for kind in sorted({floor.kind for floor in floors.values() if floor}):
        cells = [cell(format_score(floor.value) if floor and floor.kind == kind else "") for floor in floors.values()]
        lines.append([cell(f"({kind})"), *blank, *cells])
    return Grid(columns, lines, sections=frozenset({0, len(runs)}))


def _board_order(comparison: Comparison) -> list[str]:
    """Runs as they are sorted over all tasks: by mean rank unless asked otherwise, then by name."""
    ranked = {row.task for row in comparison.rows if row.baseline_rank}
    rows_of: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows_of.setdefault(row.run, []).append(row)
    keys = {run: _mean_key(rows, comparison.sort or "rank", len(ranked)) for run, rows in rows_of.items()}
    return sorted(keys, key=lambda run: (keys[run], run))


def _mean_key(rows: Sequence[Row], order: str, ranked: int) -> float:
    """What a board sorts a run by, less being better; runs without a rank on every ranked task come last."""
    ranks = [float(row.rank) for row in rows if row.rank]
    values = {
        "name": [0.0],
        "rank": ranks if len(ranks) == ranked else [],
        "difference": [-row.difference if row.higher_is_better else row.difference for row in rows],
        "score": [-row.score.value if row.higher_is_better else row.score.value for row in rows],
    }[order]
    return round(float(np.mean(values)), 9) if values else float("inf")


def _task_heading(rows: Sequence[Row], row: Row) -> Cell:
    sizes = {other.n for other in rows if other.task == row.task}
    size = f"n={row.n:,}" if len(sizes) == 1 and row.n else None
    return cell(row.task, ", ".join(part for part in (row.metric, size) if part), sample_line(row))


def _mean_cell(shown: bool, ranks: Sequence[int | None]) -> list[Cell]:
    """The mean of a model's ranks; a dash unless it has one on every ranked task."""
    known = [rank for rank in ranks if rank is not None]
    return [cell(f"{np.mean(known):.1f}" if known and len(known) == len(ranks) else "–")] if shown else []


def _baseline_cell(row: Row) -> Cell:
    rank = f" #{row.baseline_rank}" if row.baseline_rank else ""
    shown = score_cell(row.baseline, row.unit)
    return Cell((shown.first + rank, *shown.lines[1:]), strong=row.baseline_rank == 1)


def _board_cell(row: Row | None, rows: Sequence[Row]) -> Cell:
    """Score, rank and verdict's mark; difference and interval; what else is to be said."""
    if row is None:
        return cell("–")
    value = _spread(row) if row.seeds else format_score(row.score.value, row.unit)
    first = f"{value}{f' #{row.rank}' if row.rank else ''} {MARKS[row.verdict]}"
    sizes = {other.n for other in rows if other.task == row.task}
    size = f"n={row.n:,}" if len(sizes) > 1 and row.n else None
    difference = difference_cell(row).in_one_line()
    needed = " ".join(needed_lines(row)) or None
    return cell(first, difference, *_seed_lines(row), _parsed(row.score), size, needed, strong=row.rank == 1)


# -- below -------------------------------------------------------------------------------------------------------


def gains(rows: Sequence[Row]) -> Grid:
    """Where each difference comes from; only rows where form plays a part."""
    shown = [(row, row.gain) for row in rows if row.gain and set(row.gain.parts) != {SKILL}]
    forms = [form for form in FORMS if any(form in gain.parts for _, gain in shown)]
    columns = [Column(cell("task", "run"), wraps=True), Column(cell("difference"), right=True)]
    columns += [Column(cell(form), right=True) for form in (*forms, SKILL)]
    lines = [
        [cell(row.task, row.run), cell(format_difference(row.difference, row.unit))]
        + [_part_cell(row, gain, form) for form in (*forms, SKILL)]
        for row, gain in shown
    ]
    return Grid(columns, lines, "Where the gain comes from")


def _part_cell(row: Row, gain: Gain, form: str) -> Cell:
    part = gain.parts.get(form)
    if part is None:
        return cell("–")
    moved = None
    if form == SKILL and gain.skill_before is not None and gain.skill_after is not None:
        moved = f"{format_score(gain.skill_before, row.unit)} → {format_score(gain.skill_after, row.unit)}"
    interval = format_difference_interval(part.interval, row.unit)
    return cell(format_difference(part.difference, row.unit), interval, f"n={part.n:,}", moved)


def retained(rows: Sequence[Row]) -> Grid:
    """What adapters kept of the tasks they were not trained on."""
    columns = [Column(cell("run"), wraps=True), Column(cell("task"), wraps=True)]
    columns += [Column(cell("difference"), right=True), Column(cell("retention"))]
    lines = [
        [cell(row.run), cell(row.task), difference_cell(row), cell(row.retention)]
        for row in sorted(rows, key=lambda row: (row.run, row.task))
        if row.retention
    ]
    return Grid(columns, lines, "On other tasks than their own")


def costs(found: Sequence[Cost]) -> Grid:
    """What adapters took to make, beside what they gained."""
    names = ("run", "trainable", "examples", "tokens", "minutes", "size", "trained on", "gain there")
    named = ("run", "trained on")
    columns = [Column(cell(name), right=name not in named, wraps=name not in named) for name in names]
    lines = [
        [
            cell(cost.run),
            cell(format_count(cost.trainable_parameters)),
            cell(format_count(cost.examples)),
            cell(format_count(cost.tokens)),
            cell("–" if cost.seconds is None else f"{cost.seconds / 60:.1f}"),
            cell("–" if cost.adapter_bytes is None else f"{cost.adapter_bytes / 1e6:.1f} MB"),
            cell(cost.task or "–"),
            cell("–" if cost.gain is None else format_difference(cost.gain)),
        ]
        for cost in found
    ]
    return Grid(columns, lines, "Cost")
