"""From the columns that data have to those that a task's templates and hooks read: `label`, `choices`, `answers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow

from harness_ext.errors import DatasetError, suggest
from harness_ext.protocol.cells import answers_of, plain, spellings
from harness_ext.protocol.local_files import WHOLE_NUMBER

HIDDEN = -1  # the Hub's test split of SST-2 hides its labels behind it


@dataclass(frozen=True)
class DocumentShape:
    """What a task makes of the columns of its data; the steps in the order of the fields."""

    columns: Mapping[str, str] | None = None  # name in the task: name in the data
    answers: str | None = None  # this column becomes `answers`, a list of texts
    label: str = "label"
    label_values: Sequence[Any] | None = None  # label as it stands, in the order of the choices; becomes `label`
    required: Sequence[str] | None = None  # rows without a value in one of these columns are left out
    choices: Sequence[str] | None = None  # added to every document as the column `choices`

    def __post_init__(self) -> None:
        if wrong := [choice for choice in self.choices or () if not isinstance(choice, str)]:
            raise DatasetError(
                f"dataset_kwargs: choices holds {wrong[0]!r}, which is not text; put quotes around it in the YAML"
            )

    def applied_to(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        """The rows as the task reads them.

        Args:
            rows: documents of one split.
            where: what messages call them.

        Raises:
            DatasetError: a column is missing or taken, or a row has no label or one outside the choices.
        """
        if self.columns:
            for name in self.columns.values():
                _require(rows, name, where, "columns")
            rows = rows.rename_columns({there: here for here, there in self.columns.items()})
        if self.answers:
            _require(rows, self.answers, where, "answers")
            texts = [answers_of(value) for value in rows[self.answers][:]]
            rows = _replaced(rows, self.answers, "answers", pyarrow.array(texts, pyarrow.list_(pyarrow.string())))
        label = self.label
        if self.label_values:
            _require(rows, label, where, "label")
            rows = _replaced(rows, label, "label", self._numbers(rows[label][:], where))
            label = "label"
        if self.required:
            rows = _complete(rows, self.required, label, where)
        # A test split on the Hub that hides all its labels has no rows left, and is not read.
        return _with_choices(rows, self.choices, label, where) if self.choices and len(rows) else rows

    def _numbers(self, labels: Sequence[Any], where: str) -> pyarrow.Array:
        index = {plain(value): number for number, value in enumerate(self.label_values or ())}
        for number, value in enumerate(self.label_values or ()):
            for text in spellings(value):
                index.setdefault(text, number)
        index.setdefault(str(HIDDEN), HIDDEN)
        numbers: list[int | None] = []
        for row, label in enumerate(labels, start=1):
            texts = spellings(label)
            known = [index[text] for text in texts if text in index]
            if texts and not known:
                raise DatasetError(
                    f"{where}: row {row} has label {label!r}, which is none of label_values "
                    f"({', '.join(map(str, self.label_values or ()))}); correct the label, or add it there"
                )
            numbers.append(known[0] if known else None)
        return pyarrow.array(numbers, pyarrow.int64())


def _require(rows: datasets.Dataset, name: str, where: str, key: str) -> None:
    if name not in rows.column_names:
        hint = suggest(name, rows.column_names)
        raise DatasetError(
            f"{where} has no column {name!r} (it has {', '.join(rows.column_names)}); name the {key} column with "
            f"dataset_kwargs: {key}{hint}"
        )


def _replaced(rows: datasets.Dataset, old: str, new: str, values: pyarrow.Array) -> datasets.Dataset:
    """Put a column in place of another, and of one that has its name."""
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
        raise DatasetError(f"{where} has a column 'choices' already; drop it, or leave choices out of dataset_kwargs")
    labels = rows[label][:]  # read at once, not row by row
    for number, value in enumerate(labels, start=1):
        if plain(value) is None:
            raise DatasetError(
                f"{where}: row {number} has no label (nothing in column {label!r}); fill it, or drop the row"
            )
    if wrong := [each for each in enumerate(labels, start=1) if not _is_index(each[1], len(choices))]:
        # A column of numbers stays text when one cell is none: name that cell.
        words = [each for each in wrong if not WHOLE_NUMBER.fullmatch(str(each[1]))]
        number, value = (words or wrong)[0]
        kind = {str: ", which is text", float: ", which is a decimal number"}.get(type(value), "")
        remedy = ", or name the labels as they are written with dataset_kwargs: label_values" if kind else ""
        raise DatasetError(
            f"{where}: row {number} has {label} {value!r}{kind}, outside the {len(choices)} choices {list(choices)}; "
            f"correct the label or the choices{remedy}"
        )
    return rows.add_column("choices", [list(choices)] * len(rows))


def _is_index(value: Any, choices: int) -> bool:
    return isinstance(value, int) and HIDDEN <= value < choices
