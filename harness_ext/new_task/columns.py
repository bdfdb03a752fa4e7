"""Which column of a file holds the text, the label, the question: told by its name, then by what stands in it."""

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
MOST_CLASSES_GUESSED = 50
RESERVED = {"self", "true", "false", "none", "not", "and", "or", "in", "is", "if", "else", "range", "dict", "choices",
            "loop", "lipsum", "cycler", "joiner", "namespace"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Column of each role, by its name in the file."""

    roles: Mapping[str, str]  # text and label; or question, answer and perhaps context

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    def get(self, role: str) -> str | None:
        """The column of a role that need not be there."""
        return self.roles.get(role)


def find_columns(rows: Rows, kind: Kind, chosen: Mapping[str, str | None]) -> Columns:
    """Find the columns of a task kind.

    Args:
        rows: of a file, or of a split.
        kind: choice needs text and label, generate question and answer, and takes a context.
        chosen: role to column, as said on the command line; None where nothing was said.

    Raises:
        DatasetError: a named column is not there, or none can be told for a role.
    """
    if len(rows.columns) < 2:
        raise DatasetError(
            f"{rows.name} has a single column, {rows.columns[0]!r}; in a CSV, part its columns with one of , ; tab | "
            "and put quotes around texts that contain it"
        )
    roles = {role: _named(rows, role, name) for role, name in chosen.items() if name is not None}
    sample = next(rows.batches()).slice(0, 1000).to_pydict()
    for role in (*ROLES[kind][::-1], *(("context",) if kind == "generate" else ()), "id"):
        if role not in roles and (found := _guess(role, rows.columns, sample, taken=set(roles.values()))):
            roles[role] = found
    for role in ROLES[kind]:
        if role not in roles:
            raise DatasetError(
                f"{rows.name}: which column holds the {role} cannot be told ({', '.join(rows.columns)}); "
                f"name it with --{role}-column"
            )
    order = {role: at for at, role in enumerate((*ROLES[kind], "context", "id"))}
    return Columns(dict(sorted(roles.items(), key=lambda item: order.get(item[0], len(order)))))


def _named(rows: Rows, role: str, name: str) -> str:
    if name not in rows.columns:
        hint = suggest(name, rows.columns) or f"; it has {', '.join(rows.columns)}"
        raise DatasetError(f"--{role}-column {name!r}: {rows.name} has no such column{hint}")
    return name


def _guess(role: str, columns: Sequence[str], sample: Mapping[str, list[Any]], *, taken: set[str]) -> str | None:
    free = [name for name in columns if name not in taken]
    by_name = {name.strip().lower(): name for name in reversed(free)}
    for known in NAMES[role]:
        if known in by_name:
            return by_name[known]
    if role == "label":
        few = {name: len({str(value) for value in sample[name]}) for name in free}
        rows = len(next(iter(sample.values())))
        fitting = [name for name in free if 2 <= few[name] <= min(MOST_CLASSES_GUESSED, rows / 2)]
        return min(fitting, key=lambda name: few[name], default=None)
    if role in ("text", "question", "answer"):
        texts = {name: _mean_length(sample[name]) for name in free}
        texts = {name: length for name, length in texts.items() if length}
        if len(free) > 1 and role == "answer":
            return None  # guessed before the question: two texts cannot be told apart by their looks
        return max(texts, key=lambda name: texts[name], default=None)
    return None


def _mean_length(values: Sequence[Any]) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(map(len, texts)) / len(texts) if texts else 0.0


def safe_names(names: Sequence[str]) -> dict[str, str]:
    """File column to a name that a template can use.

    >>> safe_names(["Review Text", "id", "2nd", "self"])
    {'Review Text': 'Review_Text', 'id': 'id', '2nd': 'c_2nd', 'self': 'self_'}
    """
    made: dict[str, str] = {}
    for name in names:
        safe = re.sub(r"\W", "_", name.strip()) or "column"
        safe = safe if safe.isidentifier() else f"c_{safe}"
        safe = f"{safe}_" if safe.lower() in RESERVED else safe
        while safe in made.values():
            safe += "_"
        made[name] = safe
    return made


def is_text(rows: Rows, name: str) -> bool:
    """Whether a column holds texts, so that a template may strip them."""
    kind = rows.schema.field(name).type
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def is_squad_shaped(rows: Rows, columns: Columns) -> bool:
    """Whether rows are those of SQuAD: a passage, a question, and answers with their places in the passage."""
    kind = rows.schema.field(columns["answer"]).type
    named = {kind.field(at).name for at in range(kind.num_fields)} if pyarrow.types.is_struct(kind) else set()
    return columns.get("context") is not None and {"text", "answer_start"} <= named
