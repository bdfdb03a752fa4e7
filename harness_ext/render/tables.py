"""The tables of a comparison: rows (one per run and task) or a board (models against tasks), and further tables."""

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
    "#rank: 1 + number of runs that are significantly better on the task. A run and the baseline are compared by the "
    "verdict, other runs on the documents that all have, with Holm's correction over the pairs. Bold: rank 1."
)
_BOARD_RUNS = 3  # from so many runs on, a board is easier to read than rows


def grids_of(comparison: Comparison, view: View = "auto") -> list[Grid]:
    """The main table in the given view, and the tables below it."""
    main = board(comparison) if uses_board(comparison, view) else rows_grid(comparison)
    return [main, *further(comparison)]


def further(comparison: Comparison) -> list[Grid]:
    """The tables below the main one, without those that are empty."""
    return [grid for grid in (gains(comparison.rows), retained(comparison.rows), costs(comparison.costs)) if grid.rows]


def uses_board(comparison: Comparison, view: View) -> bool:
    """Whether to show a board: if asked for, or if there would be many rows."""
    runs, tasks = {row.run for row in comparison.rows}, {row.task for row in comparison.rows}
    return view == "board" or (view == "auto" and len(runs) >= (2 if len(tasks) > 1 else _BOARD_RUNS))


def notes_of(comparison: Comparison, view: View = "auto") -> list[str]:
    """The notes of a comparison; for a board, also how to read it."""
    if not uses_board(comparison, view):
        return list(comparison.notes)
    ranked = any(row.rank is not None for row in comparison.rows)
    return [LEGEND, *([RANKS] if ranked else []), *comparison.notes]


# -- rows --------------------------------------------------------------------------------------------------------


def rows_grid(comparison: Comparison) -> Grid:
    """Task, run, metric, both scores, difference, p and verdict."""
    names = ("task", "run", "metric", "baseline", "score", "difference", "p", "verdict")
    right = {"baseline", "score", "difference", "p"}
    return Grid(
        columns=[Column(cell(name), name in right) for name in names],
        rows=[
            [
                cell(row.task, floor_line(row.floor), sample_line(row)),
                name_cell(row),
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
    """Indices of the last row of each task."""
    following = [row.task for row in rows[1:]] + [""]
    return frozenset(index for index, (row, task) in enumerate(zip(rows, following, strict=True)) if row.task != task)


def name_cell(row: Row) -> Cell:
    """The run's name, with a dagger if its protocol differs; the number of seeds if there are several."""
    return cell(f"{row.run}{'†' if row.allowed else ''}", f"{len(row.seeds.values)} seeds" if row.seeds else None)


def floor_line(floor: Floor | None) -> str | None:
    """The kind and value of the floor."""
    return f"{floor.kind} {format_score(floor.value)}" if floor else None


def sample_line(row: Row) -> str | None:
    """The mark of results on the bundled sample."""
    return "SAMPLE data" if row.is_sample else None


def filter_and_n(row: Row) -> list[str | None]:
    """The filter, unless it is `none`, and the number of documents."""
    return [None if row.filter == "none" else row.filter, f"n={row.n:,}" if row.n else None]


def score_cell(score: Score, unit: str) -> Cell:
    """A score with its interval and the share of outputs that parsed."""
    interval = format_interval(score.interval, unit) if score.interval else None
    return cell(format_score(score.value, unit), interval, _parsed(score))


def _parsed(score: Score) -> str | None:
    return None if score.parsed is None else f"parsed {format_score(score.parsed)}%"


def run_cell(row: Row) -> Cell:
    """The run's score; for several seeds, mean ± standard deviation and the score of each."""
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
    """The corrected p-value, and the uncorrected one if it differs."""
    if row.paired is None or row.decision is None:
        return ["–"]
    corrected, uncorrected = format_p(row.decision.p_holm), format_p(row.paired.p_value)
    return [corrected] if corrected == uncorrected else [corrected, f"uncorrected {uncorrected}"]


def verdict_cell(row: Row) -> Cell:
    """The verdict and what would decide; or why there is no verdict."""
    if row.decision is None:
        return cell("not tested", row.note)
    return cell(
        row.decision.verdict,
        *sequential_lines(row),
        *_sign_line(row),
        *_lacking_lines(row),
        *needed_lines(row),
        *_detects_line(row),
    )


def sequential_lines(row: Row) -> list[str]:
    """That a row is from a sequential evaluation, and when and why it stopped."""
    if (stopped := row.sequential) is None:
        return []
    size = f"{stopped.documents:,} of {stopped.planned:,} documents"
    return [f"sequential, {size}", *(["no verdict in sight"] if stopped.outcome == "cannot decide" else [])]


def _sign_line(row: Row) -> list[str]:
    """The direction of a difference that is equivalent but significant."""
    if row.decision is None or row.decision.verdict != "equivalent" or not row.decision.direction:
        return []
    return ["significant small gain" if row.decision.direction > 0 else "significant small loss"]


def _lacking_lines(row: Row) -> list[str]:
    """The condition that an undecided row does not meet, if the interval or the p-value alone suggests a difference."""
    lacking = row.decision.lacking if row.decision else None
    texts = {
        "units": ["too few units"],
        "p": ["interval excludes 0,", "but p is not < .05"],
        "interval": ["p < .05, but interval", "includes 0"],
    }
    return texts[lacking] if lacking else []


def needed_lines(row: Row) -> list[str]:
    """The size that would decide, for the observed difference and, in parentheses, over its interval."""
    needed = row.decision.needed if row.decision else None
    if needed is None or (needed.number is None and needed.low is None):
        return []
    symbol = "n" if needed.of == "documents" else "seeds"
    ends = [format_n(end) if end is not None else "…" for end in (needed.low, needed.high)]
    number = "…" if needed.number is None else format_n(needed.number)
    return [f"needs {symbol}≈{number}", f"({ends[0]}–{ends[1]})"]


def _detects_line(row: Row) -> list[str]:
    """The smallest difference that the size of an undecided row detects."""
    decision = row.decision
    if decision is None or decision.verdict != "undecided" or decision.lacking == "units" or row.sequential:
        return []
    difference = decision.detectable
    if difference is None:
        return ["detects no difference"]
    return [f"detects ≥ {format_difference(difference, row.unit, row.scale).lstrip('+')}"]


# -- board -------------------------------------------------------------------------------------------------------


def board(comparison: Comparison, tasks: Sequence[str] | None = None) -> Grid:
    """A line for the baseline, each run and each kind of floor; a column for each task, with ranks and marks.

    Args:
        comparison: the comparison.
        tasks: the tasks to include; None: all.
    """
    tasks = list(dict.fromkeys(row.task for row in comparison.rows)) if tasks is None else list(tasks)
    row_of = {(row.run, row.task): row for row in comparison.rows}
    first = {row.task: row for row in reversed(comparison.rows)}
    runs = _board_order(comparison)
    ranked = [task for task in first if first[task].baseline_rank]
    with_mean = len(ranked) > 1 and any(all((run, task) in row_of for task in ranked) for run in runs)
    columns = [Column(cell("model")), *([Column(cell("mean rank"), right=True)] if with_mean else [])]
    columns += [Column(_task_heading(comparison.rows, first[task]), right=True) for task in tasks]
    ranks = _mean_cell(with_mean, [first[task].baseline_rank for task in ranked])
    lines = [[cell(comparison.baseline), *ranks, *(_baseline_cell(first[task]) for task in tasks)]]
    for run in runs:
        rows = [row for row in comparison.rows if row.run == run]
        name = name_cell(max(rows, key=lambda row: (len(row.allowed), row.task)))
        ranks = _mean_cell(with_mean, [row_of[run, task].rank if (run, task) in row_of else None for task in ranked])
        lines.append([name, *ranks, *(_board_cell(row_of.get((run, task)), comparison.rows) for task in tasks)])
    blank = [cell("")] if with_mean else []
    floors = {task: first[task].floor for task in tasks}
    for kind in sorted({floor.kind for floor in floors.values() if floor}):
        cells = [cell(format_score(floor.value) if floor and floor.kind == kind else "") for floor in floors.values()]
        lines.append([cell(f"({kind})"), *blank, *cells])
    return Grid(columns, lines, sections=frozenset({0, len(runs)}))


def _board_order(comparison: Comparison) -> list[str]:
    """The runs in the order of the board: by mean rank unless another order is asked for, then by name."""
    ranked = {row.task for row in comparison.rows if row.baseline_rank}
    rows_of: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows_of.setdefault(row.run, []).append(row)
    keys = {run: _mean_key(rows, comparison.sort or "rank", len(ranked)) for run, rows in rows_of.items()}
    return sorted(keys, key=lambda run: (keys[run], run))


def _mean_key(rows: Sequence[Row], order: str, ranked: int) -> float:
    """Sort key of a run, smaller is better; sorted by rank, runs that lack one on a ranked task come last."""
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


def _mean_cell(with_mean: bool, ranks: Sequence[int | None]) -> list[Cell]:
    """The mean of a model's ranks; a dash unless it has a rank on every ranked task."""
    known = [rank for rank in ranks if rank is not None]
    return [cell(f"{np.mean(known):.1f}" if known and len(known) == len(ranks) else "–")] if with_mean else []


def _baseline_cell(row: Row) -> Cell:
    rank = f" #{row.baseline_rank}" if row.baseline_rank else ""
    score = score_cell(row.baseline, row.unit)
    return Cell((score.first + rank, *score.lines[1:]), strong=row.baseline_rank == 1)


def _board_cell(row: Row | None, rows: Sequence[Row]) -> Cell:
    """Score, rank and mark of the verdict; then the difference and further lines."""
    if row is None:
        return cell("–")
    value = _spread(row) if row.seeds else format_score(row.score.value, row.unit)
    first = f"{value}{f' #{row.rank}' if row.rank else ''} {MARKS[row.verdict]}"
    sizes = {other.n for other in rows if other.task == row.task}
    size = f"n={row.n:,}" if len(sizes) > 1 and row.n else None
    difference = difference_cell(row).in_one_line()
    return cell(
        first,
        difference,
        *_seed_lines(row),
        _parsed(row.score),
        size,
        *sequential_lines(row),
        *needed_lines(row),
        strong=row.rank == 1,
    )


# -- further tables ----------------------------------------------------------------------------------------------


def gains(rows: Sequence[Row]) -> Grid:
    """The parts of each difference; only for rows in which form plays a part."""
    row_gains = [(row, row.gain) for row in rows if row.gain and set(row.gain.parts) != {SKILL}]
    forms = [form for form in FORMS if any(form in gain.parts for _, gain in row_gains)]
    columns = [Column(cell("task", "run")), Column(cell("difference"), right=True)]
    columns += [Column(cell(form), right=True) for form in (*forms, SKILL)]
    lines = [
        [cell(row.task, row.run), cell(format_difference(row.difference, row.unit))]
        + [_part_cell(row, gain, form) for form in (*forms, SKILL)]
        for row, gain in row_gains
    ]
    return Grid(columns, lines, "Where the gain comes from")


def _part_cell(row: Row, gain: Gain, form: str) -> Cell:
    part = gain.parts.get(form)
    if part is None:
        return cell("–")
    before_and_after = None
    if form == SKILL and gain.skill_before is not None and gain.skill_after is not None:
        before_and_after = f"{format_score(gain.skill_before, row.unit)} → {format_score(gain.skill_after, row.unit)}"
    interval = format_difference_interval(part.interval, row.unit)
    return cell(format_difference(part.difference, row.unit), interval, f"n={part.n:,}", before_and_after)


def retained(rows: Sequence[Row]) -> Grid:
    """Retention of adapters on tasks that they were not trained on."""
    columns = [Column(cell("task", "run")), Column(cell("difference"), right=True), Column(cell("retention"))]
    lines = [
        [cell(row.task, row.run), difference_cell(row), cell(row.retention)]
        for row in sorted(rows, key=lambda row: (row.run, row.task))
        if row.retention
    ]
    return Grid(columns, lines, "Retention on other tasks")


def costs(adapter_costs: Sequence[Cost]) -> Grid:
    """The cost of each adapter, and its gain on the task that it was trained on."""
    numbers = ("trainable", "examples", "tokens", "minutes", "size", "gain")
    columns = [Column(cell("run", "trained on")), *(Column(cell(name), right=True) for name in numbers)]
    lines = [
        [
            cell(cost.run, cost.task),
            cell(format_count(cost.trainable_parameters)),
            cell(format_count(cost.examples)),
            cell(format_count(cost.tokens)),
            cell("–" if cost.seconds is None else f"{cost.seconds / 60:.1f}"),
            cell("–" if cost.adapter_bytes is None else f"{cost.adapter_bytes / 1e6:.1f} MB"),
            cell("–" if cost.gain is None else format_difference(cost.gain)),
        ]
        for cost in adapter_costs
    ]
    return Grid(columns, lines, "Cost")
