"""Compare runs with their baseline: measure, pair, test, decide, then build every row once."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from harness_ext.comparison.contenders import Contender, contenders
from harness_ext.comparison.findings import (
    costs_of,
    is_other_task,
    left_out,
    missing_tasks,
    notes_for,
    off_scale,
    pair_findings,
    table_findings,
)
from harness_ext.comparison.measure import Settings, agreed_factor, measure, within_declared_range
from harness_ext.comparison.pair import pair
from harness_ext.comparison.rows import Comparison, Row
from harness_ext.comparison.testing import Tested, test, test_group, told_apart
from harness_ext.errors import ComparisonError, suggest
from harness_ext.findings import Finding
from harness_ext.metrics.statistic import Statistic
from harness_ext.results.comparability import check_allowed, tokenizer_note
from harness_ext.results.run import Run
from harness_ext.stats.ranks import Bools, ranks
from harness_ext.stats.verdicts import Decision, Hypothesis, decide, retention

Order = Literal["name", "rank", "difference", "score"]
ORDERS: tuple[str, ...] = get_args(Order)
_BASELINE_NAMES = ("base", "baseline")


@dataclass(frozen=True)
class _TaskTests:
    """All contenders' tests of one task, and which of them are told apart."""

    tests: list[Tested]
    apart: tuple[list[int], Bools] | None
    findings: list[Finding]


def compare_runs(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    metric: str | None = None,
    margin: float = 1.0,
    margins: Mapping[str, float] | None = None,
    clusters: Mapping[str, str] | None = None,
    statistics: Sequence[Statistic] = (),
    seed: int = 0,
    allow: Sequence[str] = (),
    tasks: Sequence[str] = (),
    only: Sequence[str] = (),
    sort: Order | None = None,
    group_seeds: bool = True,
) -> Comparison:
    """Compare every run with the baseline, on every task both have.

    Documents are paired by doc_hash; those that share a passage count as one unit. Runs without logged samples are
    shown and not tested. Runs that differ only in their seed make one row.

    Args:
        runs: as `load_runs` returns them; names must differ.
        baseline: name of the run to compare with; None finds the one without an adapter.
        metric: to compare instead of each task's primary one.
        margin: differences up to this many points count as equivalent.
        margins: of single metrics: in points for shares and percentages, else in the metric's own unit.
        clusters: column that names the unit of evidence, by task or pattern.
        statistics: declarations of metrics of your own; see `harness_ext.metrics.declarations.load_statistics`.
        seed: of permutations and bootstraps.
        allow: fields of the protocol that may differ; the rows are marked.
        tasks: names or patterns (`sst2_*`) of tasks; none: all.
        only: names or patterns of runs beside the baseline; none: all.
        sort: of the rows of one task, and of a board's models; None: by name, a board by mean rank.
        group_seeds: False gives every seed a row of its own.

    Raises:
        ComparisonError: no baseline, nothing in common, or results that are not comparable.
        ResultsError: a run does not have the metric that the baseline is compared by.
        MetricError: a task's YAML declares something of a metric that no metric has.
    """
    _check_wishes(margin, margins or {}, sort)
    check_allowed(allow, runs)
    chosen = find_baseline(runs, baseline)
    _check_names(margins or {}, chosen)
    not_baseline = [run for run in runs if run is not chosen]
    others = _matching(not_baseline, only)
    shared, without_metric = _shared_tasks(chosen, others, metric)
    named = [task for task in shared if task in _named(shared, tasks, "--tasks")]
    entrants = contenders(others, group=group_seeds)
    settings = Settings(margin / 100, dict(margins or {}), dict(clusters or {}), seed, tuple(allow), tuple(statistics))

    by_task: dict[str, _TaskTests] = {}
    for task in sorted(named, key=lambda name: chosen.tasks[name].is_group):  # groups after their tasks
        by_task[task] = _test_task(chosen, task, entrants, metric, settings, by_task)
    tested = [each for task in named for each in by_task[task].tests]
    decisions = dict(zip(map(id, _decidable(tested)), decide(_hypotheses(tested, settings)), strict=True))
    rows = [row for task in named for row in _rows(by_task[task], decisions, settings)]
    rows = _sorted(rows, sort or "name")

    filtered = [f"{run.name} on {task}" for run in not_baseline for task in _tasks_of(chosen, run)
                if task not in named or run not in others]  # fmt: skip
    findings = [
        *table_findings(chosen, others, rows),
        *(finding for task in named for finding in by_task[task].findings),
        *missing_tasks(chosen, others, named, tasks_were_chosen=bool(tasks)),
        *left_out(metric, without_metric, filtered if tasks or only else []),
    ]
    tokenizers = [note for run in (chosen, *others) if (note := tokenizer_note(run))]
    notes = [*notes_for(rows, settings.margin, has_adapter=any(run.adapter for run in others)), *tokenizers]
    notes += [finding.text for finding in findings if finding.level == "note"]
    return Comparison(
        baseline=chosen.name,
        margin=settings.margin,
        rows=rows,
        findings=list({(finding.id, finding.text): finding for finding in findings}.values()),
        notes=notes,
        costs=costs_of(entrants, rows),
        sort=sort,
    )


# -- measure, pair, test -------------------------------------------------------------------------------------------


def _test_task(
    chosen: Run,
    task: str,
    entrants: Sequence[Contender],
    metric: str | None,
    settings: Settings,
    done: Mapping[str, _TaskTests],
) -> _TaskTests:
    """Every contender on one task. Samples are read here and dropped here, so memory is bounded by one task."""
    base = measure(chosen, task, settings, metric=metric)
    measurements = {
        entrant.name: {
            seed: measure(run, task, settings, like=base) for seed, run in entrant.runs.items() if task in run.tasks
        }
        for entrant in entrants
    }
    every = [run for runs in measurements.values() for run in runs.values()]
    base, findings = agreed_factor(base, every), []
    if not within_declared_range(base, every):
        findings = [off_scale(base)]
        base = base.without_range()
        measurements = {
            name: {seed: run.without_range() for seed, run in runs.items()} for name, runs in measurements.items()
        }
    tests = []
    for name, runs in measurements.items():
        if not runs:
            continue
        made = pair(base, name, runs, settings)
        if base.result.is_group:
            members = {
                member: each
                for member in base.result.members
                if member in done
                for each in done[member].tests
                if each.pair.name == name
            }
            tests.append(test_group(made, members))
        else:
            tests.append(test(made, settings))
    apart = told_apart(tests)
    findings += [finding for each in tests for finding in pair_findings(each)]
    return _TaskTests([each.without_samples() for each in tests], apart, findings)


def _decidable(tested: Sequence[Tested]) -> list[Tested]:
    return [each for each in tested if each.paired is not None]


def _hypotheses(tested: Sequence[Tested], settings: Settings) -> list[Hypothesis]:
    return [
        Hypothesis(each.paired, each.pair.base.margin(settings), each.pair.base.higher_is_better)
        for each in tested
        if each.paired is not None
    ]


# -- rows ----------------------------------------------------------------------------------------------------------


def _rows(task: _TaskTests, decisions: Mapping[int, Decision], settings: Settings) -> list[Row]:
    """The rows of one task, complete."""
    found = [decisions.get(id(each)) for each in task.tests]
    places: dict[int, int] = {}
    baseline_rank = None
    if task.apart is not None:
        ranked, better = task.apart
        verdicts = [decision.verdict if (decision := found[place]) else None for place in ranked]
        baseline_rank, *others = ranks(better, verdicts)
        places = dict(zip(ranked, others, strict=True))
    return [
        _row(each, decision, places.get(place), baseline_rank, settings)
        for place, (each, decision) in enumerate(zip(task.tests, found, strict=True))
    ]


def _row(
    tested: Tested, decision: Decision | None, rank: int | None, baseline_rank: int | None, settings: Settings
) -> Row:
    pair, base = tested.pair, tested.pair.base
    margin = base.margin(settings)
    kept = None
    if tested.paired is not None and margin is not None and is_other_task(pair.first.run, base.result.task):
        kept = retention(tested.paired, margin=margin, higher_is_better=base.higher_is_better)
    return Row(
        task=base.result.task,
        run=pair.name,
        metric=base.metric.metric,
        filter=base.metric.filter,
        n=pair.n,
        baseline=tested.base,
        score=tested.score,
        unit=base.statistic.unit,
        scale=base.statistic.scale,
        higher_is_better=base.higher_is_better,
        margin=margin,
        paired=tested.paired,
        decision=decision,
        rank=rank,
        baseline_rank=baseline_rank,
        floor=tested.floor,
        gain=tested.gain,
        seeds=tested.seeds,
        retention=kept,
        allowed=pair.allowed,
        is_sample=any(each.result.is_sample for each in (base, *pair.runs.values())),
        is_group=base.result.is_group,
        note=tested.not_tested,
    )


def _sorted(rows: Sequence[Row], order: Order) -> list[Row]:
    """By task, then as asked, then by name: the same on every machine."""
    keys: Mapping[str, Callable[[Row], float]] = {
        "name": lambda _: 0.0,
        "rank": lambda row: float("inf") if row.rank is None else row.rank,
        "difference": lambda row: -row.difference if row.higher_is_better else row.difference,
        "score": lambda row: -row.score.value if row.higher_is_better else row.score.value,
    }
    return sorted(rows, key=lambda row: (row.task, keys[order](row), row.run))


# -- what is compared ----------------------------------------------------------------------------------------------


def _check_wishes(margin: float, margins: Mapping[str, float], sort: str | None) -> None:
    if not 0 <= margin < 100:
        raise ComparisonError(f"--margin must be at least 0 and below 100 points, got {margin:g}; choose another")
    for name, value in margins.items():
        if not 0 <= value < float("inf"):
            raise ComparisonError(f"--margin {name}={value:g} must be a number, at least 0; choose another")
    if sort is not None and sort not in ORDERS:
        raise ComparisonError(f"no order {sort!r}{suggest(sort, ORDERS)}; choose from {', '.join(ORDERS)}")


def _check_names(margins: Mapping[str, float], baseline: Run) -> None:
    known = sorted({metric for task in baseline.tasks.values() for metric in task.metrics})
    for name in margins:
        if name not in known:
            raise ComparisonError(
                f"--margin {name}={margins[name]:g}: no task has metric {name!r}{suggest(name, known)}; "
                f"{baseline.name} has {', '.join(known)}"
            )


def _matching(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Runs whose names match one of the patterns; all without patterns."""
    kept = _named([run.name for run in runs], patterns, "--runs")
    return [run for run in runs if run.name in kept]


def _named(names: Sequence[str], patterns: Sequence[str], flag: str) -> set[str]:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ComparisonError(
                f"{flag} {pattern!r} matches none of {', '.join(names)}{suggest(pattern, names)}; correct it"
            )
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)} or set(names)


def _shared_tasks(chosen: Run, others: Sequence[Run], metric: str | None) -> tuple[list[str], list[str]]:
    """Tasks that the baseline shares with another run; and those of them that do not have the metric asked for."""
    shared = sorted(task for task in chosen.tasks if any(task in run.tasks for run in others))
    without = [task for task in shared if metric is not None and metric not in chosen.tasks[task].metrics]
    having = [task for task in shared if task not in without]
    if not having:
        raise ComparisonError(_nothing_shared(chosen, others, metric if shared else None))
    return having, without


def _tasks_of(chosen: Run, run: Run) -> list[str]:
    return sorted(task for task in run.tasks if task in chosen.tasks)


def find_baseline(runs: Sequence[Run], name: str | None = None) -> Run:
    """Find the run to compare with: the named one, or the one without an adapter that the others build on.

    Where several could be it, as in results of tools that know no adapters, the only one called base or baseline is.

    Raises:
        ComparisonError: fewer than two runs, equal names, an unknown name, no candidate, or several.
    """
    names = ", ".join(run.name for run in runs)
    if len(runs) < 2:
        raise ComparisonError(f"a comparison needs two runs, got {names or 'none'}; evaluate the base and the adapter")
    if len({run.name for run in runs}) < len(runs):
        raise ComparisonError(f"two runs have one name ({names}); load them in one call, which makes names unique")
    if name is not None:
        for run in runs:
            if run.name == name:
                return run
        known = suggest(name, [run.name for run in runs])
        raise ComparisonError(f"no run is named {name!r}{known}; choose the baseline from: {names}")
    bare = [run for run in runs if run.adapter is None]
    adapted = [run for run in runs if run.adapter is not None]
    fitting = [run for run in bare if adapted and all(_same_base(run, other) for other in adapted)] or bare
    if len(fitting) > 1:
        fitting = [run for run in fitting if run.name in _BASELINE_NAMES] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not bare:
        raise ComparisonError(f"no base among {names}; evaluate it without the adapter, or choose one with --baseline")
    raise ComparisonError(
        f"any of {', '.join(run.name for run in fitting)} could be the baseline; choose one with --baseline"
    )


def _same_base(first: Run, second: Run) -> bool:
    """Whether two runs use one base, called by hub id or by any path to it."""
    names = [(run.base or "").rstrip("/").rpartition("/")[2] for run in (first, second)]
    return bool(names[0]) and names[0] == names[1]


def _nothing_shared(chosen: Run, others: Sequence[Run], metric: str | None) -> str:
    if metric is not None:
        known = sorted({name for result in chosen.tasks.values() for name in result.metrics})
        return f"no shared task has metric {metric!r}{suggest(metric, known)}; {chosen.name} has {', '.join(known)}"
    names = ", ".join(run.name for run in others)
    return f"{chosen.name} shares no task with {names}; evaluate them on the same tasks"
