"""`harness-ext new-task`: rows become a folder with a task, its documents and a test.

```
one file          ──columns──> survey, splits are drawn ─────┐
a file a split    ──columns──> surveys ──────────────────────┴─second pass──> NAME/data/{train,validation}.parquet
a Hub data set    ──columns──> surveys ──────────────────────────────────────> nothing is copied
                                                                              NAME/NAME.yaml, README.md, test_NAME.py
```

A file is read batch by batch, never whole. Its rows are copied into the folder, compressed, so that the folder is all
there is: it can be moved, committed and given away. Of a Hub data set, the YAML names id and revision instead.
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

from harness_ext.errors import DatasetError, TaskError, suggest
from harness_ext.new_task import texts
from harness_ext.new_task.columns import Columns, Kind, find_columns, is_squad_shaped, is_text, safe_names
from harness_ext.new_task.folder import replacing_task, write_documents
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

NAME = re.compile(r"[A-Za-z]\w*(-\w+)*", re.ASCII)
FEWEST_ROWS = 4
TOKENS = (16, 512)  # of a generated answer, at least and at most


@dataclass(frozen=True)
class NewTask:
    """What was made."""

    folder: Path
    name: str
    counts: Mapping[str, int]  # split -> documents
    said: tuple[str, ...]  # what the author should know about the data
    columns: Columns
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Shares:
    """How much of one file goes into which split."""

    validation: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if not (0 < self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise TaskError(f"--validation {self.validation:g} and --test {self.test:g} are shares of the rows: above "
                            "0 and together below 1")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Rows that were surveyed, and the split of each."""

    split: str | None  # None: splits are drawn among these rows
    rows: Rows
    seen: Survey
    split_of: NDArray[np.int8]  # an index into SPLITS for each row, or DROPPED


@dataclass(frozen=True)
class Material:
    """What a task is made of: the data, and all that one pass over them tells."""

    kind: Kind
    source: RowSource
    columns: Columns
    parts: Sequence[Part]
    counts: Mapping[str, int]  # split -> documents
    words: Mapping[str, str]  # label as it stands -> choice, in the order of the choices

    @property
    def names(self) -> dict[str, str]:
        """Column to its name in the task, which templates can use."""
        return safe_names(self.source.first.columns)

    @property
    def unanswered(self) -> int:
        """Questions without an answer."""
        return sum(part.seen.unanswered for part in self.parts)


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
    """Make a task folder from documents.

    Args:
        name: of the task.
        kind: choice (a text has one of several labels) or generate (a question has an answer).
        data: a CSV, JSON lines or parquet file; a file for each of `train`, `validation` and perhaps `test`, or a
            folder that holds them; or the id of a Hub data set, `org/name[:config][@revision]`.
        output: the folder; by default tasks/NAME.
        columns: role (text, label, question, answer, context) to column, where it is not to be guessed.
        labels: label as it stands in the data to the word a model is to say.
        validation: of one file, the share of the rows that are evaluated (0.2), at most 2,000 of them.
        test: of one file, the share of the rows for a test split, which is then evaluated instead.
        seed: of the draw.
        unanswerable: a question may have no answer, and the right reply is then "unanswerable", as in SQuAD v2. By
            default so when the columns are those of SQuAD and some question has no answer.
        overwrite: replace a folder that this function made before.

    Raises:
        TaskError: the name cannot be used, the arguments do not go together, or the folder is there.
        DatasetError: the data cannot be made into such a task; nothing is left behind.
    """
    folder = Path(output) if output else Path("tasks") / name
    _check_request(name, folder, kind, unanswerable=unanswerable, overwrite=overwrite)
    _check_files(data)
    shares = Shares(0.2 if validation is None else validation, test or 0.0, seed)
    source = open_source(data)
    if source.whole is None and not (validation is None and test is None):
        raise TaskError(f"{source.origin} has splits of its own; leave the shares --validation and --test out")
    material = _read(source, kind, columns or {}, labels or {}, shares, unanswerable)
    facts = _facts(name, folder, material, seed)
    with replacing_task(folder) as unfinished:
        if source.hub is None:
            rows = [(part.rows, part.split_of) for part in material.parts]
            write_documents(unfinished / "data", rows, kind, material.columns, material.names, material.words)
        for file, text in texts.files(facts).items():
            (unfinished / file).write_text(text, encoding="utf-8")
    return NewTask(folder, name, material.counts, facts.said, material.columns, facts.choices)


# -- the request -------------------------------------------------------------------------------------------------


def _check_request(name: str, folder: Path, kind: Kind, *, unanswerable: bool | None, overwrite: bool) -> None:
    if not NAME.fullmatch(name):
        raise TaskError(f"{name!r} cannot name a task; use letters, digits, _ and -, a letter first")
    if unanswerable and kind != "generate":
        raise TaskError("--unanswerable is for questions with answers; use it with --kind generate")
    if folder.exists():
        if not overwrite:
            raise TaskError(f"{folder} is there already; choose another --output, or replace it with --overwrite")
        if not (folder / f"{name}.yaml").is_file():
            raise TaskError(f"{folder} is not the folder of task {name!r} (no {name}.yaml in it) and is not replaced; "
                            "choose another --output")  # fmt: skip


def _check_files(data: str | Path | Mapping[str, str | Path]) -> None:
    """A file for each split needs one to train on and one to evaluate."""
    if not isinstance(data, Mapping):
        return
    if unknown := sorted(data.keys() - set(SPLITS)):
        raise TaskError(f"a task has no split {unknown[0]!r}{suggest(unknown[0], SPLITS)}; name files of "
                        f"{', '.join(SPLITS)}")  # fmt: skip
    if missing := [split for split in ("train", "validation") if split not in data]:
        raise TaskError(f"--{missing[0]} FILE is missing: data in splits need --train and --validation; or give one "
                        "file as --data, and its splits are drawn")  # fmt: skip


# -- reading -----------------------------------------------------------------------------------------------------


def _read(
    source: RowSource,
    kind: Kind,
    chosen_columns: Mapping[str, str | None],
    labels: Mapping[str, str],
    shares: Shares,
    unanswerable: bool | None,
) -> Material:
    columns = find_columns(source.first, kind, chosen_columns)
    squad = kind == "generate" and is_squad_shaped(source.first, columns)
    abstains = squad if unanswerable is None else unanswerable
    parts = _surveyed(source, kind, columns, shares, abstains=abstains)
    counts = _counts(parts)
    words = _words(parts[0].seen.labels, source, columns, labels) if kind == "choice" else {}
    material = Material(kind, source, columns, parts, counts, words)
    if unanswerable and not material.unanswered:
        raise DatasetError(f"{source.origin}: every question has an answer; leave --unanswerable out")
    return material


def _surveyed(source: RowSource, kind: Kind, columns: Columns, shares: Shares, *, abstains: bool) -> list[Part]:
    """One pass over all rows: those of each split, or of the file whose splits are drawn."""
    if source.whole is not None:
        seen = survey(source.whole, kind, columns, unanswerable=abstains)
        _check_complete(source.whole, seen, kind, columns, abstains=abstains)
        split_of = assign(seen, validation=shares.validation, test=shares.test, seed=shares.seed)
        return [Part(None, source.whole, seen, split_of)]
    labels: dict[str, int] = {}
    parts = []
    for split, rows in source.splits.items():
        _check_same_columns(rows, source.first, columns)
        seen = survey(rows, kind, columns, unanswerable=abstains, labels=labels)
        if source.hub is not None and split == "test" and not seen.kept and "validation" in source.splits:
            continue  # data sets on the Hub hide the labels of their test split
        _check_complete(rows, seen, kind, columns, abstains=abstains)
        codes = np.frombuffer(seen.codes, dtype=np.int32)
        split_of = np.where(codes == DROPPED, DROPPED, SPLITS.index(split)).astype(np.int8)
        parts.append(Part(split, rows, seen, split_of))
    return parts


def _check_same_columns(rows: Rows, first: Rows, columns: Columns) -> None:
    if missing := [name for name in columns.roles.values() if name not in rows.columns]:
        raise DatasetError(f"{rows.name} has no column {missing[0]!r}, which {first.name} has; name it alike in all "
                           "splits")  # fmt: skip


def _check_complete(rows: Rows, seen: Survey, kind: Kind, columns: Columns, *, abstains: bool) -> None:
    if not seen.kept:
        needed = needed_columns(kind, columns, unanswerable=abstains)
        raise DatasetError(f"{rows.name}: no row has both {' and '.join(map(repr, needed))}; fill them")


def _counts(parts: Sequence[Part]) -> dict[str, int]:
    """Split to number of documents, for the splits that the task has."""
    numbers = Counter(number for part in parts for number in part.split_of.tolist())
    drawn = parts[0].split is None
    wanted = ("train", "validation") if drawn else [part.split for part in parts if part.split]
    counts = {
        split: numbers[number] for number, split in enumerate(SPLITS) if split in wanted or (drawn and numbers[number])
    }
    rows = parts[0].rows.name
    if sum(counts.values()) < FEWEST_ROWS:
        raise DatasetError(f"{rows} has {sum(counts.values())} complete rows; at least {FEWEST_ROWS} are needed, and "
                           "some hundred to tell anything")  # fmt: skip
    if empty := [split for split, count in counts.items() if not count]:
        raise DatasetError(f"{rows}: too few rows of different texts for a {empty[0]} split; add rows, or raise "
                           f"--{empty[0]}")  # fmt: skip
    return counts


def _words(labels: Mapping[str, int], source: RowSource, columns: Columns, given: Mapping[str, str]) -> dict[str, str]:
    """Label as it stands in the data -> choice, in the order of the choices: numbers by size, words by the alphabet."""
    column = columns["label"]
    if unknown := sorted(given.keys() - labels.keys()):
        raise DatasetError(f"--labels names {unknown[0]!r}, which column {column!r} of {source.origin} does not have "
                           f"(it has {', '.join(sorted(labels)[:10])}); correct it")  # fmt: skip
    if given and (unnamed := sorted(labels.keys() - given.keys())):
        raise DatasetError(f"--labels leaves out {', '.join(unnamed[:10])} of column {column!r}; name every label")
    if len(labels) == 1:
        raise DatasetError(f"{source.origin}: column {column!r} has one label only ({next(iter(labels))!r}); a choice "
                           "needs two: add rows, or name another --label-column")  # fmt: skip
    if not given and isinstance(source.first, SplitRows):
        given = source.first.label_names(column)
    numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    ordered = sorted(labels, key=int) if numbers else sorted(labels)
    words = {label: given.get(label, label) for label in ordered}
    if len(set(words.values())) < len(words):
        raise DatasetError(
            f"--labels gives the same word to several labels ({', '.join(words.values())}); tell them apart"
        )
    return words


# -- what the files of the task say ------------------------------------------------------------------------------


def _facts(name: str, folder: Path, material: Material, seed: int) -> texts.Facts:
    source, parts, names = material.source, material.parts, material.names
    marks = set().union(*(part.seen.marks for part in parts))
    kwargs = {"dataset": name, "data_dir": "data"} if source.hub is None else _hub_kwargs(material)
    return texts.Facts(
        name=name, kind=material.kind, origin=source.origin, counts=material.counts,
        folder=folder.name if folder.is_absolute() else str(folder), choices=tuple(material.words.values()),
        roles={role: names[column] for role, column in material.columns.roles.items()},
        strips=tuple(safe for column, safe in names.items()
                     if all(column in part.rows.columns and is_text(part.rows, column) for part in parts)),
        said=tuple(_notes(material)), seed=seed if source.whole is not None else None,
        max_gen_toks=_max_tokens(max(part.seen.longest_answer for part in parts)),
        stop=next(stop for stop in (*STOPS, "\n####\n") if stop not in marks), unanswerable=material.unanswered > 0,
        split_names={split: source.split_names.get(split, split) for split in material.counts}, dataset_kwargs=kwargs,
    )  # fmt: skip


def _max_tokens(longest: int) -> int:
    """Room for the longest answer: two characters a token is less than most tokenizers make of most languages."""
    wanted = -(-(longest // 2 + 8) // 8) * 8
    return min(max(wanted, TOKENS[0]), TOKENS[1])


def _hub_kwargs(material: Material) -> dict[str, Any]:
    """What `load_documents` needs to make of the Hub's columns those that templates and hooks read."""
    columns, names, words = material.columns, material.names, material.words
    gold, task_column = ("label", "label") if material.kind == "choice" else ("answer", "answers")
    kwargs: dict[str, Any] = {"dataset": str(material.source.hub)}
    if renamed := {safe: column for column, safe in names.items() if safe != column}:
        kwargs["columns"] = renamed
    if material.kind == "generate":
        kwargs["answers"] = names[columns["answer"]]
    elif columns["label"] != "label" or list(words) != list(map(str, range(len(words)))):
        kwargs |= {"label": names[columns["label"]], "label_values": list(words)}
    if dropped := dict.fromkeys(column for part in material.parts for column in part.seen.dropped):
        kwargs["required"] = [task_column if column == columns[gold] else names[column] for column in dropped]
    return kwargs


def _notes(material: Material) -> list[str]:
    """What the author should know about the data, one line each."""
    parts, columns = material.parts, material.columns
    notes = []
    for part in parts:
        where = f"{part.split}: " if part.split else ""
        notes += [f"{where}{line}" for line in describe(part.seen, material.kind, columns, drawn=part.split is None)]
    if material.kind == "choice":
        notes += describe_labels(parts[0].seen.labels, [part.seen for part in parts])
    for part in parts[1:] if parts[0].split == "train" else ():
        notes += describe_overlap(parts[0].seen, part.seen, str(part.split), columns)
    return notes + _about_source(material.source, parts)


def _about_source(source: RowSource, parts: Sequence[Part]) -> list[str]:
    notes = []
    columns = [part.rows.columns for part in parts]
    if odd := [name for names in columns for name in names if any(name not in others for others in columns)]:
        notes.append(f"columns that not every split has are left out: {', '.join(dict.fromkeys(odd))}")
    if source.hub is None:
        return notes
    if len(parts) < len(source.splits):
        notes.append("the test split hides its labels and is not used")
    if source.hub.revision is None:
        notes.append("the Hub does not answer, so that no revision is pinned; add @COMMIT to `dataset:` in the YAML")
    if "train" not in source.splits:
        notes.append("there is no training split: the task can be evaluated, not trained on")
    return notes
