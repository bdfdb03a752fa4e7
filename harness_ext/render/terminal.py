"""A comparison on a terminal: rich tables that fit its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness_ext.comparison.rows import Comparison
from harness_ext.render import tables as views
from harness_ext.render.grid import Cell, Column, Grid, cell

_STYLES = {
    "better": "bold green", "worse": "bold red", "equivalent": "bold blue", "undecided": "bold yellow",
    "▲": "green", "▼": "red", "=": "blue", "?": "yellow", "kept": "green", "lost": "bold red", "open": "yellow",
}  # fmt: skip
_GAP = 1  # between columns


def render(comparison: Comparison, view: views.View, width: int) -> Iterator[RenderableType]:
    """Tables, then warnings and notes.

    Args:
        comparison: to show.
        view: rows, board, or what suits it.
        width: in characters; a board of many tasks is cut into as many tables as it takes.
    """
    title = f"Baseline: {escape(comparison.baseline)}"
    if views.uses_board(comparison, view):
        for place, tasks in enumerate(_fitting(comparison, width)):
            yield _table(views.board(comparison, tasks), title if place == 0 else None)
    else:
        yield _table(_compact(comparison), title)
    for grid in views.further(comparison):
        yield _table(grid, grid.title)
    yield _said(comparison, views.notes_of(comparison, view))


def _compact(comparison: Comparison) -> Grid:
    """The rows of `views.rows_grid` in fewer columns: metric below the task, p below the difference."""
    runs = list(dict.fromkeys(views.name_of(row) for row in comparison.rows))
    several = len(runs) != 1
    columns = [Column(cell("task"), wraps=True), *([Column(cell("run"), wraps=True)] if several else [])]
    names = (comparison.baseline, "score" if several else runs[0], "difference")
    columns += [Column(cell(name), right=True) for name in names]
    columns.append(Column(cell("verdict"), wraps=any(row.note for row in comparison.rows)))
    lines = []
    for row in comparison.rows:
        metric = " ".join(part for part in (row.metric, *views.filter_and_n(row)) if part)
        task = cell(row.task, metric, views.floor_line(row.floor), views.sample_line(row))
        tested = Cell((*views.difference_cell(row).lines, "p " + ", ".join(views.p_lines(row))))
        named = [cell(views.name_of(row))] if several else []
        scores = [views.score_cell(row.baseline, row.unit), views.run_cell(row)]
        lines.append([task, *named, *scores, tested, views.verdict_cell(row)])
    return Grid(columns, lines, sections=views.task_ends(comparison.rows))


def _fitting(comparison: Comparison, width: int) -> list[list[str]]:
    """The tasks in order, in groups whose board fits the width; at least one task in each."""
    tasks = list(dict.fromkeys(row.task for row in comparison.rows))
    grid = views.board(comparison)
    fixed = len(grid.columns) - len(tasks)
    wide = [max(map(_width, (column.name, *(row[n] for row in grid.rows)))) for n, column in enumerate(grid.columns)]
    head = sum(wide[:fixed]) + (fixed + 1) * _GAP
    groups: list[list[str]] = []
    left = 0
    for task, size in zip(tasks, wide[fixed:], strict=True):
        if not groups or size + _GAP > left:
            groups.append([])
            left = width - head
        groups[-1].append(task)
        left -= size + _GAP
    return groups


def _width(each: Cell) -> int:
    return max((len(line) for line in each.lines), default=0)


def _table(grid: Grid, title: str | None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.HORIZONTALS, padding=(0, _GAP, 0, 0))
    for column in grid.columns:
        table.add_column(
            _text(column.name, is_heading=True),
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold",
        )
    for place, row in enumerate(grid.rows):
        table.add_row(*map(_text, row), end_section=place in grid.sections)
    return table


def _text(each: Cell, *, is_heading: bool = False) -> Text:
    style = _STYLES.get(each.first) or _STYLES.get(each.first[-1:], "")
    text = Text(each.first, style=f"{style} bold" if each.strong or is_heading else style)
    for line in each.lines[1:]:
        text.append(f"\n{line}", style="yellow not bold" if line == "SAMPLE data" else "dim not bold")
    return text


def _said(comparison: Comparison, notes: Sequence[str]) -> Text:
    said = Text()
    for warning in comparison.warnings:
        said.append("warning: ", style="bold yellow").append(f"{warning}\n", style="yellow")
    return said.append("\n".join(notes), style="dim")
