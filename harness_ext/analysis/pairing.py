"""Putting two runs side by side: the same protocol, the same documents, or an error that says what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.analysis.results import Run, TaskResult
from harness_ext.analysis.samples import SampleScores
from harness_ext.errors import ComparisonError

_LEAST_SHARED = 0.5  # of the smaller run's documents; fewer means another split, not another limit
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of functions that lm-eval could not print the source of
_PROTOCOL_FIELDS = (  # of a task's config: what a fingerprint covers, where one is missing
    "output_type",
    "description",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "process_docs",
    "process_results",
    "target_delimiter",
    "fewshot_delimiter",
    "generation_kwargs",
    "filter_list",
    "repeats",
)


@dataclass(frozen=True)
class Joined:
    """Scores of two runs on the documents both have, row for row, in the metric's own unit."""

    before: NDArray[np.float64]  # (n,)
    after: NDArray[np.float64]  # (n,)
    clusters: NDArray[np.str_] | None  # (n,) passages
    targets: NDArray[np.str_]  # (n,) hashes of the references
    left_out: int  # documents that only one of the runs has


def check_protocol(baseline: Run, run: Run, task: str) -> None:
    """Refuse two results of a task that were not made under the same protocol.

    Fingerprints decide where both runs carry one; without, the task configs that lm-eval logged.

    Raises:
        ComparisonError: naming the task and what differs.
    """
    first, second = baseline.tasks[task], run.tasks[task]
    for what, a, b in (
        ("task version", first.version, second.version),
        ("number of shots", first.n_shot, second.n_shot),
    ):
        if a != b:
            raise ComparisonError(
                f"{task}: {what} is {a} in {baseline.name} and {b} in {run.name}; evaluate both the same way"
            )
    if first.fingerprint and second.fingerprint:
        different = [] if first.fingerprint == second.fingerprint else _fields(first, second)
    else:
        different = _config_fields(first.config, second.config)
    if different:
        raise ComparisonError(
            f"{task}: {baseline.name} and {run.name} were evaluated under different protocols "
            f"({', '.join(different)}); evaluate both with the same task file and flags"
        )


def _fields(first: TaskResult, second: TaskResult) -> list[str]:
    a, b = first.fingerprint_fields, second.fingerprint_fields
    return sorted(key for key in {*a, *b} if a.get(key) != b.get(key)) or ["fields not logged"]


def _config_fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [field for field in _PROTOCOL_FIELDS if _canonical(first.get(field)) != _canonical(second.get(field))]


def _canonical(value: Any) -> str:
    return _ADDRESS.sub("", json.dumps(value, sort_keys=True, default=str))


def join(task: str, names: tuple[str, str], first: SampleScores, second: SampleScores) -> Joined:
    """Pair two runs' scores by document.

    Documents are matched by doc_hash and, for duplicates, by occurrence; those that only one run has are
    left out and counted.

    Args:
        names: of the baseline and of the other run, for messages.

    Raises:
        ComparisonError: a document was asked with another prompt, or the runs share fewer than two
            documents or less than half of the smaller one.
    """
    places = {key: index for index, key in enumerate(second.keys())}
    matches = [(index, places[key]) for index, key in enumerate(first.keys()) if key in places]
    smaller = min(len(first), len(second))
    if len(matches) < max(2, _LEAST_SHARED * smaller):
        raise ComparisonError(
            f"{names[0]} and {names[1]} share {len(matches)} of {smaller} documents of {task!r}; "
            "evaluate both on the same split and limit"
        )
    left = np.array([index for index, _ in matches])
    right = np.array([index for _, index in matches])
    _check_prompts(task, names, first, second, left, right)
    return Joined(
        before=first.scores[left],
        after=second.scores[right],
        clusters=None if first.clusters is None else first.clusters[left],
        targets=first.targets[left],
        left_out=len(first) + len(second) - 2 * len(matches),
    )


def _check_prompts(
    task: str,
    names: tuple[str, str],
    first: SampleScores,
    second: SampleScores,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> None:
    different = np.flatnonzero(first.prompt_hash[left] != second.prompt_hash[right])
    if len(different):
        doc = first.doc_hash[left[different[0]]][:12]
        raise ComparisonError(
            f"{task}: {names[0]} and {names[1]} saw different prompts on {len(different)} of {len(left)} documents "
            f"(first: doc_hash {doc}…); evaluate both with the same template, shots and chat setting"
        )
