"""Parity on one screen: a line for each task, what was found, and the documents that differ."""

from __future__ import annotations

from collections.abc import Iterator

from harness_ext.names import visible
from harness_ext.parity.outcome import Document, Parity, TaskParity
from harness_ext.render.grid import Column, Grid, cell

NAMES = ("task", "to adapter", "to base", "rounding", "it answers")
_SHOWN = 60  # characters of an answer
_LISTED = 3  # documents


def parity_grid(parity: Parity) -> Grid:
    """A line for each task: how far what is served is from the adapter, from the base, and two askings from another."""
    columns = [Column(cell(name), right=name in NAMES[1:4]) for name in NAMES]
    rows = [
        [
            cell(each.task, f"{each.documents:,} documents"),
            *(cell(_distance(value, each.unit)) for value in (each.to_adapter, each.to_base, each.noise)),
            cell(each.verdict, strong=each.verdict != "as evaluated"),
        ]
        for each in parity.tasks
    ]
    return Grid(columns, rows, title=f"{visible(parity.served)} beside {visible(parity.adapter)} by peft")


def _distance(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:.2g} nats" if unit == "nats" else f"{100 * value:.0f} %"


def document_lines(each: TaskParity) -> Iterator[str]:
    """The documents that differ most, one line each."""
    for document in each.differing[:_LISTED]:
        far = "" if document.distance is None else f", {document.distance:.2g} nats apart (limit {document.limit:.2g})"
        yield f"document {document.doc_id}{far}: adapter {_answer(document, ours=True)}, served {_answer(document)}"


def _answer(document: Document, *, ours: bool = False) -> str:
    answer = document.evaluated if ours else document.served
    if isinstance(answer, str):
        return visible(f"{answer!r:.{_SHOWN}}")
    return "[" + ", ".join(f"{score:.2f}" for score in answer[:4]) + (", …]" if len(answer) > 4 else "]")


def legend(parity: Parity) -> str:
    """How to read the table."""
    units = {each.unit for each in parity.tasks if each.documents}
    parts = []
    if "nats" in units:
        parts.append("nats: median difference of a document's log-probabilities")
    if "share" in units:
        parts.append("%: documents with another text")
    parts.append("rounding: two askings of peft, in other batches and in float32 and the precision of what is served")
    return "; ".join(parts) + "."
