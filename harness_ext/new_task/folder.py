"""Writes the documents of a new task as parquet, one file per split; a failure leaves no partial folder behind."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from harness_ext.errors import DatasetError, first_line
from harness_ext.new_task.columns import Columns, Kind
from harness_ext.new_task.splits import DROPPED, SPLITS
from harness_ext.protocol.cells import answers_of, plain
from harness_ext.protocol.local_files import Rows


def write_documents(
    folder: Path,
    parts: Sequence[tuple[Rows, NDArray[np.int8]]],
    kind: Kind,
    columns: Columns,
    names: Mapping[str, str],
    words: Mapping[str, str],
) -> None:
    """Write `train.parquet` and so on; the gold column becomes `label` (an index) or `answers` (a list of texts).

    Args:
        folder: created here.
        parts: rows, and for each row an index into `SPLITS`, or `DROPPED`.
        kind: of the task.
        columns: column of each role.
        names: column -> name that templates can use.
        words: label in the data -> choice, in the order of the choices.
    """
    folder.mkdir()
    for rows, split_of in parts:
        shared = [name for name in rows.columns if all(name in part.columns for part, _ in parts)]
        _write_part(folder, rows, split_of, {name: names[name] for name in shared}, kind, columns, words)


def _write_part(
    folder: Path,
    rows: Rows,
    split_of: NDArray[np.int8],
    names: Mapping[str, str],
    kind: Kind,
    columns: Columns,
    words: Mapping[str, str],
) -> None:
    gold = columns["label" if kind == "choice" else "answer"]
    target = "label" if kind == "choice" else "answers"
    target_type = pyarrow.int64() if kind == "choice" else pyarrow.list_(pyarrow.string())
    kept = [name for name in names if name != gold and names[name] != target]
    schema = pyarrow.schema([*((names[name], rows.schema.field(name).type) for name in kept), (target, target_type)])
    _check_types(rows.name, schema)
    index = {label: number for number, label in enumerate(words)}
    with contextlib.ExitStack() as files:
        writers = {
            number: files.enter_context(
                pyarrow.parquet.ParquetWriter(folder / f"{SPLITS[number]}.parquet", schema, compression="zstd")
            )
            for number in np.unique(split_of[split_of != DROPPED]).tolist()
        }
        start = 0
        for batch in rows.batches():
            targets = [_target(kind, value, index) for value in batch.column(gold).to_pylist()]
            whole = pyarrow.RecordBatch.from_arrays(
                [*(batch.column(name) for name in kept), pyarrow.array(targets, target_type)], schema=schema
            )
            part = split_of[start : start + batch.num_rows]
            start += batch.num_rows
            for number, writer in writers.items():
                if (part == number).any():
                    writer.write_batch(whole.filter(pyarrow.array(part == number)))


def _check_types(source: str, schema: pyarrow.Schema) -> None:
    """Raise DatasetError for a column of a type that parquet does not have, such as that of empty objects."""
    for field in schema:
        try:
            with pyarrow.parquet.ParquetWriter(pyarrow.BufferOutputStream(), pyarrow.schema([field])):
                pass
        except pyarrow.ArrowException as error:
            raise DatasetError(
                f"{source}: the column {field.name!r:.80} cannot be written as parquet ({first_line(error):.160}); "
                "leave it out"
            ) from error


def _target(kind: Kind, value: Any, index: Mapping[str, int]) -> int | list[str] | None:
    if kind == "choice":
        return index.get(plain(value) or "")
    return answers_of(value)
