"""Test a pair: both scores, their difference and its test, in the metric's unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness_ext.comparison.floors import floor_of
from harness_ext.comparison.gain import decompose
from harness_ext.comparison.measure import Measurement, Settings
from harness_ext.comparison.pair import Pair
from harness_ext.comparison.rows import Floor, Gain, Score, Seeds
from harness_ext.comparison.stopped import is_stopped, sequential_difference, stopped_record, why_not_covered
from harness_ext.metrics.statistic import Floats, Statistic, classes_in
from harness_ext.results.run import TaskResult
from harness_ext.stats import resampling, roc
from harness_ext.stats.intervals import Interval, bounded, combined, describe_mean, normal_half_width
from harness_ext.stats.paired import (
    PairedDifference,
    from_estimate,
    mcnemar,
    paired_aggregates,
    paired_auroc,
    paired_difference,
)
from harness_ext.stats.ranks import Bools, better_pairs
from harness_ext.stats.seeds import seed_variance, two_level_difference
from harness_ext.stats.sequential.record import Record
from harness_ext.stats.units import Clusters, real_clusters

_BY_SIZE = "weighted by size"


@dataclass(frozen=True)
class PairTest:
    """A pair with its scores, its difference and its test."""

    pair: Pair
    base: Score
    score: Score
    paired: PairedDifference | None = None
    not_tested: str | None = None
    seeds: Seeds | None = None
    gain: Gain | None = None
    floor: Floor | None = None
    record: Record | None = None  # of the sequential evaluation by which it is tested

    @property
    def statistic(self) -> Statistic:
        """The declaration of the metric."""
        return self.pair.base.statistic

    def without_samples(self) -> PairTest:
        """The same test without the samples, to free their memory."""
        return replace(self, pair=self.pair.without_samples())


def test_pair(pair: Pair, settings: Settings) -> PairTest:
    """Test a pair; if it cannot be tested, the result holds the logged values only.

    Args:
        pair: of one task, not of a group.
        settings: options of the comparison.
    """
    seeds = _seeds(pair)
    if pair.not_tested is not None or pair.before is None:
        return _untested(pair, pair.not_tested or "no samples logged", seeds)
    statistic = pair.base.statistic
    if statistic.describes:
        return _untested(pair, "it describes the data or the model and is not a score", seeds)
    if refusal := why_not_covered(pair, pair.base.margin(settings)):
        return _without_intervals(_untested(pair, refusal, seeds))
    before, afters = pair.numbers()
    try:
        paired = _difference(statistic, before, afters, pair.clusters, settings.seed)
        if (record := stopped_record(pair)) is not None:
            return _sequential(pair, paired, record, settings)
    except ValueError as error:
        return _untested(pair, str(error), seeds)
    if (record := stopped_record(pair)) is not None:
        return _sequential(pair, paired, record, settings)
    after = np.mean(afters, axis=0) if statistic.is_mean else afters[0]
    gain = None
    if statistic.is_mean and seeds is None and pair.base.result.config.get("output_type") == "generate_until":
        gain = decompose(pair.before, pair.afters[0], (before[:, 0], after[:, 0]), pair.clusters)
    base = _score(statistic, before, pair.clusters, pair.base.result, settings.seed)
    if seeds is None:
        score = _score(statistic, after, pair.clusters, pair.first.result, settings.seed)
    else:
        score = Score(seeds.mean, parsed=_mean_parsed(pair.runs.values()))
    return PairTest(pair, base, score, paired, seeds=seeds, gain=gain, floor=floor_of(pair.first, pair.before))


def _sequential(pair: Pair, fixed: PairedDifference, record: Record, settings: Settings) -> PairTest:
    """A test by the design of a sequential evaluation; scores of stopped runs have no interval of their own."""
    before, (after, *_) = pair.numbers()
    statistic = pair.base.statistic
    test = PairTest(
        pair,
        _score(statistic, before, pair.clusters, pair.base.result, settings.seed),
        _score(statistic, after, pair.clusters, pair.first.result, settings.seed),
        sequential_difference(fixed, record),
        floor=floor_of(pair.first, pair.before),
        record=record,
    )
    return _without_intervals(test) if record.is_stopped_early else test


def _without_intervals(test: PairTest) -> PairTest:
    base, score = (replace(score, interval=None, method=None) for score in (test.base, test.score))
    return replace(test, base=base, score=score)


# -- scores --------------------------------------------------------------------------------------------------------


def _untested(pair: Pair, reason: str, seeds: Seeds | None) -> PairTest:
    score = logged_score(pair.first) if seeds is None else Score(seeds.mean, parsed=_mean_parsed(pair.runs.values()))
    samples = next((run.samples for run in (pair.base, *pair.runs.values()) if run.samples is not None), None)
    floor = floor_of(pair.first, samples)
    return PairTest(pair, logged_score(pair.base), score, not_tested=reason, seeds=seeds, floor=floor)


def _seeds(pair: Pair) -> Seeds | None:
    if len(pair.runs) < 2:
        return None
    values = {}
    for index, (seed, run) in enumerate(pair.runs.items()):
        values[seed] = run.statistic.value(run.rows(pair.afters[index])) if pair.afters else run.value
    scores = list(values.values())
    return Seeds(values, float(np.mean(scores)), float(np.std(scores, ddof=1)))


def logged_score(measurement: Measurement) -> Score:
    """The logged value, with an interval if a standard error was logged."""
    value, stderr = measurement.value, measurement.standard_error
    parsed = parsed_share(measurement.result)
    if stderr is None:
        return Score(value, parsed=parsed)
    half_width = normal_half_width(stderr)
    low, high = measurement.statistic.limits
    interval = Interval(
        value - half_width if low is None else max(low, value - half_width),
        value + half_width if high is None else min(high, value + half_width),
    )
    return Score(value, interval, "normal interval from the logged standard error", parsed)


def _score(statistic: Statistic, rows: Floats, clusters: Clusters | None, result: TaskResult, seed: int) -> Score:
    parsed = parsed_share(result)
    if statistic.is_mean:
        mean = describe_mean(rows[:, 0], clusters, limits=statistic.limits)
        return Score(mean.value, mean.interval, mean.method, parsed)
    value, groups = statistic.value(rows), real_clusters(clusters)
    if statistic.ranks_classes:
        interval, _ = bounded(roc.auroc_estimate(rows[:, 0], rows[:, 1], groups), 0.0, 1.0)
        return Score(value, interval, "DeLong, t interval", parsed)
    sums = _unit_sums(statistic, rows, groups, classes_in(rows) if statistic.expand else None)
    sums = resampling.pooled(sums, seed=seed)
    assert statistic.score is not None
    score = statistic.score
    replicates = resampling.bootstrap(len(sums), lambda weights: score(weights @ sums), seed=seed)
    resampled = "documents" if groups is None else "passages"
    return Score(value, resampling.percentile_interval(replicates), f"bootstrap of {resampled}", parsed)


def parsed_share(result: TaskResult) -> float | None:
    """Share of outputs that parsed: `parsed_rate`; else 1 - `empty_rate`, if outputs must not be empty."""
    full_marks = 100 if result.metadata.get("metric_scale") == 100 else 1
    if (logged := result.metrics.get("parsed_rate")) is not None:
        return logged.value / full_marks
    if (empty := result.metrics.get("empty_rate")) is not None and "abstain_f1" not in result.metrics:
        return 1 - empty.value / full_marks
    return None


def _mean_parsed(runs: Iterable[Measurement]) -> float | None:
    shares = [share for run in runs if (share := parsed_share(run.result)) is not None]
    return float(np.mean(shares)) if shares else None


# -- differences ---------------------------------------------------------------------------------------------------


def _difference(
    statistic: Statistic, before: Floats, afters: Sequence[Floats], clusters: Clusters | None, seed: int
) -> PairedDifference:
    if statistic.ranks_classes:
        _refuse_seeds(afters)
        return paired_auroc(before[:, 0], before[:, 1], afters[0][:, 1], clusters)
    if statistic.is_mean and statistic.scale == "linear":
        limits = statistic.limits
        if len(afters) > 1:
            return two_level_difference(
                before[:, 0], np.stack([after[:, 0] for after in afters]), clusters, limits=limits, seed=seed
            )
        return paired_difference(before[:, 0], afters[0][:, 0], clusters, limits=limits, seed=seed)
    _refuse_seeds(afters)
    groups = real_clusters(clusters)
    classes = classes_in(before, afters[0]) if statistic.expand else None
    first, second = (_unit_sums(statistic, rows, groups, classes) for rows in (before, afters[0]))
    low, high = statistic.limits
    span = high - low if statistic.scale == "linear" and low is not None and high is not None else 1.0
    return paired_aggregates(first, second, _on_scale(statistic), n=len(before), clusters=groups, span=span, seed=seed)


def _refuse_seeds(afters: Sequence[Floats]) -> None:
    if len(afters) > 1:
        raise ValueError("no test over several seeds; compare each seed with --each-seed")


def _on_scale(statistic: Statistic) -> resampling.MetricOfSums:
    """The metric as a function of sums, on the scale on which it is compared."""
    score = statistic.score
    if score is None:  # a mean that is compared on the log scale
        return lambda sums: np.log(sums[:, 0] / sums[:, 1])
    return score if statistic.scale == "linear" else lambda sums: np.log(score(sums))


def _unit_sums(statistic: Statistic, rows: Floats, groups: Clusters | None, classes: int | None) -> Floats:
    """The numbers that the metric is computed from, summed over each unit: (n, k) -> (C, K)."""
    summands = statistic.summands(rows, classes)
    if statistic.score is None:
        summands = np.column_stack([summands[:, 0], np.ones(len(rows))])
    return summands if groups is None else groups.sums(summands)


# -- candidates among themselves -----------------------------------------------------------------------------------


def better_candidates(tests: Sequence[PairTest]) -> tuple[list[int], Bools] | None:
    """Which candidates are significantly better than which on one task, over the documents that all have.

    Args:
        tests: of all candidates on one task.

    Returns:
        Indices of the tests whose candidates can be ranked, and the matrix of `better_pairs` over them; None if the
        metric is not a plain mean of documents, or fewer than two documents are shared.
    """
    ranked = [
        index
        for index, test in enumerate(tests)
        if test.paired is not None
        and test.statistic.is_mean
        and test.statistic.scale == "linear"
        and not any(is_stopped(run.result) for run in (test.pair.base, *test.pair.runs.values()))
    ]
    if not ranked:
        return None
    pairs = [tests[index].pair for index in ranked]
    base = pairs[0].base
    if base.samples is None:  # a group
        return None
    common = np.ones(len(base.samples), dtype=bool)
    for pair in pairs:
        mask = np.zeros(len(common), dtype=bool)
        mask[pair.rows] = True
        common &= mask
    if common.sum() < 2:
        return None
    columns, seed_variances = [], {}
    clusters = None
    for index, pair in enumerate(pairs):
        is_common = common[pair.rows]
        _, afters = pair.numbers()
        scores = np.stack([after[is_common, 0] for after in afters])
        columns.append(scores.mean(axis=0))
        clusters = None if pair.clusters is None else pair.clusters.take(is_common)
        if len(scores) > 2:
            seed_variances[index] = seed_variance(scores, real_clusters(clusters))
    return ranked, better_pairs(
        np.stack(columns, axis=1),
        clusters,
        higher_is_better=base.higher_is_better,
        limits=base.statistic.limits,
        seed_variances=seed_variances,
    )


# -- groups --------------------------------------------------------------------------------------------------------


def test_group(pair: Pair, members: Mapping[str, PairTest]) -> PairTest:
    """Test a group from the tests of its tasks, weighted as the group aggregates: by size, or equally.

    Args:
        pair: of the group; it has logged values only, no samples.
        members: the same candidate's tests on the group's tasks, by task.
    """
    seeds = _seeds(pair)
    names = pair.base.result.members
    tests = [members[name] for name in names if name in members]
    metric = pair.base.metric.metric
    missing = [name for name in names if name not in members]
    if not tests or missing:
        return _untested(pair, f"its tasks are not all compared (missing: {_listed(missing) or 'all'})", seeds)
    if any(test.pair.base.metric.metric != metric for test in tests):
        return _untested(pair, f"its tasks are compared by another metric; add --metric {metric}", seeds)
    if any(is_stopped(run.result) for test in tests for run in (test.pair.base, *test.pair.runs.values())):
        return _untested(pair, "one of its tasks was stopped early; evaluate all of them to the end", seeds)
    if any(test.paired is None for test in tests):
        return _untested(pair, "one of its tasks is not tested", seeds)
    for weights, weighting in _weightings(tests):
        values = [sum(w * score.value for w, score in zip(weights, side, strict=True)) for side in _sides(tests)]
        logged = (pair.base.value, float(np.mean([run.value for run in pair.runs.values()])))
        if all(abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(values, logged, strict=True)):
            paired = _stratified(tests, weights, weighting)
            score = logged_score(pair.first) if seeds is None else Score(seeds.mean)
            return PairTest(replace(pair, n=paired.n), logged_score(pair.base), score, paired, seeds=seeds)
    return _untested(pair, "not the mean of its tasks, weighted by size or unweighted", seeds)


def _sides(tests: Sequence[PairTest]) -> tuple[list[Score], list[Score]]:
    return [test.base for test in tests], [test.score for test in tests]


def _weightings(tests: Sequence[PairTest]) -> list[tuple[list[float], str]]:
    sizes = [test.pair.n for test in tests]
    return [
        ([size / sum(sizes) for size in sizes], _BY_SIZE),
        ([1 / len(tests)] * len(tests), "unweighted"),
    ]


def _stratified(tests: Sequence[PairTest], weights: Sequence[float], weighting: str) -> PairedDifference:
    strata = [test.paired for test in tests if test.paired is not None]
    estimate = combined([stratum.estimate for stratum in strata], weights)
    n = sum(stratum.n for stratum in strata)
    exact_p = None
    if weighting == _BY_SIZE and all(stratum.is_exact for stratum in strata):
        gained, lost = (sum(int(getattr(stratum, side) or 0) for stratum in strata) for side in ("gained", "lost"))
        exact_p = mcnemar(gained, lost)
    test_name = "exact McNemar" if exact_p is not None else "paired t"
    paired = from_estimate(
        estimate, estimate.p_value() if exact_p is None else exact_p, n=n, clusters=None,
        span=max(stratum.span for stratum in strata),
        method=f"{test_name}, stratified over {len(tests)} tasks, {weighting}",
    )  # fmt: skip
    return replace(
        paired,
        units=sum(stratum.units for stratum in strata),
        effective_units=sum(stratum.effective_units for stratum in strata),
        mcnemar_p=exact_p,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
