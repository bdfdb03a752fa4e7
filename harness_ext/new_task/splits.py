"""Surveys rows in one pass, with a few bytes per row, and draws splits.

Rows with equal texts (for questions on passages: equal passages) go into the same split, so no test text is trained
on. Each class keeps its share in every split.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import DatasetError
from harness_ext.new_task.columns import Columns, Kind
from harness_ext.protocol.cells import answers_of, plain
from harness_ext.protocol.local_files import Rows

SPLITS = ("train", "validation", "test")
DROPPED = -1  # instead of the index of a split
LARGEST_VALIDATION = 2000
MANY_CLASSES = 50
MOST_CLASSES = 1000
EXAMPLES = 3  # at most so many rows or labels are named in a note


@dataclass
class Survey:
    """Facts about a file or a split, from one pass over its rows."""

    keys: array[int] = field(default_factory=lambda: array("q"))  # hash of the text of each row
    codes: array[int] = field(default_factory=lambda: array("i"))  # label of each row; DROPPED if it is incomplete
    labels: dict[str, int] = field(default_factory=dict)  # label in the data -> code; shared by all splits of a task
    dropped: dict[str, list[int]] = field(default_factory=dict)  # column -> rows (1 is the first) without a value
    repeated_ids: int = 0
    unanswered: int = 0  # complete rows whose question has no answer, if that is allowed
    longest_answer: int = 0  # characters
    stops_in_answers: set[str] = field(default_factory=set)  # stop strings that occur in answers

    @property
    def kept(self) -> int:
        """Number of complete rows."""
        return sum(code != DROPPED for code in self.codes)


STOPS = ("\n", "\n\n", "\n\n\n", "###")  # candidates for the task's stop string, best first


def survey(
    rows: Rows, kind: Kind, columns: Columns, *, unanswerable: bool = False, labels: dict[str, int] | None = None
) -> Survey:
    """Read the columns of all roles once.

    Args:
        rows: of a file or of a split.
        kind: of the task.
        columns: column of each role.
        unanswerable: whether a row without an answer is complete.
        labels: labels of the previous splits; new ones are added.

    Raises:
        DatasetError: a row cannot be read, or the label column has too many values.
    """
    result = Survey(labels={} if labels is None else labels)
    names = list(dict.fromkeys(columns.roles.values()))
    ids: set[int] = set()
    for batch in rows.batches(names):
        values = {name: batch.column(name).to_pylist() for name in names}
        for index in range(batch.num_rows):
            _add_row(result, kind, columns, {name: values[name][index] for name in names}, unanswerable=unanswerable)
        if id_column := columns.get("id"):
            for value in values[id_column]:
                size = len(ids)
                ids.add(hash(value))
                result.repeated_ids += len(ids) == size and value is not None
        if kind == "choice" and len(result.labels) > MOST_CLASSES:
            raise DatasetError(
                f"{rows.name}: column {columns['label']!r} has more than {MOST_CLASSES} different values, too many for "
                "labels; name the label column with --label-column"
            )
    return result


def needed_columns(kind: Kind, columns: Columns, *, unanswerable: bool) -> list[str]:
    """Columns that must have a value; other rows are dropped."""
    roles = ("text", "label") if kind == "choice" else ("question", "answer", "context")
    return [name for role in roles if (name := columns.get(role)) and not (role == "answer" and unanswerable)]


def _add_row(result: Survey, kind: Kind, columns: Columns, row: Mapping[str, object], *, unanswerable: bool) -> None:
    number = len(result.codes) + 1
    missing = [name for name in needed_columns(kind, columns, unanswerable=unanswerable) if _is_missing(row[name])]
    for name in missing:
        result.dropped.setdefault(name, []).append(number)
    grouped = columns.get("context") or columns["question"] if kind == "generate" else columns["text"]
    result.keys.append(_key(row[grouped]))
    if missing:
        result.codes.append(DROPPED)
    elif kind == "choice":
        result.codes.append(result.labels.setdefault(plain(row[columns["label"]]) or "", len(result.labels)))
    else:
        answers = answers_of(row[columns["answer"]])
        result.codes.append(int(not answers))
        result.unanswered += not answers
        for answer in answers:
            result.longest_answer = max(result.longest_answer, len(answer))
            result.stops_in_answers.update(stop for stop in STOPS if stop in answer)


def _is_missing(value: object) -> bool:
    return not answers_of(value) if isinstance(value, (list, dict)) else plain(value) is None


def _key(value: object) -> int:
    """A hash of a text, the same on every machine; it ignores case and white space, as `check` does."""
    text = " ".join(str(value).lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def assign(file_survey: Survey, *, validation: float, test: float, seed: int) -> NDArray[np.int8]:
    """Draw the split of each row: an index into `SPLITS`, or `DROPPED` for incomplete rows; (rows,).

    Args:
        file_survey: survey of the file.
        validation: share of the rows, at most `LARGEST_VALIDATION` rows.
        test: share of the rows.
        seed: seed for drawing.
    """
    codes = np.frombuffer(file_survey.codes, dtype=np.int32)
    keys = np.frombuffer(file_survey.keys, dtype=np.int64)
    complete = np.flatnonzero(codes != DROPPED)
    _, first, group_of = np.unique(keys[complete], return_index=True, return_inverse=True)
    strata = codes[complete][first]  # of each group of equal texts
    split_of = np.zeros(len(first), dtype=np.int8)
    shares = (min(validation, LARGEST_VALIDATION / len(complete)), test)
    for label in np.unique(strata):
        groups = np.flatnonzero(strata == label)
        groups = groups[np.argsort(first[groups])]  # in file order, not in the order of hashes
        drawn = np.random.default_rng([seed, int(label)]).permutation(groups)
        start = 0
        for number, share in enumerate(shares, start=1):
            count = _size(len(drawn), share, left=len(drawn) - start)
            split_of[drawn[start : start + count]] = number
            start += count
    result = np.full(len(codes), DROPPED, dtype=np.int8)
    result[complete] = split_of[group_of]
    return result


def _size(groups: int, share: float, *, left: int) -> int:
    """Number of groups of a class to put into a split: at least one, but one group must remain for training."""
    if share <= 0 or groups < 2:
        return 0
    return max(0, min(max(1, round(groups * share)), left - 1))


def describe(part_survey: Survey, kind: Kind, columns: Columns, *, drawn: bool) -> list[str]:
    """Notes about the rows of a file or split, one line each.

    Args:
        part_survey: survey of the rows.
        kind: of the task.
        columns: column of each role.
        drawn: whether the splits are drawn from these rows.
    """
    notes = [
        f"{len(numbers):,} rows without {name!r} are dropped (first: row {', '.join(map(str, numbers[:EXAMPLES]))})"
        + ("; --unanswerable keeps them as questions without an answer" if name == columns.get("answer") else "")
        for name, numbers in part_survey.dropped.items()
    ]
    if part_survey.repeated_ids:
        notes.append(f"{part_survey.repeated_ids:,} rows repeat an earlier {columns['id']!r}; documents are identified "
                    "by their content instead")  # fmt: skip
    if kind == "choice":
        codes = np.frombuffer(part_survey.codes, dtype=np.int32)
        keys = np.frombuffer(part_survey.keys, dtype=np.int64)[codes != DROPPED]
        unique = len(np.unique(keys))
        if repeated := len(keys) - unique:
            notes.append(f"{repeated:,} rows repeat a text{'; equal texts stay in one split' if drawn else ''}")
        pairs = np.unique(np.stack([keys, codes[codes != DROPPED]]), axis=1).shape[1]
        if conflicting := pairs - unique:
            notes.append(f"{conflicting:,} texts have two labels, so every model gets one of them wrong")
    return notes


def describe_labels(labels: Mapping[str, int], surveys: Sequence[Survey]) -> list[str]:
    """Notes about the labels of all rows."""
    notes = []
    counts = Counter(code for part_survey in surveys for code in part_survey.codes)
    rare = [label for label, code in labels.items() if counts[code] < 2]
    if rare:
        where = "only in one row, which is in the training split" if len(surveys) == 1 else "only in one row"
        notes.append(f"{len(rare)} labels are {where}: {', '.join(rare[:EXAMPLES])}")
    if len(labels) > MANY_CLASSES:
        notes.append(f"{len(labels)} classes: every document takes one request per class, and chance is 1/"
                    f"{len(labels)}; is this the label column?")  # fmt: skip
    folded = Counter(label.casefold() for label in labels)
    if similar := [label for label in labels if folded[label.casefold()] > 1]:
        notes.append(f"labels that differ only in capitalisation: {', '.join(similar[:EXAMPLES])}; use one spelling")
    return notes


def describe_overlap(training: Survey, evaluated: Survey, split: str, columns: Columns) -> list[str]:
    """Notes about a given split: texts that it shares with the training split, and labels that are never trained."""
    notes = []
    texts = "passages" if columns.get("context") else "texts"
    trained, tested = (
        {key for key, code in zip(part_survey.keys, part_survey.codes, strict=True) if code != DROPPED}
        for part_survey in (training, evaluated)
    )
    if shared := len(trained & tested):
        notes.append(
            f"{shared:,} of {len(tested):,} {texts} of {split} are also in the training split; remove them there"
        )
    untrained = {code for code in evaluated.codes if code != DROPPED} - set(training.codes)
    if names := [label for label, code in evaluated.labels.items() if code in untrained]:
        notes.append(f"labels of {split} that are never trained on: {', '.join(names[:EXAMPLES])}")
    return notes
