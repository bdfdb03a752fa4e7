"""What stands in a file, and which of its rows goes into which split: one pass over it, a few bytes a row.

Equal texts go to the same split (for questions on passages: equal passages), so that nothing is trained on that is
tested on. Classes keep their shares.
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
DROPPED = -1  # in place of a split's number
LARGEST_VALIDATION = 2000
MANY_CLASSES = 50
MOST_CLASSES = 1000
SHOWN = 3


@dataclass
class Survey:
    """What one pass over a file, or over a split, tells."""

    keys: array[int] = field(default_factory=lambda: array("q"))  # hash of the text of each row
    codes: array[int] = field(default_factory=lambda: array("i"))  # label of each row, DROPPED when incomplete
    labels: dict[str, int] = field(default_factory=dict)  # label as it stands -> code; all splits of a task share it
    dropped: dict[str, list[int]] = field(default_factory=dict)  # column -> rows (1 for the first) without a value
    repeated_ids: int = 0
    unanswered: int = 0  # complete rows whose question has no answer, where that is allowed
    longest_answer: int = 0  # characters
    marks: set[str] = field(default_factory=set)  # stop strings that occur in answers

    @property
    def kept(self) -> int:
        """Rows that are complete."""
        return sum(code != DROPPED for code in self.codes)


STOPS = ("\n", "\n\n", "\n\n\n", "###")


def survey(
    rows: Rows, kind: Kind, columns: Columns, *, unanswerable: bool = False, labels: dict[str, int] | None = None
) -> Survey:
    """Read the named columns once.

    Args:
        rows: of a file, or of a split.
        kind: of the task.
        columns: those of the text and the label, or of the question and the answer.
        unanswerable: a row without an answer is complete.
        labels: those of the splits before; new ones are added.

    Raises:
        DatasetError: a row that cannot be read, or more labels than a label column has.
    """
    seen = Survey(labels={} if labels is None else labels)
    names = list(dict.fromkeys(columns.roles.values()))
    ids: set[int] = set()
    for batch in rows.batches(names):
        values = {name: batch.column(name).to_pylist() for name in names}
        for at in range(batch.num_rows):
            _note_row(seen, kind, columns, {name: values[name][at] for name in names}, unanswerable=unanswerable)
        if identifier := columns.get("id"):
            for value in values[identifier]:
                size = len(ids)
                ids.add(hash(value))
                seen.repeated_ids += len(ids) == size and value is not None
        if kind == "choice" and len(seen.labels) > MOST_CLASSES:
            raise DatasetError(
                f"{rows.name}: column {columns['label']!r} has more than {MOST_CLASSES} values: it is no label; name "
                "the label column with --label-column"
            )
    return seen


def needed_columns(kind: Kind, columns: Columns, *, unanswerable: bool) -> list[str]:
    """Columns without which a row is left out."""
    roles = ("text", "label") if kind == "choice" else ("question", "answer", "context")
    return [name for role in roles if (name := columns.get(role)) and not (role == "answer" and unanswerable)]


def _note_row(seen: Survey, kind: Kind, columns: Columns, row: Mapping[str, object], *, unanswerable: bool) -> None:
    number = len(seen.codes) + 1
    missing = [name for name in needed_columns(kind, columns, unanswerable=unanswerable) if _is_missing(row[name])]
    for name in missing:
        seen.dropped.setdefault(name, []).append(number)
    grouped = columns.get("context") or columns["question"] if kind == "generate" else columns["text"]
    seen.keys.append(_key(row[grouped]))
    if missing:
        seen.codes.append(DROPPED)
    elif kind == "choice":
        seen.codes.append(seen.labels.setdefault(plain(row[columns["label"]]) or "", len(seen.labels)))
    else:
        answers = answers_of(row[columns["answer"]])
        seen.codes.append(int(not answers))
        seen.unanswered += not answers
        for answer in answers:
            seen.longest_answer = max(seen.longest_answer, len(answer))
            seen.marks.update(stop for stop in STOPS if stop in answer)


def _is_missing(value: object) -> bool:
    return not answers_of(value) if isinstance(value, (list, dict)) else plain(value) is None


def _key(value: object) -> int:
    """A hash that is the same everywhere; case and white space do not count, as in `check`."""
    text = " ".join(str(value).lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def assign(seen: Survey, *, validation: float, test: float, seed: int) -> NDArray[np.int8]:
    """Number of the split of each row (an index into `SPLITS`), `DROPPED` for incomplete rows.

    Args:
        seen: the file's survey.
        validation: share of the rows, at most `LARGEST_VALIDATION` of them.
        test: share of the rows.
        seed: of the draw.
    """
    codes = np.frombuffer(seen.codes, dtype=np.int32)
    keys = np.frombuffer(seen.keys, dtype=np.int64)
    complete = np.flatnonzero(codes != DROPPED)
    _, first, group_of = np.unique(keys[complete], return_index=True, return_inverse=True)
    strata = codes[complete][first]  # of each group of equal texts
    split_of = np.zeros(len(first), dtype=np.int8)
    shares = (min(validation, LARGEST_VALIDATION / len(complete)), test)
    for label in np.unique(strata):
        groups = np.flatnonzero(strata == label)
        groups = groups[np.argsort(first[groups])]  # file order, whatever the hashes are
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
    """Groups of one class that go into a split: at least one where there are two, and one stays for training."""
    if share <= 0 or groups < 2:
        return 0
    return max(0, min(max(1, round(groups * share)), left - 1))


def describe(seen: Survey, kind: Kind, columns: Columns, *, drawn: bool) -> list[str]:
    """What the author should know about the rows of a file, one line each; `drawn`: its splits are drawn here."""
    notes = [
        f"{len(numbers):,} rows without {name!r} are left out (first: row {', '.join(map(str, numbers[:SHOWN]))})"
        + ("; --unanswerable keeps them as questions without an answer" if name == columns.get("answer") else "")
        for name, numbers in seen.dropped.items()
    ]
    if seen.repeated_ids:
        notes.append(f"{seen.repeated_ids:,} rows have an {columns['id']!r} that came before; documents are told apart "
                    "by their content")  # fmt: skip
    if kind == "choice":
        codes = np.frombuffer(seen.codes, dtype=np.int32)
        keys = np.frombuffer(seen.keys, dtype=np.int64)[codes != DROPPED]
        unique = len(np.unique(keys))
        if repeated := len(keys) - unique:
            notes.append(f"{repeated:,} rows repeat a text{'; equal texts stay in one split' if drawn else ''}")
        pairs = np.unique(np.stack([keys, codes[codes != DROPPED]]), axis=1).shape[1]
        if conflicting := pairs - unique:
            notes.append(f"{conflicting:,} texts have two labels; one of them is counted wrong whatever a model says")
    return notes


def describe_labels(labels: Mapping[str, int], surveys: Sequence[Survey]) -> list[str]:
    """What the author should know about the labels of all rows."""
    notes = []
    counts = Counter(code for seen in surveys for code in seen.codes)
    rare = [label for label, code in labels.items() if counts[code] < 2]
    if rare:
        where = "in one row only and are in training only" if len(surveys) == 1 else "in one row only"
        notes.append(f"{len(rare)} labels stand {where}: {', '.join(rare[:SHOWN])}")
    if len(labels) > MANY_CLASSES:
        notes.append(f"{len(labels)} classes: each is a request of its own for every document, and a share of 1/"
                    f"{len(labels)} is chance; is this the label column?")  # fmt: skip
    folded = Counter(label.casefold() for label in labels)
    if alike := [label for label in labels if folded[label.casefold()] > 1]:
        notes.append(f"labels that differ in capitals only: {', '.join(alike[:SHOWN])}; write them alike")
    return notes


def describe_overlap(training: Survey, evaluated: Survey, split: str, columns: Columns) -> list[str]:
    """What the author should know about a split that was not drawn here: what it shares with training, and lacks."""
    notes = []
    texts = "passages" if columns.get("context") else "texts"
    trained, tested = ({key for key, code in zip(seen.keys, seen.codes, strict=True) if code != DROPPED}
                       for seen in (training, evaluated))  # fmt: skip
    if shared := len(trained & tested):
        notes.append(
            f"{shared:,} of {len(tested):,} {texts} of {split} are in the training split, too; drop them there"
        )
    unseen = {code for code in evaluated.codes if code != DROPPED} - set(training.codes)
    if names := [label for label, code in evaluated.labels.items() if code in unseen]:
        notes.append(f"labels of {split} that are never trained on: {', '.join(names[:SHOWN])}")
    return notes
