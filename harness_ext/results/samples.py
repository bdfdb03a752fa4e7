"""Per-document scores from lm-eval's `samples_TASK_DATE.jsonl`, read line by line.

Only arrays are kept, about 60 bytes per document (130 while they are read): scores, 64 bits of each hash, and flags
(whether the output parsed, was cut off, abstained).
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import CutShortError, InputError, ResultsError
from harness_ext.protocol.ties import choice_scores, is_tie
from harness_ext.reading.files import lines_of
from harness_ext.reading.json_input import parse_json

_SAMPLE_PREFIX = "sample-"  # of ids in the small data set bundled with this package
_UNKNOWN = -1  # value of a flag that a sample does not have
_LONG_TEXT = 80  # characters; shorter texts are labels, names or questions, not passages
_INSPECTED = 2_000  # number of documents that are searched for repeated columns
_DISTINCT = 0.8  # a column is repeated if at most this share of its texts is distinct
_HASHES = ("doc_hash", "prompt_hash", "target_hash")  # of a sample, of which lm-eval makes the task's
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # gives duplicates of a document different keys

# Yields the samples of a file in the form in which lm-eval logs them.
SampleReader = Callable[[Path], Iterator[dict[str, Any]]]
# The numbers kept of a logged value; raises TypeError or ValueError if it is of another kind.
Numbers = Callable[[Any], Sequence[float]]
Hashes = NDArray[np.uint64]
Flags = NDArray[np.int8]  # 1, 0, or -1 if unknown


@dataclass(frozen=True)
class SampleScores:
    """One metric of one task per document; every array has n rows, ordered by doc_id."""

    doc_hash: Hashes
    occurrence: NDArray[np.int64]  # 0 for the first document with this hash, 1 for its first duplicate …
    prompt_hash: Hashes
    values: NDArray[np.float64]  # (n, k): the score in the metric's own unit, or the numbers that its aggregation needs
    targets: Hashes  # of the reference answer, to find the most frequent one
    clusters: Hashes | None  # of the column that names the unit of evidence; None if any document lacks it
    parsed: Flags  # whether the output parsed, from `parsed` or `parsed_rate`
    cut: Flags  # whether generation ended at the token limit
    abstained: Flags  # whether the output abstained, from `abstained` or `abstain_f1`
    tied: Flags  # whether the best two choices have the same log-probability
    options: NDArray[np.int16]  # number of scored choices; 0 if there are none
    repeated: tuple[str, ...] = ()  # columns of long texts that many documents share, if no unit of evidence is known

    def __len__(self) -> int:
        """Number of documents that have the metric."""
        return len(self.values)

    @property
    def tied_share(self) -> float:
        """Share of documents whose best choices tie, among those with choices; 0 if there are none."""
        known = self.tied[self.tied != _UNKNOWN]
        return float(known.mean()) if len(known) else 0.0

    def keys(self) -> Hashes:
        """Keys that identify documents in any run: hash and occurrence in one number, (n,)."""
        return _keys(self.doc_hash, self.occurrence)

    def take(self, rows: NDArray[Any]) -> SampleScores:
        """A subset of the documents, in the order of `rows` (indices or a mask)."""
        arrays = {name: array[rows] for name, array in vars(self).items() if isinstance(array, np.ndarray)}
        return replace(self, **arrays)


def iter_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the logged samples of a file, one at a time.

    Raises:
        CutShortError: a line is not a complete JSON object; the message names it as file:line.
    """
    try:
        for number, line in enumerate(lines_of(path), start=1):
            if not line.strip():
                continue
            sample = parse_json(line, place=f"{path}:{number}")
            if not isinstance(sample, dict):
                raise InputError(f"{path}:{number}: holds a JSON {type(sample).__name__}, not an object")
            if not isinstance(sample.get("filter"), (str, type(None))):
                raise InputError(f"{path}:{number}: filter is no name")
            yield sample
    except InputError as error:
        raise CutShortError(f"{error}; was the run cut short? evaluate again") from None


def whole_samples(
    samples: Iterator[dict[str, Any]],
    path: Path,
    *,
    documents: int | None,
    filters: Collection[str] = (),
    digest: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield logged samples, and make sure behind the last one that they are those of the results.

    The number of documents is lm-eval's, which counts those of one metric: where no document has all metrics, only the
    digest tells.

    Args:
        samples: of one task.
        path: of their file, for the message.
        documents: how many different documents every filter has at least; None if it is not known.
        filters: lm-eval's names of the filters that must be there; samples of old versions name none.
        digest: lm-eval's hash of all samples; None if it was not logged.

    Raises:
        CutShortError: there are fewer, or others.
    """
    ids: defaultdict[str | None, array[int]] = defaultdict(lambda: array("q"))
    logged = hashlib.sha256()
    for number, sample in enumerate(samples, start=1):
        ids[sample.get("filter")].append(_as_id(sample.get("doc_id", number)))
        logged.update("".join(str(sample.get(name)) for name in _HASHES).encode("utf-8", "replace"))
        yield sample
    expected = ids.keys() if None in ids or not filters else filters
    fewest = min((len(np.unique(_array(ids[name], np.int64))) for name in expected), default=0)
    if documents is not None and fewest < documents:
        raise CutShortError(f"{path}: has {fewest:,} of {documents:,} documents; was the run cut short? evaluate again")
    if digest is not None and logged.hexdigest() != digest:
        raise CutShortError(f"{path}: does not hold the samples of the results; was the run cut short? evaluate again")


def _as_id(doc_id: Any) -> int:
    return doc_id if isinstance(doc_id, int) and abs(doc_id) < 2**63 else _digest(str(doc_id)) >> 1


def first_sample(path: Path) -> dict[str, Any] | None:
    """The first logged sample; None if the file is empty."""
    return next(iter_samples(path), None)


def is_bundled(sample: Mapping[str, Any]) -> bool:
    """Whether the document of a logged sample belongs to the small data set bundled with this package.

    >>> is_bundled({"doc": {"idx": "sample-3"}}), is_bundled({"doc": {"idx": 3}})
    (True, False)
    """
    doc = sample.get("doc")
    if not isinstance(doc, Mapping):
        return False
    return any(str(doc.get(key, "")).startswith(_SAMPLE_PREFIX) for key in ("id", "idx"))


def read_scores(
    path: Path,
    metric: str,
    filter: str,
    numbers: Numbers | None = None,
    *,
    cluster: str | None = None,
    samples: SampleReader = iter_samples,
) -> SampleScores:
    """Read one metric, as scored on the outputs of one filter.

    Documents without the metric are left out; HasAns_exact, for instance, exists only for answerable questions.

    Args:
        path: a samples file.
        metric: its name in the samples.
        filter: lm-eval's name of the filter.
        numbers: gives the numbers to keep of a logged value; None: the value itself, which must be a number.
        cluster: column of the documents that names the unit of evidence, such as a passage.
        samples: yields the samples of the file; the default reads lm-eval's format, one sample per line.

    Raises:
        ResultsError: a line is incomplete, a sample lacks its hashes, or a value is not a finite number of this kind.
    """
    columns = _Columns(cluster)
    for number, sample in enumerate(samples(path), start=1):
        if sample.get("filter", filter) != filter or metric not in sample:
            continue
        values = _numbers(sample[metric], numbers or _score, f"{path}:{number}", metric)
        if not all(map(math.isfinite, values)):
            raise ResultsError(
                f"{path}:{number}: {metric} is {sample[metric]}; evaluate again, or compare another metric"
            )
        columns.add(sample, values, f"{path}:{number}", number)
    return columns.finished()


def _numbers(value: Any, numbers: Numbers, place: str, metric: str) -> Sequence[float]:
    try:
        return numbers(value)
    except (TypeError, ValueError, IndexError):
        text = json.dumps(value, default=str)
        raise ResultsError(
            f"{place}: {metric} is {text:.40}, which is not a score of a document; compare another metric"
        ) from None


def _score(value: Any) -> tuple[float]:
    if isinstance(value, (bool, int, float)):
        return (float(value),)
    raise TypeError


class _Columns:
    """Growing arrays with one entry per document."""

    def __init__(self, cluster: str | None) -> None:
        self._cluster, self._long = cluster, _LongColumns()
        self._values, self._ids = array("d"), array("q")
        self._doc, self._prompt, self._target, self._passage = (array("Q") for _ in range(4))
        self._parsed, self._cut, self._abstained, self._tied = (array("b") for _ in range(4))
        self._options = array("h")

    def add(self, sample: Mapping[str, Any], values: Sequence[float], place: str, number: int) -> None:
        """Append one logged sample; `place` is its file:line for errors, `number` its doc_id if it has none."""
        try:
            self._doc.append(bits_of(str(sample["doc_hash"])))
            self._prompt.append(bits_of(str(sample["prompt_hash"])))
        except KeyError as missing:
            raise ResultsError(f"{place}: no {missing}; evaluate again with lm-eval 0.4.13 or newer") from None
        doc_id = sample.get("doc_id", number)
        self._ids.append(doc_id if isinstance(doc_id, int) else number)
        self._values.extend(values)
        self._target.append(bits_of(str(sample.get("target_hash", sample.get("target", "")))))
        self._passage.append(unit_of(sample.get("doc"), self._cluster))
        self._long.add(sample.get("doc"))
        self._parsed.append(parsed_flag(sample))
        self._cut.append(cut_flag(sample))
        self._abstained.append(abstained_flag(sample))
        choices = choice_scores(sample)
        self._tied.append(_flag(is_tie(choices)))
        self._options.append(min(len(choices), 1_000))

    def finished(self) -> SampleScores:
        """The columns sorted by doc_id, since data-parallel runs log rank after rank."""
        n = len(self._ids)
        order = np.argsort(_array(self._ids, np.int64), kind="stable")
        doc, passages = _array(self._doc, np.uint64)[order], _array(self._passage, np.uint64)[order]
        return SampleScores(
            doc_hash=doc,
            occurrence=_occurrences(doc),
            prompt_hash=_array(self._prompt, np.uint64)[order],
            values=_array(self._values, np.float64).reshape(n, -1 if n else 1)[order],
            targets=_array(self._target, np.uint64)[order],
            clusters=passages if n and bool(passages.all()) else None,
            parsed=_array(self._parsed, np.int8)[order],
            cut=_array(self._cut, np.int8)[order],
            abstained=_array(self._abstained, np.int8)[order],
            tied=_array(self._tied, np.int8)[order],
            options=_array(self._options, np.int16)[order],
            repeated=() if n and bool(passages.all()) else self._long.repeated(),
        )


class _LongColumns:
    """Long texts of the first documents, to find columns that several documents share."""

    def __init__(self) -> None:
        self._seen: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._documents = 0

    def add(self, doc: Any) -> None:
        if self._documents >= _INSPECTED or not isinstance(doc, Mapping):
            return
        self._documents += 1
        for name, value in doc.items():
            if isinstance(value, str) and len(value) >= _LONG_TEXT:
                self._seen[name][hash(value)] += 1

    def repeated(self) -> tuple[str, ...]:
        """Columns in which at most four of five texts are distinct."""
        return tuple(
            name
            for name, counts in self._seen.items()
            if counts.total() >= 2 and len(counts) <= _DISTINCT * counts.total()
        )


def document_units(docs: Iterable[Any], column: str) -> tuple[Hashes | None, tuple[str, ...]]:
    """Units of evidence of documents that have not been asked yet.

    Args:
        docs: the n documents of a task.
        column: that names the unit.

    Returns:
        (n,) a hash for each document's unit, or None where each is a unit of its own; and columns of long texts that
        many of these share, which may be the unit.
    """
    units, long = array("Q"), _LongColumns()
    for doc in docs:
        units.append(unit_of(doc, column))
        long.add(doc)
    hashes = _array(units, np.uint64)
    return (hashes, ()) if len(hashes) and bool(hashes.all()) else (None, long.repeated())


def _array(column: array[Any], dtype: Any) -> NDArray[Any]:
    return np.frombuffer(column, dtype=dtype) if len(column) else np.empty(0, dtype)


def document_keys(hashes: Hashes, ids: NDArray[np.int64]) -> Hashes:
    """Keys that identify documents in any run, as `SampleScores.keys`, in the order that is given.

    Args:
        hashes: (n,) 64 bits of each doc_hash.
        ids: (n,) doc_ids, in whose order duplicates are counted.
    """
    order = np.argsort(ids, kind="stable")
    keys = np.empty_like(hashes)
    keys[order] = _keys(hashes[order], _occurrences(hashes[order]))
    return keys


def _keys(hashes: Hashes, occurrence: NDArray[np.int64]) -> Hashes:
    with np.errstate(over="ignore"):
        return hashes + occurrence.astype(np.uint64) * _GOLDEN


def _occurrences(keys: Hashes) -> NDArray[np.int64]:
    """How many times each key occurred before: [a, b, a] -> [0, 0, 1]."""
    order = np.argsort(keys, kind="stable")
    ordered, index = keys[order], np.arange(len(keys))
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(keys) else np.empty(0, bool)
    starts = np.maximum.accumulate(np.where(is_first, index, 0)) if len(keys) else index
    occurrences = np.empty(len(keys), dtype=np.int64)
    occurrences[order] = index - starts
    return occurrences


def bits_of(text: str) -> int:
    """64 bits of a hexadecimal hash, or a 64-bit hash of any other text."""
    try:
        return int(text[:16], 16) & 0xFFFFFFFFFFFFFFFF
    except ValueError:
        return _digest(text)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def unit_of(doc: Any, column: str | None) -> int:
    """64-bit hash of a document's unit of evidence; 0 if it has none."""
    value = doc.get(column) if isinstance(doc, Mapping) and column is not None else None
    if value is None or value == "":
        return 0
    return _digest(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))


def parsed_flag(sample: Mapping[str, Any]) -> int:
    """`parsed` or `parsed_rate`; else, if answers must not be empty, whether there is an answer."""
    for name in ("parsed", "parsed_rate"):
        if name in sample:
            return _flag(sample[name])
    if "empty_rate" in sample and "abstain_f1" not in sample and "abstained" not in sample:
        return _flag(float(sample["empty_rate"] == 0))
    return _UNKNOWN


def cut_flag(sample: Mapping[str, Any]) -> int:
    """Whether generation ended at the token limit."""
    return _flag(sample["finish_reason"] == "length" if "finish_reason" in sample else None)


def abstained_flag(sample: Mapping[str, Any]) -> int:
    """`abstained`, or the decision that the abstention metrics log."""
    if "abstained" in sample:
        return _flag(sample["abstained"])
    decision = sample.get("abstain_f1")
    return _flag(decision[0] if isinstance(decision, list) and decision else None)


def _flag(value: Any) -> int:
    return _UNKNOWN if not isinstance(value, (bool, int, float)) or math.isnan(value) else int(value > 0)
