"""A plan from a pilot: for each task and run, the spread of its differences and the speed that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness_ext.comparison.compare import find_baseline
from harness_ext.comparison.measure import Settings, measure
from harness_ext.comparison.pair import pair
from harness_ext.errors import ComparisonError
from harness_ext.results.run import Run
from harness_ext.stats.sequential.planning import Spread, measured_spread


@dataclass(frozen=True)
class Pilot:
    """What a pilot says about one task and run."""

    task: str
    run: str
    metric: str
    unit: str
    spread: Spread
    difference: float  # observed
    margin: float | None
    documents: int  # of the data set; of the pilot if that is unknown
    passage_size: float  # mean number of documents of a passage; 1 without passages
    seconds: float | None  # for one document, base and run together; None if it was not logged


def pilots_of(
    runs: Sequence[Run], *, baseline: str | None = None, tasks: Sequence[str] = ()
) -> tuple[list[Pilot], list[str]]:
    """The pilots in some results, and why others cannot serve as one.

    Args:
        runs: as returned by `load_runs`.
        baseline: name of the run to compare with; None: the one without an adapter.
        tasks: names of tasks; empty: all.

    Raises:
        ComparisonError: there is no baseline, or nothing can serve as a pilot.
    """
    base_run = find_baseline(runs, baseline)
    pilots, refused = [], []
    for run in runs:
        if run is base_run:
            continue
        for task in sorted(base_run.tasks.keys() & run.tasks.keys()):
            if base_run.tasks[task].is_group or (tasks and task not in tasks):
                continue
            try:
                pilots.append(_pilot(base_run, run, task))
            except ValueError as error:
                refused.append(f"{task}, {run.name}: {error}")
    if not pilots:
        reasons = f" ({refused[0]})" if refused else ""
        raise ComparisonError(
            f"nothing in these results can serve as a pilot{reasons}; pass results of a base and an adapter with "
            "--log_samples, or assume rates with --documents and --discordant"
        )
    return pilots, refused


def _pilot(base_run: Run, run: Run, task: str) -> Pilot:
    settings = Settings()
    base = measure(base_run, task, settings)
    both = pair(base, run.name, {"": measure(run, task, settings, like=base)}, settings)
    if both.before is None:
        raise ValueError(both.not_tested or "no samples logged")
    if not base.statistic.is_mean or base.statistic.scale != "linear":
        raise ValueError(f"{base.metric.metric} is not a mean of documents; only such metrics can be watched")
    before, (after, *_) = both.numbers()
    differences, clusters = after[:, 0] - before[:, 0], both.clusters
    clusters = clusters if clusters is not None and clusters.count < len(clusters) else None
    speeds = [each.seconds_per_document for each in (base_run, run)]
    return Pilot(
        task, run.name, base.metric.metric, base.statistic.unit, measured_spread(differences, clusters),
        float(differences.mean()), base.margin(settings), base.result.available or both.n,
        1.0 if clusters is None else len(clusters) / clusters.count,
        None if None in speeds else sum(speed for speed in speeds if speed is not None),
    )  # fmt: skip
