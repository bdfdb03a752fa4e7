"""Rows of CSV and JSON files. CSV cells are text; JSON values keep their JSON type.

Messages name a row by its number (1 is the first after the header) and the line on which it begins.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from harness_ext.errors import DatasetError, InputError, first_line
from harness_ext.reading.files import RESULTS_SIZE, lines_of, open_regular
from harness_ext.reading.json_input import parse_json, read_json

DELIMITERS = ",;\t|"
SNIFFED_BYTES = 64 * 1024
MOST_COLUMNS = 2_000
BATCH_ROWS = 1024  # rows in memory at a time

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents may be longer than Python's default limit of 128 KiB


def check_columns(file: Path, names: Sequence[str]) -> None:
    """Raise DatasetError for a repeated column, a null character in a name, or more than `MOST_COLUMNS`."""
    if len(names) > MOST_COLUMNS:
        raise DatasetError(
            f"{file} has {len(names):,} columns, more than {MOST_COLUMNS:,}; keep those that the task uses"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{file} has the column {min(repeated)!r:.80} twice; rename one")
    if odd := [name for name in names if "\0" in name]:
        raise DatasetError(f"{file} has a null character in the name of the column {odd[0]!r:.80}; rename it")


def batched(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most `BATCH_ROWS` rows."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield batch


# -- CSV ---------------------------------------------------------------------------------------------------------


class CsvRow(NamedTuple):
    """A row and its place in the file."""

    number: int  # 0 is the header; blank lines are not counted
    line: int  # where the row begins; a quoted cell may span several lines
    cells: list[str]


def csv_rows(file: Path, delimiter: str, width: int | None = None) -> Iterator[CsvRow]:
    """The header, then the rows, each with `width` cells.

    Raises:
        DatasetError: a row has more or fewer cells, or its quotes do not match.
    """
    number, line = 0, 1
    with open_regular(file) as content:
        stream = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield _of_width(CsvRow(number, line, cells), width, file)
                    number += 1
                line = reader.line_num + 1
        except csv.Error as error:
            raise DatasetError(
                f"{file} cannot be read: row {number} (line {line}): {_csv_problem(error)}; correct it "
                '(write a quote inside quotes twice: "")'
            ) from error


def _of_width(row: CsvRow, width: int | None, file: Path) -> CsvRow:
    if width is None or len(row.cells) == width:
        return row
    cells = f"{len(row.cells)} cell{'s' * (len(row.cells) != 1)}"
    raise DatasetError(
        f"{file} cannot be read: row {row.number} (line {row.line}) has {cells}, but the header has {width}; correct "
        "the row (put quotes around texts that contain the delimiter)"
    )


def _csv_problem(error: csv.Error) -> str:
    return "a quote is opened but never closed" if "unexpected end" in str(error) else str(error).rstrip(".")


def delimiter_of(file: Path) -> str:
    """The delimiter of a CSV: the one that splits its first rows into the same number of cells, more than one."""
    sample = _beginning(file)
    counts = {delimiter: _widths(sample, delimiter) for delimiter in DELIMITERS}
    splitting = {delimiter: widths for delimiter, widths in counts.items() if widths and widths[0] > 1}
    consistent = {delimiter: widths for delimiter, widths in splitting.items() if len(set(widths)) == 1}
    candidates = consistent or splitting
    return max(candidates, key=lambda delimiter: candidates[delimiter][0], default=",")


def _widths(sample: str, delimiter: str) -> list[int]:
    """Number of cells in each row, up to the first row that cannot be parsed."""
    widths: list[int] = []
    with contextlib.suppress(csv.Error):
        for row in csv.reader(io.StringIO(sample), delimiter=delimiter, strict=True):
            widths += [len(row)] if row else []
    return widths


def _beginning(file: Path) -> str:
    """The first whole lines of a text file, without a byte order mark."""
    with open_regular(file) as stream:
        block = stream.read(SNIFFED_BYTES)
        whole = not stream.read(1)
    text = block.decode("utf-8-sig", errors="replace")
    return text if whole else text[: text.rfind("\n") + 1] or text


# -- JSON --------------------------------------------------------------------------------------------------------


def json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file, or of a file that is a single JSON list (which is read at once).

    Raises:
        DatasetError: a line is not a JSON object.
    """
    if _beginning(file).lstrip().startswith("["):
        yield from _json_list(file)
        return
    number = 0
    for line, content in enumerate(lines_of(file), start=1):
        if content.strip():
            number += 1
            yield _json_object(file, content, f"row {number} (line {line})")


def _json_list(file: Path) -> Iterator[dict[str, Any]]:
    try:
        values = read_json(file, limit=RESULTS_SIZE, exact=True)
    except InputError as error:
        raise DatasetError(f"{error}; correct it (one list of objects, or one object per line)") from error
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DatasetError(f"{file} cannot be read as json: row {number} is not an object with columns; correct it")
        yield value


def _json_object(file: Path, content: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(content, place=f"{file}: {where}", exact=True)
    except InputError as error:
        raise DatasetError(f"{error}; correct it (one object per line, or one list of objects)") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{file} cannot be read as json: {where} is not an object with columns; correct it")
    return value


def json_schema(file: Path) -> pyarrow.Schema:
    """Columns and types over all rows, since a column may begin with nulls and show its type late."""
    schema, start, known = pyarrow.schema([]), 1, set[str]()
    for documents in batched(json_rows(file)):
        names = dict.fromkeys(name for document in documents for name in document)
        check_columns(file, [*schema.names, *(name for name in names if name not in known)])
        known.update(names)
        for name in names:
            with _one_type(file, name, f"rows {start} to {start + len(documents) - 1}"):
                values = pyarrow.array([document.get(name) for document in documents])
                own = pyarrow.schema([(name, values.type)])
                schema = pyarrow.unify_schemas([schema, own], promote_options="permissive")
        start += len(documents)
    return schema


@contextlib.contextmanager
def _one_type(file: Path, column: str, where: str) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
        reason = first_line(error)
        raise DatasetError(
            f"{file} cannot be read as json: column {column!r}, {where}: {reason}; use one type for all its values, "
            "such as text"
        ) from error
