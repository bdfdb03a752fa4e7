"""Per-document scores out of lm-eval's `samples_TASK_DATE.jsonl`, one line at a time."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import ResultsError

_SAMPLE_PREFIX = "sample-"  # ids of the small data set bundled with this package


@dataclass(frozen=True)
class SampleScores:
    """One metric of one task, document by document; every array has shape (n,), ordered by doc_id."""

    doc_hash: NDArray[np.str_]
    occurrence: NDArray[np.int64]  # 0 for the first document with this hash, 1 for its first duplicate …
    prompt_hash: NDArray[np.str_]
    scores: NDArray[np.float64]  # in the metric's own unit
    targets: NDArray[np.str_]  # hash of the reference, to find the most frequent answer
    clusters: NDArray[np.str_] | None  # hash of the passage (`doc["context"]`); None when a document has none

    def __len__(self) -> int:
        """Number of documents that carry the metric."""
        return len(self.scores)

    def keys(self) -> list[tuple[str, int]]:
        """What identifies a document in any run: (doc_hash, occurrence)."""
        return list(zip(self.doc_hash.tolist(), self.occurrence.tolist(), strict=True))


def iter_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the logged samples of a file without holding more than one.

    Raises:
        ResultsError: a line that is not a complete JSON object, named as file:line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
            except ValueError:
                sample = None
            if not isinstance(sample, dict):
                raise ResultsError(
                    f"{path}:{number}: not a complete JSON object; was the run cut short? evaluate again"
                )
            yield sample


def first_sample(path: Path) -> dict[str, Any] | None:
    """Return the first logged sample, or None for an empty file."""
    return next(iter_samples(path), None)


def is_bundled(sample: Mapping[str, Any]) -> bool:
    """Whether a logged sample's document belongs to the small data set bundled with this package.

    >>> is_bundled({"doc": {"idx": "sample-3"}}), is_bundled({"doc": {"idx": 3}})
    (True, False)
    """
    doc = sample.get("doc")
    if not isinstance(doc, Mapping):
        return False
    return any(str(doc.get(key, "")).startswith(_SAMPLE_PREFIX) for key in ("id", "idx"))


def has_scores(path: Path, metric: str, filter: str) -> bool:
    """Whether the metric is a number per document, judged by the first sample that carries it.

    Metrics computed over a whole task (corpus BLEU, macro-F1) log pairs to aggregate, or nothing.
    """
    for sample in iter_samples(path):
        if sample.get("filter", filter) == filter and metric in sample:
            return isinstance(sample[metric], (bool, int, float))
    return False


def read_scores(path: Path, metric: str, filter: str) -> SampleScores:
    """Read one metric of the samples that a filter produced.

    Documents without the metric are left out (HasAns_exact exists only where there is an answer), and so
    are those whose score is NaN.

    Raises:
        ResultsError: a cut line, a sample without its hashes, or scores that are not numbers (then the
            metric is computed over the whole task and no document has a score of its own).
    """
    rows: list[tuple[int, str, str, float, str, str]] = []
    for number, sample in enumerate(iter_samples(path), start=1):
        if sample.get("filter", filter) != filter or metric not in sample:
            continue
        score = _score(sample[metric], f"{path}:{number}", metric)
        if not math.isnan(score):
            rows.append((_doc_id(sample, number), *_hashes(sample, path, number), score, *_labels(sample)))
    rows.sort(key=lambda row: row[0])  # data-parallel runs log rank by rank
    return _columns(rows)


def _columns(rows: list[tuple[int, str, str, float, str, str]]) -> SampleScores:
    seen: Counter[str] = Counter()
    occurrence = []
    for row in rows:
        occurrence.append(seen[row[1]])
        seen[row[1]] += 1
    passages = [row[5] for row in rows]
    return SampleScores(
        doc_hash=np.array([row[1] for row in rows], dtype=np.str_),
        occurrence=np.array(occurrence, dtype=np.int64),
        prompt_hash=np.array([row[2] for row in rows], dtype=np.str_),
        scores=np.array([row[3] for row in rows], dtype=float),
        targets=np.array([row[4] for row in rows], dtype=np.str_),
        clusters=np.array(passages, dtype=np.str_) if rows and all(passages) else None,
    )


def _score(value: Any, place: str, metric: str) -> float:
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise ResultsError(
        f"{place}: {metric!r} is {type(value).__name__}, not a number per document; compare another metric"
    )


def _doc_id(sample: Mapping[str, Any], number: int) -> int:
    doc_id = sample.get("doc_id", number)
    return doc_id if isinstance(doc_id, int) else number


def _hashes(sample: Mapping[str, Any], path: Path, number: int) -> tuple[str, str]:
    try:
        return str(sample["doc_hash"]), str(sample["prompt_hash"])
    except KeyError as missing:
        raise ResultsError(f"{path}:{number}: no {missing}; evaluate again with lm-eval 0.4.13 or newer") from None


def _labels(sample: Mapping[str, Any]) -> tuple[str, str]:
    """Short hashes of the reference and of the passage ('' when the document has none)."""
    doc = sample.get("doc")
    passage = doc.get("context") if isinstance(doc, Mapping) else None
    target = str(sample.get("target_hash", sample.get("target", "")))[:16]
    return target, hashlib.sha256(passage.encode()).hexdigest()[:16] if isinstance(passage, str) and passage else ""
