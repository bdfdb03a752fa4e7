"""Turns the columns of the data into those that templates and hooks read: `label`, `choices`, `answers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow

from harness_ext.errors import DatasetError, suggest
from harness_ext.protocol.cells import answers_of, plain, spellings
from harness_ext.protocol.local_files import WHOLE_NUMBER

HIDDEN = -1  # label of a test split on the Hub whose labels are not published, such as SST-2's


@dataclass(frozen=True)
class DocumentShape:
    """How the columns of the data are changed for a task; the steps run in the order of the fields."""

    columns: Mapping[str, str] | None = None  # columns to rename: name in the task -> name in the data
    answers: str | None = None  # this column becomes `answers`, a list of texts
    label: str = "label"  # the label column
    label_values: Sequence[Any] | None = None  # labels as the data write them, in the order of the choices
    required: Sequence[str] | None = None  # rows without a value in one of these columns are dropped
    choices: Sequence[str] | None = None  # added to every document as the column `choices`

    def __post_init__(self) -> None:
        if wrong := [choice for choice in self.choices or () if not isinstance(choice, str)]:
            raise DatasetError(
                f"dataset_kwargs: choices contains {wrong[0]!r}, which is not text; put quotes around it in the YAML"
            )

    def applied_to(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        """The rows with the columns that the task reads.

        Args:
            rows: documents of one split.
            where: name of the split in messages.

        Raises:
            DatasetError: a column is missing or taken, or a row has no label or one outside the choices.
        """
        if self.columns:
            for name in self.columns.values():
                _require(rows, name, where, "columns")
            rows = rows.rename_columns({in_data: in_task for in_task, in_data in self.columns.items()})
        if self.answers:
            _require(rows, self.answers, where, "answers")
            texts = [answers_of(value) for value in rows[self.answers][:]]
            rows = _replaced(rows, self.answers, "answers", pyarrow.array(texts, pyarrow.list_(pyarrow.string())))
        label = self.label
        if self.label_values:
            _require(rows, label, where, "label")
            rows = _replaced(rows, label, "label", self._label_indices(rows[label][:], where))
            label = "label"
        if self.required:
            rows = _complete(rows, self.required, label, where)
        # A test split without published labels has no rows left here; nothing reads it.
        return _with_choices(rows, self.choices, label, where) if self.choices and len(rows) else rows

    def _label_indices(self, labels: Sequence[Any], where: str) -> pyarrow.Array:
        index_of = {plain(value): index for index, value in enumerate(self.label_values or ())}
        for index, value in enumerate(self.label_values or ()):
            for text in spellings(value):
                index_of.setdefault(text, index)
        index_of.setdefault(str(HIDDEN), HIDDEN)
        indices: list[int | None] = []
        for row, label in enumerate(labels, start=1):
            texts = spellings(label)
            matches = [index_of[text] for text in texts if text in index_of]
            if texts and not matches:
                raise DatasetError(
                    f"{where}: row {row} has label {label!r}, which is not in label_values "
                    f"({', '.join(map(str, self.label_values or ()))}); correct the label, or add it to label_values"
                )
            indices.append(matches[0] if matches else None)
        return pyarrow.array(indices, pyarrow.int64())


def _require(rows: datasets.Dataset, name: str, where: str, key: str) -> None:
    if name not in rows.column_names:
        hint = suggest(name, rows.column_names)
        raise DatasetError(
            f"{where} has no column {name!r} (columns: {', '.join(rows.column_names)}); name the right column in "
            f"dataset_kwargs: {key}{hint}"
        )


def _replaced(rows: datasets.Dataset, old: str, new: str, values: pyarrow.Array) -> datasets.Dataset:
    """Replace the column `old` by `new`, and any column that is already called `new`."""
    kept = rows.remove_columns([name for name in dict.fromkeys((old, new)) if name in rows.column_names])
    if not kept.column_names:
        return datasets.Dataset(pyarrow.table({new: values}), split=rows.split)
    return kept.add_column(new, values)


def _complete(rows: datasets.Dataset, required: Sequence[str], label: str, where: str) -> datasets.Dataset:
    for name in required:
        _require(rows, name, where, "required")
    kept = list(range(len(rows)))
    for name in required:
        values = rows[name][:]
        kept = [row for row in kept if _is_given(values[row]) and not (name == label and values[row] == HIDDEN)]
    return rows if len(kept) == len(rows) else rows.select(kept)


def _is_given(value: Any) -> bool:
    return bool(answers_of(value)) if isinstance(value, (list, Mapping)) else plain(value) is not None


def _with_choices(rows: datasets.Dataset, choices: Sequence[str], label: str, where: str) -> datasets.Dataset:
    _require(rows, label, where, "label")
    if "choices" in rows.column_names:
        raise DatasetError(
            f"{where} already has a column 'choices'; remove that column, or remove choices from dataset_kwargs"
        )
    labels = rows[label][:]  # the whole column at once: row by row is slow
    for row, value in enumerate(labels, start=1):
        if plain(value) is None:
            raise DatasetError(
                f"{where}: row {row} has no label (column {label!r} is empty); fill in the label, or drop the row"
            )
    if invalid := [(row, value) for row, value in enumerate(labels, start=1) if not _is_index(value, len(choices))]:
        # One cell that is not a number makes the whole column text: name that cell.
        words = [(row, value) for row, value in invalid if not WHOLE_NUMBER.fullmatch(str(value))]
        row, value = (words or invalid)[0]
        kind = {str: ", which is text", float: ", which is a decimal number"}.get(type(value), "")
        remedy = ", or list the labels as the data write them in dataset_kwargs: label_values" if kind else ""
        raise DatasetError(
            f"{where}: row {row} has {label} {value!r}{kind}, outside the {len(choices)} choices {list(choices)}; "
            f"correct the label or the choices{remedy}"
        )
    return rows.add_column("choices", [list(choices)] * len(rows))


def _is_index(value: Any, choices: int) -> bool:
    return isinstance(value, int) and HIDDEN <= value < choices
