"""The samples of a report: read twice, line by line, so that memory holds only those that go into the file.

The first pass keeps a few numbers per document and fills the figures. Then documents are selected, and the second pass
reads their texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.comparison.rows import Row
from harness_ext.comparison.units import cluster_column
from harness_ext.errors import ResultsError
from harness_ext.metrics.known import PRIMARY_METRICS
from harness_ext.metrics.statistic import SHARE
from harness_ext.protocol.ties import scored_choices
from harness_ext.reporting.contents import SampleSet
from harness_ext.reporting.measures import QUESTIONS, Measures, class_names, kinds_of_question, label_pair
from harness_ext.results.outputs import Output, iter_outputs, logged_number
from harness_ext.results.run import TaskResult
from harness_ext.results.samples import (
    abstained_flag,
    bits_of,
    cut_flag,
    document_keys,
    parsed_flag,
    unit_of,
)

MOST_DOCUMENTS = 20_000  # in the file, all tasks together
MOST_CHARACTERS = 32_000_000  # of their texts
LONGEST_TEXT = 20_000  # characters of one text; of a longer one the beginning and the end are kept
UNPARSED, CUT, ABSTAINED = 1, 2, 4  # flags of an answer
_MOST_PREFIX = 4_000  # characters that prompts share, kept once
_SCRAMBLE = np.uint64(0x9E3779B97F4A7C15)  # spreads keys, so that their order says nothing of the documents


@dataclass
class Scan:
    """A few numbers of every logged document of one task and run, in the order of the file."""

    result: TaskResult
    filter: str
    metric: str
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    ids: array[int] = field(default_factory=lambda: array("q"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    flags: array[int] = field(default_factory=lambda: array("B"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    prompt_sizes: array[int] = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.ids)

    def keys(self) -> NDArray[np.uint64]:
        """Keys that identify the documents in any run, in the order of the file."""
        return document_keys(np.array(self.hashes, dtype=np.uint64), np.array(self.ids, dtype=np.int64))


def scan(result: TaskResult, row: Row, measures: Measures) -> Scan:
    """Read all samples of a task once: keep a few numbers of each, and fill the figures.

    Raises:
        ResultsError: no samples were logged, or they cannot be read.
    """
    if result.samples_path is None:
        list(result.logged_samples())  # raises the error that says why
    found = Scan(result, row.filter, row.metric)
    for output in iter_outputs(result, row.filter):
        score = score_of(output.logged, row.metric)
        found.hashes.append(bits_of(output.doc_hash))
        found.ids.append(output.doc_id)
        found.scores.append(score)
        found.flags.append(_flags(output.logged))
        found.prompt_sizes.append(min(len(prompt_of(output)), LONGEST_TEXT))
        found.sizes.append(min(len(output.text or ""), LONGEST_TEXT))
        measures.add(output, score)
    return found


def score_of(logged: Mapping[str, Any], metric: str) -> float:
    """The logged score of a document; that of another primary metric if this one has no number; else NaN."""
    for name in (metric, *PRIMARY_METRICS):
        if isinstance(logged.get(name), (bool, int, float)):
            return logged_number(logged[name])
    return float("nan")


def _flags(logged: Mapping[str, Any]) -> int:
    parsed, cut, abstained = parsed_flag(logged), cut_flag(logged), abstained_flag(logged)
    return UNPARSED * (parsed == 0) + CUT * (cut == 1) + ABSTAINED * (abstained == 1)


# -- selection -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """How much of a task goes into the file."""

    documents: int = MOST_DOCUMENTS
    characters: int = MOST_CHARACTERS


def budgets(sizes: Sequence[int], limits: Budget | None = None) -> list[Budget]:
    """Shares of the limits for tasks of these numbers of documents: equal ones; what small tasks leave goes to others.

    >>> [each.documents for each in budgets([10, 500, 90], Budget(200, 2_000))]
    [10, 100, 90]
    """
    limits = limits or Budget()
    left, shares = limits.documents, [0] * len(sizes)
    for count, index in enumerate(sorted(range(len(sizes)), key=lambda place: sizes[place])):
        shares[index] = min(sizes[index], left // (len(sizes) - count))
        left -= shares[index]
    total = max(1, sum(shares))
    return [Budget(share, limits.characters * share // total) for share in shares]


@dataclass(frozen=True)
class Selection:
    """The documents that go into the file."""

    keys: NDArray[np.uint64]  # of all documents of the first run, by doc_id
    chosen: NDArray[np.bool_]  # (n,)
    changed: int  # documents of which some run's score differs from the first run's
    changed_chosen: int

    def in_words(self) -> str:
        """What is in the file, for its readers."""
        total, size = len(self.keys), int(self.chosen.sum())
        if size == total:
            return f"All {total:,} documents are in this file."
        return (
            f"{size:,} of {total:,} documents are in this file: {self.changed_chosen:,} of the {self.changed:,} whose "
            "score differs between runs, and of the others as many right as wrong, drawn at random by document. "
            "The figures and tables cover all documents."
        )


def select(scans: Sequence[Scan], budget: Budget) -> Selection:
    """Choose documents of the first run: those that differ between runs first, then wrong and right ones alike.

    Args:
        scans: of one task, by run.
        budget: at most so much is chosen.
    """
    first = scans[0]
    keys = first.keys()
    order = np.argsort(np.array(first.ids, dtype=np.int64), kind="stable")
    keys = keys[order]
    before = np.array(first.scores, dtype=float)[order]
    sizes = (np.array(first.sizes, dtype=np.int64) + np.array(first.prompt_sizes, dtype=np.int64))[order]
    changed = np.zeros(len(keys), dtype=bool)
    for other in scans[1:]:
        mine, theirs = _common(keys, other.keys())
        after = np.array(other.scores, dtype=float)[theirs]
        changed[mine] |= (after != before[mine]) & ~(np.isnan(after) & np.isnan(before[mine]))
        sizes[mine] += np.array(other.sizes, dtype=np.int64)[theirs]
    stratum = np.where(changed, 0, np.where(before > 0, 1, 2))
    with np.errstate(over="ignore"):
        scrambled = keys * _SCRAMBLE
    turn = np.empty(len(keys))
    for number_, weight in ((0, 2.0), (1, 1.0), (2, 1.0)):
        members = np.flatnonzero(stratum == number_)
        turn[members[np.argsort(scrambled[members], kind="stable")]] = np.arange(len(members)) / weight
    ranked = np.argsort(turn, kind="stable")
    fits = (np.arange(len(keys)) < budget.documents) & (np.cumsum(sizes[ranked]) <= budget.characters)
    chosen = np.zeros(len(keys), dtype=bool)
    chosen[ranked[fits]] = True
    return Selection(keys, chosen, int(changed.sum()), int((changed & chosen).sum()))


def _common(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    _, left, right = np.intersect1d(first, second, return_indices=True)
    return left, right


# -- texts ---------------------------------------------------------------------------------------------------------


def sample_set(
    row: Row, names: Sequence[str], scans: Sequence[Scan], budget: Budget, clusters: Mapping[str, str]
) -> SampleSet:
    """The texts of the selected documents, as the page's script reads them.

    Args:
        row: any row of the task.
        names: of the runs, the baseline first.
        scans: of the runs, in the same order.
        budget: at most so much goes into the file.
        clusters: column that names the unit of evidence, by task name or pattern.

    Raises:
        ResultsError: the files changed since they were scanned.
    """
    selection = select(scans, budget)
    places = {int(key): place for place, key in enumerate(selection.keys[selection.chosen])}
    rows: list[list[Any]] = [[] for _ in places]
    answers: list[list[Any]] = [[None] * len(scans) for _ in places]
    classes: list[str] = []
    units: dict[int, int] = {}
    factor = _factor(row, scans)
    result = scans[0].result
    column = cluster_column(result.task, result.metadata, clusters)
    for run, each in enumerate(scans):
        keys = each.keys()
        for index, output in enumerate(iter_outputs(each.result, each.filter)):
            if index >= len(keys):
                raise ResultsError(f"{each.result.samples_path}: changed while it was read; try again")
            place = places.get(int(keys[index]))
            if place is None:
                continue
            choices = scored_choices(output.logged)
            answers[place][run] = _answer(output, choices, each.scores[index] * factor, each.flags[index])
            if not rows[place]:
                gold = label_pair(output)
                classes = classes or class_names(output, each.result) or kinds_of_question(output)
                unit = unit_of(output.doc, column)
                rows[place] = [
                    output.doc_id,
                    shortened(prompt_of(output)),
                    shortened(_gold(output, choices, gold, classes)),
                    int(output.is_unanswerable) if classes == QUESTIONS else None if gold is None else gold[0],
                    units.setdefault(unit, len(units)) if unit else None,
                    [shortened(text) for text, _ in choices] or None,
                ]
    kept = [[*row_, answer] for row_, answer in zip(rows, answers, strict=True) if row_]
    prefix = shared_lines([row_[1] for row_ in kept])
    for row_ in kept:
        row_[1] = row_[1][len(prefix) :]
    graded = any(score not in (0.0, 1.0) for each in scans for score in _distinct(each, factor))
    content = {
        "task": row.task, "metric": row.metric, "unit": row.unit, "higher": row.higher_is_better, "graded": graded,
        "runs": list(names), "prefix": prefix, "classes": classes, "rows": kept,
        "selection": selection.in_words(), "repeatedUnits": len(units) < sum(row_[4] is not None for row_ in kept),
    }  # fmt: skip
    return SampleSet(row.task, len(selection.keys), len(kept), content)


def shared_lines(texts: Sequence[str]) -> str:
    """The whole lines with which all of several texts begin.

    >>> shared_lines(["Instruction\\nfirst", "Instruction\\nfinal"])
    'Instruction\\n'
    """
    if len(texts) < 2:
        return ""
    first, last = min(texts)[:_MOST_PREFIX], max(texts)
    length = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("\n", 0, min(length, len(last))) + 1]


def _factor(row: Row, scans: Sequence[Scan]) -> float:
    """From logged scores to the unit of the row: 0.01 for a share that was logged on 0-100."""
    largest = max((np.nanmax(np.abs(each.scores)) for each in scans if not np.isnan(each.scores).all()), default=0.0)
    return 0.01 if row.unit == SHARE and largest > 1.0 + 1e-9 else 1.0


def _distinct(each: Scan, factor: float) -> list[float]:
    scores = np.array(each.scores, dtype=float) * factor
    return [float(value) for value in np.unique(scores[~np.isnan(scores)])]


def _answer(output: Output, choices: Sequence[tuple[str, float]], score: float, flags: int) -> list[Any]:
    """[text, score, flags, log-probabilities of the choices, what a filter made of the text]."""
    text = output.text if output.text is not None else output.logged.get("completion")
    if text is None and choices:
        pair = label_pair(output)
        best = max(range(len(choices)), key=lambda place: choices[place][1])
        if pair is not None and pair[1] is not None and 0 <= pair[1] < len(choices):
            best = pair[1]
        text = choices[best][0].strip()
    read = output.logged.get("filtered_resps")
    read = read[0] if isinstance(read, list) and read else read
    is_other = isinstance(read, str) and output.text is not None and read != output.text
    return [
        shortened(text or ""),
        None if np.isnan(score) else round(score, 4),
        flags,
        [round(logprob, 3) for _, logprob in choices] or None,
        shortened(str(read)) if is_other else None,
    ]


def _gold(
    output: Output, choices: Sequence[tuple[str, float]], pair: tuple[int, int | None] | None, classes: Sequence[str]
) -> str:
    if pair is not None and 0 <= pair[0] < len(classes):
        return classes[pair[0]]
    if choices and output.target.isdecimal() and int(output.target) < len(choices):
        return choices[int(output.target)][0].strip()
    return " / ".join(dict.fromkeys(output.references)) or _text_of(output.doc.get("target"))


def prompt_of(output: Output) -> str:
    """The prompt; for tools that log none, the document's input."""
    return output.prompt or _text_of(output.doc.get("input"))


def _text_of(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(str, value))
    return "" if value is None else str(value)


def shortened(text: str) -> str:
    """The text; of a long one the beginning and the end, with the number of characters between them."""
    if len(text) <= LONGEST_TEXT:
        return text
    head, tail = text[: LONGEST_TEXT * 3 // 4], text[-LONGEST_TEXT // 4 :]
    left_out = len(text) - len(head) - len(tail)
    return f"{head}\n[… {left_out:,} of {len(text):,} characters are left out here …]\n{tail}"
