"""Write a report: compare, diagnose, collect, render."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness_ext.atomic import write_chunks
from harness_ext.comparison.rows import Comparison
from harness_ext.doctor.diagnose import MOST_DOCUMENTS, diagnose
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.errors import HarnessExtError
from harness_ext.leaderboard import Leaderboard, compare_runs
from harness_ext.render.report.page import page
from harness_ext.reporting.collect import collect
from harness_ext.reporting.diagnoses import read_diagnoses, with_saved
from harness_ext.reporting.samples import Budget
from harness_ext.results.run import Run

MOST_BYTES = 256 * 2**20  # of the logged outputs of a task and run that the doctor may hold in memory


def write_report(
    runs: Sequence[Run],
    output: str | Path,
    *,
    results: Sequence[str] = (),
    flags: Sequence[str] = (),
    include_path: Sequence[str | Path] = (),
    doctor: Sequence[str | Path] = (),
    limits: Budget | None = None,
    **options: Any,
) -> Leaderboard:
    """Compare runs and write everything that is known about them into one HTML file.

    Args:
        runs: as returned by `load_runs`.
        output: the file to write; its folder has to exist.
        results: the paths that the runs were loaded from, for the commands on the page.
        flags: of `harness-ext compare` that say the same as `options`, for the commands on the page.
        include_path: folders of further tasks, to score outputs again in other readings.
        doctor: files that `harness-ext doctor --format json` wrote about these results.
        limits: how many documents and characters of samples go into the file.
        options: of `compare_runs`.

    Returns:
        The comparison that is on the page.

    Raises:
        ComparisonError: the runs cannot be compared.
        HarnessExtError: a file of the doctor cannot be read, or is of other results.
        WriteError: the file cannot be written.
    """
    saved = [(file, *read_diagnoses(file)) for file in doctor]
    comparison = compare_runs(runs, **options)
    diagnoses, missing = _diagnoses(runs, comparison, include_path, options.get("tasks") or ())
    for file, of_results, _ in saved:
        diagnoses = with_saved(diagnoses, of_results, file)
    report = collect(
        runs,
        comparison,
        diagnoses,
        commands=_commands(results, flags, comparison, include_path, doctor),
        flags=flags,
        clusters=options.get("clusters") or {},
        limits=limits,
        missing=missing,
        examinations=[each for _, _, examinations in saved for each in examinations],
    )
    write_chunks(output, page(report))
    return comparison


def _not_compared(runs: Sequence[Run], compared: Collection[str]) -> dict[str, list[str]]:
    """Tasks that only one run has, each with its run: their outputs can be examined, though there is no difference."""
    having: dict[str, list[str]] = {}
    for run in runs:
        for name, result in run.tasks.items():
            if name not in compared and not result.is_group:
                having.setdefault(name, []).append(run.name)
    return {task: names for task, names in having.items() if len(names) == 1}


def _diagnoses(
    runs: Sequence[Run], comparison: Comparison, include_path: Sequence[str | Path], only: Sequence[str] = ()
) -> tuple[list[Diagnosis], list[str]]:
    """Diagnoses of the compared runs, and which tasks are too large to be examined on the side."""
    names, tasks = {comparison.baseline, *comparison.runs}, {row.task for row in comparison.rows}
    small: list[Run] = []
    missing: dict[str, None] = {}
    alone = {} if only else _not_compared([run for run in runs if run.name in names], tasks)
    for task, run_names in alone.items():
        missing[f"{task} was not compared: only {', '.join(run_names)} was evaluated on it"] = None
    for run in (run for run in runs if run.name in names):
        kept = {}
        for name, result in run.tasks.items():
            if name not in tasks and name not in alone:
                continue
            path = result.samples_path
            if result.n > MOST_DOCUMENTS or (path is not None and path.is_file() and path.stat().st_size > MOST_BYTES):
                missing[f"the outputs on {name} are too many to be examined here; run `harness-ext doctor`"] = None
            else:
                kept[name] = result
        small.append(replace(run, tasks=kept))
    if not any(run.tasks for run in small):
        return [], [*missing]
    try:
        found = diagnose(small, baseline=comparison.baseline, include_path=include_path, compared=comparison.rows)
        return found, [*missing]
    except HarnessExtError as error:
        return [], [*missing, f"the outputs were not examined: {error}"]


def _commands(
    results: Sequence[str],
    flags: Sequence[str],
    comparison: Comparison,
    include_path: Sequence[str | Path],
    doctor: Sequence[str | Path],
) -> list[str]:
    """The commands that compare the same results again."""
    if not results:
        return []
    baseline = ["--baseline", comparison.baseline]
    again = [*results, *([] if "--baseline" in flags else baseline), *flags]
    folders = [word for folder in include_path for word in ("--include_path", str(folder))]
    saved = ["--doctor", *map(str, doctor)] if doctor else []
    return [
        shlex.join(["harness-ext", *words])
        for words in (
            ["compare", *again],
            ["doctor", *results, *baseline, *folders],
            ["report", *again, *folders, *saved, "--output", "report.html"],
        )
    ]
