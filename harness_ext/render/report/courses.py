"""The course of a sequential evaluation as a chart: difference and interval at each look, statistic and boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from harness_ext.formatting import format_difference, format_difference_interval, format_score, in_display_unit
from harness_ext.render.figures import Axis, axis_over
from harness_ext.reporting.contents import Course
from harness_ext.stats.sequential.boundaries import boundaries
from harness_ext.stats.sequential.looks import Look
from harness_ext.stats.sequential.record import Record

WIDE = 360  # of the drawing, in pixels
UPPER, LOWER = 150, 110  # heights of the differences and of the statistic
_VERDICTS = {"better": "better", "worse": "worse", "equivalent": "equivalent", None: "open"}
_LARGEST_Z = 8.0  # a boundary beyond it is drawn at the edge


def course_chart(course: Course) -> dict[str, Any]:
    """Places, texts and a table of all looks at one run."""
    record = course.record
    looks, last = record.looks, record.looks[-1]
    x = axis_over([], ends=(0.0, float(record.planned.documents)))
    return {
        "run": course.run,
        "baseline": record.baseline,
        "verdict": _VERDICTS.get(last.outcome, "undecided"),
        "stopped_at": WIDE * x.at(last.documents),
        "x_ticks": [(WIDE * tick.at, tick.text) for tick in x.ticks],
        "points": [_point(look, x, course) for look in looks],
        "differences": _differences(course, x),
        "statistic": _statistic(record, x),
        "sentence": _sentence(course),
        "label": "; ".join(_in_words(look, course.unit) for look in looks),
        "lines": [_line(look, course.unit) for look in looks],
    }


def _sentence(course: Course) -> str:
    record, last = course.record, course.record.looks[-1]
    where = f"{last.documents:,} of {record.planned.documents:,} documents"
    if last.outcome is None:
        return f"Interrupted after {where}, still open."
    text = f"{'Stopped' if record.is_stopped_early else 'Ended'} after {where}: {last.outcome}."
    if course.row is None or course.row.paired is None:
        return text
    final, interval = course.row.difference, course.row.paired.interval
    numbers = f"{format_difference(final, course.unit)} {format_difference_interval(interval, course.unit)}"
    return f"{text} Corrected for stopping: {numbers}."


def _in_words(look: Look, unit: str) -> str:
    interval = format_difference_interval(look.interval, unit)
    return f"{look.documents:,} documents {format_difference(look.estimate, unit)} {interval}, {look.outcome or 'open'}"


def _line(look: Look, unit: str) -> Mapping[str, str]:
    """A look as a row of a table."""
    return {
        "documents": f"{look.documents:,}",
        "difference": format_difference(look.estimate, unit),
        "interval": format_difference_interval(look.interval, unit),
        "statistic": f"{look.z:+.2f}",
        "boundary": f"±{look.boundary:.2f}" if math.isfinite(look.boundary) else "–",
        "power": "–" if look.outcome else f"{format_score(look.power)} %",
        "outcome": look.outcome or "open",
    }


# -- differences ---------------------------------------------------------------------------------------------------


def _vertical(course: Course) -> Axis:
    """The axis of differences: looks, zero and the margin.

    Where no boundary can be reached yet, the interval is as wide as differences can be; it would set the scale alone.
    """
    looks = [look for look in course.record.looks if math.isfinite(look.boundary)] or course.record.looks
    ends = [end for look in looks for end in (look.interval.low, look.interval.high)]
    ends += [look.estimate for look in course.record.looks]
    margin = course.record.planned.margin or 0.0
    return axis_over([in_display_unit(value, course.unit) for value in (0.0, margin, -margin, *ends)], signed=True)


def _differences(course: Course, x: Axis) -> dict[str, Any]:
    y, unit, margin = _vertical(course), course.unit, course.record.planned.margin

    def height(value: float) -> float:
        return UPPER * (1 - y.at(in_display_unit(value, unit)))

    looks = course.record.looks
    return {
        "zero": height(0.0),
        "margin": (height(margin), height(-margin) - height(margin)) if margin else None,
        "line": _polyline((WIDE * x.at(look.documents), height(look.estimate)) for look in looks),
        "ticks": [(UPPER * (1 - tick.at), tick.text) for tick in y.ticks],
    }


def _point(look: Look, x: Axis, course: Course) -> dict[str, Any]:
    y, unit = _vertical(course), course.unit
    at, low, high = (
        UPPER * (1 - y.at(in_display_unit(value, unit)))
        for value in (look.estimate, look.interval.low, look.interval.high)
    )
    z = _statistic_axis(course.record)
    return {
        "x": WIDE * x.at(look.documents), "at": at, "low": low, "high": high, "z": LOWER * (1 - z.at(look.z)),
        "text": _in_words(look, unit),
    }  # fmt: skip


# -- statistic -----------------------------------------------------------------------------------------------------


def _statistic_axis(record: Record) -> Axis:
    values = [abs(value) for look in record.looks for value in (look.z, look.boundary) if abs(value) <= _LARGEST_Z]
    end = max([2.5, *values])
    return axis_over([-end, end], signed=True)


def _statistic(record: Record, x: Axis) -> dict[str, Any]:
    """Boundaries as they were applied, then as they are planned, above and below zero; and the statistic's way."""
    y = _statistic_axis(record)

    def height(value: float) -> float:
        return LOWER * (1 - y.at(value))

    applied = [(look.documents, look.boundary) for look in record.looks if math.isfinite(look.boundary)]
    planned = [*applied[-1:], *_planned(record)]
    return {
        "zero": height(0.0),
        "applied": [_polyline((WIDE * x.at(n), height(side * z)) for n, z in applied) for side in (1, -1)],
        "planned": [_polyline((WIDE * x.at(n), height(side * z)) for n, z in planned) for side in (1, -1)],
        "line": _polyline((WIDE * x.at(look.documents), height(look.z)) for look in record.looks),
        "ticks": [(LOWER * (1 - tick.at), tick.text) for tick in y.ticks],
    }


def _planned(record: Record) -> list[tuple[float, float]]:
    """Documents and boundary of the looks that were planned after the last one."""
    taken = [look.fraction for look in record.looks]
    later = [share for share in record.design.looks if share > taken[-1] + 1e-9]
    if not later:
        return []
    limits = boundaries([*taken, *later], record.level, record.design.spending)[len(taken) :]
    return [(share * record.planned.documents, limit) for share, limit in zip(later, limits, strict=True)]


def _polyline(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
