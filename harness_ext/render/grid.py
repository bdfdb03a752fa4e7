"""A table of text cells, and how it looks as Markdown, HTML and LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"\dag{}", "–": "--",
    "▲": r"$\uparrow$", "▼": r"$\downarrow$", "→": r"$\rightarrow$", "±": r"$\pm$", "≈": r"$\approx$",
    "·": r"\textperiodcentered{}", "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Lines of one cell, the main one first."""

    lines: tuple[str, ...]
    strong: bool = False

    @property
    def first(self) -> str:
        """The main line."""
        return self.lines[0] if self.lines else ""

    def in_one_line(self) -> str:
        """Brackets follow their value, the rest is set off by dots."""
        return self.first + self.rest()

    def rest(self) -> str:
        """What follows the main line, in one line with it."""
        return "".join(f" {line}" if line.startswith("[") else f" · {line}" for line in self.lines[1:])


def cell(*lines: str | None, strong: bool = False) -> Cell:
    """A cell of the lines that are there."""
    return Cell(tuple(line for line in lines if line), strong)


@dataclass(frozen=True)
class Column:
    """A heading and which side its cells stand on."""

    name: Cell
    right: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: every row has one cell for each column."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str | None = None
    sections: frozenset[int] = frozenset()  # rows after which a line is drawn

    def to_markdown(self) -> str:
        """A pipe table, its title in bold above."""
        rules = ["---:" if column.right else "---" for column in self.columns]
        lines = [f"**{escape_markdown(self.title)}**", ""] if self.title else []
        lines += [_pipe([column.name.in_one_line() for column in self.columns]), "| " + " | ".join(rules) + " |"]
        for row in self.rows:
            lines.append("| " + " | ".join(map(_markdown_cell, row)) + " |")
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """One table element, its title as caption."""
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = "".join(_html_cell("th", column.name) for column in self.columns)
        body = "".join(f"<tr>{''.join(_html_cell('td', each) for each in row)}</tr>" for row in self.rows)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_latex(self) -> str:
        """A tabular with the rules of booktabs."""
        sides = "".join("r" if column.right else "l" for column in self.columns)
        lines = [f"% {self.title}"] if self.title else []
        lines += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
        lines += [_latex_row([column.name for column in self.columns]), r"\midrule"]
        for place, row in enumerate(self.rows):
            lines.append(_latex_row(row))
            if place in self.sections and place < len(self.rows) - 1:
                lines.append(r"\midrule")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_markdown(text: str) -> str:
    """Keep names from being read as Markdown or HTML."""
    return re.sub(r"[*`\\]|<(?=[A-Za-z/!?])", r"\\\g<0>", text)


def escape_latex(text: str) -> str:
    """Keep names from being read as LaTeX, and put symbols as its own."""
    return "".join(_LATEX.get(character, character) for character in text)


def html_list(lines: Iterable[str], template: str) -> str:
    """A bulleted list, or nothing."""
    items = "".join(f"<li>{template.format(html.escape(line))}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _pipe_text(text: str) -> str:
    return escape_markdown(text).replace("|", "\\|")


def _pipe(texts: Iterable[str]) -> str:
    return "| " + " | ".join(map(_pipe_text, texts)) + " |"


def _markdown_cell(each: Cell) -> str:
    first = _pipe_text(each.first)
    return (f"**{first}**" if each.strong else first) + _pipe_text(each.rest())


def _html_cell(tag: str, each: Cell) -> str:
    first = f"<b>{html.escape(each.first)}</b>" if each.strong else html.escape(each.first)
    rest = "".join(f"<br><small>{html.escape(line)}</small>" for line in each.lines[1:])
    return f"<{tag}>{first}{rest}</{tag}>"


def _latex_row(cells: Sequence[Cell]) -> str:
    return " & ".join(map(_latex_cell, cells)) + r" \\"


def _latex_cell(each: Cell) -> str:
    first = escape_latex(each.first)
    small = rf" {{\scriptsize {escape_latex(each.rest().strip(' ·'))}}}" if each.rest() else ""
    return (rf"\textbf{{{first}}}" if each.strong else first) + small
