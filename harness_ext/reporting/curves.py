"""Curves of a task: scores by checkpoint and by training examples, and the course of sequential evaluations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext.comparison.rows import Row, Score
from harness_ext.metrics.statistic import SHARE
from harness_ext.models.card import checkpoint_selection
from harness_ext.reporting.contents import Course, Curve, CurvePoint
from harness_ext.results.run import Run
from harness_ext.stats.intervals import Interval

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def curves_of(task: str, rows: Sequence[Row], runs: Sequence[Run]) -> list[Curve]:
    """All curves of a task.

    Args:
        task: its name.
        rows: of the task.
        runs: that were compared.
    """
    return [*_checkpoint_curves(rows, runs), *_learning_curves(rows, runs), *_training_curves(task, runs)]


def courses_of(task: str, rows: Sequence[Row], runs: Sequence[Run]) -> list[Course]:
    """The looks at each run that was watched with --until-decided, if its metric is that of the rows."""
    of_run = {row.run: row for row in rows}
    courses = []
    for run in runs:
        record = run.tasks[task].sequential if task in run.tasks else None
        if record is None or not record.looks or record.planned.metric != rows[0].metric:
            continue
        row = of_run.get(run.name)
        is_covered = row is not None and row.sequential is not None
        courses.append(Course(run.name, rows[0].unit, record, row if is_covered else None))
    return courses


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
        _curve(f"Checkpoints of {Path(training).name}", "training step", points, rows[0])
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
        _curve(f"Adapters trained on {task}", "training examples", points, rows[0])
        for (_, task), points in families.items()
        if len({point.x for point in points}) > 1
    ]


def _curve(title: str, x: str, points: Sequence[CurvePoint], row: Row) -> Curve:
    """A curve of scores of this comparison, so that the baseline belongs into it."""
    ordered = tuple(sorted(points, key=lambda point: (point.x, point.run)))
    return Curve(title, x, row.metric, row.unit, ordered, baseline=row.baseline.value)


def _training_curves(task: str, runs: Sequence[Run]) -> list[Curve]:
    """Scores in training (`train --evaluate-every`) of adapters that were trained on the task, from their cards."""
    selections = [
        (run.name, selection)
        for run in runs
        if run.card.get("task") == task and (selection := checkpoint_selection(run.card)) is not None
    ]
    return [_training_curve(run, selection) for run, selection in selections]


def _training_curve(run: str, selection: Mapping[str, Any]) -> Curve:
    again = selection["chosen_again"]
    points = tuple(CurvePoint(run, float(point["step"]), _score(point)) for point in selection["curve"])
    return Curve(
        title=f"{run} in training",
        x="training step",
        metric=selection["metric"],
        unit=SHARE if selection["is_share"] else "",
        points=points,
        chosen=CurvePoint(run, float(selection["chosen_step"]), _score(again)),
        note=f"Scored on {selection['documents']:,} documents of the training split that were not trained on. Kept: "
        f"step {selection['chosen_step']:,} of {selection['planned_steps']:,}, scored again on "
        f"{again['documents']:,} other documents.",
    )


def _score(numbers: Mapping[str, Any]) -> Score:
    return Score(numbers["score"], Interval(numbers["low"], numbers["high"]))
