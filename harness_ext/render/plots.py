"""Figures for notebooks, drawn by matplotlib (the extra `report`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from harness_ext.comparison.rows import Comparison, Row, Score
from harness_ext.errors import HarnessExtError
from harness_ext.formatting import in_display_unit
from harness_ext.metrics.statistic import SHARE
from harness_ext.render.figures import Axis, Forest, forests_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"better": "#2b8a50", "worse": "#d0463c", "equivalent": "#3f7fd6", "undecided": "#a47a1d"}
_BASE = "#6b7480"
_WIDTH, _ROW, _ROOM = 8.0, 0.3, 0.9  # inches: of a figure, of a row, above and below the rows


def forest(comparison: Comparison) -> Figure:
    """Each difference with its interval, the margin of equivalence and the line of no difference.

    Raises:
        HarnessExtError: matplotlib is not installed, or no row was tested.
    """
    forests = forests_of(comparison)
    if not forests:
        raise HarnessExtError("no row was tested, so there are no differences to draw; evaluate with --log_samples")
    figure, axes = _subplots([len(each.rows) for each in forests])
    for axis, each in zip(axes, forests, strict=True):
        _draw_forest(axis, each, comparison.baseline)
    return figure


def scores(comparison: Comparison) -> Figure:
    """The score of each run on each task with its interval, beside the baseline's.

    Raises:
        HarnessExtError: matplotlib is not installed, or nothing was compared.
    """
    by_unit: dict[tuple[str, str], list[Row]] = {}
    for row in comparison.rows:
        by_unit.setdefault(("points", "") if row.unit == SHARE else (row.unit, row.metric), []).append(row)
    if not by_unit:
        raise HarnessExtError("nothing was compared, so there is nothing to draw")
    figure, axes = _subplots([len(rows) for rows in by_unit.values()])
    for axis, ((unit, metric), rows) in zip(axes, by_unit.items(), strict=True):
        _draw_scores(axis, rows, comparison.baseline)
        axis.set_xlabel(", ".join(part for part in (metric, unit) if part))
    return figure


def _subplots(sizes: Sequence[int]) -> tuple[Figure, list[Any]]:
    heights = [_ROW * size + _ROOM for size in sizes]
    figure = _figure_class()(figsize=(_WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=heights)
    return figure, [axis for (axis,) in axes]


@cache
def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise HarnessExtError("figures need matplotlib; run `pip install 'harness-ext[report]'`") from None

    class NotebookFigure(Figure):
        """A figure that notebooks show, also where pyplot was never imported."""

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream, format="png")
            return stream.getvalue()

    return NotebookFigure


def _draw_forest(axis: Any, each: Forest, baseline: str) -> None:
    axis.axvline(each.zero, color=_BASE, linewidth=1)
    for place, row in enumerate(each.rows):
        colour = COLOURS[row.verdict]
        if row.margin:
            axis.barh(place, row.margin.length, left=row.margin.low, height=0.8, color=_BASE, alpha=0.15)
        axis.plot([row.interval.low, row.interval.high], [place, place], color=colour, linewidth=2)
        axis.plot([row.at], [place], "o", color=colour)
    _label(axis, [f"{row.task} · {row.run}" for row in each.rows], each.axis)
    axis.set_xlabel(f"difference from {baseline}, {each.unit}", parse_math=False)


def _draw_scores(axis: Any, rows: Sequence[Row], baseline: str) -> None:
    for place, row in enumerate(rows):
        _draw_score(axis, place + 0.12, row.baseline, row, _BASE, baseline if place == 0 else None)
        _draw_score(axis, place - 0.12, row.score, row, COLOURS.get(row.verdict or "", "#3f7fd6"), None)
    _label(axis, [f"{row.task} · {row.run}" for row in rows], None)
    for text in axis.legend(loc="best", frameon=False).get_texts():
        text.set_parse_math(False)


def _draw_score(axis: Any, place: float, score: Score, row: Row, colour: str, label: str | None) -> None:
    if score.interval is not None:
        ends = [in_display_unit(end, row.unit) for end in (score.interval.low, score.interval.high)]
        axis.plot(ends, [place, place], color=colour, linewidth=2)
    axis.plot([in_display_unit(score.value, row.unit)], [place], "o", color=colour, label=label and f" {label}")


def _label(axis: Any, names: Sequence[str], ticks: Axis | None) -> None:
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.invert_yaxis()
    if ticks is not None:
        axis.set_xlim(0, 1)
        axis.set_xticks([tick.at for tick in ticks.ticks], [tick.text for tick in ticks.ticks])
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
