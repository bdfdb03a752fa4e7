"""The geometry of figures: where each mark stands, as a share of the width; drawn by `svg`, `plots` and `report`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness_ext.comparison.gain import FORMS, SKILL
from harness_ext.comparison.rows import Comparison, Row
from harness_ext.formatting import format_difference, format_difference_interval, format_score, in_display_unit
from harness_ext.metrics.statistic import SHARE

_STEPS = (1, 2, 2.5, 5, 10)
_TICKS = 5  # about so many
_ROOM = 0.04  # of the width, beside the outermost marks


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float  # share of the width
    text: str


@dataclass(frozen=True)
class Axis:
    """A linear axis in the unit in which values are displayed."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """The place of a value, as a share of the width; values beyond an end stand at the end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Span:
    """Two ends, as shares of the width."""

    low: float
    high: float

    @property
    def length(self) -> float:
        """From one end to the other."""
        return self.high - self.low


@dataclass(frozen=True)
class ForestRow:
    """The difference of one row, its interval and its margin of equivalence."""

    task: str
    run: str
    at: float
    interval: Span
    margin: Span | None
    difference: str  # as text
    interval_text: str
    verdict: str


@dataclass(frozen=True)
class Forest:
    """Differences of one unit on a common axis."""

    unit: str  # of the axis, as text
    axis: Axis
    zero: float  # place of no difference
    rows: tuple[ForestRow, ...]


@dataclass(frozen=True)
class Step:
    """One bar of a waterfall: a score, or what a part adds to it."""

    label: str
    bar: Span
    end: float  # where the sum stands after it
    text: str
    note: str  # interval and number of documents
    kind: str  # score, gain or loss


@dataclass(frozen=True)
class Waterfall:
    """The way from the baseline's score to the run's, part by part."""

    task: str
    run: str
    axis: Axis
    steps: tuple[Step, ...]


def axis_over(values: Iterable[float], *, signed: bool = False, ends: tuple[float, float] | None = None) -> Axis:
    """An axis that covers all finite values, with ticks at round numbers.

    Args:
        values: in the unit in which they are displayed.
        signed: whether ticks carry a sign.
        ends: where the axis ends; None: a little beyond the values.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = ends or (min(finite), max(finite))
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 1.0, high + 1.0
    step = _step((high - low) / _TICKS)
    if ends is None:
        low, high = low - _ROOM * (high - low), high + _ROOM * (high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    marks = [index * step for index in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (step / 10 ** math.floor(math.log10(step)) == 2.5))
    ticks = [Tick((mark - low) / (high - low), _number(mark, digits, signed=signed)) for mark in marks]
    return Axis(low, high, tuple(ticks))


def _step(rough: float) -> float:
    power = 10 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def _number(value: float, digits: int, *, signed: bool) -> str:
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text if float(text) else text.lstrip("+-")


# -- differences ---------------------------------------------------------------------------------------------------


def forests_of(comparison: Comparison) -> list[Forest]:
    """One forest per unit, in the order of the rows; rows that were not tested have no interval and are left out."""
    by_unit: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if row.paired is not None and math.isfinite(row.difference):
            by_unit.setdefault(_unit(row), []).append(row)
    return [_forest(unit, rows) for unit, rows in by_unit.items()]


def _unit(row: Row) -> str:
    if row.scale == "log":
        return f"change of {row.metric}, per cent"
    return "points" if row.unit == SHARE else f"{row.metric}, {row.unit}" if row.unit else row.metric


def on_axis(value: float, row: Row) -> float:
    """A difference in the unit of its axis: points, per cent, or the metric's own."""
    return 100 * math.expm1(min(value, 700.0)) if row.scale == "log" else in_display_unit(value, row.unit)


def _ends(row: Row) -> tuple[float, float]:
    assert row.paired is not None
    return on_axis(row.paired.interval.low, row), on_axis(row.paired.interval.high, row)


def _forest(unit: str, rows: Sequence[Row]) -> Forest:
    margins = [abs(on_axis(row.margin, row)) for row in rows if row.margin]
    values = [0.0, *(end for row in rows for end in _ends(row)), *(on_axis(row.difference, row) for row in rows)]
    axis = axis_over([*values, *margins, *(-margin for margin in margins)], signed=True)
    return Forest(unit, axis, axis.at(0.0), tuple(_forest_row(row, axis) for row in rows))


def _forest_row(row: Row, axis: Axis) -> ForestRow:
    assert row.paired is not None
    low, high = _ends(row)
    margin = None
    if row.margin:
        margin = Span(axis.at(on_axis(-row.margin, row)), axis.at(on_axis(row.margin, row)))
    return ForestRow(
        task=row.task,
        run=row.run,
        at=axis.at(on_axis(row.difference, row)),
        interval=Span(axis.at(low), axis.at(high)),
        margin=margin,
        difference=format_difference(row.difference, row.unit, row.scale),
        interval_text=format_difference_interval(row.paired.interval, row.unit, row.scale),
        verdict=row.verdict or "undecided",
    )


# -- where a gain comes from ---------------------------------------------------------------------------------------


def waterfalls_of(comparison: Comparison) -> list[Waterfall]:
    """One waterfall per row in which the form of the outputs plays a part."""
    return [_waterfall(row) for row in comparison.rows if row.gain and set(row.gain.parts) != {SKILL}]


def _waterfall(row: Row) -> Waterfall:
    assert row.gain is not None
    parts = [(name, row.gain.parts[name]) for name in (*FORMS, SKILL) if name in row.gain.parts]
    levels = [row.baseline.value]
    for _, part in parts:
        levels.append(levels[-1] + part.difference)
    shown = [in_display_unit(level, row.unit) for level in levels]
    axis = axis_over([0.0, *shown])
    steps = [_score_step("baseline", shown[0], row.baseline.value, axis, row)]
    for (name, part), before, after in zip(parts, shown, shown[1:], strict=False):
        interval = format_difference_interval(part.interval, row.unit)
        steps.append(
            Step(
                label=name,
                bar=Span(*sorted((axis.at(before), axis.at(after)))),
                end=axis.at(after),
                text=format_difference(part.difference, row.unit),
                note=f"{interval}, {part.n:,} documents",
                kind="gain" if (after >= before) == row.higher_is_better else "loss",
            )
        )
    steps.append(_score_step(row.run, shown[-1], levels[-1], axis, row))
    return Waterfall(row.task, row.run, axis, tuple(steps))


def _score_step(label: str, shown: float, value: float, axis: Axis, row: Row) -> Step:
    bar = Span(*sorted((axis.at(0.0), axis.at(shown))))
    return Step(label, bar, axis.at(shown), format_score(value, row.unit), "", "score")
