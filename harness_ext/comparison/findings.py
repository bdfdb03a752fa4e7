"""Findings of a comparison (reasons to distrust a number), and notes on how its numbers were computed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness_ext.comparison.candidates import Candidate
from harness_ext.comparison.measure import Measurement
from harness_ext.comparison.pair import Pair
from harness_ext.comparison.rows import Cost, Floor, Row, Score
from harness_ext.comparison.testing import PairTest
from harness_ext.findings import Finding
from harness_ext.formatting import format_score
from harness_ext.metrics.statistic import SHARE
from harness_ext.protocol.ties import MOST_TIED
from harness_ext.results.run import LM_EVAL, Run
from harness_ext.results.samples import SampleScores
from harness_ext.stats.seeds import ENOUGH_SEEDS
from harness_ext.stats.units import FEW_UNITS, LEAST_UNITS

LEAST_PARSED = 0.95  # share of outputs that must parse for a score to say something about skill
_CONSTANT_ANSWERS = {  # by kind of floor
    "abstain": "always abstaining",
    "majority": "always giving the most frequent answer",
    "chance": "guessing",
}


# -- of single pairs -----------------------------------------------------------------------------------------------


def pair_findings(test: PairTest) -> list[Finding]:
    """Findings about the samples of one candidate on one task."""
    pair, task = test.pair, test.pair.base.result.task
    findings = [*_ties(task, pair.base.run.name, pair.base.samples)]
    for run in pair.runs.values():
        findings += _ties(task, run.run.name, run.samples)
    for name, count in () if test.record is not None else pair.left_out.items():
        text = (
            f"{task}: {pair.base.run.name} and {name} are compared on the {pair.n:,} documents that both have; "
            f"{count:,} that only one of them has are left out"
        )
        findings.append(Finding("R06", "warning", task, text, {"compared": pair.n, "left_out": count}))
    if test.not_tested is not None and not pair.base.result.is_group:
        findings.append(_not_tested(pair, test.not_tested))
    return [*findings, *_units(test)]


def off_scale(base: Measurement) -> Finding:
    """The finding that a metric has values outside its declared range and is compared without a unit."""
    task, metric = base.result.task, base.metric.metric
    low, high = ("…" if end is None else f"{end:g}" for end in base.declaration.limits)
    text = (
        f"{task}: {metric} has values outside its declared range, {low} to {high}, so it is compared as logged and "
        f"without a unit; declare it in the task's YAML (metadata: metrics: {{{metric}: {{unit: ..., range: ...}}}})"
    )
    return Finding("R15", "warning", task, text, {"low": base.declaration.low, "high": base.declaration.high})


def _not_tested(pair: Pair, reason: str) -> Finding:
    """The finding that a pair is not tested; a reason may end in its own remedy, after a semicolon."""
    reason, _, remedy = reason.partition("; ")
    without_samples = next((run for run in (pair.base, *pair.runs.values()) if run.samples is None), None)
    name = pair.name if without_samples is None else without_samples.run.name
    is_cut_short = without_samples is not None and without_samples.is_cut_short
    if without_samples is not None and without_samples.result.samples_path is None and not is_cut_short:
        tool = without_samples.run.tool
        remedy = "evaluate again with --log_samples" if tool == LM_EVAL else f"let {tool} write its samples"
    remedy = remedy or "compare another metric"
    task, metric = pair.base.result.task, pair.base.metric.metric
    text = f"{task}, {name}: {metric} is not tested ({reason}); {remedy}"
    return Finding("R16" if is_cut_short else "R09", "warning", f"{task}, {name}", text, next_step=remedy)


def _ties(task: str, run: str, samples: SampleScores | None) -> list[Finding]:
    """Warn if most choices tie: the first choice then wins, and the score is how often that is right by chance."""
    share = 0.0 if samples is None else samples.tied_share
    if share <= MOST_TIED:
        return []
    text = (
        f"{task}, {run}: the best choices tie in {100 * share:.0f} % of the documents, and the first of them wins; "
        f"check the tokenizer with `harness-ext check {task} --model MODEL`"
    )
    return [Finding("R10", "warning", f"{task}, {run}", text, {"share": share})]


def _units(test: PairTest) -> list[Finding]:
    """Findings about the number and the declaration of independent units."""
    pair, paired = test.pair, test.paired
    task = pair.base.result.task
    if paired is None:
        is_one_passage = pair.before is not None and pair.clusters is not None and pair.clusters.count == 1
        return [_one_passage(task)] if is_one_passage else []
    findings = []
    if pair.before is not None and pair.before.repeated and pair.before.clusters is None:
        column = pair.before.repeated[0]
        text = (
            f"{task}: several documents share the same {column!r} and may not be independent; declare it with "
            f"`metadata: cluster: {column}` or --cluster {task}={column}"
        )
        findings.append(Finding("R08", "warning", task, text, {"column": column}))
    effective, clustered = paired.effective_units, paired.units < paired.n
    kind = "passages" if clustered else "documents"
    if effective < LEAST_UNITS:
        text = (
            f"{task}: only {effective:.1f} effective units in {paired.units:,} {kind}; a verdict needs at least "
            f"{LEAST_UNITS}"
        )
        findings.append(Finding("R07", "warning", task, text, {"units": paired.units, "effective": effective}))
    elif clustered and effective < FEW_UNITS:
        text = (
            f"{task}: only {effective:.1f} effective units in {paired.units:,} passages; with fewer than {FEW_UNITS}, "
            "the permutation p-value is more reliable than the intervals"
        )
        findings.append(Finding("R07", "warning", task, text, {"units": paired.units, "effective": effective}))
    return findings


def _one_passage(task: str) -> Finding:
    text = f"{task}: all documents share one passage, so the result says nothing about other passages"
    return Finding("R07", "warning", task, text, {"units": 1, "effective": 1.0})


# -- of the table --------------------------------------------------------------------------------------------------


def table_findings(baseline: Run, compared: Sequence[Run], rows: Sequence[Row]) -> list[Finding]:
    """Findings about the rows, those about the baseline's scores first."""
    findings = [
        Finding(
            "R04", "warning", run.name,
            f"{run.name}: was trained on {run.base}, but the baseline is {baseline.base}; the difference mixes the two",
        )
        for run in compared
        if run.adapter and run.base and baseline.base and _tail(run.base) != _tail(baseline.base)
    ]  # fmt: skip
    for row in _first_per_task(rows):
        findings += _score_findings(row, baseline, is_baseline=True)
    by_name = {run.name: run for run in compared}
    for row in rows:
        findings += _score_findings(row, by_name.get(row.run), is_baseline=False)
        if row.allowed:
            fields = ", ".join(row.allowed)
            where = f"{row.task}, {row.run}"
            text = (
                f"{where}: differs from the baseline in {fields} (--allow), which may explain the difference in scores"
            )
            findings.append(Finding("R05", "warning", where, text, {"fields": list(row.allowed)}))
    return [*findings, *_without_unit(rows)]


def _without_unit(rows: Sequence[Row]) -> list[Finding]:
    metrics = dict.fromkeys((row.task, row.metric) for row in rows if row.unit == "" and row.paired and not row.margin)
    return [
        Finding(
            "R12", "warning", task,
            f"{task}: {metric} has no declared unit, so no difference can be equivalent; declare it in the task's YAML "
            f"(metadata: metrics: {{{metric}: {{unit: ..., margin: ...}}}}) or with --margin {metric}=VALUE",
        )
        for task, metric in metrics
    ]  # fmt: skip


def _tail(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _first_per_task(rows: Sequence[Row]) -> list[Row]:
    return list({row.task: row for row in reversed(rows)}.values())[::-1]


def _score_findings(row: Row, run: Run | None, *, is_baseline: bool) -> list[Finding]:
    """Findings about one run's score; `run` is None for several seeds together."""
    score, findings = (row.baseline if is_baseline else row.score), []
    where = f"{row.task}, {row.run if run is None else run.name}"
    value = format_score(score.value, row.unit)
    if score.parsed is not None and score.parsed < LEAST_PARSED:
        of_parsed = None if run is None else run.tasks[row.task].metrics.get("acc_parsed")
        correct = "" if of_parsed is None else f" ({format_score(of_parsed.value)} % of the parsed outputs are correct)"
        text = (
            f"{where}: only {format_score(score.parsed)} % of the outputs parsed, so {row.metric} {value} "
            f"says more about the output format than about skill{correct}"
        )
        findings.append(Finding("R01", "warning", where, text, {"parsed": score.parsed}))
    if row.floor is not None:
        findings += floor_findings(f"{where}: {row.metric} {value}", where, score, row.floor)
    return findings


def floor_findings(subject: str, where: str, score: Score, floor: Floor) -> list[Finding]:
    """Warn if a score is below that of a constant answer, or not clearly above it."""
    reference = f"{_CONSTANT_ANSWERS[floor.kind]} ({format_score(floor.value)})"
    numbers = {"score": score.value, "floor": floor.value}
    if score.value < floor.value:
        return [Finding("R02", "warning", where, f"{subject} is worse than {reference}", numbers)]
    if score.value == floor.value:
        return [Finding("R02", "warning", where, f"{subject} is no better than {reference}", numbers)]
    if score.interval is not None and score.interval.low <= floor.value:
        low = format_score(score.interval.low)
        text = f"{subject} may be no better than {reference}: its interval starts at {low}"
        return [Finding("R03", "warning", where, text, numbers)]
    return []


def missing_tasks(
    baseline: Run, compared: Sequence[Run], tasks: Sequence[str], *, has_task_filter: bool
) -> list[Finding]:
    """Warn about tasks that the baseline was not evaluated on, and about those that some of the other runs lack."""
    findings, runs_without = [], defaultdict(list)
    for run in compared:
        expected = tasks if has_task_filter else sorted(baseline.tasks)
        missing = tuple(task for task in expected if task not in run.tasks)
        if not has_task_filter and (without_baseline := sorted(set(run.tasks) - set(baseline.tasks))):
            text = f"{run.name}: left out {', '.join(without_baseline)}, which {baseline.name} was not evaluated on"
            text += f"; not evaluated on {', '.join(missing)}" if missing else ""
            findings.append(Finding("R11", "warning", run.name, text))
        elif missing:
            runs_without[missing].append(run.name)
    for missing, names in runs_without.items():
        where = ", ".join(names)
        findings.append(Finding("R11", "warning", where, f"{where}: not evaluated on {', '.join(missing)}"))
    return findings


def left_out(metric: str | None, without_metric: Sequence[str], filtered: Sequence[str]) -> list[Finding]:
    """Report what --metric, --tasks and --runs leave out of the comparison, and so out of Holm's correction."""
    findings = []
    if without_metric:
        count = f"{len(without_metric)} task{'s' if len(without_metric) > 1 else ''}"
        text = f"--metric {metric}: left out {count} without this metric ({_some(without_metric)})"
        findings.append(Finding("R13", "warning", "--metric", text, {"tasks": list(without_metric)}))
    if filtered:
        text = (
            f"--tasks and --runs left out {len(filtered)} row{'s' if len(filtered) > 1 else ''} ({_some(filtered)}). "
            "If they were chosen after seeing the results, the p-values are too small."
        )
        findings.append(Finding("R14", "note", "--tasks, --runs", text, {"rows": list(filtered)}))
    return findings


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# -- costs ---------------------------------------------------------------------------------------------------------


def is_other_task(run: Run, task: str) -> bool:
    """Whether, by the adapter's card, it was trained on another task and on other documents."""
    trained_on = run.card.get("task")
    if trained_on is None:
        return False
    fields = run.card.get("fingerprint_fields")
    dataset = fields.get("dataset") if isinstance(fields, Mapping) else None
    return trained_on != task and (dataset is None or dataset != run.tasks[task].fingerprint_fields.get("dataset"))


def costs_of(candidates: Sequence[Candidate], rows: Sequence[Row]) -> list[Cost]:
    """The cost of each adapter that has a card, with its gain on the task that it was trained on."""
    by_name = {(row.run, row.task): row for row in rows}
    adapter_costs = []
    for candidate in candidates:
        for seed, run in candidate.runs.items():
            row = by_name.get((candidate.name, str(run.card.get("task"))))
            if run.card:
                adapter_costs.append(_cost(run, None if row is None else _gain_of(row, seed)))
    return sorted(adapter_costs, key=lambda cost: cost.run)


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
    return kind(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


# -- notes ---------------------------------------------------------------------------------------------------------


def notes_for(rows: Sequence[Row], margin: float, *, has_adapter: bool) -> list[str]:
    """How the numbers of the table were computed, and what may not be concluded from them."""
    tested = [row for row in rows if row.paired is not None]
    points = "Scores are in points, 0–100. " if any(row.unit == SHARE for row in rows) else ""
    notes = [f"{points}Brackets: 95 % confidence intervals. n: number of documents that both runs have."]
    own = {(row.metric, row.unit or "its own unit", row.scale, row.margin or 0.0) for row in rows if row.unit != SHARE}
    for metric, unit, scale, own_margin in sorted(own):
        with_margin = f"with margin {own_margin:g}" if own_margin else "without a margin, so never equivalent"
        by_ratio = " and compared by ratio" if scale == "log" else ""
        notes.append(f"{metric} is in {unit}{by_ratio}, {with_margin}.")
    if any(row.metric == "brier" for row in rows):
        notes.append("brier is half the sum of squares, in points, 0–100; lm-eval's brier_score is the whole sum, 0–2.")
    notes += _methods("Score intervals", ((s.method, row.task) for row in rows for s in (row.baseline, row.score)))
    notes += _methods("Paired tests", ((row.paired.method, row.task) for row in tested if row.paired))
    if tested:
        notes += _verdict_notes(len(tested), margin)
    if any(row.paired and "sign-flip" in row.paired.method for row in tested):
        notes.append("The sign-flip test assumes that, without an effect, differences are symmetric about zero.")
    notes += _sequential_notes(rows)
    notes += _part_notes(rows, margin)
    if kinds := sorted({row.floor.kind for row in rows if row.floor}):
        notes.append("; ".join(f"{kind}: score of {_CONSTANT_ANSWERS[kind]}" for kind in kinds) + ".")
    notes += _seed_notes(rows, has_adapter)
    if any(row.is_sample for row in rows):
        notes.append("SAMPLE data: scores are on the small bundled sample, which is not a benchmark.")
    return notes


def _verdict_notes(tests: int, margin: float) -> list[str]:
    corrected = "p < .05" if tests == 1 else f"p < .05 after Holm's correction over the {tests} tests here"
    points = 100 * margin
    return [
        f"better, worse: the interval of the difference excludes zero, and {corrected}. Tests are two-sided; intervals "
        "are not corrected.",
        "equivalent: the interval, with one unit added in each direction, lies within the margin "
        f"(±{points:g} point{'' if points == 1 else 's'}), whether or not the difference is significant.",
        "undecided: neither. Beside it: the size that would decide if the observed difference is the true one (in "
        "parentheses: if the true one lies anywhere in the interval), and the smallest difference that the present "
        "size detects; both with 80 % power.",
    ]


def _sequential_notes(rows: Sequence[Row]) -> list[str]:
    if not any(row.sequential for row in rows):
        return []
    return [
        "sequential: the run was watched by a group-sequential design, and asked only as many documents as its verdict "
        "needed. Difference: median-unbiased estimate; brackets: stage-wise 95 % interval, or the repeated confidence "
        "interval where no verdict was in sight. Such a run is compared with the baseline of its design only."
    ]


def _part_notes(rows: Sequence[Row], margin: float) -> list[str]:
    notes = []
    if any(row.allowed for row in rows):
        notes.append("†: differs from the baseline in a field that was accepted with --allow.")
    if any(row.gain is not None for row in rows):
        notes.append(
            "Where the gain comes from: documents of which one output did not parse (parsing), was cut off at the "
            "token limit (stopping) or was the only one to abstain (abstaining), and all others (skill). Each document "
            "counts once, for the first that applies; the parts add up to the difference."
        )
    if any(row.retention is not None for row in rows):
        notes.append(
            "Retention, on tasks that an adapter was not trained on (non-inferiority). kept: the interval, with one "
            f"unit added in each direction, lies above -{100 * margin:g}; lost: it lies below; open: neither."
        )
    return notes


def _seed_notes(rows: Sequence[Row], has_adapter: bool) -> list[str]:
    """What the number of seeds allows to conclude."""
    counts = sorted({len(row.seeds.values) for row in rows if row.seeds})
    notes = [] if not counts else ["Several seeds: mean ± standard deviation of their scores, then each seed's score."]
    few = [str(count) for count in counts if count < ENOUGH_SEEDS]
    if few:
        notes.append(
            f"With fewer than three seeds ({' or '.join(few)}), the interval covers document sampling only and says "
            "nothing about the method."
        )
    single = sorted({row.run for row in rows if row.seeds is None})
    if has_adapter and single:
        names = f" ({', '.join(single)})" if counts else ""
        notes.append(f"One seed{names}: the result is about this adapter and says nothing about the method.")
    return notes


def _methods(title: str, used: Iterable[tuple[str | None, str]]) -> list[str]:
    """One line that names each method and, if there are several, the tasks on which it was used."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for method, task in used:
        if method is not None and task not in tasks[method]:
            tasks[method].append(task)
    if not tasks:
        return []
    parts = [method if len(tasks) == 1 else f"{method} ({', '.join(names)})" for method, names in tasks.items()]
    return [f"{title}: {'; '.join(parts)}."]
