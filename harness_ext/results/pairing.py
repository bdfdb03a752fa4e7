"""Putting two runs side by side, document by document, or an error that says what differs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import ComparisonError
from harness_ext.results.comparability import DOCUMENTS, PROMPTS, keeps_prompts
from harness_ext.results.samples import SampleScores

_LEAST_SHARED = 0.5  # of the smaller run's documents; fewer means another split, not another limit


@dataclass(frozen=True)
class Joined:
    """Samples of two runs on the documents both have, row for row."""

    before: SampleScores
    after: SampleScores
    rows: NDArray[np.intp]  # (n,) of the baseline's samples
    left_out: int  # documents that only one of the runs has
    allowed: tuple[str, ...] = ()  # DOCUMENTS or PROMPTS, where they differ and may


def join(
    task: str,
    names: tuple[str, str],
    first: SampleScores,
    second: SampleScores,
    *,
    allow: Collection[str] = (),
    differing: Collection[str] = (),
) -> Joined:
    """Pair two runs' scores by document.

    Documents are matched by doc_hash and, for duplicates, by occurrence; those that only one run has are
    left out and counted.

    Args:
        task: for messages.
        names: of the baseline and of the other run, for messages.
        first: the baseline's samples.
        second: the other run's.
        allow: fields that may differ.
        differing: fields of the protocol that do differ and are allowed to; with some of them, so do prompts.

    Raises:
        ComparisonError: a document was asked with another prompt, or the runs share fewer than two
            documents or less than half of the smaller one.
    """
    left, right = _matches(first, second)
    smaller, allowed = min(len(first), len(second)), []
    if len(left) < _LEAST_SHARED * smaller and DOCUMENTS in allow:
        allowed.append(DOCUMENTS)
    if len(left) < 2 or (len(left) < _LEAST_SHARED * smaller and not allowed):
        raise ComparisonError(
            f"{names[0]} and {names[1]} share {len(left)} of {smaller} documents of {task!r}; "
            "evaluate both on the same split and limit"
        )
    whole = len(left) == len(first)
    before = first if whole else first.take(left)
    after = second if len(right) == len(second) and _is_range(right) else second.take(right)
    if keeps_prompts(differing) and _check_prompts(task, names, before, after, allow):
        allowed.append(PROMPTS)
    return Joined(
        before=before,
        after=after,
        rows=left,
        left_out=len(first) + len(second) - 2 * len(left),
        allowed=tuple(allowed),
    )


def _matches(first: SampleScores, second: SampleScores) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the same documents in both, in the order of the first."""
    a, b = first.keys(), second.keys()
    if np.array_equal(a, b):
        return np.arange(len(a)), np.arange(len(b))
    _, left, right = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    order = np.argsort(left)
    return left[order], right[order]


def _is_range(rows: NDArray[np.intp]) -> bool:
    return bool(np.array_equal(rows, np.arange(len(rows))))


def _check_prompts(
    task: str, names: tuple[str, str], before: SampleScores, after: SampleScores, allow: Collection[str]
) -> bool:
    """Whether prompts differ, where that is allowed; otherwise it is an error."""
    different = np.flatnonzero(before.prompt_hash != after.prompt_hash)
    if len(different) and PROMPTS not in allow:
        doc = f"{int(before.doc_hash[different[0]]):016x}"[:12]
        raise ComparisonError(
            f"{task}: {names[0]} and {names[1]} saw different prompts on {len(different)} of {len(before)} documents "
            f"(first: doc_hash {doc}…); evaluate both with the same template, shots and chat setting, "
            f"or accept it with --allow {PROMPTS}"
        )
    return bool(len(different))
