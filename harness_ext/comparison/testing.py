"""What the samples of a pair say: both scores, their difference and its test, in the metric's unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness_ext.comparison.floors import floor_of
from harness_ext.comparison.gain import take_apart
from harness_ext.comparison.measure import Measurement, Settings
from harness_ext.comparison.pair import Pair
from harness_ext.comparison.rows import Floor, Gain, Score, Seeds
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
from harness_ext.stats.units import Clusters, real_clusters


@dataclass(frozen=True)
class Tested:
    """A pair with what its samples say."""

    pair: Pair
    base: Score
    score: Score
    paired: PairedDifference | None = None
    not_tested: str | None = None
    seeds: Seeds | None = None
    gain: Gain | None = None
    floor: Floor | None = None

    @property
    def statistic(self) -> Statistic:
        """What the metric is."""
        return self.pair.base.statistic

    def without_samples(self) -> Tested:
        """The test without the samples it was made from."""
        return replace(self, pair=self.pair.without_samples())


def test(pair: Pair, settings: Settings) -> Tested:
    """Test a pair; where there is nothing to test, the logged values stand alone.

    Args:
        pair: of one task.
        settings: of the comparison.
    """
    seeds = _seeds(pair)
    if pair.not_tested is not None or pair.before is None:
        return _untested(pair, pair.not_tested or "no samples logged", seeds)
    statistic = pair.base.statistic
    if statistic.describes:
        return _untested(pair, "describes the data or the model, is no score", seeds)
    before, afters = pair.numbers()
    try:
        paired = _difference(statistic, before, afters, pair.clusters, settings.seed)
    except ValueError as error:
        return _untested(pair, str(error), seeds)
    after = np.mean(afters, axis=0) if statistic.is_mean else afters[0]
    gain = None
    if statistic.is_mean and seeds is None and pair.base.result.config.get("output_type") == "generate_until":
        gain = take_apart(pair.before, pair.afters[0], (before[:, 0], after[:, 0]), pair.clusters)
    base = _described(statistic, before, pair.clusters, pair.base.result, settings.seed)
    if seeds is None:
        score = _described(statistic, after, pair.clusters, pair.first.result, settings.seed)
    else:
        score = Score(seeds.mean, parsed=_mean_parsed(pair.runs.values()))
    return Tested(pair, base, score, paired, seeds=seeds, gain=gain, floor=floor_of(pair.first, pair.before))


# -- scores --------------------------------------------------------------------------------------------------------


def _untested(pair: Pair, reason: str, seeds: Seeds | None) -> Tested:
    score = logged_score(pair.first) if seeds is None else Score(seeds.mean, parsed=_mean_parsed(pair.runs.values()))
    samples = next((each.samples for each in (pair.base, *pair.runs.values()) if each.samples is not None), None)
    floor = floor_of(pair.first, samples)
    return Tested(pair, logged_score(pair.base), score, not_tested=reason, seeds=seeds, floor=floor)


def _seeds(pair: Pair) -> Seeds | None:
    if len(pair.runs) < 2:
        return None
    values = {}
    for place, (seed, run) in enumerate(pair.runs.items()):
        values[seed] = run.statistic.value(run.rows(pair.afters[place])) if pair.afters else run.value
    every = list(values.values())
    return Seeds(values, float(np.mean(every)), float(np.std(every, ddof=1)))


def logged_score(measurement: Measurement) -> Score:
    """The logged value, with the interval of the logged standard error where there is one."""
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


def _described(statistic: Statistic, rows: Floats, clusters: Clusters | None, result: TaskResult, seed: int) -> Score:
    parsed = parsed_share(result)
    if statistic.is_mean:
        found = describe_mean(rows[:, 0], clusters, limits=statistic.limits)
        return Score(found.value, found.interval, found.method, parsed)
    value, groups = statistic.value(rows), real_clusters(clusters)
    if statistic.ranks_classes:
        interval, _ = bounded(roc.auroc_estimate(rows[:, 0], rows[:, 1], groups), 0.0, 1.0)
        return Score(value, interval, "DeLong, t interval", parsed)
    sums = _unit_sums(statistic, rows, groups, classes_in(rows) if statistic.expand else None)
    sums = resampling.pooled(sums, seed=seed)
    assert statistic.score is not None
    score = statistic.score
    replicates = resampling.bootstrap(len(sums), lambda weights: score(weights @ sums), seed=seed)
    of_what = "documents" if groups is None else "passages"
    return Score(value, resampling.percentile_interval(replicates), f"bootstrap of {of_what}", parsed)


def parsed_share(result: TaskResult) -> float | None:
    """Share of outputs that could be read: `parsed_rate`, else, where no output may be empty, 1 - `empty_rate`."""
    top = 100 if result.metadata.get("metric_scale") == 100 else 1
    if (logged := result.metrics.get("parsed_rate")) is not None:
        return logged.value / top
    if (empty := result.metrics.get("empty_rate")) is not None and "abstain_f1" not in result.metrics:
        return 1 - empty.value / top
    return None


def _mean_parsed(runs: Iterable[Measurement]) -> float | None:
    known = [share for run in runs if (share := parsed_share(run.result)) is not None]
    return float(np.mean(known)) if known else None


# -- differences ---------------------------------------------------------------------------------------------------


def _difference(
    statistic: Statistic, before: Floats, afters: Sequence[Floats], clusters: Clusters | None, seed: int
) -> PairedDifference:
    if statistic.ranks_classes:
        _only_one(afters, statistic)
        return paired_auroc(before[:, 0], before[:, 1], afters[0][:, 1], clusters)
    if statistic.is_mean and statistic.scale == "linear":
        limits = statistic.limits
        if len(afters) > 1:
            return two_level_difference(
                before[:, 0], np.stack([after[:, 0] for after in afters]), clusters, limits=limits, seed=seed
            )
        return paired_difference(before[:, 0], afters[0][:, 0], clusters, limits=limits, seed=seed)
    _only_one(afters, statistic)
    groups = real_clusters(clusters)
    classes = classes_in(before, afters[0]) if statistic.expand else None
    first, second = (_unit_sums(statistic, rows, groups, classes) for rows in (before, afters[0]))
    low, high = statistic.limits
    span = high - low if statistic.scale == "linear" and low is not None and high is not None else 1.0
    return paired_aggregates(
        first, second, _comparable(statistic), n=len(before), clusters=groups, span=span, seed=seed
    )


def _only_one(afters: Sequence[Floats], statistic: Statistic) -> None:
    if len(afters) > 1:
        raise ValueError(f"{statistic.metric} of several seeds is not tested; compare each with --each-seed")


def _comparable(statistic: Statistic) -> resampling.MetricOfSums:
    """The metric of sums, on the scale it is compared on."""
    score = statistic.score
    if score is None:  # a mean that is compared by its logarithm
        return lambda sums: np.log(sums[:, 0] / sums[:, 1])
    return score if statistic.scale == "linear" else lambda sums: np.log(score(sums))


def _unit_sums(statistic: Statistic, rows: Floats, groups: Clusters | None, classes: int | None) -> Floats:
    """What the metric is computed from, summed over each unit: (n, k) -> (C, K)."""
    summands = statistic.summands(rows, classes)
    if statistic.score is None:
        summands = np.column_stack([summands[:, 0], np.ones(len(rows))])
    return summands if groups is None else groups.sums(summands)


# -- contenders among themselves -----------------------------------------------------------------------------------


def told_apart(tests: Sequence[Tested]) -> tuple[list[int], Bools] | None:
    """Which contenders of one task are significantly better than which, on the documents that all have.

    Args:
        tests: of one task.

    Returns:
        The places of the contenders that can be ranked, and the matrix of `better_pairs` over them; None where the
        metric is no plain mean of documents, or fewer than two documents are shared.
    """
    places = [
        place
        for place, each in enumerate(tests)
        if each.paired is not None and each.statistic.is_mean and each.statistic.scale == "linear"
    ]
    if not places:
        return None
    pairs = [tests[place].pair for place in places]
    base = pairs[0].base
    if base.samples is None:  # a group
        return None
    common = np.ones(len(base.samples), dtype=bool)
    for each in pairs:
        mask = np.zeros(len(common), dtype=bool)
        mask[each.rows] = True
        common &= mask
    if common.sum() < 2:
        return None
    columns, seed_variances = [], {}
    clusters = None
    for number, each in enumerate(pairs):
        kept = common[each.rows]
        _, afters = each.numbers()
        scores = np.stack([after[kept, 0] for after in afters])
        columns.append(scores.mean(axis=0))
        clusters = None if each.clusters is None else each.clusters.take(kept)
        if len(scores) > 2:
            seed_variances[number] = seed_variance(scores, real_clusters(clusters))
    return places, better_pairs(
        np.stack(columns, axis=1),
        clusters,
        higher_is_better=base.higher_is_better,
        limits=base.statistic.limits,
        seed_variances=seed_variances,
    )


# -- groups --------------------------------------------------------------------------------------------------------


def test_group(pair: Pair, members: Mapping[str, Tested]) -> Tested:
    """Test a group as it aggregates: by size, or all tasks alike.

    Args:
        pair: of the group; it has values only.
        members: the tests of its tasks, by task, for the same contender.
    """
    seeds = _seeds(pair)
    names = pair.base.result.members
    tests = [members[name] for name in names if name in members]
    metric = pair.base.metric.metric
    missing = [name for name in names if name not in members]
    if not tests or missing:
        return _untested(pair, f"a group whose tasks are not all compared ({_listed(missing) or 'none'})", seeds)
    if any(each.pair.base.metric.metric != metric for each in tests):
        return _untested(pair, f"its tasks are compared by another metric; add --metric {metric}", seeds)
    if any(each.paired is None for each in tests):
        return _untested(pair, "a group of which a task is not tested", seeds)
    for weights, words in _weightings(tests):
        values = [sum(w * score.value for w, score in zip(weights, side, strict=True)) for side in _sides(tests)]
        logged = (pair.base.value, float(np.mean([run.value for run in pair.runs.values()])))
        if all(abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(values, logged, strict=True)):
            paired = _stratified(tests, weights, words)
            score = logged_score(pair.first) if seeds is None else Score(seeds.mean)
            return Tested(replace(pair, n=paired.n), logged_score(pair.base), score, paired, seeds=seeds)
    return _untested(pair, "a group that is no mean of its tasks, by size or unweighted", seeds)


def _sides(tests: Sequence[Tested]) -> tuple[list[Score], list[Score]]:
    return [each.base for each in tests], [each.score for each in tests]


def _weightings(tests: Sequence[Tested]) -> list[tuple[list[float], str]]:
    sizes = [each.pair.n for each in tests]
    return [
        ([size / sum(sizes) for size in sizes], "weighted by size"),
        ([1 / len(tests)] * len(tests), "all alike"),
    ]


def _stratified(tests: Sequence[Tested], weights: Sequence[float], words: str) -> PairedDifference:
    parts = [each.paired for each in tests if each.paired is not None]
    estimate = combined([part.estimate for part in parts], weights)
    n = sum(part.n for part in parts)
    gained = lost = exact_p = None
    if words.endswith("size") and all(part.is_exact for part in parts):
        gained, lost = (sum(int(getattr(part, side) or 0) for part in parts) for side in ("gained", "lost"))
        exact_p = mcnemar(gained, lost)
    method = f"{'exact McNemar' if exact_p is not None else 'paired t'}, stratified over {len(tests)} tasks, {words}"
    found = from_estimate(
        estimate, estimate.p_value() if exact_p is None else exact_p, n=n, clusters=None,
        span=max(part.span for part in parts), method=method,
    )  # fmt: skip
    return replace(
        found,
        units=sum(part.units for part in parts),
        effective_units=sum(part.effective_units for part in parts),
        mcnemar_p=exact_p,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
