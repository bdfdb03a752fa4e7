"""Which documents are the same: a short hash of what a prompt shows of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2.meta

from harness_ext.protocol.lm_eval_api import ConfigurableTask, jinja_environment

BATCH = 10_000


def prompt_columns(task: ConfigurableTask, columns: Sequence[str], docs: Any) -> list[str]:
    """The text columns in the prompt; without a template, all text columns except identifiers."""
    template = task.config.doc_to_text
    if isinstance(template, str) and template in columns:
        names = {template}
    elif isinstance(template, str):
        names = jinja2.meta.find_undeclared_variables(jinja_environment().parse(template))
    else:
        names = {name for name in columns if not name.lower().endswith("id")}
    return [name for name in columns if name in names and isinstance(docs[0][name], str)]


def content_keys(docs: Any, columns: Sequence[str]) -> Iterator[bytes]:
    """A short hash of these columns of each document, ignoring case and white space."""
    for rows in _batches(docs, columns):
        for values in zip(*(rows[name] for name in columns), strict=True):
            text = "\x1f".join(" ".join(str(value).lower().split()) for value in values)
            yield hashlib.blake2b(text.encode(), digest_size=12).digest()


def _batches(docs: Any, columns: Sequence[str]) -> Iterator[Mapping[str, Iterable[Any]]]:
    if hasattr(docs, "select_columns"):
        yield from docs.select_columns(list(columns)).iter(batch_size=BATCH)
    else:
        for start in range(0, len(docs), BATCH):
            rows = docs[start : start + BATCH]
            yield {name: [row[name] for row in rows] for name in columns}
