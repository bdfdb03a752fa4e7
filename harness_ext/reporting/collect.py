"""Collect the contents of a report from runs, their comparison and their diagnoses."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence

from harness_ext.comparison.rows import Comparison, Row
from harness_ext.doctor.diagnosis import Diagnosis, Examination
from harness_ext.errors import HarnessExtError
from harness_ext.reporting.commands import RESULTS, evaluation_commands
from harness_ext.reporting.contents import Report, SampleSet, TaskFigures
from harness_ext.reporting.curves import courses_of, curves_of
from harness_ext.reporting.datasets import dataset_of
from harness_ext.reporting.measures import Measures, distributions, kinds_of_document
from harness_ext.reporting.provenance import facts_of
from harness_ext.reporting.samples import Budget, Scan, budgets, sample_set, scan
from harness_ext.results.run import LM_EVAL, Run
from harness_ext.version import __version__

MOST_RUNS = 24  # whose outputs are shown: the baseline and the first others, in the order of the table


def collect(
    runs: Sequence[Run],
    comparison: Comparison,
    diagnoses: Sequence[Diagnosis],
    *,
    commands: Sequence[str] = (),
    flags: Sequence[str] = (),
    clusters: Mapping[str, str] | None = None,
    limits: Budget | None = None,
    missing: Sequence[str] = (),
    examinations: Sequence[Examination] = (),
) -> Report:
    """Collect everything that a report shows; samples are read line by line.

    Args:
        runs: as returned by `load_runs`.
        comparison: of these runs.
        diagnoses: of these runs.
        commands: that compare the same files again.
        flags: of `harness-ext compare`, to compare in the same way.
        clusters: column that names the unit of evidence, by task name or pattern.
        limits: how many documents and characters go into the file.
        missing: what could not be examined, and why.
        examinations: of adapters and trainings.
    """
    names = (comparison.baseline, *comparison.runs)
    compared = sorted((run for run in runs if run.name in names), key=lambda run: names.index(run.name))
    shown = compared[:MOST_RUNS]
    notes = list(missing)
    if len(compared) > len(shown):
        notes.append(f"samples and figures of the first {len(shown)} of {len(compared)} runs are shown; --runs chooses")
    tasks: list[TaskFigures] = []
    scanned: list[tuple[Row, list[str], list[Scan]]] = []
    for task, rows in _by_task(comparison.rows).items():
        measures, scans, reasons = _scanned(task, rows[0], shown)
        tasks.append(_figures(task, rows, measures, compared, reasons))
        if scans:
            scanned.append((rows[0], [each.run for each in measures], scans))
    return Report(
        comparison=comparison,
        diagnoses=diagnoses,
        tasks=tasks,
        samples=_sample_sets(scanned, clusters or {}, limits),
        runs=[facts_of(run) for run in compared],
        evaluations=evaluation_commands(compared),
        repeat=shlex.join(["harness-ext", "compare", RESULTS, *flags]),
        commands=commands,
        missing=notes,
        version=__version__,
        examinations=examinations,
    )


def _by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.is_group:
            by_task[row.task].append(row)
    return by_task


def _scanned(task: str, row: Row, runs: Sequence[Run]) -> tuple[list[Measures], list[Scan], list[str]]:
    """The figures and the scan of each run that logged samples of a task; and why others have none."""
    measures, scans, reasons = [], [], []
    for run in runs:
        if task not in run.tasks:
            continue
        each = Measures(run.name, run.tasks[task])
        try:
            found = scan(run.tasks[task], row, each)
        except HarnessExtError as error:
            reasons.append(f"{run.name}: {error}")
            continue
        if len(found):
            measures.append(each)
            scans.append(found)
    return measures, scans, reasons


def _figures(
    task: str, rows: Sequence[Row], measures: Sequence[Measures], runs: Sequence[Run], reasons: Sequence[str]
) -> TaskFigures:
    results = [run.tasks[task] for run in runs if task in run.tasks]
    return TaskFigures(
        task=task,
        rows=rows,
        available=max((each.available for each in results if each.available is not None), default=None),
        data=str(dataset_of(results[0])) if results and runs[0].tool == LM_EVAL else "",
        confusions=[matrix for each in measures if (matrix := each.confusion())],
        reliabilities=[diagram for each in measures if (diagram := each.reliability())],
        distributions=distributions(measures, rows[0].metric),
        kinds=kinds_of_document(measures),
        curves=curves_of(task, rows, runs),
        courses=courses_of(task, rows, runs),
        notes=reasons,
    )


def _sample_sets(
    scanned: Sequence[tuple[Row, list[str], list[Scan]]], clusters: Mapping[str, str], limits: Budget | None
) -> list[SampleSet]:
    shares = budgets([len(scans[0]) for _, _, scans in scanned], limits)
    return [
        sample_set(row, names, scans, share, clusters)
        for (row, names, scans), share in zip(scanned, shares, strict=True)
    ]
