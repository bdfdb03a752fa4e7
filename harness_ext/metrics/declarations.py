"""Finds the declaration of a task's metric: in the YAML, in an installed package, or in the table of known metrics."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

from harness_ext.errors import MetricError, suggest
from harness_ext.metrics.known import known_statistics
from harness_ext.metrics.statistic import POINTS, SHARE, Scale, Statistic

ENTRY_POINTS = "harness_ext.statistics"  # entry points of packages that provide metrics
LARGEST = 1e100  # of a declared number
DECLARABLE = ("unit", "range", "margin", "higher_is_better", "scale")


def declared(
    metric: str,
    metadata: Mapping[str, Any] | None = None,
    siblings: Sequence[str] = (),
    given: Sequence[Statistic] = (),
) -> tuple[Statistic, ...]:
    """The declarations of a metric, most likely first. They never depend on its values.

    The task's YAML (`metadata: metrics: {NAME: {unit: ..., margin: ...}}`, else `metric_scale`) takes precedence over
    installed packages, and these over the table of lm-eval's and our metrics. An undeclared metric has no unit and no
    margin: it can be better or worse, but not equivalent. A name may have several declarations with different logged
    values (`f1` as a number or as a pair of labels); the first one that fits the logged values is used.

    Args:
        metric: its name.
        metadata: `metadata` of the task's config.
        siblings: the task's other metrics; next to `exact`, SQuAD's `f1` is on 0–100.
        given: declarations that take precedence over all others except the YAML's.

    Raises:
        MetricError: the YAML declares an unknown field.
    """
    known = (
        tuple(statistic for statistic in given if statistic.metric == metric)
        or _installed().get(metric)
        or known_statistics(metric, siblings)
        or (Statistic(metric),)
    )
    metadata = metadata or {}
    own, scale = metadata.get("metrics"), metadata.get("metric_scale")
    if isinstance(own, Mapping) and isinstance(own.get(metric), Mapping):
        return tuple(_redeclared(statistic, own[metric]) for statistic in known)
    if scale in (1, 100) and all(
        statistic.unit in ("", SHARE, POINTS) and not statistic.describes for statistic in known
    ):
        unit, top = (SHARE, 1.0) if scale == 1 else (POINTS, 100.0)
        return tuple(rescaled for statistic in known for rescaled in _rescaled(statistic, unit, top))
    return known


def _rescaled(statistic: Statistic, unit: str, top: float) -> tuple[Statistic, ...]:
    """A metric on the scale that its task declares; a metric that is computed from sums may be logged on either."""
    if statistic.score is not None:
        other = statistic.in_points() if statistic.unit == SHARE else statistic.in_shares()
        return (statistic,) if other is statistic else (statistic, other)
    if statistic.unit == unit or statistic.ranks_classes:
        return (statistic,)
    low = 0.0 if statistic.low is None or statistic.low >= 0 else -top
    return (replace(statistic, unit=unit, low=low, high=top, margin=None),)


def _redeclared(statistic: Statistic, own: Mapping[str, Any]) -> Statistic:
    for name in own:
        if name not in DECLARABLE:
            raise MetricError(
                f"metadata: metrics: {statistic.metric}: unknown field {name!r}{suggest(str(name), DECLARABLE)}; use "
                f"{', '.join(DECLARABLE)}"
            )
    unit = str(own.get("unit", statistic.unit))
    low, high = _range(own, statistic.metric, {SHARE: (0, 1), POINTS: (0, 100)}.get(unit, statistic.limits))
    margin = own.get("margin", statistic.margin if unit == statistic.unit else None)
    higher_is_better = own.get("higher_is_better", statistic.higher_is_better)
    scale = own.get("scale", statistic.scale)
    if not isinstance(higher_is_better, (bool, type(None))):
        raise _of_other_form(statistic.metric, "higher_is_better", higher_is_better, "true or false")
    if scale not in get_args(Scale):
        raise _of_other_form(statistic.metric, "scale", scale, " or ".join(get_args(Scale)))
    return replace(
        statistic,
        unit=unit,
        low=low,
        high=high,
        margin=_number(statistic.metric, "margin", margin),
        higher_is_better=higher_is_better,
        scale=scale,
    )


def _range(own: Mapping[str, Any], metric: str, default: Any) -> tuple[float | None, float | None]:
    ends = own.get("range", default)
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        raise _of_other_form(metric, "range", ends, "two numbers, such as [0, 1]")
    low, high = (_number(metric, "range", end) for end in ends)
    return low, high


def _number(metric: str, name: str, value: Any) -> float | None:
    """A declared number; None where there is none.

    Raises:
        MetricError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise _of_other_form(metric, name, value, "a number")
    return float(value)


def _of_other_form(metric: str, name: str, value: Any, form: str) -> MetricError:
    return MetricError(f"metadata: metrics: {metric}: {name} must be {form}, not {repr(value)[:60]}")


def load_statistics(path: str | os.PathLike[str]) -> list[Statistic]:
    """The metrics that a Python file declares, such as one that a task names in its YAML.

    Raises:
        MetricError: the file cannot be run, or declares no metric.
    """
    try:
        names = runpy.run_path(os.fspath(path))
    except Exception as error:  # whatever the file's own code raises
        raise MetricError(f"{path} cannot be run: {type(error).__name__}: {error}; correct it") from error
    statistics = [value for value in names.values() if isinstance(value, Statistic)]
    if not statistics:
        raise MetricError(f"{path} declares no Statistic; see harness_ext.metrics.statistic")
    return statistics


@cache
def _installed() -> dict[str, tuple[Statistic, ...]]:
    """Metrics of installed packages by name: entry points that load a `Statistic`."""
    statistics: dict[str, tuple[Statistic, ...]] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        statistic = point.load()
        if not isinstance(statistic, Statistic):
            raise MetricError(f"entry point {point.name!r} of {ENTRY_POINTS} is not a Statistic; correct {point.value}")
        statistics[statistic.metric] = (*statistics.get(statistic.metric, ()), statistic)
    return statistics
