"""Finds the columns with the text, the label, the question and so on: by their names, then by their contents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow

from harness_ext.errors import DatasetError, suggest
from harness_ext.protocol.local_files import Rows

Kind = Literal["choice", "generate"]
NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "body", "message", "document", "comment", "tweet", "headline",
             "description", "utterance", "input", "question", "title"),
    "label": ("label", "labels", "class", "category", "topic", "sentiment", "target", "intent", "tag", "stars", "y"),
    "question": ("question", "query", "prompt", "instruction", "input", "source"),
    "answer": ("answer", "answers", "target", "output", "response", "completion", "reference", "label"),
    "context": ("context", "passage", "paragraph", "document", "article", "story", "background"),
    "id": ("id", "idx", "_id", "uid", "guid", "doc_id"),
}  # fmt: skip
ROLES: Mapping[Kind, tuple[str, ...]] = {"choice": ("text", "label"), "generate": ("question", "answer")}
MOST_CLASSES_GUESSED = 50  # a column with more different values is not guessed to be the label
RESERVED = {"self", "true", "false", "none", "not", "and", "or", "in", "is", "if", "else", "range", "dict", "choices",
            "loop", "lipsum", "cycler", "joiner", "namespace"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The column of each role, by its name in the data."""

    roles: Mapping[str, str]  # text and label; or question, answer and perhaps context

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    def get(self, role: str) -> str | None:
        """The column of an optional role."""
        return self.roles.get(role)


def find_columns(rows: Rows, kind: Kind, given: Mapping[str, str | None]) -> Columns:
    """Find the column of each role.

    Args:
        rows: of a file or of a split.
        kind: choice needs text and label; generate needs question and answer, and may have a context.
        given: role -> column named by the user; None where the column is to be guessed.

    Raises:
        DatasetError: a named column does not exist, or the column of a role cannot be guessed.
    """
    if len(rows.columns) < 2:
        raise DatasetError(
            f"{rows.name} has a single column, {rows.columns[0]!r}; in a CSV, separate columns with , ; | or a tab, "
            "and put quotes around texts that contain the separator"
        )
    roles = {role: _existing(rows, role, name) for role, name in given.items() if name is not None}
    sample = next(rows.batches()).slice(0, 1000).to_pydict()
    for role in (*ROLES[kind][::-1], *(("context",) if kind == "generate" else ()), "id"):
        if role not in roles and (column := _guess(role, rows.columns, sample, taken=set(roles.values()))):
            roles[role] = column
    for role in ROLES[kind]:
        if role not in roles:
            raise DatasetError(
                f"{rows.name}: cannot tell which column is the {role} ({', '.join(rows.columns)}); "
                f"name it with --{role}-column"
            )
    order = {role: at for at, role in enumerate((*ROLES[kind], "context", "id"))}
    return Columns(dict(sorted(roles.items(), key=lambda item: order.get(item[0], len(order)))))


def _existing(rows: Rows, role: str, name: str) -> str:
    if name not in rows.columns:
        hint = suggest(name, rows.columns) or f"; use one of {', '.join(rows.columns)}"
        raise DatasetError(f"--{role}-column {name!r}: {rows.name} has no such column{hint}")
    return name


def _guess(role: str, columns: Sequence[str], sample: Mapping[str, list[Any]], *, taken: set[str]) -> str | None:
    free = [name for name in columns if name not in taken]
    by_name = {name.strip().lower(): name for name in reversed(free)}
    for known in NAMES[role]:
        if known in by_name:
            return by_name[known]
    if role == "label":
        values = {name: len({str(value) for value in sample[name]}) for name in free}
        rows = len(next(iter(sample.values())))
        candidates = [name for name in free if 2 <= values[name] <= min(MOST_CLASSES_GUESSED, rows / 2)]
        return min(candidates, key=lambda name: values[name], default=None)
    if role in ("text", "question", "answer"):
        lengths = {name: _mean_length(sample[name]) for name in free}
        lengths = {name: length for name, length in lengths.items() if length}
        if len(free) > 1 and role == "answer":
            return None  # nothing distinguishes the question's text from the answer's
        return max(lengths, key=lambda name: lengths[name], default=None)
    return None


def _mean_length(values: Sequence[Any]) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(map(len, texts)) / len(texts) if texts else 0.0


def safe_names(names: Sequence[str]) -> dict[str, str]:
    """Map each column to a name that a template can use.

    >>> safe_names(["Review Text", "id", "2nd", "self"])
    {'Review Text': 'Review_Text', 'id': 'id', '2nd': 'c_2nd', 'self': 'self_'}
    """
    safe_of: dict[str, str] = {}
    for name in names:
        safe = re.sub(r"\W", "_", name.strip()) or "column"
        safe = safe if safe.isidentifier() else f"c_{safe}"
        safe = f"{safe}_" if safe.lower() in RESERVED else safe
        while safe in safe_of.values():
            safe += "_"
        safe_of[name] = safe
    return safe_of


def is_text(rows: Rows, name: str) -> bool:
    """Whether a column contains text, so that a template can call `.strip()`."""
    kind = rows.schema.field(name).type
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def is_squad_shaped(rows: Rows, columns: Columns) -> bool:
    """Whether the rows have SQuAD's form: a passage, a question, and answers with their positions in the passage."""
    kind = rows.schema.field(columns["answer"]).type
    fields = {kind.field(index).name for index in range(kind.num_fields)} if pyarrow.types.is_struct(kind) else set()
    return columns.get("context") is not None and {"text", "answer_start"} <= fields
