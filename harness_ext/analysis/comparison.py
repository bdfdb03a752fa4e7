"""A finished comparison: its rows, its warnings, and how they look as table, Markdown, CSV, JSON, LaTeX or HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness_ext.analysis import records, terminal, views
from harness_ext.analysis.grid import escape_markdown, html_list
from harness_ext.analysis.rows import Cost, Floor, Row, Score

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["Comparison", "Floor", "Row", "Score"]


@dataclass(frozen=True)
class Comparison:
    """Every run against one baseline, task by task."""

    baseline: str
    margin: float  # points
    rows: list[Row]
    warnings: list[str]
    notes: list[str]  # which method made which number, and what may not be concluded
    costs: list[Cost] = field(default_factory=list)
    sort: str | None = None  # as asked for; None: by name, and a board by mean rank

    def to_markdown(self, view: views.View = "auto") -> str:
        """Return Markdown tables with warnings and notes below."""
        parts = [f"Baseline: **{escape_markdown(self.baseline)}**\n"]
        parts += [grid.to_markdown() for grid in views.grids_of(self, view)]
        if self.warnings:
            parts.append("**Warnings**\n\n" + _bullets(self.warnings))
        return "\n".join([*parts, "**How to read this**\n\n" + _bullets(views.notes_of(self, view))])

    def to_latex(self, view: views.View = "auto") -> str:
        """Return booktabs tables; warnings and notes as comments below."""
        parts = [grid.to_latex() for grid in views.grids_of(self, view)]
        said = [
            *(f"% warning: {line}" for line in self.warnings),
            *(f"% {line}" for line in views.notes_of(self, view)),
        ]
        return "\n".join([f"% baseline: {self.baseline}", *parts, *said]) + "\n"

    def to_html(self, view: views.View = "auto") -> str:
        """Return HTML tables with warnings and notes below, to be put into a page."""
        parts = [f"<p>Baseline: <b>{html.escape(self.baseline)}</b></p>"]
        parts += [grid.to_html() for grid in views.grids_of(self, view)]
        parts += [html_list(self.warnings, "<b>Warning:</b> {}")]
        return "".join([*parts, html_list(views.notes_of(self, view), "<small>{}</small>")])

    def to_csv(self) -> str:
        """Return one line for each row, with a header."""
        return records.to_csv(self)

    def to_json(self) -> dict[str, Any]:
        """Return a dict ready for `json.dumps`; numbers in each row's unit, p-values as fractions."""
        return records.to_json(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Return one flat row per comparison; warnings and notes are in `.attrs`."""
        import pandas

        frame = pandas.DataFrame([records.flat(row) for row in self.rows])
        frame.attrs.update(baseline=self.baseline, warnings=list(self.warnings), notes=list(self.notes))
        return frame

    def to_terminal(self, width: int, view: views.View = "auto") -> list[RenderableType]:
        """Return rich tables and notes for a terminal of so many columns."""
        return list(terminal.render(self, view, width))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Let `rich.print(comparison)` show the tables; with one run beside the baseline they fit 80 columns."""
        yield from self.to_terminal(options.max_width)

    def _repr_html_(self) -> str:
        return self.to_html()


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)
