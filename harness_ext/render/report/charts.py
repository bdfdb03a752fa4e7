"""The charts of a task: numbers as places in a drawing; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.comparison.rows import Score
from harness_ext.formatting import format_interval, format_p, format_score, in_display_unit
from harness_ext.render.figures import Axis, axis_over
from harness_ext.render.report.courses import course_chart
from harness_ext.reporting.contents import (
    Confusion,
    Curve,
    CurvePoint,
    Distribution,
    KindOfDocument,
    Reliability,
    TaskFigures,
)
from harness_ext.stats.intervals import ALPHA

SIDE = 200  # of a square drawing, in pixels
WIDE, HIGH = 360, 140  # of a broad one
_SHADES = 5  # of a cell of a confusion matrix


@dataclass(frozen=True)
class TaskCharts:
    """The charts of one task."""

    figures: TaskFigures
    confusions: Sequence[Mapping[str, Any]]
    reliabilities: Sequence[Mapping[str, Any]]
    distributions: Sequence[Mapping[str, Any]]
    kinds: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    courses: Sequence[Mapping[str, Any]]


def task_charts(figures: TaskFigures) -> TaskCharts:
    """All charts of a task."""
    baseline = [diagram.run for diagram in figures.reliabilities][:1]
    return TaskCharts(
        figures=figures,
        confusions=[_confusion(matrix) for matrix in figures.confusions],
        reliabilities=[_reliability(diagram, is_base=diagram.run in baseline) for diagram in figures.reliabilities],
        distributions=[_distribution(each) for each in figures.distributions],
        kinds=[_kind(each) for each in figures.kinds],
        curves=[_curve(curve) for curve in figures.curves],
        courses=[course_chart(course) for course in figures.courses],
    )


def proof(numbers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Scores before and after one change, with the interval of the gain; None if a number is missing."""
    try:
        before, after, low, high = (float(numbers[name]) for name in ("before", "after", "low", "high"))
    except (KeyError, TypeError, ValueError):
        return None
    return {
        "change": str(numbers.get("change", "")),
        "before": format_score(before), "after": format_score(after),
        "before_at": before, "after_at": after,
        "gain": f"+{format_score(after - before)} [{format_score(low)}, {format_score(high)}]",
        "n": numbers.get("n"),
    }  # fmt: skip


def _confusion(matrix: Confusion) -> dict[str, Any]:
    """Counts by gold class, with a shade for the share of the class."""
    columns = [*matrix.classes, *(["unparsed"] if matrix.has_unparsed else [])]
    lines = []
    for gold, counts in zip(matrix.classes, matrix.counts, strict=True):
        total = sum(counts)
        shown = counts if matrix.has_unparsed else counts[:-1]
        cells = [
            {"count": f"{count:,}", "share": f"{100 * count / total:.0f} %" if total else "–",
             "shade": round(_SHADES * count / total) if total else 0}
            for count in shown
        ]  # fmt: skip
        lines.append({"gold": gold, "cells": cells, "total": f"{total:,}"})
    right = sum(row[index] for index, row in enumerate(matrix.counts))
    total = sum(map(sum, matrix.counts))
    return {"run": matrix.run, "columns": columns, "lines": lines, "right": f"{right:,} of {total:,}"}


def _reliability(diagram: Reliability, *, is_base: bool) -> dict[str, Any]:
    """Points of accuracy against confidence; y grows downwards."""
    points = [
        {"x": SIDE * each.confidence, "y": SIDE * (1 - each.accuracy),
         "low": SIDE * (1 - min(1.0, each.confidence + 2 * each.spread)),
         "high": SIDE * (1 - max(0.0, each.confidence - 2 * each.spread)),
         "text": f"confidence {100 * each.confidence:.0f}, accuracy {100 * each.accuracy:.0f}, {each.n:,} documents"}
        for each in diagram.bins
    ]  # fmt: skip
    return {
        "run": diagram.run, "is_base": is_base, "points": points, "error": format_score(diagram.error),
        "chance": format_score(diagram.error_of_chance), "bins": len(diagram.bins),
        "p": format_p(diagram.p_value), "is_calibrated": diagram.p_value >= ALPHA,
    }  # fmt: skip


def _distribution(each: Distribution) -> dict[str, Any]:
    """One outline per run: the share of its documents in each bin."""
    shares = {run: [count / max(1, sum(counts)) for count in counts] for run, counts in each.counts.items()}
    highest = max((max(row) for row in shares.values()), default=0.0) or 1.0
    outlines = []
    for index, (run, row) in enumerate(shares.items()):
        width = WIDE / len(row)
        heights = [HIGH * (1 - share / highest) for share in row]
        steps = " ".join(
            f"{width * place:.1f},{height:.1f} {width * (place + 1):.1f},{height:.1f}"
            for place, height in enumerate(heights)
        )
        outlines.append({"run": run, "series": min(index, 7), "points": f"0,{HIGH} {steps} {WIDE},{HIGH}"})
    marks = [(WIDE * share / 100, str(share)) for share in (0, 25, 50, 75, 100)]
    return {"title": each.title, "outlines": outlines, "highest": f"{100 * highest:.0f} %", "x_ticks": marks}


def _kind(each: KindOfDocument) -> dict[str, Any]:
    points = [{"run": run, "at": value, "text": format_score(value)} for run, value in each.values.items()]
    return {"metric": each.metric, "points": points}


def _curve(curve: Curve) -> dict[str, Any]:
    unit, points = curve.unit, [*curve.points, *([curve.chosen] if curve.chosen else [])]
    ends = [end for point in points for end in (point.score.value, *_ends(point.score))]
    levels = [] if curve.baseline is None else [curve.baseline]
    y = axis_over([in_display_unit(value, unit) for value in (*ends, *levels)])
    x = axis_over([point.x for point in points])

    def height(value: float) -> float:
        return HIGH * (1 - y.at(in_display_unit(value, unit)))

    def place(point: CurvePoint) -> dict[str, Any]:
        low, high = _ends(point.score)
        interval = f" {format_interval(point.score.interval, unit)}" if point.score.interval else ""
        text = f"{point.run}: {point.x:,.0f} → {format_score(point.score.value, unit)}{interval}"
        at = WIDE * x.at(point.x), height(point.score.value)
        return {"x": at[0], "y": at[1], "low": height(low), "high": height(high), "text": text}

    placed = [place(point) for point in curve.points]
    return {
        "title": curve.title, "x": curve.x, "points": placed, "metric": curve.metric, "note": curve.note,
        "baseline": None if curve.baseline is None else height(curve.baseline),
        "chosen": place(curve.chosen) if curve.chosen else None,
        "line": " ".join(f"{point['x']:.1f},{point['y']:.1f}" for point in placed),
        "x_ticks": _ticks(x, WIDE), "y_ticks": [(HIGH - place, text) for place, text in _ticks(y, HIGH)],
    }  # fmt: skip


def _ends(score: Score) -> tuple[float, float]:
    """The ends of a score's interval; the score itself if it has none."""
    return (score.interval.low, score.interval.high) if score.interval else (score.value, score.value)


def _ticks(axis: Axis, length: float) -> list[tuple[float, str]]:
    return [(length * tick.at, tick.text) for tick in axis.ticks]
