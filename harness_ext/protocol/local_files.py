"""Documents in local files: whole splits for a task, and streams of rows for `new-task`. Both use the same reader.

Values are never reinterpreted. A CSV cell is always text, whatever it looks like (`NA`, `null`, `00501`, `1e5`, a
date), and an empty cell is an empty text. JSON values keep their JSON type: a string with a date stays a string. The
one exception is the label column of a CSV: if every non-empty cell is a whole number, the column is read as numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow
import pyarrow.parquet

from harness_ext.errors import DatasetError, InputError, first_line
from harness_ext.protocol.text_rows import (
    BATCH_ROWS,
    batched,
    check_columns,
    csv_rows,
    delimiter_of,
    json_rows,
    json_schema,
)
from harness_ext.reading.files import is_regular, shown

CSV_ENDINGS = (".csv", ".tsv", ".txt")
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
ENDINGS = (*CSV_ENDINGS, *JSON_ENDINGS, ".parquet")
SPLIT_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".txt")  # a README.txt in the folder is not a split
WHOLE_NUMBER = re.compile(r"\s*(0|-?[1-9]\d{0,17})\s*", re.ASCII)


# -- splits of a task --------------------------------------------------------------------------------------------


def existing_folder(folder: Path, setting: str) -> Path:
    """Return the folder if it exists.

    Args:
        folder: path to check.
        setting: the setting that names it, for the message.

    Raises:
        DatasetError: it is not a folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{setting} points to {folder}, which is not a folder; create it with one file per split")
    return folder


def files_in(folder: Path) -> dict[str, Path]:
    """Split name -> file, for every file in the folder with a known extension.

    Raises:
        DatasetError: there is none.
    """
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in SPLIT_ENDINGS}
    if not files:
        raise DatasetError(
            f"{folder} contains no train/validation/test file with {', '.join(SPLIT_ENDINGS)}; add one file per split"
        )
    return files


def load_files(files: Mapping[str, Path], *, label: str | None = None) -> dict[str, datasets.Dataset]:
    """Load one file per split.

    Args:
        files: split name -> file.
        label: the label column; in a CSV it is read as numbers if every non-empty cell is a whole number.

    Raises:
        DatasetError: a file is missing, empty, unreadable or of an unknown type.
    """
    return {split: _load_file(split, file, label) for split, file in files.items()}


def _load_file(split: str, file: Path, label: str | None) -> datasets.Dataset:
    _check_ending(file)
    _check_file(file, f"check the path under {split!r}", f"it must contain the documents of split {split!r}")
    if file.suffix.lower() == ".parquet":
        return _load_parquet(split, file)
    rows = open_rows(file)
    table = pyarrow.Table.from_batches(rows.batches(), rows.schema).combine_chunks()
    if rows.delimiter is not None and label in rows.columns:
        table = _with_numbers(table, rows.columns.index(label))
    try:
        return datasets.Dataset(table, split=datasets.NamedSplit(split))
    except (pyarrow.ArrowException, ValueError, TypeError) as error:  # of names or types inside of a column
        raise DatasetError(f"{file} cannot be held as a table: {first_line(error)}; simplify its columns") from error


def _load_parquet(split: str, file: Path) -> datasets.Dataset:
    """Load a parquet file with `datasets`, which memory-maps it."""
    with _readable(file):
        check_columns(file, pyarrow.parquet.read_schema(file).names)
    try:
        with _silently():
            loaded = datasets.load_dataset("parquet", data_files={split: str(file)}, split=split)
        loaded.data.table.validate(full=True)  # text that is not UTF-8 would only be noticed when it is used
        return loaded
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, ValueError, OSError) as error:
        reason = first_line(error.__cause__ or error).rstrip("!")
        if "corresponds to no data" in reason:
            raise DatasetError(_no_documents(file)) from error
        raise DatasetError(f"{file} cannot be read as parquet: {reason}; write it again") from error


def _with_numbers(table: pyarrow.Table, column: int) -> pyarrow.Table:
    """Convert a text column to whole numbers, empty cells to null, if every non-empty cell is a whole number."""
    cells = table.column(column).to_pylist()
    if not any(map(str.strip, cells)) or not all(WHOLE_NUMBER.fullmatch(cell) or not cell.strip() for cell in cells):
        return table
    numbers = pyarrow.array([int(cell) if cell.strip() else None for cell in cells], pyarrow.int64())
    return table.set_column(column, table.column_names[column], numbers)


def _check_file(file: Path, when_missing: str, when_empty: str) -> None:
    if not is_regular(file):
        kind = "is no regular file" if os.path.lexists(file) else "does not exist"
        raise DatasetError(f"{shown(file)} {'is a folder' if file.is_dir() else kind}; {when_missing}")
    if not file.stat().st_size:
        raise DatasetError(f"{file} is empty; {when_empty}")


def _check_ending(file: Path) -> None:
    if file.suffix.lower() not in ENDINGS:
        raise DatasetError(f"{file}: cannot read {file.suffix!r} files; use one of {', '.join(ENDINGS)}")


def _no_documents(file: Path) -> str:
    return f"{file} has no documents: it has no rows; add at least one"


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Keep `datasets` from logging an error that it also raises, and from showing a progress bar for a local file."""
    log = logging.getLogger("datasets")
    level, bars = log.level, not datasets.are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


# -- streams of rows ---------------------------------------------------------------------------------------------


class Rows(Protocol):
    """Rows that are read batch by batch, from a file or from a split of a Hub data set."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def schema(self) -> pyarrow.Schema:
        """Columns and their types."""

    @property
    def columns(self) -> list[str]:
        """Column names in order."""

    def batches(self, columns: list[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Stream the rows in order."""


@dataclass(frozen=True)
class RowFile:
    """A CSV, JSON lines or parquet file that is read batch by batch, never as a whole."""

    file: Path
    delimiter: str | None  # of a CSV
    schema: pyarrow.Schema  # all columns of a CSV are text

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.file)

    @property
    def columns(self) -> list[str]:
        """Column names in file order."""
        return list(self.schema.names)

    def batches(self, columns: list[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Stream the rows in file order.

        Raises:
            DatasetError: a row cannot be read; the message names it.
        """
        with _readable(self.file):
            for batch in _stream(self.file, self.delimiter, self.schema):
                yield batch.select(columns) if columns else batch


def open_rows(file: str | Path) -> RowFile:
    """Open a file for streaming; a CSV's delimiter comes from its first lines, JSON types from a pass over all values.

    Raises:
        DatasetError: it is missing, empty, of an unknown type, or has no columns or no rows.
    """
    path = Path(file).expanduser()
    _check_file(path, "check the path", "it must contain at least one row")
    _check_ending(path)
    with _readable(path):
        delimiter = delimiter_of(path) if path.suffix.lower() in CSV_ENDINGS else None
        schema = _schema_of(path, delimiter)
        if next(iter(_stream(path, delimiter, schema)), None) is None:
            raise DatasetError(_no_documents(path))
    return RowFile(path, delimiter, schema)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn exceptions of the readers into a DatasetError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        kind = "json" if file.suffix.lower() in JSON_ENDINGS else "csv"
        raise DatasetError(f"{file} cannot be read as {kind}: it is not UTF-8 text; save it as UTF-8") from error
    except InputError as error:
        raise DatasetError(f"{error}; write it again") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = first_line(error)
        raise DatasetError(f"{file} cannot be read: {reason:.200}; write it again") from error


def _schema_of(file: Path, delimiter: str | None) -> pyarrow.Schema:
    if delimiter is not None:
        header = next(csv_rows(file, delimiter), None)
        if header is None:
            raise DatasetError(_no_documents(file))
        names = header.cells
        check_columns(file, names)
        return pyarrow.schema([(name, pyarrow.string()) for name in names])
    if file.suffix.lower() == ".parquet":
        schema = pyarrow.parquet.read_schema(file).remove_metadata()
        check_columns(file, schema.names)
        return schema
    return json_schema(file)


def _stream(file: Path, delimiter: str | None, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    if delimiter is not None:
        for rows in batched(itertools.islice(csv_rows(file, delimiter, width=len(schema)), 1, None)):
            cells = zip(*(row.cells for row in rows), strict=True)
            arrays = [pyarrow.array(column, pyarrow.string()) for column in cells]
            yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
    elif file.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(file, memory_map=True) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                batch.validate(full=True)
                yield batch
    else:
        for documents in batched(json_rows(file)):
            yield pyarrow.RecordBatch.from_pylist(documents, schema=schema)
