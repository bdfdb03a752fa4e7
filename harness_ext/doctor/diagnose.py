"""The doctor's first layer: what the logged outputs of each run and task say about its score. No model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness_ext.comparison.compare import compare_runs, find_baseline
from harness_ext.comparison.rows import Gain, Row
from harness_ext.doctor.case import Case, read_outputs
from harness_ext.doctor.decomposition import decompose
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.doctor.logged.abstaining import find_abstaining
from harness_ext.doctor.logged.against_base import find_against_base
from harness_ext.doctor.logged.checkpoints import find_earlier_checkpoint
from harness_ext.doctor.logged.cut_answers import find_cut_answers
from harness_ext.doctor.logged.form import find_form
from harness_ext.doctor.logged.labels import find_labels
from harness_ext.doctor.logged.leaks import find_leaks
from harness_ext.doctor.logged.readings import rescored
from harness_ext.doctor.logged.stopping import find_stopping
from harness_ext.doctor.rescoring import Rescorer
from harness_ext.errors import HarnessExtError, ResultsError, described, suggest
from harness_ext.findings import Finding
from harness_ext.protocol.lm_eval_api import ConfigurableTask
from harness_ext.protocol.tasks import load_task
from harness_ext.results.run import Run, TaskResult

logger = logging.getLogger(__name__)

MOST_DOCUMENTS = 20_000  # of a task, for a look at its outputs on the side
_LEVELS = {"error": 0, "warning": 1, "note": 2}
_SYMPTOMS = ("D13",)  # credit from empty answers only: whatever makes the other answers wrong is the cause


def diagnose(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    tasks: Sequence[str] = (),
    include_path: Sequence[str | Path] = (),
    compared: Sequence[Row] = (),
) -> list[Diagnosis]:
    """Examine every task of every run from what was logged.

    Outputs are scored again in other readings where the task is installed here; a gain is then a proof. With several
    runs, one of them is the baseline and the others are examined beside it, too.

    Args:
        runs: as returned by `load_runs`.
        baseline: name of the baseline; None: the run without an adapter, if there are several runs.
        tasks: names of tasks; empty: all.
        include_path: folders of further tasks.
        compared: rows of a comparison of these runs with the baseline, so that it is not made again.

    Raises:
        HarnessExtError: no such task, or no baseline can be told.
    """
    examined = examine(runs, baseline=baseline, tasks=tasks, include_path=include_path, compared=compared)
    return [each.diagnosis for each in examined]


def find_errors(runs: Sequence[Run], *, baseline: str | None = None, tasks: Sequence[str] = ()) -> list[Finding]:
    """The findings of level error that show in the logged outputs alone: no task is loaded, nothing is scored again.

    Runs that are not comparable (D19) are left to `compare`, which refuses them. Tasks with more than 20,000 documents
    are left out.

    Args:
        runs: as returned by `load_runs`.
        baseline: name of the baseline; None: the run without an adapter, if there are several runs.
        tasks: names of tasks; empty: all.

    Raises:
        HarnessExtError: no such task, or no baseline can be told.
    """
    small = [
        replace(run, tasks={name: result for name, result in run.tasks.items() if result.n <= MOST_DOCUMENTS})
        for run in runs
    ]
    kept = [task for task in tasks if any(task in run.tasks for run in small)]
    if tasks and not kept:
        return []
    examined = examine(small, baseline=baseline, tasks=kept, rescores=False)
    findings = [finding for each in examined for finding in each.diagnosis.findings]
    return [finding for finding in findings if finding.level == "error" and finding.id != "D19"]


NOT_LOADED = "the task was not loaded"


@dataclass(frozen=True)
class Examined:
    """A diagnosis, and what it was made from."""

    diagnosis: Diagnosis
    case: Case | None  # None if no samples were logged
    task: ConfigurableTask | None  # None if it is not installed here


def examine(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    tasks: Sequence[str] = (),
    include_path: Sequence[str | Path] = (),
    rescores: bool = True,
    compared: Sequence[Row] = (),
) -> list[Examined]:
    """As `diagnose`, with what further examinations need; tasks are loaded only if `rescores`."""
    known = {task for run in runs for task in run.tasks}
    if unknown := [task for task in tasks if task not in known]:
        raise ResultsError(
            f"no run has task {unknown[0]!r}{suggest(unknown[0], known)}; choose from {', '.join(sorted(known))}"
        )
    base_run = find_baseline(runs, baseline) if len(runs) > 1 else None
    ordered = [run for run in runs if run is base_run] + [run for run in runs if run is not base_run]
    installed: dict[str, ConfigurableTask | str] = {}
    bases: dict[str, Case] = {}
    gains = {(row.run, row.task): row.gain for row in compared}
    examined = []
    for run in ordered:
        for name, result in run.tasks.items():
            if result.is_group or (tasks and name not in tasks):
                continue
            task = _installed(name, installed, include_path) if rescores else NOT_LOADED
            diagnosis, case = _diagnose(run, result, bases.get(name), task, base_run if rescores else None, gains)
            if run is base_run and case is not None:
                bases[name] = case
            kept = case if rescores else None  # the samples of all runs need not be in memory at once
            examined.append(Examined(diagnosis, kept, None if isinstance(task, str) else task))
    return _with_checkpoints(examined)


def _with_checkpoints(examined: Sequence[Examined]) -> list[Examined]:
    """With what only shows beside other checkpoints of the same training."""
    cases = [each.case for each in examined if each.case is not None]
    done = []
    for each in examined:
        if each.case is not None:
            of_task = [case for case in cases if case.result.task == each.case.result.task]
            findings = in_order([*each.diagnosis.findings, *find_earlier_checkpoint(each.case, of_task)])
            each = replace(each, diagnosis=replace(each.diagnosis, findings=findings))
        done.append(each)
    return done


def _diagnose(
    run: Run,
    result: TaskResult,
    base: Case | None,
    task: ConfigurableTask | str,
    base_run: Run | None,
    gains: Mapping[tuple[str, str], Gain | None],
) -> tuple[Diagnosis, Case | None]:
    name = result.task
    try:
        metric = result.primary
        outputs = read_outputs(result, metric.filter)
    except ResultsError as error:
        return Diagnosis(name, run.name, "", 0, None, (), (str(error),)), None
    case = Case(run, result, metric, outputs, base)
    if not outputs:
        note = "no samples were logged, so nothing can be examined; evaluate again with --log_samples"
        return Diagnosis(name, run.name, metric.metric, 0, None, find_abstaining(case, {}), (note,)), None
    notes = []
    if isinstance(task, str):
        notes.append(f"the outputs are not scored in other readings: {task}")
    elif case.is_generated:
        case = replace(case, rescorer=Rescorer(task, metric.metric, metric.filter))
    proved = rescored(case)
    findings = [*find_form(case, proved), *find_abstaining(case, proved)]
    for find in (find_labels, find_stopping, find_cut_answers):
        findings += find(case)
    findings += find_leaks(case, _training_documents(task))
    if (run.name, name) not in gains and base is not None:
        gains = {(run.name, name): _gain(base_run, run, name)}
    findings += find_against_base(case, gains.get((run.name, name)))
    return Diagnosis(name, run.name, metric.metric, len(outputs), decompose(case), in_order(findings), notes), case


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first; within a level proved findings first, those with the largest gain before the others.

    What is only a symptom of other findings comes last in its level.
    """

    def key(finding: Finding) -> tuple[int, bool, bool, float]:
        numbers = finding.numbers
        gain = float(numbers.get("after", 0.0)) - float(numbers.get("before", 0.0))
        return _LEVELS[finding.level], not numbers.get("proved", False), finding.id in _SYMPTOMS, -gain

    return sorted(findings, key=key)


def _installed(
    name: str, installed: dict[str, ConfigurableTask | str], include_path: Sequence[str | Path]
) -> ConfigurableTask | str:
    """The task, or in one line why it cannot be loaded here."""
    if name not in installed:
        try:
            installed[name] = load_task(name, include_path=include_path)
        except HarnessExtError as error:
            installed[name] = str(error)
    return installed[name]


def _training_documents(task: ConfigurableTask | str) -> Iterable[Mapping[str, Any]] | None:
    if isinstance(task, str):
        return None
    try:
        return task.training_docs() if task.has_training_docs() else None
    except Exception as error:  # whatever a task's own code raises
        logger.debug("the training split of %s cannot be read: %s", task.task_name, described(error))
        return None


def _gain(base_run: Run | None, run: Run, task: str) -> Gain | None:
    if base_run is None:
        return None
    try:
        (row,) = compare_runs([base_run, run], baseline=base_run.name, tasks=[task], group_seeds=False).rows
    except HarnessExtError:  # not comparable: D19 says so
        return None
    return row.gain
