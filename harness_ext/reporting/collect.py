"""Collect the contents of a report from runs, their comparison and their diagnoses."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness_ext.comparison.rows import Comparison, Row
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.errors import HarnessExtError
from harness_ext.reporting.contents import Curve, CurvePoint, Report, SampleSet, TaskFigures
from harness_ext.reporting.measures import Measures, distributions, kinds_of_document
from harness_ext.reporting.provenance import facts_of
from harness_ext.reporting.samples import Budget, Scan, budgets, sample_set, scan
from harness_ext.results.run import Run
from harness_ext.version import __version__

MOST_RUNS = 24  # whose outputs are shown: the baseline and the first others, in the order of the table
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def collect(
    runs: Sequence[Run],
    comparison: Comparison,
    diagnoses: Sequence[Diagnosis],
    *,
    results: Sequence[str] = (),
    clusters: Mapping[str, str] | None = None,
    limits: Budget | None = None,
    missing: Sequence[str] = (),
) -> Report:
    """Collect everything that a report shows; samples are read line by line.

    Args:
        runs: as returned by `load_runs`.
        comparison: of these runs.
        diagnoses: of these runs.
        results: the paths that were loaded, for the command that repeats the comparison.
        clusters: column that names the unit of evidence, by task name or pattern.
        limits: how many documents and characters go into the file.
        missing: what could not be examined, and why.
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
        commands=_commands(results, comparison),
        missing=notes,
        version=__version__,
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
    return TaskFigures(
        task=task,
        rows=rows,
        confusions=[matrix for each in measures if (matrix := each.confusion())],
        reliabilities=[diagram for each in measures if (diagram := each.reliability())],
        distributions=distributions(measures, rows[0].metric),
        kinds=kinds_of_document(measures),
        curves=[*_checkpoint_curves(rows, runs), *_learning_curves(rows, runs)],
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


# -- curves --------------------------------------------------------------------------------------------------------


def _checkpoint_curves(rows: Sequence[Row], runs: Sequence[Run]) -> list[Curve]:
    """Scores of the checkpoints of one training by step, where two or more of them were compared."""
    trainings: dict[str, list[CurvePoint]] = defaultdict(list)
    of_run = {row.run: row for row in rows}
    for run in runs:
        path = Path(run.adapter or "")
        match = _CHECKPOINT.fullmatch(path.name)
        if match and run.name in of_run:
            trainings[str(path.parent)].append(CurvePoint(run.name, float(match[1]), of_run[run.name].score))
    return [
        Curve(f"Checkpoints of {Path(training).name}", "training step", _by_x(points))
        for training, points in trainings.items()
        if len(points) > 1
    ]


def _learning_curves(rows: Sequence[Row], runs: Sequence[Run]) -> list[Curve]:
    """Scores of adapters that were trained on the same task and base, by their number of training examples."""
    families: dict[tuple[str, str], list[CurvePoint]] = defaultdict(list)
    of_run = {row.run: row for row in rows}
    for run in runs:
        examples, is_checkpoint = run.card.get("examples"), _CHECKPOINT.fullmatch(Path(run.adapter or "").name)
        if isinstance(examples, int) and run.name in of_run and not is_checkpoint:
            family = str(run.card.get("base")), str(run.card.get("task"))
            families[family].append(CurvePoint(run.name, float(examples), of_run[run.name].score))
    return [
        Curve(f"Adapters trained on {task}", "training examples", _by_x(points))
        for (_, task), points in families.items()
        if len({point.x for point in points}) > 1
    ]


def _by_x(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    return tuple(sorted(points, key=lambda point: (point.x, point.run)))


def _commands(results: Sequence[str], comparison: Comparison) -> list[str]:
    if not results:
        return []
    paths = [str(path) for path in results]
    baseline = ["--baseline", comparison.baseline]
    return [
        shlex.join(["harness-ext", "compare", *paths, *baseline]),
        shlex.join(["harness-ext", "doctor", *paths, *baseline]),
        shlex.join(["harness-ext", "report", *paths, *baseline, "--output", "report.html"]),
    ]
