"""One run on one task: its metric, in the metric's own unit, document by document where that was logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness_ext.comparison.units import cluster_column
from harness_ext.errors import ComparisonError, ResultsError
from harness_ext.metrics.declarations import declared
from harness_ext.metrics.statistic import POINTS, SHARE, Floats, Statistic
from harness_ext.results.run import LM_EVAL, MetricValue, Run, TaskResult
from harness_ext.results.samples import SampleScores

_ROUNDING = 1e-4  # by which a logged metric may miss what its samples give, of the metric's unit (at least of one)
_FACTORS = (1.0, 100.0, 0.01)  # documents may log shares under a metric in points, and the other way round


@dataclass(frozen=True)
class Settings:
    """What the user decides about a comparison."""

    margin: float = 0.01  # of shares that declare none
    margins: Mapping[str, float] = field(default_factory=dict)  # of single metrics: points of shares, else their unit
    clusters: Mapping[str, str] = field(default_factory=dict)  # task or pattern -> column
    seed: int = 0
    allow: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()  # of metrics that nobody else declares


@dataclass(frozen=True)
class Measurement:
    """A run's value of a metric on a task, and what it is made of; points are turned into shares."""

    run: Run
    result: TaskResult
    metric: MetricValue  # as logged
    declaration: Statistic  # in the unit it is logged in
    samples: SampleScores | None = None
    factor: float = 1.0  # from what documents logged to the statistic's unit
    not_tested: str | None = None  # why there are no samples to test

    @property
    def statistic(self) -> Statistic:
        """The metric, in shares or in its own unit."""
        return self.declaration.in_shares()

    @property
    def scale(self) -> float:
        """From the logged value to the statistic's unit: .01 of points."""
        return 0.01 if self.declaration.unit == POINTS else 1.0

    @property
    def value(self) -> float:
        """As logged, in the statistic's unit."""
        return self.metric.value * self.scale

    @property
    def standard_error(self) -> float | None:
        """lm-eval's own, in the statistic's unit."""
        return None if self.metric.stderr is None else self.metric.stderr * self.scale

    @property
    def higher_is_better(self) -> bool:
        """As logged, else as declared; unknown metrics are taken for scores."""
        for known in (self.metric.higher_is_better, self.statistic.higher_is_better):
            if known is not None:
                return known
        return True

    @property
    def is_off_scale(self) -> bool:
        """Whether a value lies outside the range that the metric is declared to have."""
        low, high = self.declaration.limits
        values = [self.metric.value] if math.isfinite(self.metric.value) else []
        if self.samples is not None and self.statistic.is_mean:
            logged = self.rows(self.samples) / self.scale
            values += [float(logged.min()), float(logged.max())]
        return any(
            (low is not None and value < low - _ROUNDING) or (high is not None and value > high + _ROUNDING)
            for value in values
        )

    def without_range(self) -> Measurement:
        """The same numbers as logged, without the range; shares and points, which are one, lose their unit, too."""
        declaration = replace(self.declaration, low=None, high=None)
        if declaration.unit in (SHARE, POINTS):
            declaration = replace(declaration, unit="", margin=None)
        return replace(self, declaration=declaration, factor=self.factor / self.scale)

    def margin(self, settings: Settings) -> float | None:
        """The margin of equivalence in the statistic's unit: given, declared, or that of shares; else None.

        Raises:
            ComparisonError: it is as wide as the metric's range, so that every value would be equivalent.
        """
        found = self._margin(settings)
        low, high = self.statistic.limits
        if found and self.statistic.scale == "linear" and low is not None and high is not None and found >= high - low:
            in_points, unit = (100, "points") if self.statistic.unit == SHARE else (1, self.statistic.unit)
            raise ComparisonError(
                f"the margin of {self.metric.metric}, {in_points * found:g} {unit}, is as wide as its range; choose a "
                f"smaller one: --margin {self.metric.metric}=VALUE, in {unit}"
            )
        return found

    def _margin(self, settings: Settings) -> float | None:
        if (given := settings.margins.get(self.metric.metric)) is not None:
            return given / 100 if self.statistic.unit == SHARE else given
        if self.statistic.margin is not None:
            return self.statistic.margin
        return settings.margin if self.statistic.unit == SHARE else None

    def rows(self, samples: SampleScores) -> Floats:
        """Numbers of documents, (n, k), in the statistic's unit."""
        return samples.values * self.factor if self.factor != 1 else samples.values


def measure(
    run: Run, task: str, settings: Settings, *, metric: str | None = None, like: Measurement | None = None
) -> Measurement:
    """Read a run's metric of a task; what cannot be tested says why.

    Args:
        run: that has the task.
        task: its name.
        settings: of the comparison.
        metric: its name; None: the task's primary one.
        like: the baseline's measurement, whose metric, filter and declaration hold for this run, too.

    Raises:
        ResultsError: the task has no such metric, or another tool's numbers are not on the metric's declared scale.
    """
    result = run.tasks[task]
    if like is not None:
        value = result.metric(like.metric.metric, like.metric.filter)
        candidates: Sequence[Statistic] = (like.declaration,)
    else:
        value = result.primary if metric is None else result.metric(metric)
        candidates = declared(value.metric, result.metadata, tuple(result.metrics), settings.statistics)
    untested = Measurement(run, result, value, candidates[0])
    if result.is_group:
        return replace(untested, not_tested="a group")
    if result.samples_path is None:
        return replace(untested, not_tested="no samples logged")
    column = cluster_column(result, settings.clusters)
    reasons = []
    for statistic in candidates:
        try:
            samples = result.samples(value.metric, value.filter, statistic.numbers, cluster=column)
        except ResultsError as error:
            reasons.append(_reason(error, result))
            continue
        if not len(samples):
            reasons.append(f"no document logged {value.metric}")
            continue
        factor = _reproducing(value.value, statistic, samples.values)
        if factor is not None:
            _check_scale(run, task, statistic, samples.values)
            found = replace(untested, declaration=statistic, samples=samples)
            return replace(found, factor=factor * found.scale if statistic.is_mean else 1.0)
        reasons.append(
            "not the mean of its documents" if statistic.is_mean else f"not what {value.metric} gives for its documents"
        )
    return replace(untested, not_tested=reasons[0])


def _reason(error: ResultsError, result: TaskResult) -> str:
    """An error about a samples file, without its path."""
    text = str(error).removeprefix(f"{result.samples_path}:")
    line, colon, rest = text.partition(": ")
    return f"line {line}: {rest.partition(';')[0]}" if colon and line.isdigit() else text.partition(";")[0]


def _check_scale(run: Run, task: str, statistic: Statistic, values: Floats) -> None:
    """Refuse percentages under a name that stands for shares, where nobody but the name tells the scale."""
    low, high = statistic.limits
    outside = (low is not None and values.min() < low) or (high is not None and values.max() > high)
    if run.tool != LM_EVAL and statistic.is_mean and outside:
        upper = "no limit" if high is None else f"{high:g}"
        raise ResultsError(
            f"{run.path}: {statistic.metric} on {task} is from {values.min():g} to {values.max():g} in {run.name}, but "
            f"a metric of this name is on {'no limit' if low is None else f'{low:g}'} to {upper}; rescale it, or "
            "declare it with --statistics"
        )


def _reproducing(logged: float, statistic: Statistic, values: Floats) -> float | None:
    """The factor with which the documents give the logged value; None when none does."""
    factors = _FACTORS if statistic.is_mean else (1.0,)
    found = statistic.value(values)
    for factor in factors:
        if abs(factor * found - logged) <= _ROUNDING * max(1.0, abs(logged)):
            return factor
    return None


def within_declared_range(first: Measurement, others: Sequence[Measurement]) -> bool:
    """Whether no run contradicts the declared range of the metric.

    Percentages under a name that stands for shares would be shown a hundred times too large, and every difference
    among them; such a metric is compared without a unit, and a warning says so.
    """
    return not any(each.is_off_scale for each in (first, *others))


def agreed_factor(first: Measurement, others: Sequence[Measurement]) -> Measurement:
    """The baseline's measurement; one that is all zero takes the factor of a run that is not."""
    if first.samples is not None and not first.samples.values.any():
        for other in others:
            if other.samples is not None and np.any(other.samples.values):
                return replace(first, factor=other.factor)
    return first
