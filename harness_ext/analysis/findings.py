"""What must be said beside a comparison: low parsed rates, scores below a trivial floor, how numbers were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.analysis.rows import POINTS, Cost, Floor, Row, Score
from harness_ext.analysis.runs import Run, TaskResult
from harness_ext.analysis.seeds import ENOUGH_SEEDS, Contender

LEAST_PARSED = 95.0  # per cent of outputs that must be readable before a score speaks of knowledge
_ACCURACIES = ("acc", "acc_norm", "exact_match")  # what a constant answer can be measured by
_ABSTAINABLE = ("exact", "em", "f1")  # what always abstaining can be measured by (SQuAD v2)
_TRIVIAL = {"abstain": "always abstaining", "majority": "always giving the most frequent answer", "chance": "guessing"}
_LEAST_FLOOR = 10.0  # points; a most frequent reference rarer than that is no class
_LEAST_COUNT = 5  # documents that must carry it


def in_points(values: Sequence[float], result: TaskResult) -> float:
    """Return what turns logged metric values into points: 1 when they are on 0–100, else 100.

    Args:
        values: of one metric in every run compared, so that one run's 0.8 of 100 is not read as 80.
        result: whose `metadata.metric_scale` decides where it is declared.
    """
    if result.metric_scale is not None:
        return 100 / result.metric_scale
    return 1.0 if any(abs(value) > 1 for value in values) else 100.0


def parsed_points(result: TaskResult) -> float | None:
    """Share of outputs that could be read, in per cent; None when the task does not log `parsed_rate`."""
    return _percent(result, "parsed_rate")


def floor_of(result: TaskResult, metric: str, targets: NDArray[np.uint64] | None) -> Floor | None:
    """What always giving one answer scores: as logged, else the most frequent reference, else 1 / choices.

    Args:
        result: of any run on the task.
        metric: compared; only plain shares of right answers have a floor.
        targets: (n,) hashes of the references, None when no samples were logged.
    """
    if metric in _ABSTAINABLE and (logged := _percent(result, "abstain_baseline")) is not None:
        return Floor(logged, "abstain")
    if metric not in _ACCURACIES:
        return None
    if (logged := _percent(result, "majority_baseline")) is not None:
        return Floor(logged, "majority")
    if targets is not None and len(targets):
        count = int(np.unique(targets, return_counts=True)[1].max())
        share = 100 * count / len(targets)
        return Floor(share, "majority") if count >= _LEAST_COUNT and share >= _LEAST_FLOOR else None
    choices = result.config.get("doc_to_choice")
    return Floor(100 / len(choices), "chance") if isinstance(choices, list) and choices else None


def _percent(result: TaskResult, metric: str) -> float | None:
    if metric not in result.metrics:
        return None
    value = result.metrics[metric].value
    return value * in_points([value], result)


def warnings_for(baseline: Run, others: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Every reason to distrust a number of the table, baseline first, one sentence each."""
    said = [
        f"{run.name}: was trained on {run.base}, not on the baseline's {baseline.base}; the difference mixes both"
        for run in others
        if run.adapter and run.base and baseline.base and _tail(run.base) != _tail(baseline.base)
    ]
    for row in _first_per_task(rows):
        said += _run_warnings(row, baseline, is_baseline=True)
    by_name = {run.name: run for run in others}
    for row in rows:
        said += _run_warnings(row, by_name.get(row.run), is_baseline=False)
        said += _allowed_warnings(row)
    return said


def _allowed_warnings(row: Row) -> list[str]:
    if not row.allowed:
        return []
    fields = ", ".join(row.allowed)
    return [f"{row.task}, {row.run}: not the baseline's {fields}, as --allow said; the difference may come from that"]


def _tail(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _first_per_task(rows: Sequence[Row]) -> list[Row]:
    return list({row.task: row for row in reversed(rows)}.values())[::-1]


def _run_warnings(row: Row, run: Run | None, *, is_baseline: bool) -> list[str]:
    """What is wrong with one run's score; `run` is None for the seeds of one recipe together."""
    score, said = (row.baseline if is_baseline else row.score), []
    where = f"{row.task}, {row.run if run is None else run.name}"
    if score.parsed is not None and score.parsed < LEAST_PARSED:
        readable = None if run is None else _percent(run.tasks[row.task], "acc_parsed")
        of_those = "" if readable is None else f" ({readable:.1f} % of the parsed outputs are right)"
        said.append(
            f"{where}: only {score.parsed:.1f} % of the outputs parsed, so {row.metric} {score.value:.1f} "
            f"measures the output format more than the skill{of_those}"
        )
    if row.floor is not None:
        said += _floor_warnings(f"{where}: {row.metric} {score.value:.1f}", score, row.floor)
    return said


def _floor_warnings(what: str, score: Score, floor: Floor) -> list[str]:
    """Say when a score lies below what one constant answer gets, or cannot be told from it."""
    trivial = _TRIVIAL[floor.kind]
    if score.value < floor.value:
        return [f"{what} is {'worse than' if floor.kind == 'abstain' else 'below'} {trivial} ({floor.value:.1f})"]
    if score.value == floor.value:
        return [f"{what} is no better than {trivial} ({floor.value:.1f})"]
    if score.interval is not None and score.interval.low <= floor.value:
        low = f"its interval begins at {score.interval.low:.1f}"
        return [f"{what} cannot be told from {trivial} ({floor.value:.1f}): {low}"]
    return []


def is_other_task(run: Run, task: str) -> bool:
    """Whether a task is, by the adapter's card, neither the one it was trained on nor about the same documents."""
    trained_on = run.card.get("task")
    if trained_on is None:
        return False
    fields = run.card.get("fingerprint_fields")
    dataset = fields.get("dataset") if isinstance(fields, Mapping) else None
    return trained_on != task and (dataset is None or dataset != run.tasks[task].fingerprint_fields.get("dataset"))


def costs_of(entrants: Sequence[Contender], rows: Sequence[Row]) -> list[Cost]:
    """What each adapter took to make, next to what it gained on its own task; runs without a card have no cost."""
    by_name = {(row.run, row.task): row for row in rows}
    found = []
    for entrant in entrants:
        for seed, run in entrant.runs.items():
            row = by_name.get((entrant.name, str(run.card.get("task"))))
            if run.card:
                found.append(_cost(run, None if row is None else _gain_of(row, seed)))
    return sorted(found, key=lambda cost: cost.run)


def _gain_of(row: Row, seed: str) -> float | None:
    if row.seeds is None:
        return row.difference
    return row.seeds.values[seed] - row.baseline.value if seed in row.seeds.values else None


def _cost(run: Run, gain: float | None) -> Cost:
    task = run.card.get("task")
    return Cost(
        run=run.name,
        trainable_parameters=_number(run, "trainable_parameters", int),
        examples=_number(run, "examples", int),
        tokens=_number(run, "tokens", int),
        seconds=_number(run, "seconds", float),
        adapter_bytes=_number(run, "adapter_bytes", int),
        task=task if isinstance(task, str) else None,
        gain=gain,
    )


def _number(run: Run, name: str, kind: type[Any]) -> Any:
    value = run.card.get(name)
    return kind(value) if isinstance(value, (int, float)) else None


def notes_for(rows: Sequence[Row], margin: float, *, has_adapter: bool) -> list[str]:
    """How every number of the table was made, and what may not be concluded from it."""
    tested = [row for row in rows if row.paired is not None]
    notes = ["Points, 0–100. [brackets]: 95 % confidence intervals. n: documents that both runs have."]
    for metric, unit in sorted({(row.metric, row.unit) for row in rows if row.unit != POINTS}):
        notes.append(f"{metric} in {unit}, margin {margin / 100:g}.")
    notes += _methods("Score intervals", ((s.method, row.task) for row in rows for s in (row.baseline, row.score)))
    notes += _methods("Paired tests", ((row.paired.method, row.task) for row in tested if row.paired))
    if tested:
        notes.append(_how_decided(len(tested), margin))
    notes += _part_notes(rows, margin)
    if kinds := sorted({row.floor.kind for row in rows if row.floor}):
        notes.append(f"{' / '.join(kinds)}: what one constant answer (or guessing) scores on a task.")
    notes += _seed_notes(rows, has_adapter)
    if any(row.is_sample for row in rows):
        notes.append("SAMPLE data = bundled sample: not a benchmark.")
    return notes


def _how_decided(tests: int, margin: float) -> str:
    corrected = "p < .05" if tests == 1 else f"p < .05 after Holm's correction over the {tests} tests here"
    power = "80 % power" if tests == 1 else f"80 % power at level .05 / {tests}"
    return (
        f"Verdict, two-sided: better / worse = interval off zero and {corrected}; equivalent = interval within "
        f"±{margin:g} point{'' if margin == 1 else 's'}, even when significant; undecided = neither, with the n "
        f"that would decide and the difference that this n finds, both at {power}. Intervals are not corrected."
    )


def _part_notes(rows: Sequence[Row], margin: float) -> list[str]:
    notes = []
    if any(row.allowed for row in rows):
        notes.append("† differs from the baseline in a field that --allow accepted.")
    if any(row.gain is not None for row in rows):
        notes.append(
            "Where the gain comes from, document by document: parsing = one of the two outputs did not parse; stopping "
            "= one was cut off at the token limit; abstaining = only one abstained; skill = all others. They add up."
        )
    if any(row.retention is not None for row in rows):
        notes.append(
            "On tasks an adapter was not trained on, non-inferiority: kept = the interval lies above "
            f"-{margin:g}; lost = below it; open = neither."
        )
    return notes


def _seed_notes(rows: Sequence[Row], has_adapter: bool) -> list[str]:
    """What may be said of an adapter, and what of a method."""
    counts = sorted({len(row.seeds.values) for row in rows if row.seeds})
    notes = [] if not counts else ["Seeds: every seed's score, mean ± standard deviation between seeds."]
    few = [str(count) for count in counts if count < ENOUGH_SEEDS]
    if few:
        notes.append(
            f"Fewer than three seeds ({' or '.join(few)}): these adapters, averaged, documents only; "
            "says nothing about the method."
        )
    alone = sorted({row.run for row in rows if row.seeds is None})
    if has_adapter and alone:
        whose = f"{', '.join(alone)}: this" if counts else "This"
        notes.append(f"{whose} adapter, one seed: says nothing about the method.")
    return notes


def _methods(title: str, used: Iterable[tuple[str | None, str]]) -> list[str]:
    """One line that names each method and, when there are several, the tasks it stands for."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for method, task in used:
        if method is not None and task not in tasks[method]:
            tasks[method].append(task)
    if not tasks:
        return []
    parts = [method if len(tasks) == 1 else f"{method} ({', '.join(names)})" for method, names in tasks.items()]
    return [f"{title}: {'; '.join(parts)}."]
