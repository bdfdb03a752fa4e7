"""Every reason to distrust a number of a comparison, and how its numbers were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness_ext.comparison.contenders import Contender
from harness_ext.comparison.measure import Measurement
from harness_ext.comparison.rows import Cost, Floor, Row, Score
from harness_ext.comparison.testing import Tested
from harness_ext.findings import Finding
from harness_ext.formatting import format_score
from harness_ext.metrics.statistic import SHARE
from harness_ext.protocol.ties import MOST_TIED
from harness_ext.results.run import LM_EVAL, Run
from harness_ext.results.samples import SampleScores
from harness_ext.stats.seeds import ENOUGH_SEEDS
from harness_ext.stats.units import FEW_UNITS, LEAST_UNITS

LEAST_PARSED = 0.95  # of outputs that must be readable before a score speaks of knowledge
_TRIVIAL = {"abstain": "always abstaining", "majority": "always giving the most frequent answer", "chance": "guessing"}


# -- of single pairs -----------------------------------------------------------------------------------------------


def pair_findings(tested: Tested) -> list[Finding]:
    """What is to be said of one contender's samples on one task."""
    pair, task = tested.pair, tested.pair.base.result.task
    found = [*_ties(task, pair.base.run.name, pair.base.samples)]
    for run in pair.runs.values():
        found += _ties(task, run.run.name, run.samples)
    for name, count in pair.left_out.items():
        text = (
            f"{task}: {pair.base.run.name} and {name} are compared on the {pair.n:,} documents both have; "
            f"{count:,} that only one has are left out"
        )
        found.append(Finding("R06", "warning", task, text, {"compared": pair.n, "left_out": count}))
    if tested.not_tested is not None and not pair.base.result.is_group:
        found.append(_not_tested(tested))
    return [*found, *_units(tested)]


def off_scale(base: Measurement) -> Finding:
    """Say that a metric has values outside its declared range, and is compared without a unit."""
    task, metric = base.result.task, base.metric.metric
    low, high = ("…" if end is None else f"{end:g}" for end in base.declaration.limits)
    text = (
        f"{task}: {metric} is declared to be from {low} to {high}, but has values outside; it is compared as it was "
        f"logged. Declare it in the task's YAML (metadata: metrics: {{{metric}: {{unit: ..., range: ...}}}})"
    )
    return Finding("R15", "warning", task, text, {"low": base.declaration.low, "high": base.declaration.high})


def _not_tested(tested: Tested) -> Finding:
    pair = tested.pair
    guilty = next((each for each in (pair.base, *pair.runs.values()) if each.samples is None), pair.base)
    remedy = "compare another metric"
    if guilty.result.samples_path is None:
        tool = guilty.run.tool
        remedy = "evaluate again with --log_samples" if tool == LM_EVAL else f"let {tool} write its samples"
    task, metric = pair.base.result.task, pair.base.metric.metric
    text = f"{task}, {guilty.run.name}: {metric} is not tested ({tested.not_tested}); {remedy}"
    return Finding("R09", "warning", f"{task}, {guilty.run.name}", text, next_step=remedy)


def _ties(task: str, run: str, samples: SampleScores | None) -> list[Finding]:
    """Say when most choices tie: the first choice then wins, and the score is how often that happens to be right."""
    share = 0.0 if samples is None else samples.tied_share
    if share <= MOST_TIED:
        return []
    text = (
        f"{task}, {run}: the best choices have the same score in {100 * share:.0f} % of the documents, so the first of "
        "them wins; check the tokenizer with `harness-ext check TASK --model MODEL`"
    )
    return [Finding("R10", "warning", f"{task}, {run}", text, {"share": share})]


def _units(tested: Tested) -> list[Finding]:
    """What the number of independent units means for this task."""
    pair, paired = tested.pair, tested.paired
    task = pair.base.result.task
    if paired is None:
        one = pair.before is not None and pair.clusters is not None and pair.clusters.count == 1
        return [_one_passage(task)] if one else []
    found = []
    if pair.before is not None and pair.before.repeated and pair.before.clusters is None:
        column = pair.before.repeated[0]
        text = (
            f"{task}: {column!r} is shared by several documents, which may not be independent; declare it with "
            f"`metadata: cluster: {column}` or --cluster {task}={column}"
        )
        found.append(Finding("R08", "warning", task, text, {"column": column}))
    effective, clustered = paired.effective_units, paired.units < paired.n
    what = "passages" if clustered else "documents"
    if effective < LEAST_UNITS:
        text = (
            f"{task}: {paired.units:,} {what} carry as much evidence as {effective:.1f} of equal size; "
            f"{LEAST_UNITS} units are the least that can decide"
        )
        found.append(Finding("R07", "warning", task, text, {"units": paired.units, "effective": effective}))
    elif clustered and effective < FEW_UNITS:
        text = (
            f"{task}: {paired.units:,} passages carry as much evidence as {effective:.1f} of equal size; trust the "
            "permutation p-value more than the intervals"
        )
        found.append(Finding("R07", "warning", task, text, {"units": paired.units, "effective": effective}))
    return found


def _one_passage(task: str) -> Finding:
    text = f"{task}: all documents stand on one passage; the result says nothing about other passages"
    return Finding("R07", "warning", task, text, {"units": 1, "effective": 1.0})


# -- of the table --------------------------------------------------------------------------------------------------


def table_findings(baseline: Run, others: Sequence[Run], rows: Sequence[Row]) -> list[Finding]:
    """What is to be said of the rows, the baseline's scores first."""
    found = [
        Finding(
            "R04", "warning", run.name,
            f"{run.name}: was trained on {run.base}, not on the baseline's {baseline.base}; the difference mixes both",
        )
        for run in others
        if run.adapter and run.base and baseline.base and _tail(run.base) != _tail(baseline.base)
    ]  # fmt: skip
    for row in _first_per_task(rows):
        found += _score_findings(row, baseline, is_baseline=True)
    by_name = {run.name: run for run in others}
    for row in rows:
        found += _score_findings(row, by_name.get(row.run), is_baseline=False)
        if row.allowed:
            fields = ", ".join(row.allowed)
            where = f"{row.task}, {row.run}"
            text = f"{where}: not the baseline's {fields}, as --allow said; the difference may come from that"
            found.append(Finding("R05", "warning", where, text, {"fields": list(row.allowed)}))
    return [*found, *_without_unit(rows)]


def _without_unit(rows: Sequence[Row]) -> list[Finding]:
    metrics = dict.fromkeys((row.task, row.metric) for row in rows if row.unit == "" and row.paired and not row.margin)
    return [
        Finding(
            "R12", "warning", task,
            f"{task}: {metric} has no declared unit, so no difference of it is called equivalent; declare it in the "
            f"task's YAML (metadata: metrics: {{{metric}: {{unit: ..., margin: ...}}}}) or --margin {metric}=VALUE",
        )
        for task, metric in metrics
    ]  # fmt: skip


def _tail(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _first_per_task(rows: Sequence[Row]) -> list[Row]:
    return list({row.task: row for row in reversed(rows)}.values())[::-1]


def _score_findings(row: Row, run: Run | None, *, is_baseline: bool) -> list[Finding]:
    """What is wrong with one run's score; `run` is None for the seeds of one recipe together."""
    score, found = (row.baseline if is_baseline else row.score), []
    where = f"{row.task}, {row.run if run is None else run.name}"
    value = format_score(score.value, row.unit)
    if score.parsed is not None and score.parsed < LEAST_PARSED:
        readable = None if run is None else run.tasks[row.task].metrics.get("acc_parsed")
        of_those = "" if readable is None else f" ({format_score(readable.value)} % of the parsed outputs are right)"
        text = (
            f"{where}: only {format_score(score.parsed)} % of the outputs parsed, so {row.metric} {value} "
            f"measures the output format more than the skill{of_those}"
        )
        found.append(Finding("R01", "warning", where, text, {"parsed": score.parsed}))
    if row.floor is not None:
        found += floor_findings(f"{where}: {row.metric} {value}", where, score, row.floor)
    return found


def floor_findings(what: str, where: str, score: Score, floor: Floor) -> list[Finding]:
    """Say when a score lies below what one constant answer gets, or cannot be told from it."""
    trivial, value = _TRIVIAL[floor.kind], format_score(floor.value)
    numbers = {"score": score.value, "floor": floor.value}
    if score.value < floor.value:
        word = "worse than" if floor.kind == "abstain" else "below"
        return [Finding("R02", "warning", where, f"{what} is {word} {trivial} ({value})", numbers)]
    if score.value == floor.value:
        return [Finding("R02", "warning", where, f"{what} is no better than {trivial} ({value})", numbers)]
    if score.interval is not None and score.interval.low <= floor.value:
        low = f"its interval begins at {format_score(score.interval.low)}"
        return [Finding("R03", "warning", where, f"{what} cannot be told from {trivial} ({value}): {low}", numbers)]
    return []


def missing_tasks(
    baseline: Run, others: Sequence[Run], compared: Sequence[str], *, tasks_were_chosen: bool
) -> list[Finding]:
    """Say which results stand alone and are therefore not in the table, and which are missing from it."""
    found, absent = [], defaultdict(list)
    for run in others:
        if not tasks_were_chosen and (alone := sorted(set(run.tasks) - set(baseline.tasks))):
            text = f"{run.name}: {', '.join(alone)} left out, {baseline.name} was not evaluated on it"
            found.append(Finding("R11", "warning", run.name, text))
        asked = compared if tasks_were_chosen else sorted(baseline.tasks)
        missing = tuple(task for task in asked if task not in run.tasks)
        if missing and len(missing) < len(compared):
            absent[missing].append(run.name)
    for missing, names in absent.items():
        who = ", ".join(names)
        found.append(Finding("R11", "warning", who, f"{who}: not evaluated on {', '.join(missing)}"))
    return found


def left_out(metric: str | None, without_metric: Sequence[str], filtered: Sequence[str]) -> list[Finding]:
    """Say which tasks --metric, --tasks and --runs leave out of the comparison, and so out of Holm's correction."""
    found = []
    if without_metric:
        count = f"{len(without_metric)} task{'s do' if len(without_metric) > 1 else ' does'} not log it"
        text = f"--metric {metric}: {count}; left out: {_some(without_metric)}"
        found.append(Finding("R13", "warning", "--metric", text, {"tasks": list(without_metric)}))
    if filtered:
        text = (
            f"{len(filtered)} row{'s' if len(filtered) > 1 else ''} left out by --tasks or --runs ({_some(filtered)}): "
            "chosen before looking, p-values hold; after, they are too small"
        )
        found.append(Finding("R14", "note", "--tasks, --runs", text, {"rows": list(filtered)}))
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# -- what adapters took --------------------------------------------------------------------------------------------


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


# -- how every number was made ---------------------------------------------------------------------------------------


def notes_for(rows: Sequence[Row], margin: float, *, has_adapter: bool) -> list[str]:
    """How every number of the table was made, and what may not be concluded from it."""
    tested = [row for row in rows if row.paired is not None]
    points = "Points, 0–100. " if any(row.unit == SHARE for row in rows) else ""
    notes = [f"{points}[brackets]: 95 % confidence intervals. n: documents that both runs have."]
    own = {(row.metric, row.unit or "its own unit", row.scale, row.margin or 0.0) for row in rows if row.unit != SHARE}
    for metric, unit, scale, own_margin in sorted(own):
        how = f"margin {own_margin:g}" if own_margin else "no margin: never equivalent"
        by_ratio = ", compared by ratio" if scale == "log" else ""
        notes.append(f"{metric} in {unit}{by_ratio}, {how}.")
    if any(row.metric == "brier" for row in rows):
        notes.append("brier is half the sum of squares, on 0–100 points; lm-eval's brier_score is the whole sum, 0–2.")
    notes += _methods("Score intervals", ((s.method, row.task) for row in rows for s in (row.baseline, row.score)))
    notes += _methods("Paired tests", ((row.paired.method, row.task) for row in tested if row.paired))
    if tested:
        notes.append(_how_decided(len(tested), margin))
    if any(row.paired and "sign-flip" in row.paired.method for row in tested):
        notes.append("Sign flips test that differences are symmetric about zero.")
    notes += _part_notes(rows, margin)
    if kinds := sorted({row.floor.kind for row in rows if row.floor}):
        notes.append(f"{' / '.join(kinds)}: what one constant answer (or guessing) scores on a task.")
    notes += _seed_notes(rows, has_adapter)
    if any(row.is_sample for row in rows):
        notes.append("SAMPLE data = bundled sample: not a benchmark.")
    return notes


def _how_decided(tests: int, margin: float) -> str:
    corrected = "p < .05" if tests == 1 else f"p < .05 after Holm's correction over the {tests} tests here"
    points = 100 * margin
    return (
        f"Verdict, two-sided: better / worse = interval off zero and {corrected}; equivalent = interval, with one more "
        f"unit each way, within the margin (±{points:g} point{'' if points == 1 else 's'}), even when significant; "
        "undecided = neither, with the size that would decide if the difference were the one seen (in brackets: "
        "anywhere in its interval), and the difference that this size finds, both with 80 % power. "
        "Intervals are not corrected."
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
            "On tasks an adapter was not trained on, non-inferiority: kept = the interval, with one more unit each "
            f"way, lies above -{100 * margin:g}; lost = below it; open = neither."
        )
    return notes


def _seed_notes(rows: Sequence[Row], has_adapter: bool) -> list[str]:
    """What may be said of an adapter, and what of a method."""
    counts = sorted({len(row.seeds.values) for row in rows if row.seeds})
    notes = [] if not counts else ["Seeds: every seed's score, mean ± standard deviation between seeds."]
    few = [str(count) for count in counts if count < ENOUGH_SEEDS]
    if few:
        notes.append(
            f"Fewer than three seeds ({' or '.join(few)}): the interval covers document sampling only; it says nothing "
            "about the method."
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
