"""D28: the last checkpoint was kept, and an earlier one is better beyond noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness_ext.doctor.case import Case
from harness_ext.doctor.evidence import gains
from harness_ext.doctor.logged.readings import clusters_of, numbers_of
from harness_ext.findings import Finding

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # as transformers' Trainer names its folders
LEAST_DOCUMENTS = 20


def find_earlier_checkpoint(case: Case, others: Sequence[Case]) -> list[Finding]:
    """Whether an earlier checkpoint of the same training scores significantly more than the last one.

    Args:
        case: one task of the adapter that was kept.
        others: the same task of all runs.
    """
    own = _training_and_step(case)
    if own is None:
        return []
    training, step = own
    steps = {id(other): found for other in others if (found := _training_and_step(other)) is not None}
    siblings = [other for other in others if id(other) in steps and steps[id(other)][0] == training]
    if any(steps[id(other)][1] > step for other in siblings):
        return []  # a later one is among the runs
    earlier = [other for other in siblings if steps[id(other)][1] < step]
    before, changes, places = _paired(case, earlier)
    if len(before) < LEAST_DOCUMENTS:
        return []
    scored = np.zeros(len(case.outputs), dtype=bool)
    scored[places] = True
    best = next((gain for gain in gains(before, changes, clusters_of(case, scored)) if gain.is_proved), None)
    if best is None:
        return []
    text = f"{case.where}: an earlier checkpoint is better: {case.metric.metric} rises from {best} with {best.change}"
    remedy = "keep that checkpoint, and report its score on documents that did not help to choose it"
    numbers = {**numbers_of(best), "checkpoints": len(changes)}
    return [Finding("D28", "warning", case.where, text, numbers, remedy)]


def _training_and_step(case: Case) -> tuple[str, float] | None:
    """The folder of a training and the step of one of its adapters; the last step for the folder's own adapter."""
    adapter = case.run.adapter
    if adapter is None:
        return None
    path = Path(adapter)
    match = _CHECKPOINT.fullmatch(path.name)
    return (str(path.parent), float(match[1])) if match else (str(path), float("inf"))


def _paired(case: Case, others: Sequence[Case]) -> tuple[np.ndarray, dict[str, np.ndarray], list[int]]:
    """Scores of the documents that all of them have, (n,) of the case and of each other one, and their places."""
    scores = [
        {(output.doc_id, output.doc_hash): value for output, value in zip(each.outputs, each.values, strict=True)}
        for each in others
    ]
    keys = [(output.doc_id, output.doc_hash) for output in case.outputs]
    places = [
        place
        for place, key in enumerate(keys)
        if others
        and not np.isnan(case.values[place])
        and all(not np.isnan(of_one.get(key, np.nan)) for of_one in scores)
    ]
    changes = {
        each.run.name: np.array([of_one[keys[place]] for place in places])
        for each, of_one in zip(others, scores, strict=True)
    }
    return case.values[places], changes, places
