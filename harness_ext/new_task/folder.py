"""The documents of a new task: rows of files as parquet, one file a split, in a folder that is whole or not there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from harness_ext.errors import TaskError
from harness_ext.folders import replacing_folder
from harness_ext.new_task.columns import Columns, Kind
from harness_ext.new_task.splits import DROPPED, SPLITS
from harness_ext.protocol.cells import answers_of, plain
from harness_ext.protocol.local_files import Rows


@contextlib.contextmanager
def replacing_task(folder: Path) -> Iterator[Path]:
    """The folder of a task, written whole or not at all.

    Raises:
        TaskError: it cannot be written.
    """
    try:
        with replacing_folder(folder) as unfinished:
            yield unfinished
    except OSError as error:
        raise TaskError(f"{folder} cannot be written ({error.strerror}); choose another --output") from error


def write_documents(
    folder: Path,
    parts: Sequence[tuple[Rows, NDArray[np.int8]]],
    kind: Kind,
    columns: Columns,
    names: Mapping[str, str],
    words: Mapping[str, str],
) -> None:
    """Write `train.parquet` and so on, the gold column as `label` (an index) or `answers` (a list of texts).

    Args:
        folder: made here.
        parts: rows, and for each an index into `SPLITS`, or `DROPPED`.
        kind: of the task.
        columns: of each role.
        names: column -> name that templates can use.
        words: label as it stands -> choice, in the order of the choices.
    """
    folder.mkdir()
    for rows, split_of in parts:
        shared = [name for name in rows.columns if all(name in others.columns for others, _ in parts)]
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
    made = "label" if kind == "choice" else "answers"
    made_type = pyarrow.int64() if kind == "choice" else pyarrow.list_(pyarrow.string())
    kept = [name for name in names if name != gold and names[name] != made]
    schema = pyarrow.schema([*((names[name], rows.schema.field(name).type) for name in kept), (made, made_type)])
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
            values = [_made(kind, value, index) for value in batch.column(gold).to_pylist()]
            whole = pyarrow.RecordBatch.from_arrays(
                [*(batch.column(name) for name in kept), pyarrow.array(values, made_type)], schema=schema
            )
            part = split_of[start : start + batch.num_rows]
            start += batch.num_rows
            for number, writer in writers.items():
                if (part == number).any():
                    writer.write_batch(whole.filter(pyarrow.array(part == number)))


def _made(kind: Kind, value: Any, index: Mapping[str, int]) -> int | list[str] | None:
    if kind == "choice":
        return index.get(plain(value) or "")
    return answers_of(value)
