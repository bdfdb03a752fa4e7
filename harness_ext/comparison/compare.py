"""Compare runs with their baseline: measure, pair, test, decide, then build the rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from harness_ext.comparison.candidates import Candidate, candidates_of
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
from harness_ext.comparison.stopped import row_of, stopped_as
from harness_ext.comparison.testing import PairTest, better_candidates, test_group, test_pair
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
    """The tests of all candidates on one task."""

    tests: list[PairTest]
    better: tuple[list[int], Bools] | None  # as `better_candidates` returns it
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
    unreadable: Sequence[str] = (),
) -> Comparison:
    """Compare every run with the baseline on every task that both have.

    Documents are paired by doc_hash; documents that share a passage count as one unit. Runs without logged samples are
    shown but not tested. Runs that differ only in their seed share a row.

    Args:
        runs: as returned by `load_runs`; their names must differ.
        baseline: name of the run to compare with; None: the one without an adapter.
        metric: metric to compare; None: the primary metric of each task.
        margin: differences of up to this many points count as equivalent.
        margins: margins of single metrics: in points for shares and percentages, else in the metric's own unit.
        clusters: column that names the unit of evidence, by task name or pattern.
        statistics: declarations of your own metrics; see `harness_ext.metrics.declarations.load_statistics`.
        seed: for permutations and bootstraps.
        allow: fields of the protocol that may differ; such rows are marked.
        tasks: names or patterns (`sst2_*`) of tasks; empty: all.
        only: names or patterns of runs to compare with the baseline; empty: all.
        sort: order of the rows of a task and of the models of a board; None: rows by name, a board by mean rank.
        group_seeds: False gives every seed a row of its own.
        unreadable: what lies beside the runs and could not be read, as `load_results` returns it.

    Raises:
        ComparisonError: there is no baseline or no common task, or results are not comparable.
        ResultsError: a run lacks the metric that the baseline is compared by.
        MetricError: a task's YAML declares an unknown field for a metric.
    """
    _check_options(margin, margins or {}, sort)
    check_allowed(allow, runs)
    baseline_run = find_baseline(runs, baseline)
    _check_metrics(margins or {}, baseline_run)
    all_compared = [run for run in runs if run is not baseline_run]
    compared = _matching_runs(all_compared, only)
    shared, without_metric = _shared_tasks(baseline_run, compared, metric)
    matching = _matching_names(shared, tasks, "--tasks")
    task_names = [task for task in shared if task in matching]
    candidates = candidates_of(compared, group_seeds=group_seeds)
    settings = Settings(margin / 100, dict(margins or {}), dict(clusters or {}), seed, tuple(allow), tuple(statistics))

    by_task: dict[str, _TaskTests] = {}
    for task in sorted(task_names, key=lambda name: baseline_run.tasks[name].is_group):  # groups after their tasks
        by_task[task] = _test_task(baseline_run, task, candidates, metric, settings, by_task)
    decisions = _decisions([test for task in task_names for test in by_task[task].tests], settings)
    rows = [row for task in task_names for row in _rows(by_task[task], decisions, settings)]
    rows = _sorted(rows, sort or "name")

    filtered = [f"{run.name} on {task}" for run in all_compared for task in sorted(run.tasks)
                if task in baseline_run.tasks and (task not in task_names or run not in compared)]  # fmt: skip
    findings = [
        *table_findings(baseline_run, compared, rows),
        *(finding for task in task_names for finding in by_task[task].findings),
        *missing_tasks(baseline_run, compared, task_names, has_task_filter=bool(tasks)),
        *left_out(metric, without_metric, filtered if tasks or only else []),
        *(Finding("R17", "warning", text.partition(":")[0], text) for text in unreadable),
    ]
    tokenizers = [note for run in (baseline_run, *compared) if (note := tokenizer_note(run))]
    notes = [*notes_for(rows, settings.margin, has_adapter=any(run.adapter for run in compared)), *tokenizers]
    notes += [finding.text for finding in findings if finding.level == "note"]
    return Comparison(
        baseline=baseline_run.name,
        margin=settings.margin,
        rows=rows,
        findings=list({(finding.id, finding.text): finding for finding in findings}.values()),
        notes=notes,
        costs=costs_of(candidates, rows),
        sort=sort,
        runs=tuple(run.name for run in compared),
    )


# -- measure, pair, test -------------------------------------------------------------------------------------------


def _test_task(
    baseline_run: Run,
    task: str,
    candidates: Sequence[Candidate],
    metric: str | None,
    settings: Settings,
    by_task: Mapping[str, _TaskTests],
) -> _TaskTests:
    """Test every candidate on one task. Samples are read and dropped here, so memory holds those of one task only."""
    base = measure(baseline_run, task, settings, metric=metric)
    measurements = {
        candidate.name: {
            seed: measure(run, task, settings, like=base) for seed, run in candidate.runs.items() if task in run.tasks
        }
        for candidate in candidates
    }
    all_measurements = [measurement for by_seed in measurements.values() for measurement in by_seed.values()]
    base, findings = agreed_factor(base, all_measurements), []
    if not within_declared_range(base, all_measurements):
        findings = [off_scale(base)]
        base = base.without_range()
        measurements = {
            name: {seed: measurement.without_range() for seed, measurement in by_seed.items()}
            for name, by_seed in measurements.items()
        }
    tests = []
    for name, by_seed in measurements.items():
        if not by_seed:
            continue
        paired = pair(base, name, by_seed, settings)
        if base.result.is_group:
            members = {
                member: test
                for member in base.result.members
                if member in by_task
                for test in by_task[member].tests
                if test.pair.name == name
            }
            tests.append(test_group(paired, members))
        else:
            tests.append(test_pair(paired, settings))
    better = better_candidates(tests)
    findings += [finding for test in tests for finding in pair_findings(test)]
    return _TaskTests([test.without_samples() for test in tests], better, findings)


def _decisions(tests: Sequence[PairTest], settings: Settings) -> dict[int, Decision]:
    """Decisions by id of the test; all tests of the comparison share one correction."""
    hypotheses = {
        id(test): Hypothesis(
            test.paired, test.pair.base.margin(settings), test.pair.base.higher_is_better, stopped_as(test.record)
        )
        for test in tests
        if test.paired is not None
    }
    return dict(zip(hypotheses, decide(list(hypotheses.values())), strict=True))


# -- rows ----------------------------------------------------------------------------------------------------------


def _rows(task: _TaskTests, decisions: Mapping[int, Decision], settings: Settings) -> list[Row]:
    """The rows of one task."""
    task_decisions = [decisions.get(id(test)) for test in task.tests]
    rank_of: dict[int, int] = {}
    baseline_rank = None
    if task.better is not None:
        ranked, better = task.better
        verdicts = [decision.verdict if (decision := task_decisions[index]) else None for index in ranked]
        baseline_rank, *candidate_ranks = ranks(better, verdicts)
        rank_of = dict(zip(ranked, candidate_ranks, strict=True))
    return [
        _row(test, decision, rank_of.get(index), baseline_rank, settings)
        for index, (test, decision) in enumerate(zip(task.tests, task_decisions, strict=True))
    ]


def _row(
    test: PairTest, decision: Decision | None, rank: int | None, baseline_rank: int | None, settings: Settings
) -> Row:
    pair, base = test.pair, test.pair.base
    margin = base.margin(settings)
    retained = None
    is_fixed = test.record is None
    if is_fixed and test.paired is not None and margin is not None and is_other_task(pair.first.run, base.result.task):
        retained = retention(test.paired, margin=margin, higher_is_better=base.higher_is_better)
    return Row(
        task=base.result.task,
        run=pair.name,
        metric=base.metric.metric,
        filter=base.metric.filter,
        n=pair.n,
        baseline=test.base,
        score=test.score,
        unit=base.statistic.unit,
        scale=base.statistic.scale,
        higher_is_better=base.higher_is_better,
        margin=margin,
        paired=test.paired,
        decision=decision,
        rank=rank,
        baseline_rank=baseline_rank,
        floor=test.floor,
        gain=test.gain,
        seeds=test.seeds,
        retention=retained,
        allowed=pair.allowed,
        is_sample=any(measurement.result.is_sample for measurement in (base, *pair.runs.values())),
        is_group=base.result.is_group,
        sequential=None if test.record is None else row_of(test.record),
        note=test.not_tested,
    )


def _sorted(rows: Sequence[Row], order: Order) -> list[Row]:
    """Sort by task, then in the order asked for, then by name."""
    keys: Mapping[str, Callable[[Row], float]] = {
        "name": lambda _: 0.0,
        "rank": lambda row: float("inf") if row.rank is None else row.rank,
        "difference": lambda row: -row.difference if row.higher_is_better else row.difference,
        "score": lambda row: -row.score.value if row.higher_is_better else row.score.value,
    }
    return sorted(rows, key=lambda row: (row.task, keys[order](row), row.run))


# -- what is compared ----------------------------------------------------------------------------------------------


def _check_options(margin: float, margins: Mapping[str, float], sort: str | None) -> None:
    if not 0 <= margin < 100:
        raise ComparisonError(f"--margin must be at least 0 and below 100 points, got {margin:g}; choose another value")
    for name, value in margins.items():
        if not 0 <= value < float("inf"):
            raise ComparisonError(
                f"--margin {name}={value:g} must be a finite number of at least 0; choose another value"
            )
    if sort is not None and sort not in ORDERS:
        raise ComparisonError(f"unknown sort order {sort!r}{suggest(sort, ORDERS)}; choose from {', '.join(ORDERS)}")


def _check_metrics(margins: Mapping[str, float], baseline: Run) -> None:
    known = sorted({metric for task in baseline.tasks.values() for metric in task.metrics})
    for name in margins:
        if name not in known:
            raise ComparisonError(
                f"--margin {name}={margins[name]:g}: no task has metric {name!r}{suggest(name, known)}; "
                f"{baseline.name} has {', '.join(known)}"
            )


def _matching_runs(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    names = _matching_names([run.name for run in runs], patterns, "--runs")
    return [run for run in runs if run.name in names]


def _matching_names(names: Sequence[str], patterns: Sequence[str], flag: str) -> set[str]:
    """Names that match one of the patterns; all if there are no patterns."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ComparisonError(
                f"{flag} {pattern!r} matches none of {', '.join(names)}{suggest(pattern, names)}; correct the pattern"
            )
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)} or set(names)


def _shared_tasks(baseline: Run, compared: Sequence[Run], metric: str | None) -> tuple[list[str], list[str]]:
    """Tasks that the baseline shares with a compared run: those with the metric, and those without it."""
    shared = sorted(task for task in baseline.tasks if any(task in run.tasks for run in compared))
    without_metric = [task for task in shared if metric is not None and metric not in baseline.tasks[task].metrics]
    with_metric = [task for task in shared if task not in without_metric]
    if not with_metric:
        raise ComparisonError(_nothing_shared(baseline, compared, metric if shared else None))
    return with_metric, without_metric


def find_baseline(runs: Sequence[Run], name: str | None = None) -> Run:
    """Find the run to compare with: the one of this name, or the one without an adapter that the adapters build on.

    If several runs qualify, as with tools that have no adapters, the one named base or baseline is taken.

    Raises:
        ComparisonError: there are fewer than two runs, two have the same name, the name is unknown, or not exactly one
            run qualifies.
    """
    names = ", ".join(run.name for run in runs)
    if len(runs) < 2:
        raise ComparisonError(f"a comparison needs two runs, got {names or 'none'}; evaluate the base and the adapter")
    if len({run.name for run in runs}) < len(runs):
        raise ComparisonError(f"two runs have the same name ({names}); load them in one call, which makes names unique")
    if name is not None:
        for run in runs:
            if run.name == name:
                return run
        hint = suggest(name, [run.name for run in runs])
        raise ComparisonError(f"no run is named {name!r}{hint}; choose the baseline from: {names}")
    bases = [run for run in runs if run.adapter is None]
    adapters = [run for run in runs if run.adapter is not None]
    possible = [run for run in bases if adapters and all(_same_base(run, adapter) for adapter in adapters)] or bases
    if len(possible) > 1:
        possible = [run for run in possible if run.name in _BASELINE_NAMES] or possible
    if len(possible) == 1:
        return possible[0]
    if not bases:
        raise ComparisonError(
            f"every run has an adapter ({names}); evaluate the base, too, or choose a baseline with --baseline"
        )
    raise ComparisonError(
        f"any of {', '.join(run.name for run in possible)} could be the baseline; choose one with --baseline"
    )


def _same_base(first: Run, second: Run) -> bool:
    """Whether two runs use the same base, by the last part of its Hub id or path."""
    names = [(run.base or "").rstrip("/").rpartition("/")[2] for run in (first, second)]
    return bool(names[0]) and names[0] == names[1]


def _nothing_shared(baseline: Run, compared: Sequence[Run], metric: str | None) -> str:
    if metric is not None:
        known = sorted({name for result in baseline.tasks.values() for name in result.metrics})
        return f"no shared task has metric {metric!r}{suggest(metric, known)}; {baseline.name} has {', '.join(known)}"
    names = ", ".join(run.name for run in compared)
    return f"{baseline.name} shares no task with {names}; evaluate all of them on the same tasks"
