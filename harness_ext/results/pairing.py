"""Pair the samples of two runs by document, or raise an error that says what differs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import ComparisonError
from harness_ext.results.comparability import DOCUMENTS, PROMPTS, keeps_prompts
from harness_ext.results.samples import SampleScores

_LEAST_SHARED = 0.5  # share of the smaller run's documents; fewer suggests another split, not another --limit


@dataclass(frozen=True)
class PairedSamples:
    """Samples of two runs on the documents that both have, in the same order."""

    before: SampleScores
    after: SampleScores
    rows: NDArray[np.intp]  # (n,) indices into the baseline's samples
    left_out: int  # number of documents that only one of the runs has
    allowed: tuple[str, ...] = ()  # DOCUMENTS or PROMPTS, if they differ and are allowed to


def pair_samples(
    task: str,
    names: tuple[str, str],
    first: SampleScores,
    second: SampleScores,
    *,
    allow: Collection[str] = (),
    differing: Collection[str] = (),
) -> PairedSamples:
    """Pair two runs' scores by document.

    Documents are matched by doc_hash and, for duplicates, by order of occurrence. Documents that only one run has are
    left out and counted.

    Args:
        task: name of the task, for messages.
        names: of the baseline and of the other run, for messages.
        first: the baseline's samples.
        second: the other run's samples.
        allow: fields that may differ.
        differing: fields of the protocol that differ and are allowed to; some of them make prompts differ, too.

    Raises:
        ComparisonError: the prompts of a document differ, or the runs share fewer than two documents or less than half
            of those of the smaller run.
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
    before = first if len(left) == len(first) else first.take(left)
    after = second if len(right) == len(second) and _is_range(right) else second.take(right)
    if keeps_prompts(differing) and _check_prompts(task, names, before, after, allow):
        allowed.append(PROMPTS)
    return PairedSamples(
        before=before,
        after=after,
        rows=left,
        left_out=len(first) + len(second) - 2 * len(left),
        allowed=tuple(allowed),
    )


def _matches(first: SampleScores, second: SampleScores) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the common documents in each, in the order of the first."""
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
    """Whether prompts differ; raises an error unless that is allowed."""
    different = np.flatnonzero(before.prompt_hash != after.prompt_hash)
    if len(different) and PROMPTS not in allow:
        doc = f"{int(before.doc_hash[different[0]]):016x}"[:12]
        raise ComparisonError(
            f"{task}: {names[0]} and {names[1]} saw different prompts on {len(different)} of {len(before)} documents "
            f"(first: doc_hash {doc}…); evaluate both with the same template, shots and chat setting, "
            f"or accept the difference with --allow {PROMPTS}"
        )
    return bool(len(different))
