"""Which row goes into which split: one pass over the file, a few bytes a row.

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
from harness_ext.protocol.columns import Columns, Kind, answers_of, plain
from harness_ext.protocol.local_files import RowFile

SPLITS = ("train", "validation", "test")
DROPPED = -1  # in place of a split's number
LARGEST_VALIDATION = 2000
MANY_CLASSES = 50
MOST_CLASSES = 1000
SHOWN = 3


@dataclass
class Survey:
    """What one pass over a file tells."""

    keys: array[int] = field(default_factory=lambda: array("q"))  # hash of the text of each row
    codes: array[int] = field(default_factory=lambda: array("i"))  # label of each row, DROPPED when incomplete
    labels: dict[str, int] = field(default_factory=dict)  # label as it stands -> code, by first occurrence
    dropped: dict[str, list[int]] = field(default_factory=dict)  # column -> rows (1 for the first) without a value
    repeated_ids: int = 0
    longest_answer: int = 0  # characters
    marks: set[str] = field(default_factory=set)  # stop strings that occur in answers

    @property
    def kept(self) -> int:
        """Rows that are complete."""
        return sum(code != DROPPED for code in self.codes)


STOPS = ("\n", "\n\n", "\n\n\n", "###")


def survey(rows: RowFile, kind: Kind, columns: Columns) -> Survey:
    """Read the named columns once.

    Raises:
        DatasetError: a row that cannot be read, no complete row, or labels that are none.
    """
    seen = Survey()
    names = list(dict.fromkeys(columns.roles.values()))
    ids: set[int] = set()
    for batch in rows.batches(names):
        values = {name: batch.column(name).to_pylist() for name in names}
        for at in range(batch.num_rows):
            _note_row(seen, kind, columns, {name: values[name][at] for name in names})
        if identifier := columns.get("id"):
            for value in values[identifier]:
                size = len(ids)
                ids.add(hash(value))
                seen.repeated_ids += len(ids) == size and value is not None
        if kind == "choice" and len(seen.labels) > MOST_CLASSES:
            raise DatasetError(
                f"{rows.file}: column {columns['label']!r} has more than {MOST_CLASSES} values: it is no label; name "
                "the label column with --label-column"
            )
    if not seen.kept:
        raise DatasetError(f"{rows.file}: no row has both {' and '.join(map(repr, _needed(kind, columns)))}; fill them")
    return seen


def _needed(kind: Kind, columns: Columns) -> list[str]:
    roles = ("text", "label") if kind == "choice" else ("question", "answer", "context")
    return [name for name in map(columns.get, roles) if name]


def _note_row(seen: Survey, kind: Kind, columns: Columns, row: Mapping[str, object]) -> None:
    number = len(seen.codes) + 1
    missing = [name for name in _needed(kind, columns) if _is_missing(row[name])]
    for name in missing:
        seen.dropped.setdefault(name, []).append(number)
    grouped = columns.get("context") or columns["question"] if kind == "generate" else columns["text"]
    seen.keys.append(_key(row[grouped]))
    if missing:
        seen.codes.append(DROPPED)
    elif kind == "choice":
        seen.codes.append(seen.labels.setdefault(plain(row[columns["label"]]) or "", len(seen.labels)))
    else:
        seen.codes.append(0)
        for answer in answers_of(row[columns["answer"]]):
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


def describe(seen: Survey, kind: Kind, columns: Columns) -> list[str]:
    """What the author should know about the file, one line each."""
    said = [
        f"{len(numbers):,} rows without {name!r} are left out (first: row {', '.join(map(str, numbers[:SHOWN]))})"
        for name, numbers in seen.dropped.items()
    ]
    if seen.repeated_ids:
        said.append(f"{seen.repeated_ids:,} rows have an {columns['id']!r} that came before; documents are told apart "
                    "by their content")  # fmt: skip
    codes = np.frombuffer(seen.codes, dtype=np.int32)
    keys = np.frombuffer(seen.keys, dtype=np.int64)[codes != DROPPED]
    if kind == "choice":
        unique = len(np.unique(keys))
        if repeated := len(keys) - unique:
            said.append(f"{repeated:,} rows repeat a text; equal texts stay in one split")
        pairs = np.unique(np.stack([keys, codes[codes != DROPPED]]), axis=1).shape[1]
        if conflicting := pairs - unique:
            said.append(f"{conflicting:,} texts have two labels; one of them is counted wrong whatever a model says")
        said += _about_labels(seen, codes)
    return said


def _about_labels(seen: Survey, codes: NDArray[np.int32]) -> Sequence[str]:
    said = []
    counts = Counter(codes[codes != DROPPED].tolist())
    rare = [label for label, code in seen.labels.items() if counts[code] < 2]
    if rare:
        said.append(f"{len(rare)} labels stand in one row only and are in training only: {', '.join(rare[:SHOWN])}")
    if len(seen.labels) > MANY_CLASSES:
        said.append(f"{len(seen.labels)} classes: each is a request of its own for every document, and a share of 1/"
                    f"{len(seen.labels)} is chance; is this the label column?")  # fmt: skip
    folded = Counter(label.casefold() for label in seen.labels)
    if alike := [label for label in seen.labels if folded[label.casefold()] > 1]:
        said.append(f"labels that differ in capitals only: {', '.join(alike[:SHOWN])}; write them alike")
    return said
