"""Compare runs; the result can render itself in all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness_ext.comparison import compare
from harness_ext.comparison.choices import View
from harness_ext.comparison.rows import Comparison
from harness_ext.render import plots, records, svg, tables, terminal
from harness_ext.render.grid import escape_html, escape_markdown, html_list, latex_comment
from harness_ext.results.run import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["Leaderboard", "compare_runs"]


@dataclass(frozen=True)
class Leaderboard(Comparison):
    """A comparison that renders itself as terminal tables, Markdown, CSV, JSON, LaTeX, HTML, SVG, figures or pandas."""

    def to_markdown(self, view: View = "auto") -> str:
        """Return Markdown tables, followed by errors, warnings and notes."""
        parts = [f"Baseline: **{escape_markdown(self.baseline)}**\n"]
        parts += [grid.to_markdown() for grid in tables.grids_of(self, view)]
        if self.errors:
            parts.append("**Errors**\n\n" + _bullets(self.errors))
        if self.warnings:
            parts.append("**Warnings**\n\n" + _bullets(self.warnings))
        return "\n".join([*parts, "**How to read this**\n\n" + _bullets(tables.notes_of(self, view))])

    def to_latex(self, view: View = "auto") -> str:
        """Return booktabs tables, followed by errors, warnings and notes as comments."""
        parts = [grid.to_latex() for grid in tables.grids_of(self, view)]
        comments = [
            *(latex_comment(f"error: {line}") for line in self.errors),
            *(latex_comment(f"warning: {line}") for line in self.warnings),
            *(latex_comment(line) for line in tables.notes_of(self, view)),
        ]
        return "\n".join([latex_comment(f"baseline: {self.baseline}"), *parts, *comments]) + "\n"

    def to_html(self, view: View = "auto") -> str:
        """Return HTML tables, followed by errors, warnings and notes, for use within a page."""
        parts = [f"<p>Baseline: <b>{escape_html(self.baseline)}</b></p>"]
        parts += [grid.to_html() for grid in tables.grids_of(self, view)]
        parts += [html_list(self.errors, "<b>Error:</b> {}")]
        parts += [html_list(self.warnings, "<b>Warning:</b> {}")]
        return "".join([*parts, html_list(tables.notes_of(self, view), "<small>{}</small>")])

    def to_csv(self) -> str:
        """Return a header and one line per row."""
        return records.to_csv(self)

    def to_json(self) -> dict[str, Any]:
        """Return a dict for `json.dumps`: shares in points, p-values as fractions."""
        return records.to_json(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with the columns of the CSV; errors, warnings and notes are in `.attrs`."""
        import pandas

        frame = pandas.DataFrame([records.flat(row) for row in self.rows])
        frame.attrs.update(baseline=self.baseline, errors=self.errors, warnings=self.warnings, notes=list(self.notes))
        return frame

    def to_terminal(self, width: int, view: View = "auto") -> list[RenderableType]:
        """Return rich tables, errors, warnings and notes for a terminal of `width` characters."""
        return list(terminal.render(self, view, width))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Let `rich.print(comparison)` show the tables."""
        yield from self.to_terminal(options.max_width)

    def to_svg(self) -> str:
        """Return the differences with their intervals as an SVG of its own; an empty text if no row was tested."""
        return svg.forest_svg(self)

    def forest(self) -> Figure:
        """Draw each difference with its interval, the margin and the line of no difference, as a matplotlib figure.

        Raises:
            HarnessExtError: matplotlib is not installed, or no row was tested.
        """
        return plots.forest(self)

    def plot(self) -> Figure:
        """Draw the score of each run on each task with its interval, beside the baseline's, as a matplotlib figure.

        Raises:
            HarnessExtError: matplotlib is not installed, or nothing was compared.
        """
        return plots.scores(self)

    def _repr_html_(self) -> str:
        return svg.forest_svg(self, inherit=True) + self.to_html()


def compare_runs(runs: Sequence[Run], **options: Any) -> Leaderboard:
    """Compare every run with the baseline; for arguments, see `harness_ext.comparison.compare.compare_runs`."""
    return Leaderboard(**vars(compare.compare_runs(runs, **options)))


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)
