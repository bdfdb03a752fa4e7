"""Differences as one SVG of its own: for files, pages and notebooks."""

from __future__ import annotations

from typing import Any

from harness_ext.comparison.rows import Comparison
from harness_ext.render.figures import Forest, forests_of
from harness_ext.render.tables import MARKS
from harness_ext.render.templates import environment

_COLUMNS = (0, 210, 600, 780)  # left ends of names, plot, numbers and verdicts, in pixels
_WIDTH, _PLOT = 890, 374
_ROW, _HEADING, _TITLE, _AXIS = 26, 24, 26, 34  # heights
_LONGEST = 30  # characters of a name


def forest_svg(comparison: Comparison, *, inherit: bool = False) -> str:
    """The differences with their intervals as an SVG; an empty text if no row was tested.

    Args:
        comparison: the comparison.
        inherit: whether text has the colour of the page around it; else it follows the reader's light or dark setting.
    """
    forests, top = [], 0
    for forest in forests_of(comparison):
        forests.append(_placed(forest, top))
        top = forests[-1]["bottom"]
    if not forests:
        return ""
    text = environment().get_template("forest.svg").render(
        forests=forests, columns=_COLUMNS, width=_WIDTH, height=top, inherit=inherit,
        baseline=_short(comparison.baseline),
    )  # fmt: skip
    return text.strip() + "\n"


def _placed(forest: Forest, top: int) -> dict[str, Any]:
    y, task, rows = _TITLE, None, []
    for row in forest.rows:
        is_new = row.task != task
        y += _HEADING if is_new else 0
        rows.append(
            {
                "y": y, "heading": _short(row.task) if is_new else "", "name": _short(row.run), "verdict": row.verdict,
                "margin": row.margin and (_x(row.margin.low), round(_PLOT * row.margin.length, 1)),
                "low": _x(row.interval.low), "high": _x(row.interval.high), "at": _x(row.at),
                "difference": row.difference, "interval": row.interval_text, "mark": MARKS[row.verdict],
            }
        )  # fmt: skip
        y, task = y + _ROW, row.task
    ticks = [(_x(tick.at), tick.text) for tick in forest.axis.ticks]
    return {
        "top": top, "unit": forest.unit, "zero": _x(forest.zero), "rows": rows, "axis": y, "ticks": ticks,
        "bottom": top + y + _AXIS,
    }  # fmt: skip


def _x(share: float) -> float:
    return round(_COLUMNS[1] + _PLOT * share, 1)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
