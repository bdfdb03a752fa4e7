"""A table of text cells, and its form in Markdown, HTML and LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness_ext.names import visible

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"\dag{}", "–": "--",
    "▲": r"$\uparrow$", "▼": r"$\downarrow$", "→": r"$\rightarrow$", "±": r"$\pm$", "≈": r"$\approx$",
    "·": r"\textperiodcentered{}", "≥": r"$\geq$", "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """The lines of a cell; the first is the main one."""

    lines: tuple[str, ...]
    strong: bool = False

    @property
    def first(self) -> str:
        """The main line."""
        return self.lines[0] if self.lines else ""

    def in_one_line(self) -> str:
        """All lines in one: intervals follow their value, other lines are separated by dots."""
        return self.first + self.rest()

    def rest(self) -> str:
        """The lines after the main one, as they follow it in one line."""
        return "".join(f" {line}" if line.startswith(("[", "(")) else f" · {line}" for line in self.lines[1:])


def cell(*lines: str | None, strong: bool = False) -> Cell:
    """A cell of the given lines; None and empty lines are left out."""
    return Cell(tuple(line for line in lines if line), strong)


@dataclass(frozen=True)
class Column:
    """The heading of a column and the alignment of its cells."""

    name: Cell
    right: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; every row has one cell per column."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str | None = None
    sections: frozenset[int] = frozenset()  # rows after which a line is drawn

    def to_markdown(self) -> str:
        """A pipe table with the title in bold above it."""
        rules = ["---:" if column.right else "---" for column in self.columns]
        lines = [f"**{escape_markdown(self.title)}**", ""] if self.title else []
        lines += [_pipe([column.name.in_one_line() for column in self.columns]), "| " + " | ".join(rules) + " |"]
        for row in self.rows:
            lines.append("| " + " | ".join(map(_markdown_cell, row)) + " |")
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """A table element with the title as caption."""
        caption = f"<caption>{escape_html(self.title)}</caption>" if self.title else ""
        head = "".join(_html_cell("th", column.name) for column in self.columns)
        body = "".join(f"<tr>{''.join(_html_cell('td', entry) for entry in row)}</tr>" for row in self.rows)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_latex(self) -> str:
        """A tabular with rules of booktabs."""
        sides = "".join("r" if column.right else "l" for column in self.columns)
        lines = [latex_comment(self.title)] if self.title else []
        lines += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
        lines += [_latex_row([column.name for column in self.columns]), r"\midrule"]
        for index, row in enumerate(self.rows):
            lines.append(_latex_row(row))
            if index in self.sections and index < len(self.rows) - 1:
                lines.append(r"\midrule")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_markdown(text: str) -> str:
    r"""Escape what Markdown or HTML would interpret; `](` and the like would make a link.

    >>> print(escape_markdown("[x](javascript:y)"), escape_markdown("a\nb"), escape_markdown("[1.0, 2.0]"))
    [x\](javascript:y) a\\nb [1.0, 2.0]
    """
    return re.sub(r"[*`\\]|\](?=[(\[:])|~(?=~)|<(?=[A-Za-z/!?])", r"\\\g<0>", visible(text))


def escape_latex(text: str) -> str:
    """Escape what LaTeX would interpret, and replace symbols by its commands."""
    return "".join(_LATEX.get(character, character) for character in visible(text))


def latex_comment(text: str) -> str:
    """A comment that ends with its line, whatever the text is."""
    return f"% {visible(text)}"


def escape_html(text: str) -> str:
    """Escape what HTML would interpret, quotes included."""
    return html.escape(visible(text))


def html_list(lines: Iterable[str], template: str) -> str:
    """A bulleted list; an empty text if there are no lines."""
    items = "".join(f"<li>{template.format(escape_html(line))}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _pipe_text(text: str) -> str:
    return escape_markdown(text).replace("|", "\\|")


def _pipe(texts: Iterable[str]) -> str:
    return "| " + " | ".join(map(_pipe_text, texts)) + " |"


def _markdown_cell(entry: Cell) -> str:
    first = _pipe_text(entry.first)
    return (f"**{first}**" if entry.strong else first) + _pipe_text(entry.rest())


def _html_cell(tag: str, entry: Cell) -> str:
    first = f"<b>{escape_html(entry.first)}</b>" if entry.strong else escape_html(entry.first)
    rest = "".join(f"<br><small>{escape_html(line)}</small>" for line in entry.lines[1:])
    return f"<{tag}>{first}{rest}</{tag}>"


def _latex_row(cells: Sequence[Cell]) -> str:
    row = " & ".join(map(_latex_cell, cells)) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row  # after \\ these would be arguments of it


def _latex_cell(entry: Cell) -> str:
    first = escape_latex(entry.first)
    small = rf" {{\scriptsize {escape_latex(entry.rest().strip(' ·'))}}}" if entry.rest() else ""
    return (rf"\textbf{{{first}}}" if entry.strong else first) + small
