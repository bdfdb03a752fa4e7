"""One row of a comparison: a run, or the seeds of one recipe, against the baseline on one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness_ext.analysis import statistics
from harness_ext.analysis.aggregates import Aggregate, compare_aggregates, describe_aggregate, readings_of
from harness_ext.analysis.comparability import check_protocol
from harness_ext.analysis.findings import floor_of, in_points, parsed_points
from harness_ext.analysis.gain import take_apart
from harness_ext.analysis.paired import paired_difference
from harness_ext.analysis.pairing import Joined, join
from harness_ext.analysis.rows import OWN_UNITS, POINTS, Row, Score, Seeds
from harness_ext.analysis.runs import MetricValue, Run, TaskResult
from harness_ext.analysis.samples import SampleScores
from harness_ext.analysis.seeds import Contender, two_level_difference
from harness_ext.analysis.statistics import Clusters, Floats
from harness_ext.errors import ResultsError
from harness_ext.protocol.ties import MOST_TIED

_ROUNDING = 0.05  # points by which a logged metric may miss what its samples give


@dataclass(frozen=True)
class Settings:
    """What the user decides about a comparison."""

    margin: float = 1.0  # points
    seed: int = 0
    allow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One run's result of one task, with its scores where they can be read."""

    run: Run
    result: TaskResult
    metric: MetricValue
    samples: SampleScores | None
    reading: Aggregate | None = None  # of a metric that is no mean of scores
    why_not: str | None = None  # there are no scores


@dataclass(frozen=True)
class PairedScores:
    """Scores of both runs on the documents they share, on 0..1."""

    before: Floats  # (n,)
    after: Floats  # (n,)
    rows: NDArray[np.intp]  # (n,) of the baseline's samples
    clusters: Clusters | None

    def among(self, total: int) -> NDArray[np.bool_]:
        """Which of the baseline's samples these are, (total,)."""
        mask = np.zeros(total, dtype=bool)
        mask[self.rows] = True
        return mask

    def take(self, kept: NDArray[np.bool_]) -> PairedScores:
        """Some of the documents."""
        clusters = None if self.clusters is None else self.clusters.take(kept)
        return PairedScores(self.before[kept], self.after[kept], self.rows[kept], clusters)


@dataclass(frozen=True)
class Trial:
    """A row, what must be said beside it, and the scores that ranks are made from."""

    row: Row
    said: list[str]
    scores: PairedScores | None = None  # None for a metric without a score per document


def read_entry(run: Run, task: str, metric: str | None = None, filter: str | None = None) -> Entry:
    """Read a run's scores of a task; say why where there are none."""
    result = run.tasks[task]
    value = result.primary if metric is None else result.metric(metric, filter)
    if result.is_group:
        return Entry(run, result, value, None, why_not="a group: its tasks are tested")
    if result.samples_path is None:
        return Entry(run, result, value, None, why_not="no samples logged")
    first = result.first_logged(value.metric, value.filter)
    if isinstance(first, (bool, int, float)):
        samples = result.samples(value.metric, value.filter)
        if len(samples) and _reproduces(value.value, float(samples.scores.mean())):
            return Entry(run, result, value, samples)
        return Entry(run, result, value, None, why_not="not a mean over documents")
    for reading in readings_of(value.metric):
        try:
            samples = result.samples(value.metric, value.filter, reading.numbers)
        except ResultsError:
            continue  # logged in another form than this reading expects
        if len(samples) and _reproduces(value.value, reading.value(samples.values)):
            return Entry(run, result, value, samples, reading)
    return Entry(run, result, value, None, why_not="no score per document")


def same_metric(entry: Entry, run: Run) -> Entry:
    """The same metric, through the same filter, of another run."""
    return read_entry(run, entry.result.task, entry.metric.metric, entry.metric.filter)


def _reproduces(logged: float, found: float) -> bool:
    """Whether a logged metric is what its samples give, either of them as a fraction or as points."""
    same_unit = abs(found - logged) * (100 if abs(logged) <= 1 else 1)
    return min(same_unit, abs(100 * found - logged), abs(found - 100 * logged)) <= _ROUNDING


def try_run(first: Entry, run: Run, settings: Settings) -> Trial:
    """Compare one run with the baseline's entry."""
    second = same_metric(first, run)
    differing = check_protocol(first.run, run, first.result.task, settings.allow)
    if first.samples is None or second.samples is None or (first.reading is None) != (second.reading is None):
        return _untested(first, second, differing)
    joined = _join(first, second, first.samples, second.samples, differing, settings)
    said = [*_tie_warnings(first), *_tie_warnings(second)]
    said += _joined_warnings(first.result.task, (first.run.name, run.name), joined)
    if first.reading is not None:
        return Trial(_aggregate_row(first, second, first.reading, joined, differing, settings), said)
    before, after = _fractions(first, joined)
    row = _row(first, second, joined, differing)
    paired = paired_difference(before, after, joined.clusters, seed=settings.seed)
    gain = None
    if first.result.config.get("output_type") == "generate_until":
        gain = take_apart(joined.before, joined.after, (before, after), joined.clusters, factor=row.factor)
    row = replace(
        row,
        baseline=_score(first, before, joined, row.factor),
        score=_score(second, after, joined, row.factor),
        paired=paired.scaled(row.factor),
        gain=gain,
    )
    return Trial(row, said, PairedScores(before, after, joined.rows, joined.clusters))


def try_seeds(first: Entry, contender: Contender, settings: Settings) -> Trial:
    """Compare the runs of one recipe with the baseline's entry, as one."""
    task = first.result.task
    trials = {seed: try_run(first, run, settings) for seed, run in contender.runs.items() if task in run.tasks}
    some = next(iter(trials.values()))
    values = {seed: trial.row.score.value for seed, trial in trials.items()}
    spread = [*values.values()]
    mean, sd = float(np.mean(spread)), float(np.std(spread, ddof=1)) if len(spread) > 1 else 0.0
    row = replace(
        some.row,
        run=contender.name,
        n=min(trial.row.n for trial in trials.values()),
        score=Score(mean, parsed=_mean_parsed([trial.row.score.parsed for trial in trials.values()])),
        seeds=Seeds(values, mean, sd),
        allowed=tuple(dict.fromkeys(field for trial in trials.values() for field in trial.row.allowed)),
        is_sample=any(trial.row.is_sample for trial in trials.values()),
        paired=None,
        gain=None,
    )
    said = [warning for trial in trials.values() for warning in trial.said]
    scores = [trial.scores for trial in trials.values() if trial.scores is not None]
    if len(scores) < len(trials):
        return Trial(replace(row, note=some.row.note or "no score per document for every seed"), said)
    return Trial(*_tested_seeds(row, scores, said, settings))


def _tested_seeds(
    row: Row, scores: Sequence[PairedScores], said: list[str], settings: Settings
) -> tuple[Row, list[str], PairedScores]:
    """The row of several seeds, on the documents that all of them share with the baseline."""
    total = 1 + max(int(each.rows.max()) for each in scores)
    common = np.logical_and.reduce([each.among(total) for each in scores])
    kept = [each.take(common[each.rows]) if not common[each.rows].all() else each for each in scores]
    afters, shared = np.stack([each.after for each in kept]), kept[0]  # (S, n)
    paired = two_level_difference(shared.before, afters, shared.clusters, seed=settings.seed).scaled(row.factor)
    return replace(row, n=paired.n, paired=paired), said, replace(shared, after=afters.mean(axis=0))


def _mean_parsed(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _join(
    first: Entry, second: Entry, a: SampleScores, b: SampleScores, differing: Sequence[str], settings: Settings
) -> Joined:
    names = first.run.name, second.run.name
    return join(first.result.task, names, a, b, allow=settings.allow, differing=differing)


def _row(first: Entry, second: Entry, joined: Joined | None, differing: Sequence[str]) -> Row:
    """Everything about a row but its test: logged values, in the row's unit."""
    metric = first.metric
    targets = joined.before.targets if joined else next(
        (entry.samples.targets for entry in (first, second) if entry.samples is not None), None
    )  # fmt: skip
    unit = OWN_UNITS.get(metric.metric, POINTS)
    factor = in_points([metric.value, second.metric.value], second.result) if unit == POINTS else 1.0
    return Row(
        task=first.result.task,
        run=second.run.name,
        metric=metric.metric,
        filter=metric.filter,
        n=len(joined.rows) if joined else second.result.n,
        baseline=_logged(first, factor),
        score=_logged(second, factor),
        unit=unit,
        higher_is_better=metric.higher_is_better,
        floor=floor_of(second.result, metric.metric, targets),
        allowed=(*differing, *(joined.allowed if joined else ())),
        is_sample=first.result.is_sample or second.result.is_sample,
    )


def _logged(entry: Entry, factor: float) -> Score:
    """The logged value, with the interval of lm-eval's standard error where there is one."""
    value, stderr = entry.metric.value * factor, entry.metric.stderr
    parsed = parsed_points(entry.result)
    if stderr is None:
        return Score(value, parsed=parsed)
    half_width = statistics.normal_half_width(stderr * factor)
    interval = statistics.Interval(value - half_width, value + half_width)
    return Score(value, interval, "normal interval from lm-eval's standard error", parsed)


def _untested(first: Entry, second: Entry, differing: Sequence[str]) -> Trial:
    """A row of logged values only, and the reason why there is no test."""
    entry = first if first.samples is None else second
    row = replace(_row(first, second, None, differing), note=entry.why_not or "logged in another form")
    if entry.result.is_group:
        return Trial(row, [])
    remedy = "evaluate again with --log_samples" if entry.result.samples_path is None else "compare another metric"
    return Trial(row, [f"{row.task}, {entry.run.name}: {row.metric} is not tested ({row.note}); {remedy}"])


def _aggregate_row(
    first: Entry, second: Entry, reading: Aggregate, joined: Joined, differing: Sequence[str], settings: Settings
) -> Row:
    row, groups, seed = _row(first, second, joined, differing), joined.clusters, settings.seed
    sides = []
    for entry, samples in ((first, joined.before), (second, joined.after)):
        found = describe_aggregate(reading, samples.values, groups, seed=seed)
        interval = found.interval.scaled(row.factor)
        sides.append(Score(found.value * row.factor, interval, found.method, parsed_points(entry.result)))
    paired = compare_aggregates(reading, joined.before.values, joined.after.values, groups, seed=seed)
    return replace(row, baseline=sides[0], score=sides[1], paired=paired.scaled(row.factor))


def _fractions(first: Entry, joined: Joined) -> tuple[Floats, Floats]:
    """Both runs' scores on 0..1, whichever scale they were logged on; own units as they are."""
    before, after = joined.before.scores, joined.after.scores
    if first.metric.metric in OWN_UNITS:
        return before, after
    top = first.result.metric_scale or (100 if max(np.abs(before).max(), np.abs(after).max()) > 1 else 1)
    return before / top, after / top


def _score(entry: Entry, fractions: Floats, joined: Joined, factor: float) -> Score:
    found = statistics.describe_mean(fractions, joined.clusters)
    return Score(factor * found.value, found.interval.scaled(factor), found.method, parsed_points(entry.result))


def _tie_warnings(entry: Entry) -> list[str]:
    """Say when most choices tie: the first choice then wins, and the score is how often that happens to be right."""
    share = 0.0 if entry.samples is None else entry.samples.tied_share
    if share <= MOST_TIED:
        return []
    return [
        f"{entry.result.task}, {entry.run.name}: the best choices have the same score in {100 * share:.0f} % of the "
        "documents, so the first of them wins; check the tokenizer with `harness-ext check TASK --model MODEL`"
    ]


def _joined_warnings(task: str, names: tuple[str, str], joined: Joined) -> list[str]:
    said = []
    if joined.left_out:
        said.append(
            f"{task}: {names[0]} and {names[1]} are compared on the {len(joined.rows):,} documents both have; "
            f"{joined.left_out:,} that only one has are left out"
        )
    passages = None if joined.clusters is None else joined.clusters.count
    if passages == 1:
        said.append(f"{task}: all documents stand on one passage; the result says nothing about other passages")
    elif passages is not None and passages < statistics.FEW_CLUSTERS:
        said.append(f"{task}: only {passages} passages; trust the permutation p-value more than the intervals")
    return said
