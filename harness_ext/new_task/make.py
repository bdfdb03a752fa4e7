"""`harness-ext new-task`: turns data into a task folder with a YAML, documents, a README and a test.

```
one file            ──columns──> survey, draw splits ────┐
one file per split  ──columns──> surveys ────────────────┴─second pass──> NAME/data/{train,validation}.parquet
a Hub data set      ──columns──> surveys ────────────────────────────────> nothing is copied
                                                                          NAME/NAME.yaml, README.md, test_NAME.py
```

Files are read batch by batch, never as a whole. Their rows are copied into the folder, compressed, so the folder is
self-contained: it can be moved, committed and shared. For a Hub data set, the YAML names its id and revision instead.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.atomic import replacing_folder, write_text
from harness_ext.errors import DatasetError, TaskError, suggest
from harness_ext.new_task import texts
from harness_ext.new_task.columns import Columns, Kind, find_columns, is_squad_shaped, is_text, safe_names
from harness_ext.new_task.folder import write_documents
from harness_ext.new_task.row_files import RowSource, SplitRows, open_source
from harness_ext.new_task.splits import (
    DROPPED,
    SPLITS,
    STOPS,
    Survey,
    assign,
    describe,
    describe_labels,
    describe_overlap,
    needed_columns,
    survey,
)
from harness_ext.protocol.local_files import Rows
from harness_ext.protocol.task_folders import built_in_task

NAME = re.compile(r"[A-Za-z]\w*(-\w+)*", re.ASCII)
FEWEST_ROWS = 4
SMALLEST_MAX_GEN_TOKS, LARGEST_MAX_GEN_TOKS = 16, 512


@dataclass(frozen=True)
class NewTask:
    """The task that was written."""

    folder: Path
    name: str
    counts: Mapping[str, int]  # split -> documents
    notes: tuple[str, ...]  # what the author should know about the data
    columns: Columns
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Shares:
    """Shares of a file's rows that go into the validation and test splits."""

    validation: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if not (0 < self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise TaskError(f"--validation {self.validation:g} and --test {self.test:g} must be shares of the rows: "
                            "above 0 and together below 1")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Rows with their survey, and the split of each row."""

    split: str | None  # None: splits are drawn from these rows
    rows: Rows
    survey: Survey
    split_of: NDArray[np.int8]  # for each row an index into SPLITS, or DROPPED


@dataclass(frozen=True)
class Material:
    """The data of a task, and what one pass over them has shown."""

    kind: Kind
    source: RowSource
    columns: Columns
    parts: Sequence[Part]
    counts: Mapping[str, int]  # split -> documents
    words: Mapping[str, str]  # label in the data -> choice, in the order of the choices

    @property
    def names(self) -> dict[str, str]:
        """Column -> its name in the task, which templates can use."""
        return safe_names(self.source.first.columns)

    @property
    def unanswered(self) -> int:
        """Number of questions without an answer."""
        return sum(part.survey.unanswered for part in self.parts)


def new_task(
    name: str,
    kind: Kind,
    data: str | Path | Mapping[str, str | Path],
    *,
    output: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    labels: Mapping[str, str] | None = None,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    unanswerable: bool | None = None,
    overwrite: bool = False,
) -> NewTask:
    """Make a task folder from data.

    Args:
        name: name of the task.
        kind: choice (each text has one of several labels) or generate (each question has an answer).
        data: a CSV, JSON lines or parquet file; a file for each of `train`, `validation` and optionally `test`, or a
            folder with such files; or the id of a Hub data set, `org/name[:config][@revision]`.
        output: the folder to write, by default tasks/NAME.
        columns: role (text, label, question, answer, context) -> column; other columns are guessed.
        labels: label in the data -> the word for it among the choices.
        validation: for one file, the share of rows to evaluate on (default 0.2, at most 2,000 rows).
        test: for one file, the share of rows for a test split, which is then evaluated instead.
        seed: seed for drawing splits.
        unanswerable: whether a question may have no answer; the correct reply is then "unanswerable", as in SQuAD v2.
            By default this is the case if the data have SQuAD's columns and some question has no answer.
        overwrite: replace an existing folder of this task.

    Raises:
        TaskError: the name is invalid, the arguments contradict each other, or the folder already exists.
        DatasetError: the data do not fit such a task. Nothing is left behind.
        WriteError: the folder cannot be written.
    """
    folder = Path(output) if output else Path("tasks") / name
    _check_request(name, folder, kind, unanswerable=unanswerable, overwrite=overwrite)
    _check_files(data)
    shares = Shares(0.2 if validation is None else validation, test or 0.0, seed)
    source = open_source(data)
    if source.whole is None and not (validation is None and test is None):
        raise TaskError(f"{source.origin} has its own splits; omit the shares --validation and --test")
    material = _read(source, kind, columns or {}, labels or {}, shares, unanswerable)
    facts = _facts(name, folder, material, seed)
    with replacing_folder(folder) as unfinished:
        if source.hub is None:
            rows = [(part.rows, part.split_of) for part in material.parts]
            write_documents(unfinished / "data", rows, kind, material.columns, material.names, material.words)
        for file, text in texts.files(facts).items():
            write_text(unfinished / file, text)
    return NewTask(folder, name, material.counts, facts.notes, material.columns, facts.choices)


# -- arguments ---------------------------------------------------------------------------------------------------


def _check_request(name: str, folder: Path, kind: Kind, *, unanswerable: bool | None, overwrite: bool) -> None:
    if not NAME.fullmatch(name):
        raise TaskError(f"{name!r} is not a valid task name; use letters, digits, _ and -, beginning with a letter")
    if (builtin := built_in_task(name)) is not None:
        raise TaskError(f"{name!r} is a task of {builtin}, which the new one would replace; choose another name")
    if unanswerable and kind != "generate":
        raise TaskError("--unanswerable is only for questions with answers; use it with --kind generate")
    if folder.exists():
        if not overwrite:
            raise TaskError(f"{folder} already exists; choose another --output, or replace it with --overwrite")
        if not (folder / f"{name}.yaml").is_file():
            raise TaskError(f"{folder} is not the folder of task {name!r} (it has no {name}.yaml) and is not replaced; "
                            "choose another --output")  # fmt: skip


def _check_files(data: str | Path | Mapping[str, str | Path]) -> None:
    """Require a training and a validation file if each split has its own file."""
    if not isinstance(data, Mapping):
        return
    if unknown := sorted(data.keys() - set(SPLITS)):
        raise TaskError(f"unknown split {unknown[0]!r}{suggest(unknown[0], SPLITS)}; use {', '.join(SPLITS)}")
    if missing := [split for split in ("train", "validation") if split not in data]:
        raise TaskError(f"--{missing[0]} FILE is missing: data in splits need --train and --validation; or pass one "
                        "file as --data to draw the splits from")  # fmt: skip


# -- reading -----------------------------------------------------------------------------------------------------


def _read(
    source: RowSource,
    kind: Kind,
    given_columns: Mapping[str, str | None],
    labels: Mapping[str, str],
    shares: Shares,
    unanswerable: bool | None,
) -> Material:
    columns = find_columns(source.first, kind, given_columns)
    squad = kind == "generate" and is_squad_shaped(source.first, columns)
    abstains = squad if unanswerable is None else unanswerable
    parts = _surveyed(source, kind, columns, shares, abstains=abstains)
    counts = _counts(parts)
    words = _words(parts[0].survey.labels, source, columns, labels) if kind == "choice" else {}
    material = Material(kind, source, columns, parts, counts, words)
    if unanswerable and not material.unanswered:
        raise DatasetError(f"{source.origin}: every question has an answer; omit --unanswerable")
    return material


def _surveyed(source: RowSource, kind: Kind, columns: Columns, shares: Shares, *, abstains: bool) -> list[Part]:
    """Survey all rows in one pass: those of each split, or those of the file that the splits are drawn from."""
    if source.whole is not None:
        rows = source.whole
        part_survey = survey(rows, kind, columns, unanswerable=abstains)
        _check_complete(rows, part_survey, kind, columns, abstains=abstains)
        split_of = assign(part_survey, validation=shares.validation, test=shares.test, seed=shares.seed)
        return [Part(None, rows, part_survey, split_of)]
    labels: dict[str, int] = {}
    parts = []
    for split, rows in source.splits.items():
        _check_same_columns(rows, source.first, columns)
        part_survey = survey(rows, kind, columns, unanswerable=abstains, labels=labels)
        if source.hub is not None and split == "test" and not part_survey.kept and "validation" in source.splits:
            continue  # test labels are often not published on the Hub
        _check_complete(rows, part_survey, kind, columns, abstains=abstains)
        codes = np.frombuffer(part_survey.codes, dtype=np.int32)
        split_of = np.where(codes == DROPPED, DROPPED, SPLITS.index(split)).astype(np.int8)
        parts.append(Part(split, rows, part_survey, split_of))
    return parts


def _check_same_columns(rows: Rows, first: Rows, columns: Columns) -> None:
    if missing := [name for name in columns.roles.values() if name not in rows.columns]:
        raise DatasetError(f"{rows.name} has no column {missing[0]!r}, which {first.name} has; use the same name in "
                           "all splits")  # fmt: skip


def _check_complete(rows: Rows, part_survey: Survey, kind: Kind, columns: Columns, *, abstains: bool) -> None:
    if not part_survey.kept:
        needed = needed_columns(kind, columns, unanswerable=abstains)
        raise DatasetError(f"{rows.name}: no row has values for {' and '.join(map(repr, needed))}; fill them in")


def _counts(parts: Sequence[Part]) -> dict[str, int]:
    """Number of documents in each split of the task."""
    numbers = Counter(number for part in parts for number in part.split_of.tolist())
    drawn = parts[0].split is None
    required = ("train", "validation") if drawn else [part.split for part in parts if part.split]
    counts = {
        split: numbers[number]
        for number, split in enumerate(SPLITS)
        if split in required or (drawn and numbers[number])
    }
    rows = parts[0].rows.name
    if sum(counts.values()) < FEWEST_ROWS:
        raise DatasetError(f"{rows} has {sum(counts.values())} complete rows; add rows: at least {FEWEST_ROWS} are "
                           "needed, and several hundred for meaningful results")  # fmt: skip
    if empty := [split for split, count in counts.items() if not count]:
        raise DatasetError(f"{rows}: too few rows with different texts for a {empty[0]} split; add rows, or raise "
                           f"--{empty[0]}")  # fmt: skip
    return counts


def _words(labels: Mapping[str, int], source: RowSource, columns: Columns, given: Mapping[str, str]) -> dict[str, str]:
    """Label in the data -> choice, in the order of the choices: numbers by value, words alphabetically."""
    column = columns["label"]
    if unknown := sorted(given.keys() - labels.keys()):
        raise DatasetError(f"--labels: {unknown[0]!r} is not in column {column!r} of {source.origin} (values: "
                           f"{', '.join(sorted(labels)[:10])}); correct it")  # fmt: skip
    if given and (missing := sorted(labels.keys() - given.keys())):
        raise DatasetError(f"--labels: {', '.join(missing[:10])} of column {column!r} is missing; name every label")
    if len(labels) == 1:
        raise DatasetError(f"{source.origin}: column {column!r} has only one label ({next(iter(labels))!r}), but a "
                           "choice needs two; add rows, or name another --label-column")  # fmt: skip
    if not given and isinstance(source.first, SplitRows):
        given = source.first.label_names(column)
    numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    ordered = sorted(labels, key=int) if numbers else sorted(labels)
    words = {label: given.get(label, label) for label in ordered}
    if len(set(words.values())) < len(words):
        raise DatasetError(
            f"--labels uses the same word for several labels ({', '.join(words.values())}); choose different words"
        )
    return words


# -- contents of the task's files --------------------------------------------------------------------------------


def _facts(name: str, folder: Path, material: Material, seed: int) -> texts.Facts:
    source, parts, names = material.source, material.parts, material.names
    stops_in_answers = set().union(*(part.survey.stops_in_answers for part in parts))
    kwargs = {"dataset": name, "data_dir": "data"} if source.hub is None else _hub_kwargs(material)
    return texts.Facts(
        name=name, kind=material.kind, origin=source.origin, counts=material.counts,
        folder=folder.name if folder.is_absolute() else str(folder), choices=tuple(material.words.values()),
        roles={role: names[column] for role, column in material.columns.roles.items()},
        strips=tuple(safe for column, safe in names.items()
                     if all(column in part.rows.columns and is_text(part.rows, column) for part in parts)),
        notes=tuple(_notes(material)), seed=seed if source.whole is not None else None,
        max_gen_toks=_max_gen_toks(max(part.survey.longest_answer for part in parts)),
        stop=next(stop for stop in (*STOPS, "\n####\n") if stop not in stops_in_answers),
        unanswerable=material.unanswered > 0,
        split_names={split: source.split_names.get(split, split) for split in material.counts}, dataset_kwargs=kwargs,
    )  # fmt: skip


def _max_gen_toks(longest: int) -> int:
    """Tokens for an answer of `longest` characters, at two characters per token; most tokenizers need fewer."""
    needed = -(-(longest // 2 + 8) // 8) * 8
    return min(max(needed, SMALLEST_MAX_GEN_TOKS), LARGEST_MAX_GEN_TOKS)


def _hub_kwargs(material: Material) -> dict[str, Any]:
    """Arguments of `load_documents` that turn the Hub's columns into those that templates and hooks read."""
    columns, names, words = material.columns, material.names, material.words
    gold, task_column = ("label", "label") if material.kind == "choice" else ("answer", "answers")
    kwargs: dict[str, Any] = {"dataset": str(material.source.hub)}
    if renamed := {safe: column for column, safe in names.items() if safe != column}:
        kwargs["columns"] = renamed
    if material.kind == "generate":
        kwargs["answers"] = names[columns["answer"]]
    elif columns["label"] != "label" or list(words) != list(map(str, range(len(words)))):
        kwargs |= {"label": names[columns["label"]], "label_values": list(words)}
    if dropped := dict.fromkeys(column for part in material.parts for column in part.survey.dropped):
        kwargs["required"] = [task_column if column == columns[gold] else names[column] for column in dropped]
    return kwargs


def _notes(material: Material) -> list[str]:
    """What the author should know about the data, one line each."""
    parts, columns = material.parts, material.columns
    notes = []
    for part in parts:
        where = f"{part.split}: " if part.split else ""
        notes += [f"{where}{line}" for line in describe(part.survey, material.kind, columns, drawn=part.split is None)]
    if material.kind == "choice":
        notes += describe_labels(parts[0].survey.labels, [part.survey for part in parts])
    for part in parts[1:] if parts[0].split == "train" else ():
        notes += describe_overlap(parts[0].survey, part.survey, str(part.split), columns)
    return notes + _about_source(material.source, parts)


def _about_source(source: RowSource, parts: Sequence[Part]) -> list[str]:
    notes = []
    columns = list(dict.fromkeys(name for part in parts for name in part.rows.columns))
    if dropped := [name for name in columns if any(name not in part.rows.columns for part in parts)]:
        notes.append(f"columns that are missing from some splits are dropped: {', '.join(dropped)}")
    if source.hub is None:
        return notes
    if len(parts) < len(source.splits):
        notes.append("the test split has no published labels and is not used")
    if source.hub.revision is None:
        notes.append("the Hub does not answer, so no revision is pinned; add @COMMIT to `dataset:` in the YAML")
    if "train" not in source.splits:
        notes.append("there is no training split: the task can be evaluated, but not trained on")
    return notes
