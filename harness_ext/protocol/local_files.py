"""Documents in local files: whole splits for a task, and streams of rows for `new-task`."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from harness_ext.errors import DatasetError

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
STREAMED = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
DELIMITERS = ",;\t|"
SNIFFED_BYTES = 64 * 1024
BLOCK_BYTES = 4 * 1024 * 1024  # what a stream holds at a time, times a few
BATCH_ROWS = 8192


# -- splits of a task --------------------------------------------------------------------------------------------


def existing_folder(folder: Path, said_by: str) -> Path:
    """Return a folder that is there.

    Raises:
        DatasetError: it is not; `said_by` names the setting that led to it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{said_by} leads to {folder}, which is not a folder; create it with a file for each split")
    return folder


def files_in(folder: Path) -> dict[str, Path]:
    """Split name to file, for every file of a folder that can be read.

    Raises:
        DatasetError: there is none.
    """
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in READERS}
    if not files:
        raise DatasetError(
            f"{folder} holds none of train/validation/test with {', '.join(READERS)}; add one file a split"
        )
    return files


def load_files(files: Mapping[str, Path]) -> datasets.DatasetDict:
    """Load one file for each split.

    Raises:
        DatasetError: one is missing, empty, unreadable or of an unknown kind.
    """
    return datasets.DatasetDict({split: _load_file(split, file) for split, file in files.items()})


def _load_file(split: str, file: Path) -> datasets.Dataset:
    reader = READERS.get(file.suffix)
    if reader is None:
        raise DatasetError(f"{file}: cannot read {file.suffix!r} files; use one of {', '.join(READERS)}")
    _check_file(file, f"check the path under {split!r}", f"it must hold the documents of split {split!r}")
    try:
        with _silently():
            return datasets.load_dataset(reader, data_files={split: str(file)}, split=split)
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0].rstrip(".!")
        if "corresponds to no data" in reason:
            raise DatasetError(f"{file} holds no documents; put at least one of split {split!r} there") from error
        raise DatasetError(f"{file} cannot be read as {reader}: {reason}; write it again or fix that line") from error


def _check_file(file: Path, when_missing: str, when_empty: str) -> None:
    if not file.is_file():
        raise DatasetError(f"{file} does not exist; {when_missing}")
    if not file.stat().st_size:
        raise DatasetError(f"{file} is empty; {when_empty}")


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Keep `datasets` from logging an error that it raises, too, and from showing progress over a local file."""
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


@dataclass(frozen=True)
class RowFile:
    """A CSV, JSON lines or parquet file that is read batch by batch, never whole."""

    file: Path
    delimiter: str | None  # of a CSV
    schema: pyarrow.Schema  # CSV columns are all text: what is a number is decided by whoever reads

    @property
    def columns(self) -> list[str]:
        """Column names in file order."""
        return list(self.schema.names)

    def batches(self, columns: list[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Stream the rows in file order.

        Raises:
            DatasetError: a row cannot be read; says which where the reader knows.
        """
        try:
            for batch in _stream(self.file, self.delimiter, self.schema):
                yield batch.select(columns) if columns else batch
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
            raise DatasetError(_why_unreadable(self.file, error)) from error


def open_rows(file: str | Path) -> RowFile:
    """Find out how a file is to be read: by its ending, and for a CSV by its first lines.

    Raises:
        DatasetError: it is missing, empty, of an unknown kind, or has no columns or no rows.
    """
    path = Path(file).expanduser()
    _check_file(path, "check the path", "it must hold at least one row")
    if path.suffix.lower() not in STREAMED:
        raise DatasetError(f"{path}: cannot read {path.suffix!r} files; use one of {', '.join(STREAMED)}")
    delimiter = _delimiter_of(path) if path.suffix.lower() in (".csv", ".tsv", ".txt") else None
    try:
        schema = _schema_of(path, delimiter)
        first = next(iter(_stream(path, delimiter, schema)), None)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DatasetError(_why_unreadable(path, error)) from error
    if first is None or not first.num_rows:
        raise DatasetError(f"{path} has column names but no rows; put documents there")
    return RowFile(path, delimiter, schema)


def _schema_of(file: Path, delimiter: str | None) -> pyarrow.Schema:
    if delimiter is not None:
        names = _header(file, delimiter)
        if repeated := {name for name in names if names.count(name) > 1}:
            raise DatasetError(f"{file} has the column {sorted(repeated)[0]!r} twice; rename one")
        return pyarrow.schema([(name, pyarrow.string()) for name in names])
    if file.suffix.lower() == ".parquet":
        return pyarrow.parquet.read_schema(file).remove_metadata()
    if _beginning(file).lstrip().startswith("["):
        raise DatasetError(f"{file} is one JSON list, which cannot be streamed; write one object a line (JSON lines)")
    # The type of a JSON field shows in the first block; later blocks are read as that.
    with pyarrow.json.open_json(file, read_options=_json_blocks()) as reader:
        return reader.schema


def _stream(file: Path, delimiter: str | None, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    if delimiter is not None:
        types = {name: pyarrow.string() for name in schema.names}
        with pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, encoding="utf8"),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
        ) as reader:
            yield from reader
    elif file.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(file, memory_map=True) as parquet:
            yield from parquet.iter_batches(batch_size=BATCH_ROWS)
    else:
        options = pyarrow.json.ParseOptions(explicit_schema=schema, newlines_in_values=False)
        with pyarrow.json.open_json(file, read_options=_json_blocks(), parse_options=options) as reader:
            yield from reader


def _json_blocks() -> pyarrow.json.ReadOptions:
    return pyarrow.json.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)


def _delimiter_of(file: Path) -> str:
    """The delimiter of a CSV: the one that gives its first rows the same number, more than one, of fields."""
    sample = _beginning(file)
    counts = {mark: _fields(sample, mark) for mark in DELIMITERS}
    steady = {mark: fields for mark, fields in counts.items() if fields and fields[0] > 1 and len(set(fields)) == 1}
    if steady:
        return max(steady, key=lambda mark: steady[mark][0])
    by_header = {mark: fields[0] for mark, fields in counts.items() if fields and fields[0] > 1}
    if not by_header:
        raise DatasetError(
            f"{file} has a single column: none of , ; tab | parts its first line; use one of them, and quotes around "
            "texts that contain it"
        )
    return max(by_header, key=lambda mark: by_header[mark])


def _fields(sample: str, delimiter: str) -> list[int]:
    try:
        return [len(row) for row in csv.reader(io.StringIO(sample), delimiter=delimiter, strict=True) if row]
    except csv.Error:
        return []


def _beginning(file: Path) -> str:
    """The first whole lines of a text file, without a byte order mark."""
    with file.open("rb") as stream:
        block = stream.read(SNIFFED_BYTES)
        whole = not stream.read(1)
    text = block.decode("utf-8-sig", errors="replace")
    return text if whole else text[: text.rfind("\n") + 1] or text


def _header(file: Path, delimiter: str) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(stream, delimiter=delimiter), [])


def _why_unreadable(file: Path, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
        return f"{file} is not UTF-8 text; save it as UTF-8"
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{file} cannot be read: {reason}; correct that row (quotes around texts that contain the delimiter)"
