"""A finished comparison: its rows, its warnings, and how they look as table, Markdown, JSON, HTML or pandas."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness_ext.analysis.statistics import CONFIDENCE, Interval, PairedDifference, Verdict

if TYPE_CHECKING:
    import pandas

_STYLES = {"better": "bold green", "worse": "bold red", "equivalent": "bold blue", "undecided": "bold yellow"}
_DIGITS = 6  # of the numbers in JSON: enough for any reader, and the same bytes on any machine


@dataclass(frozen=True)
class Score:
    """What one run scored on one task, in points."""

    value: float
    interval: Interval | None = None  # None when neither samples nor a standard error were logged
    method: str | None = None  # of the interval
    parsed: float | None = None  # share of outputs that could be read at all, in points


@dataclass(frozen=True)
class Floor:
    """What a run that has learnt nothing scores on a task, in points."""

    value: float
    kind: str  # majority, chance or abstain


@dataclass(frozen=True)
class Row:
    """One run against the baseline on one task; all numbers in points (0–100)."""

    task: str
    run: str
    metric: str
    filter: str
    n: int  # documents that both runs have
    baseline: Score
    score: Score
    paired: PairedDifference | None = None  # None when not tested; `note` says why
    verdict: Verdict | None = None
    needed_n: int | None = None  # documents that would decide, when undecided
    detectable: float | None = None  # smallest difference this n finds with 80 % power, when undecided
    floor: Floor | None = None
    is_sample: bool = False
    note: str | None = None


class Cells(NamedTuple):
    """A row as text; each cell is its lines, the main one first."""

    task: list[str]
    run: list[str]
    metric: list[str]
    baseline: list[str]
    score: list[str]
    difference: list[str]
    p: list[str]
    verdict: list[str]


_HEADER = Cells._fields
_RULES = ["---:" if name in ("baseline", "score", "difference", "p") else "---" for name in _HEADER]


@dataclass(frozen=True)
class Comparison:
    """Every run against one baseline, task by task."""

    baseline: str
    margin: float  # points
    rows: list[Row]
    warnings: list[str]
    notes: list[str]  # which method made which number, and what may not be concluded

    def to_markdown(self) -> str:
        """Return a Markdown table with its warnings and notes below."""
        lines = [f"Baseline: **{_escape(self.baseline)}**", "", _pipe(_HEADER), _pipe(_RULES)]
        lines += [_pipe([_one_line(cell) for cell in _cells(row)]) for row in self.rows]
        if self.warnings:
            lines += ["", "**Warnings**", "", *(f"- {_escape(warning)}" for warning in self.warnings)]
        lines += ["", "**How to read this**", "", *(f"- {_escape(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_table(self) -> Table:
        """Return a rich table with its warnings and notes; with one run beside the baseline it fits 80 columns."""
        runs = list(dict.fromkeys(row.run for row in self.rows))
        several = len(runs) != 1
        table = Table(title=f"Baseline: {escape(self.baseline)}", title_justify="left", title_style="bold")
        table.box, table.padding = box.HORIZONTALS, (0, 1, 0, 0)
        table.caption, table.caption_justify = self._caption(), "left"
        table.add_column("task", overflow="fold")
        if several:
            table.add_column("run", overflow="fold")
        for name in (self.baseline, "score" if several else runs[0], "difference"):
            table.add_column(escape(name), justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=all(row.note is None for row in self.rows))
        following = [row.task for row in self.rows[1:]] + [""]
        for row, task in zip(self.rows, following, strict=True):
            cells = _cells(row)
            named = [cells.task[0], " ".join(cells.metric), *cells.task[1:]]
            tested = [*cells.difference, f"p {cells.p[0]}"]
            shown = [named, *([cells.run] if several else []), cells.baseline, cells.score, tested, cells.verdict]
            table.add_row(*map(_rich_cell, shown), end_section=task != row.task)
        return table

    def _caption(self) -> Text:
        caption = Text(style="not italic not dim")
        for warning in self.warnings:
            caption.append("warning: ", style="bold yellow").append(f"{warning}\n", style="yellow")
        return caption.append("\n".join(self.notes), style="dim")

    def __rich__(self) -> Table:
        """Let `rich.print(comparison)` show the table."""
        return self.to_table()

    def to_json(self) -> dict[str, Any]:
        """Return a dict ready for `json.dumps`; numbers in points, p-values as fractions."""
        rows = [_rounded(asdict(row)) for row in self.rows]
        head = {"baseline": self.baseline, "confidence": CONFIDENCE, "margin": self.margin}
        return {**head, "rows": rows, "warnings": list(self.warnings), "notes": list(self.notes)}

    def to_pandas(self) -> pandas.DataFrame:
        """Return one flat row per comparison; warnings and notes are in `.attrs`."""
        import pandas

        frame = pandas.DataFrame([_flat(row) for row in self.rows])
        frame.attrs.update(baseline=self.baseline, warnings=list(self.warnings), notes=list(self.notes))
        return frame

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEADER)
        body = "".join(f"<tr>{''.join(map(_html_cell, _cells(row)))}</tr>" for row in self.rows)
        parts = [f"<p>Baseline: <b>{html.escape(self.baseline)}</b></p>"]
        parts += [f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"]
        parts += _html_list(self.warnings, "<b>Warning:</b> {}")
        return "".join([*parts, *_html_list(self.notes, "<small>{}</small>")])


def format_n(n: int) -> str:
    """Two digits of a planned number of documents, which is all it is worth.

    >>> format_n(3187), format_n(52), format_n(30_000_000)
    ('3,200', '52', 'over 1,000,000')
    """
    if n > 1_000_000:
        return "over 1,000,000"
    digits = len(str(n)) - 2
    return f"{round(n, -digits) if digits > 0 else n:,}"


def format_p(p: float) -> str:
    """Format a p-value; below .0001 only that is said.

    >>> format_p(0.00001), format_p(0.03127), format_p(1.0)
    ('<.0001', '.0313', '1')
    """
    if p < 0.0001:
        return "<.0001"
    return "1" if p >= 0.99995 else f"{p:.4f}".lstrip("0")


def _cells(row: Row) -> Cells:
    return Cells(
        task=[row.task, *_floor_line(row.floor), *(["SAMPLE data"] if row.is_sample else [])],
        run=[row.run],
        metric=[row.metric, *([] if row.filter == "none" else [row.filter]), f"n={row.n:,}"],
        baseline=_score_lines(row.baseline),
        score=_score_lines(row.score),
        difference=_difference_lines(row),
        p=[format_p(row.paired.p_value) if row.paired else "–"],
        verdict=_verdict_lines(row),
    )


def _floor_line(floor: Floor | None) -> list[str]:
    return [f"{floor.kind} {floor.value:.1f}"] if floor else []


def _score_lines(score: Score) -> list[str]:
    lines = [f"{score.value:.1f}"]
    if score.interval:
        lines.append(f"[{score.interval.low:.1f}, {score.interval.high:.1f}]")
    return lines if score.parsed is None else [*lines, f"parsed {score.parsed:.1f}%"]


def _difference_lines(row: Row) -> list[str]:
    if row.paired is None:
        return [_signed(row.score.value - row.baseline.value)]
    interval = row.paired.interval
    return [_signed(row.paired.difference), f"[{_signed(interval.low)}, {_signed(interval.high)}]"]


def _signed(points: float) -> str:
    """Format with a sign, except for what rounds to zero.

    >>> _signed(1.25), _signed(-0.04)
    ('+1.2', '0.0')
    """
    shown = f"{points:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown


def _verdict_lines(row: Row) -> list[str]:
    if row.verdict is None:
        return ["not tested", *([row.note] if row.note else [])]
    lines: list[str] = [row.verdict]
    if row.needed_n is not None:
        lines.append(f"needs n≈{format_n(row.needed_n)}")
    return lines if row.detectable is None else [*lines, f"finds ±{row.detectable:.1f}"]


def _rich_cell(lines: list[str]) -> Text:
    text = Text(lines[0], style=_STYLES.get(lines[0], ""))
    for line in lines[1:]:
        text.append(f"\n{line}", style="yellow not bold" if line == "SAMPLE data" else "dim not bold")
    return text


def _html_cell(lines: list[str]) -> str:
    rest = "".join(f"<br><small>{html.escape(line)}</small>" for line in lines[1:])
    return f"<td>{html.escape(lines[0])}{rest}</td>"


def _html_list(lines: Iterable[str], template: str) -> list[str]:
    items = "".join(f"<li>{template.format(html.escape(line))}</li>" for line in lines)
    return [f"<ul>{items}</ul>"] if items else []


def _one_line(lines: Sequence[str]) -> str:
    """A cell's lines for Markdown: the interval follows its value, the rest is set off by dots."""
    return "".join([lines[0], *(f" {line}" if line.startswith("[") else f" · {line}" for line in lines[1:])])


def _pipe(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_escape(cell).replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    """Keep names from being read as Markdown or HTML."""
    return re.sub(r"[*`\\]|<(?=[A-Za-z/!?])", r"\\\g<0>", text)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value


def _flat(row: Row) -> dict[str, Any]:
    """One level of columns: baseline_low, difference, p_value …; None where not tested."""
    paired = row.paired
    numbers: dict[str, Callable[[PairedDifference], Any]] = {
        "difference_low": lambda found: found.interval.low,
        "difference_high": lambda found: found.interval.high,
        "p_value": lambda found: found.p_value,
        "units": lambda found: found.units,
        "gained": lambda found: found.gained,
        "lost": lambda found: found.lost,
        "mcnemar_p": lambda found: found.mcnemar_p,
        "method": lambda found: found.method,
    }
    return {
        **{name: getattr(row, name) for name in ("task", "run", "metric", "filter", "n")},
        **_flat_score("baseline", row.baseline),
        **_flat_score("score", row.score),
        "difference": paired.difference if paired else row.score.value - row.baseline.value,
        **{name: read(paired) if paired else None for name, read in numbers.items()},
        **{name: getattr(row, name) for name in ("verdict", "needed_n", "detectable", "is_sample", "note")},
        "floor": row.floor.value if row.floor else None,
        "floor_kind": row.floor.kind if row.floor else None,
    }


def _flat_score(name: str, score: Score) -> dict[str, Any]:
    low, high = (score.interval.low, score.interval.high) if score.interval else (None, None)
    return {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_parsed": score.parsed}
