"""Compare runs with their baseline: paired by document, tested, put into one word, and warned about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness_ext.analysis import statistics
from harness_ext.analysis.comparison import Comparison, Row, Score
from harness_ext.analysis.findings import floor_of, in_points, notes_for, parsed_points, warnings_for
from harness_ext.analysis.pairing import Joined, check_protocol, join
from harness_ext.analysis.results import MetricValue, Run, TaskResult
from harness_ext.analysis.samples import SampleScores
from harness_ext.errors import ComparisonError, suggest

_ROUNDING = 0.05  # points by which a logged metric may miss the mean of its logged scores


@dataclass(frozen=True)
class _Entry:
    """One run's result of one task, with its scores where they can be read."""

    run: Run
    result: TaskResult
    metric: MetricValue
    scores: SampleScores | None
    why_not: str | None = None  # there are no scores


def compare_runs(
    runs: Sequence[Run], *, baseline: str | None = None, metric: str | None = None, margin: float = 1.0, seed: int = 0
) -> Comparison:
    """Compare every run with the baseline, on every task both have.

    Documents are paired by doc_hash; questions on one passage count as one cluster. Runs without logged
    samples are shown and not tested.

    Args:
        runs: as `load_runs` returns them; names must differ.
        baseline: name of the run to compare with; None finds the one without an adapter.
        metric: to compare instead of each task's primary one.
        margin: differences up to this many points count as equivalent.
        seed: of the permutation tests.

    Raises:
        ComparisonError: no baseline, nothing in common, or results that are not comparable.
        ResultsError: samples that cannot be read, or a metric that a task does not have.
    """
    chosen = find_baseline(runs, baseline)
    others = [run for run in runs if run is not chosen]
    tasks = sorted(task for task in chosen.tasks if any(task in run.tasks for run in others))
    if metric is not None:
        tasks = [task for task in tasks if _has_metric(chosen, task, metric)]
    if not tasks:
        raise ComparisonError(_nothing_shared(chosen, others, metric))
    rows: list[Row] = []
    warnings: list[str] = []
    for task in tasks:
        entry = _entry(chosen, task, metric)
        for run in others:
            if task in run.tasks:
                check_protocol(chosen, run, task)
                row, said = _compare(entry, _other(entry, run), margin=margin, seed=seed)
                rows.append(row)
                warnings += said
    everyone = [*warnings_for(chosen, others, rows), *warnings, *_missing_tasks(chosen, others)]
    return Comparison(
        baseline=chosen.name,
        margin=margin,
        rows=rows,
        warnings=list(dict.fromkeys(everyone)),
        notes=notes_for(rows, margin, has_adapter=any(run.adapter for run in others)),
    )


def find_baseline(runs: Sequence[Run], name: str | None = None) -> Run:
    """Find the run to compare with: the named one, or the one without an adapter that the others build on.

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


def _has_metric(run: Run, task: str, metric: str) -> bool:
    return metric in run.tasks[task].metrics


def _nothing_shared(chosen: Run, others: Sequence[Run], metric: str | None) -> str:
    if metric is not None:
        known = sorted({name for result in chosen.tasks.values() for name in result.metrics})
        return f"no shared task has metric {metric!r}{suggest(metric, known)}; {chosen.name} has {', '.join(known)}"
    names = ", ".join(run.name for run in others)
    return f"{chosen.name} shares no task with {names}; evaluate them on the same tasks"


def _missing_tasks(chosen: Run, others: Sequence[Run]) -> list[str]:
    """Say which results stand alone and are therefore not in the table."""
    said = []
    for run in others:
        if alone := sorted(set(run.tasks) - set(chosen.tasks)):
            said.append(f"{run.name}: {', '.join(alone)} left out, {chosen.name} was not evaluated on it")
        if absent := sorted(set(chosen.tasks) - set(run.tasks)):
            said.append(f"{run.name}: was not evaluated on {', '.join(absent)}")
    return said


def _entry(run: Run, task: str, metric: str | None, filter: str | None = None) -> _Entry:
    """Read a run's scores of a task; say why where there are none."""
    result = run.tasks[task]
    value = result.primary if metric is None else result.metric(metric, filter)
    if result.samples_path is None:
        return _Entry(run, result, value, None, "no samples logged")
    if not result.has_scores(value.metric, value.filter):
        return _Entry(run, result, value, None, "no score per document")
    scores = result.samples(value.metric, value.filter)
    if not _is_mean(value.value, scores.scores):
        return _Entry(run, result, value, None, "not a mean over documents")
    return _Entry(run, result, value, scores)


def _other(entry: _Entry, run: Run) -> _Entry:
    """The same metric, through the same filter, of another run."""
    return _entry(run, entry.result.task, entry.metric.metric, entry.metric.filter)


def _is_mean(value: float, scores: NDArray[np.float64]) -> bool:
    """Whether a logged metric is the mean of its scores, either of them as a fraction or as points."""
    mean = float(scores.mean())
    same_unit = abs(mean - value) * (100 if abs(value) <= 1 else 1)
    return min(same_unit, abs(100 * mean - value), abs(mean - 100 * value)) <= _ROUNDING


def _compare(first: _Entry, second: _Entry, *, margin: float, seed: int) -> tuple[Row, list[str]]:
    if first.scores is None or second.scores is None:
        return _untested(first, second)
    task, names = first.result.task, (first.run.name, second.run.name)
    joined = join(task, names, first.scores, second.scores)
    return _tested(first, second, joined, margin=margin, seed=seed), _joined_warnings(task, names, joined)


def _untested(first: _Entry, second: _Entry) -> tuple[Row, list[str]]:
    """A row of logged values only, and the reason why there is no test."""
    scores, entry = (first.scores, second) if first.scores is not None else (second.scores, first)
    row = Row(
        task=first.result.task,
        run=second.run.name,
        metric=first.metric.metric,
        filter=first.metric.filter,
        n=second.result.n,
        baseline=_logged(first, first.metric, second.metric),
        score=_logged(second, first.metric, second.metric),
        floor=floor_of(second.result, first.metric.metric, scores.targets if scores else None),
        is_sample=second.result.is_sample,
        note=entry.why_not,
    )
    remedy = "evaluate again with --log_samples" if entry.result.samples_path is None else "compare another metric"
    said = f"{row.task}, {entry.run.name}: {row.metric} is not tested ({entry.why_not}); {remedy}"
    return row, [said]


def _logged(entry: _Entry, *all_values: MetricValue) -> Score:
    """The logged value in points, with the interval of lm-eval's standard error where there is one."""
    factor = in_points([value.value for value in all_values], entry.result)
    value, stderr = entry.metric.value * factor, entry.metric.stderr
    parsed = parsed_points(entry.result)
    if stderr is None:
        return Score(value, parsed=parsed)
    half_width = statistics.normal_half_width(stderr * factor)
    interval = statistics.Interval(value - half_width, value + half_width)
    return Score(value, interval, "normal interval from lm-eval's standard error", parsed)


def _tested(first: _Entry, second: _Entry, joined: Joined, *, margin: float, seed: int) -> Row:
    before, after = _fractions(joined)
    paired = statistics.paired_difference(before, after, joined.clusters, seed=seed)
    sign = 1 if first.metric.higher_is_better else -1
    word = statistics.verdict(paired.interval.scaled(sign), margin=margin / 100, p_value=paired.p_value)
    open_ = word == "undecided"
    return Row(
        task=first.result.task,
        run=second.run.name,
        metric=first.metric.metric,
        filter=first.metric.filter,
        n=paired.n,
        baseline=_score(first, before, joined),
        score=_score(second, after, joined),
        paired=paired.scaled(100),
        verdict=word,
        needed_n=statistics.needed_n(paired, margin=margin / 100) if open_ else None,
        detectable=100 * statistics.minimum_detectable_difference(paired) if open_ else None,
        floor=floor_of(second.result, first.metric.metric, joined.targets),
        is_sample=first.result.is_sample or second.result.is_sample,
    )


def _fractions(joined: Joined) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both runs' scores on 0..1, whichever scale they were logged on."""
    top = 100 if max(np.abs(joined.before).max(), np.abs(joined.after).max()) > 1 else 1
    return joined.before / top, joined.after / top


def _score(entry: _Entry, fractions: NDArray[np.float64], joined: Joined) -> Score:
    found = statistics.describe_mean(fractions, joined.clusters)
    return Score(100 * found.value, found.interval.scaled(100), found.method, parsed_points(entry.result))


def _joined_warnings(task: str, names: tuple[str, str], joined: Joined) -> list[str]:
    said = []
    if joined.left_out:
        said.append(
            f"{task}: {names[0]} and {names[1]} are compared on the {len(joined.before):,} documents both have; "
            f"{joined.left_out:,} that only one has are left out"
        )
    passages = None if joined.clusters is None else len(np.unique(joined.clusters))
    if passages == 1:
        said.append(f"{task}: all documents stand on one passage; the result says nothing about other passages")
    elif passages is not None and passages < statistics.FEW_CLUSTERS:
        said.append(f"{task}: only {passages} passages; trust the permutation p-value more than the intervals")
    return said
