"""A comparison on a terminal: rich tables that fit its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness_ext.comparison.choices import View
from harness_ext.comparison.rows import Comparison
from harness_ext.names import visible
from harness_ext.render import tables as views
from harness_ext.render.grid import Cell, Column, Grid, cell

_STYLES = {
    "better": "bold green", "worse": "bold red", "equivalent": "bold blue", "undecided": "bold yellow",
    "▲": "green", "▼": "red", "=": "blue", "?": "yellow", "kept": "green", "lost": "bold red", "open": "yellow",
}  # fmt: skip
_GAP = 2  # characters beside each column: its padding and a divider
_EDGE = 1
_LONGEST = 30  # characters; a cell that wraps counts as no wider
_DASH = cell("–")


def render(comparison: Comparison, view: View, width: int) -> Iterator[RenderableType]:
    """Yield the tables, then warnings and notes.

    A board that is wider than the terminal is split by tasks; any other table then lists its columns below each other.

    Args:
        comparison: the comparison.
        view: rows, board, or auto.
        width: of the terminal, in characters.
    """
    title = f"Baseline: {escape(visible(comparison.baseline))}"
    if views.uses_board(comparison, view):
        for index, tasks in enumerate(_fitting(comparison, width)):
            yield _table(views.board(comparison, tasks), title if index == 0 else None, width)
    else:
        yield _table(_fitted(_compact(comparison), width), title, width)
    for grid in views.further(comparison):
        yield _table(_fitted(grid, width), grid.title, width)
    yield _warnings_and_notes(comparison, views.notes_of(comparison, view))


def render_grid(grid: Grid, width: int) -> RenderableType:
    """One table, its columns below each other where it is too wide."""
    return _table(_fitted(grid, width), grid.title, width)


def _compact(comparison: Comparison) -> Grid:
    """The rows of `views.rows_grid` in fewer columns: run and metric below the task, p below the difference."""
    runs = list(dict.fromkeys(views.name_cell(row).in_one_line() for row in comparison.rows))
    has_one_run = len(runs) == 1
    names = (comparison.baseline, runs[0] if has_one_run else "score", "difference")
    columns = [Column(cell("task", None if has_one_run else "run"))]
    columns += [Column(cell(name), right=True) for name in names]
    columns.append(Column(cell("verdict"), wraps=any(row.note for row in comparison.rows)))
    lines = []
    for row in comparison.rows:
        metric = ", ".join(part for part in (row.metric, *views.filter_and_n(row)) if part)
        run = () if has_one_run else views.name_cell(row).lines
        task = cell(row.task, *run, metric, views.floor_line(row.floor), views.sample_line(row))
        p_value, *uncorrected = views.p_lines(row)
        tested = Cell((*views.difference_cell(row).lines, f"p {p_value}", *uncorrected))
        scores = [views.score_cell(row.baseline, row.unit), views.run_cell(row)]
        lines.append([task, *scores, tested, views.verdict_cell(row)])
    return Grid(columns, lines, sections=views.task_ends(comparison.rows))


def _fitting(comparison: Comparison, width: int) -> list[list[str]]:
    """The tasks in order, in groups whose board fits the width; at least one task in each."""
    tasks = list(dict.fromkeys(row.task for row in comparison.rows))
    widths = _column_widths(views.board(comparison))
    fixed = len(widths) - len(tasks)  # columns before those of the tasks
    groups: list[list[str]] = []
    left = 0
    for task, size in zip(tasks, widths[fixed:], strict=True):
        if not groups or size > left:
            groups.append([])
            left = width - _EDGE - sum(widths[:fixed])
        groups[-1].append(task)
        left -= size
    return groups


def _fitted(grid: Grid, width: int) -> Grid:
    """The grid; if it is too wide, its other columns listed below each other beside the first column."""
    if _EDGE + sum(_column_widths(grid)) <= width:
        return grid
    blank = cell("")
    headings = [cell(column.name.in_one_line()) for column in grid.columns[1:]]
    room = width - _EDGE - _column_widths(grid)[0] - max(len(heading.first) for heading in headings) - 2 * _GAP
    lines: list[list[Cell]] = []
    ends = set()
    for name, *cells in grid.rows:
        names = [cell(line) for line in name.lines]
        pairs = zip(headings, cells, strict=True)
        values = [[heading, _listed(entry, room)] for heading, entry in pairs if entry != _DASH]
        for index in range(max(len(names), len(values))):
            heading_and_value = values[index] if index < len(values) else [blank, blank]
            lines.append([names[index] if index < len(names) else blank, *heading_and_value])
        ends.add(len(lines) - 1)
    columns = [Column(grid.columns[0].name), Column(blank), Column(blank, wraps=True)]
    return Grid(columns, lines, grid.title, frozenset(ends))


def _listed(entry: Cell, room: int) -> Cell:
    """The cell with its interval beside the main line, and its other lines joined as far as there is room."""
    joined = [entry.first]
    for line in entry.lines[1:]:
        separator = " " if line.startswith(("[", "(")) else " · "
        is_main = len(joined) == 1 and not line.startswith("[")
        if is_main or len(joined[-1]) + len(separator) + len(line) > room:
            joined.append(line)
        else:
            joined[-1] += separator + line
    return Cell(tuple(joined), entry.strong)


def _column_widths(grid: Grid) -> list[int]:
    """Width of each column with the gap beside it, in characters."""
    widths = []
    for index, column in enumerate(grid.columns):
        size = max(
            len(line) for entry in (column.name, *(row[index] for row in grid.rows)) for line in (*entry.lines, "")
        )
        widths.append(_GAP + (min(size, _LONGEST) if column.wraps else size))
    return widths


def _table(grid: Grid, title: str | None, width: int) -> Table:
    fits = _EDGE + sum(_column_widths(grid)) <= width
    table = Table(title=title, title_justify="left", title_style="bold", box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    for column in grid.columns:
        table.add_column(
            _text(column.name, is_heading=True),
            justify="right" if column.right else "left",
            no_wrap=fits and not column.wraps,
            overflow="fold",
        )
    for index, row in enumerate(grid.rows):
        table.add_row(*map(_text, row), end_section=index in grid.sections)
    return table


def _text(entry: Cell, *, is_heading: bool = False) -> Text:
    style = _STYLES.get(entry.first) or _STYLES.get(entry.first[-1:], "")
    text = Text(visible(entry.first), style=f"{style} bold" if entry.strong or is_heading else style)
    for line in entry.lines[1:]:
        text.append(f"\n{visible(line)}", style="yellow not bold" if line == "SAMPLE data" else "dim not bold")
    return text


def _warnings_and_notes(comparison: Comparison, notes: Sequence[str]) -> Text:
    text = Text()
    for error in comparison.errors:
        text.append("error: ", style="bold red").append(f"{visible(error)}\n", style="red")
    for warning in comparison.warnings:
        text.append("warning: ", style="bold yellow").append(f"{visible(warning)}\n", style="yellow")
    return text.append("\n".join(map(visible, notes)), style="dim")
