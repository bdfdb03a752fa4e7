"""`harness-ext new-task`: a CSV, JSON lines or parquet file becomes a folder with a task, its documents and a test.

```
file ──first rows──> columns ──one pass──> survey ──> splits ──second pass──> NAME/data/{train,validation}.parquet
                                                                              NAME/NAME.yaml, README.md, test_NAME.py
```

The file is read twice and never whole. Its rows are copied into the folder, compressed, so that the folder is all there
is: it can be moved, committed and given away.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from harness_ext.errors import DatasetError, TaskError
from harness_ext.folders import replacing_folder
from harness_ext.protocol import scaffold_texts
from harness_ext.protocol.columns import Columns, Kind, answers_of, find_columns, is_text, plain, safe_names
from harness_ext.protocol.local_files import RowFile, open_rows
from harness_ext.protocol.splits import SPLITS, STOPS, Survey, assign, describe, survey

NAME = re.compile(r"[A-Za-z]\w*(-\w+)*", re.ASCII)
FEWEST_ROWS = 4
TOKENS = (16, 512)  # of a generated answer, at least and at most


@dataclass(frozen=True)
class NewTask:
    """What was made."""

    folder: Path
    name: str
    counts: Mapping[str, int]  # split -> documents
    said: tuple[str, ...]  # what the author should know about the file
    columns: Columns
    choices: tuple[str, ...]


def new_task(
    name: str,
    kind: Kind,
    data: str | Path,
    *,
    output: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    labels: Mapping[str, str] | None = None,
    validation: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> NewTask:
    """Make a task folder from a file of documents.

    Args:
        name: of the task.
        kind: choice (a text has one of several labels) or generate (a question has an answer).
        data: CSV, JSON lines or parquet file.
        output: the folder; by default tasks/NAME.
        columns: role (text, label, question, answer, context) to column, where it is not to be guessed.
        labels: label as it stands in the file to the word a model is to say.
        validation: share of the rows that are evaluated, at most 2,000 of them.
        test: share of the rows for a test split, which is then evaluated instead.
        seed: of the draw.
        overwrite: replace a folder that this function made before.

    Raises:
        TaskError: the name cannot be used, or the folder is there.
        DatasetError: the file cannot be made into such a task; nothing is left behind.
    """
    folder = Path(output) if output else Path("tasks") / name
    _check_request(name, folder, validation, test, overwrite=overwrite)
    rows = open_rows(data)
    found = find_columns(rows, kind, columns or {})
    seen = survey(rows, kind, found)
    words = _words(seen, rows, found, labels or {}) if kind == "choice" else {}
    split_of = assign(seen, validation=validation, test=test, seed=seed)
    counts = _counts(split_of, rows, test=test)
    names = safe_names(rows.columns)
    with _replacing(folder) as unfinished:
        _write_documents(unfinished / "data", rows, kind, found, names, words, split_of)
        facts = scaffold_texts.Facts(
            name=name, kind=kind, file=rows.file.name, counts=counts,
            folder=folder.name if folder.is_absolute() else str(folder), choices=tuple(words.values()),
            roles={role: names[column] for role, column in found.roles.items()},
            strips=tuple(names[column] for column in rows.columns if is_text(rows, column)),
            said=tuple(describe(seen, kind, found)), seed=seed, max_gen_toks=_max_tokens(seen),
            stop=next(stop for stop in (*STOPS, "\n####\n") if stop not in seen.marks),
        )  # fmt: skip
        for file, text in scaffold_texts.files(facts).items():
            (unfinished / file).write_text(text, encoding="utf-8")
    return NewTask(folder, name, counts, facts.said, found, facts.choices)


def _check_request(name: str, folder: Path, validation: float, test: float, *, overwrite: bool) -> None:
    if not NAME.fullmatch(name):
        raise TaskError(f"{name!r} cannot name a task; use letters, digits, _ and -, a letter first")
    if not (0 < validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise TaskError(f"--validation {validation:g} and --test {test:g} are shares of the rows: above 0 and together "
                        "below 1")  # fmt: skip
    if folder.exists():
        if not overwrite:
            raise TaskError(f"{folder} is there already; choose another --output, or replace it with --overwrite")
        if not (folder / f"{name}.yaml").is_file():
            raise TaskError(f"{folder} is not the folder of task {name!r} (no {name}.yaml in it) and is not replaced; "
                            "choose another --output")  # fmt: skip


# -- labels ------------------------------------------------------------------------------------------------------


def _words(seen: Survey, rows: RowFile, columns: Columns, given: Mapping[str, str]) -> dict[str, str]:
    """Label as it stands in the file -> choice, in the order of the choices: numbers by size, words by the alphabet."""
    column = columns["label"]
    if unknown := sorted(given.keys() - seen.labels.keys()):
        raise DatasetError(f"--labels names {unknown[0]!r}, which column {column!r} of {rows.file} does not have (it "
                           f"has {', '.join(sorted(seen.labels)[:10])}); correct it")  # fmt: skip
    if given and (unnamed := sorted(seen.labels.keys() - given.keys())):
        raise DatasetError(f"--labels leaves out {', '.join(unnamed[:10])} of column {column!r}; name every label")
    if len(seen.labels) == 1:
        raise DatasetError(f"{rows.file}: column {column!r} has one label only ({next(iter(seen.labels))!r}); a choice "
                           "needs two: add rows, or name another --label-column")  # fmt: skip
    numbers = all(re.fullmatch(r"-?\d+", label) for label in seen.labels)
    ordered = sorted(seen.labels, key=int) if numbers else sorted(seen.labels)
    words = {label: given.get(label, label) for label in ordered}
    if len(set(words.values())) < len(words):
        raise DatasetError(
            f"--labels gives the same word to several labels ({', '.join(words.values())}); tell them apart"
        )
    return words


def _counts(split_of: NDArray[np.int8], rows: RowFile, *, test: float) -> dict[str, int]:
    numbers = Counter(split_of.tolist())
    counts = {split: numbers[at] for at, split in enumerate(SPLITS) if split != "test" or test}
    if sum(counts.values()) < FEWEST_ROWS:
        raise DatasetError(f"{rows.file} has {sum(counts.values())} complete rows; at least {FEWEST_ROWS} are needed, "
                           "and some hundred to tell anything")  # fmt: skip
    if empty := [split for split, count in counts.items() if not count]:
        raise DatasetError(f"{rows.file}: too few rows of different texts for a {empty[0]} split; add rows, or raise "
                           f"--{empty[0]}")  # fmt: skip
    return counts


def _max_tokens(seen: Survey) -> int:
    """Room for the longest answer: two characters a token is less than most tokenizers make of most languages."""
    wanted = -(-(seen.longest_answer // 2 + 8) // 8) * 8
    return min(max(wanted, TOKENS[0]), TOKENS[1])


# -- writing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """The folder, written whole or not at all."""
    try:
        with replacing_folder(folder) as unfinished:
            yield unfinished
    except OSError as error:
        raise TaskError(f"{folder} cannot be written ({error.strerror}); choose another --output") from error


def _write_documents(
    folder: Path,
    rows: RowFile,
    kind: Kind,
    columns: Columns,
    names: Mapping[str, str],
    words: Mapping[str, str],
    split_of: NDArray[np.int8],
) -> None:
    folder.mkdir()
    gold = columns["label" if kind == "choice" else "answer"]
    made = "label" if kind == "choice" else "answers"
    made_type = pyarrow.int64() if kind == "choice" else pyarrow.list_(pyarrow.string())
    kept = [name for name in rows.columns if name != gold and names[name] != made]
    schema = pyarrow.schema([*((names[name], rows.schema.field(name).type) for name in kept), (made, made_type)])
    index = {label: number for number, label in enumerate(words)}
    splits = [number for number in range(len(SPLITS)) if (split_of == number).any()]
    with contextlib.ExitStack() as files:
        writers = {
            number: files.enter_context(
                pyarrow.parquet.ParquetWriter(folder / f"{SPLITS[number]}.parquet", schema, compression="zstd")
            )
            for number in splits
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
