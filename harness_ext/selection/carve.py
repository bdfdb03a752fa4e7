"""Carves documents for evaluation in training out of the training split.

```
training split ──> for the choice │ for the final measurement │ left to train on
                   whole passages, no document of the evaluated split, nothing twice
```
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.comparison.units import cluster_column
from harness_ext.errors import TrainingError
from harness_ext.protocol.content import content_keys, prompt_columns
from harness_ext.protocol.lm_eval_api import ConfigurableTask
from harness_ext.results.samples import document_units
from harness_ext.stats.sequential import order_units
from harness_ext.stats.sequential.design import LEAST_UNITS
from harness_ext.training.evaluator import HeldOutDocuments

LARGEST_SHARE = 0.5  # of the training split that may be held out


@dataclass(frozen=True)
class Carved:
    """Documents that are held out of training."""

    for_choice: HeldOutDocuments
    for_report: HeldOutDocuments
    excluded: frozenset[int]  # the numbers of both, and of documents with the same content
    data_sha256: str
    cluster: str | None  # column that names the passage


@dataclass(frozen=True)
class _Content:
    """What identifies the documents of a training split."""

    keys: list[bytes]  # equal for documents of the same content
    evaluated: frozenset[bytes]  # keys of the documents that the task is evaluated on


def carve(task: ConfigurableTask, docs: Any, *, size: int, seed: int) -> Carved:
    """Draw documents for the choice of a checkpoint, and as many others for its final measurement.

    Whole passages are drawn where documents share them, so that the last one may exceed the size. Documents whose
    content is also evaluated are not drawn.

    Args:
        task: a loaded task.
        docs: its training documents.
        size: number of documents of each set.
        seed: of the draw.

    Raises:
        TrainingError: there are too few documents or passages.
    """
    name = task.task_name
    if size < LEAST_UNITS:
        raise TrainingError(
            f"--evaluation-documents {size} is too few to tell checkpoints apart; give at least {LEAST_UNITS}"
        )
    most = int(LARGEST_SHARE * len(docs) / 2)
    if size > most:
        raise TrainingError(
            f"--evaluation-documents {size} would hold out {2 * size} of the {len(docs)} training documents of "
            f"{name!r}, more than half; "
            + (f"give at most {most}" if most >= LEAST_UNITS else "train without --evaluate-every")
        )
    column, units = _units(task, docs)
    content = _content(task, docs)
    fresh = _fresh_units(content, units, seed)
    chosen = [_take(fresh, size) for _ in range(2)]
    for numbers in chosen:
        if len(numbers) < size:
            raise TrainingError(
                f"{name!r} has too few training documents that are not evaluated, too, for two sets of {size}; lower "
                "--evaluation-documents, or train without --evaluate-every"
            )
    sets = [HeldOutDocuments(tuple(numbers), None if units is None else units[numbers]) for numbers in chosen]
    least = min(part.independent for part in sets)
    if least < LEAST_UNITS:
        raise TrainingError(
            f"--evaluation-documents {size} gives only {least} passages ({column}) of {name!r}, too few to tell "
            f"checkpoints apart; raise it until there are {LEAST_UNITS}, or train without --evaluate-every"
        )
    held_out = {content.keys[number] for numbers in chosen for number in numbers}
    excluded = frozenset(number for number, key in enumerate(content.keys) if key in held_out)
    digest = hashlib.sha256(repr([[content.keys[number] for number in numbers] for numbers in chosen]).encode())
    return Carved(sets[0], sets[1], excluded, digest.hexdigest(), None if units is None else column)


def _units(task: ConfigurableTask, docs: Any) -> tuple[str, Any]:
    """The column that names a document's passage and a label for each document; None if each stands for itself."""
    column = cluster_column(task.task_name, task.config.metadata or {}, {})
    units, repeated = document_units(docs, column)
    if units is None and repeated:  # nobody named it, but many documents share it
        column = repeated[0]
        units, _ = document_units(docs, column)
    return column, units


def _content(task: ConfigurableTask, docs: Any) -> _Content:
    columns = list(docs[0])
    shown = prompt_columns(task, columns, docs) or columns
    evaluated = task.eval_docs
    comparable = len(evaluated) and set(shown) <= set(evaluated[0])
    keys = frozenset(content_keys(evaluated, shown)) if comparable else frozenset()
    return _Content(list(content_keys(docs, shown)), keys)


def _fresh_units(content: _Content, units: Any, seed: int) -> Iterator[list[int]]:
    """Units in random order, each with its documents; without those that are evaluated or share a document."""
    order = order_units(len(content.keys) if units is None else units, seed=seed)
    members: Mapping[Any, list[int]] = _members(order.tolist(), units)
    taken = set(content.evaluated)
    for numbers in members.values():
        keys = {content.keys[number] for number in numbers}
        if keys & taken:
            continue
        taken |= keys
        yield numbers


def _members(order: Sequence[int], units: Any) -> dict[Any, list[int]]:
    members: defaultdict[Any, list[int]] = defaultdict(list)
    for number in order:
        members[number if units is None else units[number]].append(number)
    return members


def _take(units: Iterator[list[int]], size: int) -> list[int]:
    """Documents of the next units until there are `size` or more."""
    numbers: list[int] = []
    while len(numbers) < size and (unit := next(units, None)) is not None:
        numbers += unit
    return numbers
