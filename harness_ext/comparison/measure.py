"""Measure one run on one task: the value of a metric and, if logged, its scores per document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness_ext.comparison.units import cluster_column
from harness_ext.errors import ComparisonError, CutShortError, ResultsError
from harness_ext.metrics.declarations import declared
from harness_ext.metrics.statistic import POINTS, SHARE, Floats, Statistic
from harness_ext.results.run import LM_EVAL, MetricValue, Run, TaskResult
from harness_ext.results.samples import SampleScores

_ROUNDING = 1e-4  # allowed difference between a logged metric and its samples, relative above 1, absolute below
_FACTORS = (1.0, 100.0, 0.01)  # documents may be logged as shares although the metric is in points, and vice versa


@dataclass(frozen=True)
class Settings:
    """Options of a comparison."""

    margin: float = 0.01  # for shares that declare none
    margins: Mapping[str, float] = field(default_factory=dict)  # by metric: in points for shares, else in its unit
    clusters: Mapping[str, str] = field(default_factory=dict)  # task or pattern -> column
    seed: int = 0
    allow: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()  # declarations of further metrics


@dataclass(frozen=True)
class Measurement:
    """The value of a metric for one run on one task, and the samples behind it; points are converted to shares."""

    run: Run
    result: TaskResult
    metric: MetricValue  # as logged
    declaration: Statistic  # in the unit in which it was logged
    samples: SampleScores | None = None
    factor: float = 1.0  # converts the documents' logged numbers to the unit of `statistic`
    not_tested: str | None = None  # the reason, if there are no samples to test
    is_cut_short: bool = False  # whether the reason is that samples are missing

    @property
    def statistic(self) -> Statistic:
        """The declaration, in shares or in the metric's own unit."""
        return self.declaration.in_shares()

    @property
    def scale(self) -> float:
        """Converts the logged value to the unit of `statistic`: .01 for points."""
        return 0.01 if self.declaration.unit == POINTS else 1.0

    @property
    def value(self) -> float:
        """The logged value, in the unit of `statistic`."""
        return self.metric.value * self.scale

    @property
    def standard_error(self) -> float | None:
        """The logged standard error, in the unit of `statistic`."""
        return None if self.metric.stderr is None else self.metric.stderr * self.scale

    @property
    def higher_is_better(self) -> bool:
        """The direction as logged, else as declared; True if neither is known."""
        for direction in (self.metric.higher_is_better, self.statistic.higher_is_better):
            if direction is not None:
                return direction
        return True

    @property
    def is_off_scale(self) -> bool:
        """Whether a value lies outside the declared range of the metric."""
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
        """The numbers as logged and without a range; shares and points also lose their unit."""
        declaration = replace(self.declaration, low=None, high=None)
        if declaration.unit in (SHARE, POINTS):
            declaration = replace(declaration, unit="", margin=None)
        return replace(self, declaration=declaration, factor=self.factor / self.scale)

    def margin(self, settings: Settings) -> float | None:
        """The margin of equivalence in the unit of `statistic`; see `margin_of`."""
        return margin_of(self.statistic, settings)

    def rows(self, samples: SampleScores) -> Floats:
        """The documents' numbers, (n, k), in the unit of `statistic`."""
        return samples.values * self.factor if self.factor != 1 else samples.values


def margin_of(statistic: Statistic, settings: Settings) -> float | None:
    """The margin of equivalence: as given, as declared, or that of shares; None if nothing is equivalent.

    Args:
        statistic: of the metric, in shares or in its own unit.
        settings: options of the comparison.

    Raises:
        ComparisonError: it is as wide as the metric's range, so that any difference would be equivalent.
    """
    is_share = statistic.unit == SHARE
    if (margin := settings.margins.get(statistic.metric)) is not None:
        margin = margin / 100 if is_share else margin
    elif (margin := statistic.margin) is None and is_share:
        margin = settings.margin
    low, high = statistic.limits
    if margin and statistic.scale == "linear" and low is not None and high is not None and margin >= high - low:
        factor, unit = (100, "points") if is_share else (1, statistic.unit)
        raise ComparisonError(
            f"the margin of {statistic.metric}, {factor * margin:g} {unit}, is as wide as its range; choose a "
            f"smaller one with --margin {statistic.metric}=VALUE, in {unit}"
        )
    return margin


def measure(
    run: Run, task: str, settings: Settings, *, metric: str | None = None, like: Measurement | None = None
) -> Measurement:
    """Read the metric of a task from a run; `not_tested` says why, if it cannot be tested.

    Args:
        run: a run that has the task.
        task: name of the task.
        settings: options of the comparison.
        metric: name of the metric; None: the task's primary metric.
        like: the baseline's measurement; its metric, filter and declaration are used for this run, too.

    Raises:
        ResultsError: the task has no such metric, or numbers of another tool are not on the metric's declared scale.
    """
    result = run.tasks[task]
    if like is not None:
        value = result.metric(like.metric.metric, like.metric.filter)
        declarations: Sequence[Statistic] = (like.declaration,)
    else:
        value = result.primary if metric is None else result.metric(metric)
        declarations = declared(value.metric, result.metadata, tuple(result.metrics), settings.statistics)
    untested = Measurement(run, result, value, declarations[0])
    if result.is_group:
        return replace(untested, not_tested="a group")
    if result.samples_path is None and result.digest is None:
        return replace(untested, not_tested="no samples logged")
    column = cluster_column(result.task, result.metadata, settings.clusters)
    reasons = []
    for statistic in declarations:
        try:
            samples = result.samples(value.metric, value.filter, statistic.numbers, cluster=column)
        except CutShortError as error:
            reason = f"the run was cut short: {_reason(error, result)}; evaluate again"
            return replace(untested, not_tested=reason, is_cut_short=True)
        except ResultsError as error:
            reasons.append(_reason(error, result))
            continue
        if not len(samples):
            reasons.append(f"no document logged {value.metric}")
            continue
        factor = _reproducing(value.value, statistic, samples.values)
        if factor is not None:
            _check_scale(run, task, statistic, samples.values)
            measurement = replace(untested, declaration=statistic, samples=samples)
            return replace(measurement, factor=factor * measurement.scale if statistic.is_mean else 1.0)
        reasons.append(f"not the {'mean' if statistic.is_mean else value.metric} of its documents")
    return replace(untested, not_tested=reasons[0])


def _reason(error: ResultsError, result: TaskResult) -> str:
    """An error about a samples file, without its path."""
    text = str(error).removeprefix(f"{result.samples_path}:").removeprefix(f"{result.task}:").strip()
    line, colon, rest = text.partition(": ")
    return f"line {line}: {rest.partition(';')[0]}" if colon and line.isdigit() else text.partition(";")[0]


def _check_scale(run: Run, task: str, statistic: Statistic, values: Floats) -> None:
    """Refuse values of another tool outside the range that the metric's name implies, such as percentages."""
    low, high = statistic.limits
    outside = (low is not None and values.min() < low) or (high is not None and values.max() > high)
    if run.tool != LM_EVAL and statistic.is_mean and outside:
        upper = "no limit" if high is None else f"{high:g}"
        raise ResultsError(
            f"{run.path}: {statistic.metric} on {task} ranges from {values.min():g} to {values.max():g} in {run.name}, "
            f"but a metric of this name ranges from {'no limit' if low is None else f'{low:g}'} to {upper}; rescale "
            "it, or declare its range with --statistics"
        )


def _reproducing(logged: float, statistic: Statistic, values: Floats) -> float | None:
    """The factor that converts the documents' value to the logged one; None if there is none."""
    factors = _FACTORS if statistic.is_mean else (1.0,)
    value = statistic.value(values)
    for factor in factors:
        if abs(factor * value - logged) <= _ROUNDING * max(1.0, abs(logged)):
            return factor
    return None


def within_declared_range(base: Measurement, compared: Sequence[Measurement]) -> bool:
    """Whether the values of all runs lie in the declared range of the metric.

    If they do not, the metric is compared without a unit, and a warning says so: percentages under the name of a share,
    for example, would be shown a hundred times too large.
    """
    return not any(measurement.is_off_scale for measurement in (base, *compared))


def agreed_factor(base: Measurement, compared: Sequence[Measurement]) -> Measurement:
    """The baseline's measurement; if all its scores are zero, with the factor of a run whose scores are not."""
    if base.samples is not None and not base.samples.values.any():
        for measurement in compared:
            if measurement.samples is not None and np.any(measurement.samples.values):
                return replace(base, factor=measurement.factor)
    return base
