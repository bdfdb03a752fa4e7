"""Compare runs with their baseline: paired by document, tested, corrected, ranked, and warned about."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from harness_ext.analysis.comparability import check_allowed, tokenizer_note
from harness_ext.analysis.comparison import Comparison
from harness_ext.analysis.findings import costs_of, is_other_task, notes_for, warnings_for
from harness_ext.analysis.paired import minimum_detectable_difference, needed_n, retention, verdict
from harness_ext.analysis.ranks import ranks
from harness_ext.analysis.rows import Row
from harness_ext.analysis.runs import Run
from harness_ext.analysis.seeds import Contender, contenders
from harness_ext.analysis.statistics import ALPHA, holm
from harness_ext.analysis.trials import Entry, Settings, Trial, read_entry, try_run, try_seeds
from harness_ext.errors import ComparisonError, suggest

Order = Literal["name", "rank", "difference", "score"]
ORDERS: tuple[str, ...] = get_args(Order)


def compare_runs(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    metric: str | None = None,
    margin: float = 1.0,
    seed: int = 0,
    allow: Sequence[str] = (),
    tasks: Sequence[str] = (),
    only: Sequence[str] = (),
    sort: Order | None = None,
    group_seeds: bool = True,
) -> Comparison:
    """Compare every run with the baseline, on every task both have.

    Documents are paired by doc_hash; questions on one passage count as one cluster. Runs without logged
    samples are shown and not tested. Runs that differ only in their seed make one row.

    Args:
        runs: as `load_runs` returns them; names must differ.
        baseline: name of the run to compare with; None finds the one without an adapter.
        metric: to compare instead of each task's primary one.
        margin: differences up to this many points count as equivalent.
        seed: of permutations and bootstraps.
        allow: fields of the protocol that may differ; the rows are marked.
        tasks: names or patterns (`sst2_*`) of tasks; none: all.
        only: names or patterns of runs beside the baseline; none: all.
        sort: of the rows of one task, and of a board's models; None: by name, a board by mean rank.
        group_seeds: False gives every seed a row of its own.

    Raises:
        ComparisonError: no baseline, nothing in common, or results that are not comparable.
        ResultsError: samples that cannot be read, or a metric that a task does not have.
    """
    if not 0 <= margin < 100:
        raise ComparisonError(f"--margin must be at least 0 and below 100 points, got {margin:g}; choose another")
    if sort is not None and sort not in ORDERS:
        raise ComparisonError(f"no order {sort!r}{suggest(sort, ORDERS)}; choose from {', '.join(ORDERS)}")
    check_allowed(allow, runs)
    chosen = find_baseline(runs, baseline)
    others = _matching([run for run in runs if run is not chosen], only)
    named = _shared_tasks(chosen, others, metric, tasks)
    entrants = contenders(others, group=group_seeds)
    settings = Settings(margin, seed, tuple(allow))
    rows: list[Row] = []
    warnings: list[str] = []
    for task in named:
        trials = _try_all(read_entry(chosen, task, metric), entrants, settings)
        rows += [trial.row for trial in trials]
        warnings += [said for trial in trials for said in trial.said]
    rows = _sorted(decide(_with_retention(rows, entrants, margin), margin), sort or "name")
    everyone = [*warnings_for(chosen, others, rows), *warnings, *_missing_tasks(chosen, others, named, bool(tasks))]
    tokenizers = [note for run in (chosen, *others) if (note := tokenizer_note(run))]
    return Comparison(
        baseline=chosen.name,
        margin=margin,
        rows=rows,
        warnings=list(dict.fromkeys(everyone)),
        notes=[*notes_for(rows, margin, has_adapter=any(run.adapter for run in others)), *tokenizers],
        costs=costs_of(entrants, rows),
        sort=sort,
    )


def decide(rows: Sequence[Row], margin: float) -> list[Row]:
    """Give every tested row its corrected p-value and its verdict, and an undecided one what would decide it.

    Args:
        rows: of the whole comparison: Holm's correction is over all of them.
        margin: of equivalence, in points.
    """
    tested = [row.paired for row in rows if row.paired is not None]
    corrected = iter(holm([paired.p_value for paired in tested]))
    return [row if row.paired is None else _decided(row, next(corrected), margin, len(tested)) for row in rows]


def _decided(row: Row, p_holm: float, points: float, tests: int) -> Row:
    assert row.paired is not None
    margin, alpha = row.margin(points), ALPHA / tests
    sign = 1 if row.higher_is_better else -1
    word = verdict(row.paired.interval.scaled(sign), margin=margin, p_value=p_holm)
    if word != "undecided":
        return replace(row, p_holm=p_holm, verdict=word)
    raw = row.paired.scaled(1 / row.factor)
    return replace(
        row,
        p_holm=p_holm,
        verdict=word,
        needed_n=needed_n(raw, margin=margin / row.factor, alpha=alpha),
        detectable=row.factor * minimum_detectable_difference(raw, alpha=alpha),
    )


def _try_all(entry: Entry, entrants: Sequence[Contender], settings: Settings) -> list[Trial]:
    """Every contender on one task, ranked among themselves and the baseline."""
    trials = []
    for entrant in entrants:
        having = {seed: run for seed, run in entrant.runs.items() if entry.result.task in run.tasks}
        if len(having) > 1:
            trials.append(try_seeds(entry, entrant, settings))
        elif having:
            trials.append(try_run(entry, next(iter(having.values())), settings))
    return _ranked(entry, trials)


def _ranked(entry: Entry, trials: Sequence[Trial]) -> list[Trial]:
    """Ranks on the documents that all tested runs have; none where nothing has scores per document."""
    scored = [trial.scores for trial in trials if trial.scores is not None]
    if not scored or entry.samples is None:
        return list(trials)
    common = np.logical_and.reduce([pair.among(len(entry.samples)) for pair in scored])
    if common.sum() < 2:
        return list(trials)
    first = scored[0]
    kept = [common[pair.rows] for pair in scored]
    columns = [first.before[kept[0]], *(pair.after[mask] for pair, mask in zip(scored, kept, strict=True))]
    clusters = None if first.clusters is None else first.clusters.take(kept[0])
    found = ranks(np.stack(columns, axis=1), clusters, higher_is_better=entry.metric.higher_is_better)
    places = iter(found[1:])
    return [
        replace(
            trial,
            row=replace(trial.row, rank=None if trial.scores is None else next(places), baseline_rank=found[0]),
        )
        for trial in trials
    ]


def _sorted(rows: Sequence[Row], order: Order) -> list[Row]:
    """By task, then as asked, then by name: the same on every machine."""
    keys: Mapping[str, Callable[[Row], float]] = {
        "name": lambda _: 0.0,
        "rank": lambda row: float("inf") if row.rank is None else row.rank,
        "difference": lambda row: -row.difference if row.higher_is_better else row.difference,
        "score": lambda row: -row.score.value if row.higher_is_better else row.score.value,
    }
    return sorted(rows, key=lambda row: (row.task, keys[order](row), row.run))


def _with_retention(rows: Sequence[Row], entrants: Sequence[Contender], margin: float) -> list[Row]:
    """Mark what an adapter kept of the tasks it was not trained on, where its card says which that is."""
    by_name = {entrant.name: next(iter(entrant.runs.values())) for entrant in entrants}
    marked = []
    for row in rows:
        if row.paired is not None and is_other_task(by_name[row.run], row.task):
            interval = row.paired.interval.scaled(1 if row.higher_is_better else -1)
            row = replace(row, retention=retention(interval, margin=row.margin(margin)))
        marked.append(row)
    return marked


def _matching(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Runs whose names match one of the patterns; all without patterns."""
    kept = _named([run.name for run in runs], patterns, "--runs")
    return [run for run in runs if run.name in kept]


def _named(names: Sequence[str], patterns: Sequence[str], flag: str) -> set[str]:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ComparisonError(
                f"{flag} {pattern!r} matches none of {', '.join(names)}{suggest(pattern, names)}; correct it"
            )
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)} or set(names)


def _shared_tasks(chosen: Run, others: Sequence[Run], metric: str | None, patterns: Sequence[str]) -> list[str]:
    shared = sorted(task for task in chosen.tasks if any(task in run.tasks for run in others))
    if shared:
        kept = _named(shared, patterns, "--tasks")
        shared = [task for task in shared if task in kept]
    if metric is not None:
        shared = [task for task in shared if metric in chosen.tasks[task].metrics]
    if not shared:
        raise ComparisonError(_nothing_shared(chosen, others, metric))
    return shared


def find_baseline(runs: Sequence[Run], name: str | None = None) -> Run:
    """Find the run to compare with: the named one, or the one without an adapter that the others build on.

    Raises:
        ComparisonError: fewer than two runs, equal names, an unknown name, no candidate, or several.
    """
    names = ", ".join(run.name for run in runs)
    if len(runs) < 2:
        raise ComparisonError(f"a comparison needs two runs, got {names or 'none'}; evaluate the base and the adapter")
    if len({run.name for run in runs}) < len(runs):
        raise ComparisonError(f"two runs have one name ({names}); load them in one call, which makes names unique")
    if name is not None:
        for run in runs:
            if run.name == name:
                return run
        known = suggest(name, [run.name for run in runs])
        raise ComparisonError(f"no run is named {name!r}{known}; choose the baseline from: {names}")
    bare = [run for run in runs if run.adapter is None]
    adapted = [run for run in runs if run.adapter is not None]
    fitting = [run for run in bare if adapted and all(_same_base(run, other) for other in adapted)] or bare
    if len(fitting) == 1:
        return fitting[0]
    if not bare:
        raise ComparisonError(f"no base among {names}; evaluate it without the adapter, or choose one with --baseline")
    raise ComparisonError(
        f"any of {', '.join(run.name for run in fitting)} could be the baseline; choose one with --baseline"
    )


def _same_base(first: Run, second: Run) -> bool:
    """Whether two runs use one base, called by hub id or by any path to it."""
    names = [(run.base or "").rstrip("/").rpartition("/")[2] for run in (first, second)]
    return bool(names[0]) and names[0] == names[1]


def _nothing_shared(chosen: Run, others: Sequence[Run], metric: str | None) -> str:
    if metric is not None:
        known = sorted({name for result in chosen.tasks.values() for name in result.metrics})
        return f"no shared task has metric {metric!r}{suggest(metric, known)}; {chosen.name} has {', '.join(known)}"
    names = ", ".join(run.name for run in others)
    return f"{chosen.name} shares no task with {names}; evaluate them on the same tasks"


def _missing_tasks(chosen: Run, others: Sequence[Run], shown: Sequence[str], chosen_tasks: bool) -> list[str]:
    """Say which results stand alone and are therefore not in the table, and which are missing from it."""
    said, absent = [], defaultdict(list)
    for run in others:
        if not chosen_tasks and (alone := sorted(set(run.tasks) - set(chosen.tasks))):
            said.append(f"{run.name}: {', '.join(alone)} left out, {chosen.name} was not evaluated on it")
        missing = tuple(task for task in (shown if chosen_tasks else sorted(chosen.tasks)) if task not in run.tasks)
        if missing and len(missing) < len(shown):
            absent[missing].append(run.name)
    for missing, names in absent.items():
        said.append(f"{', '.join(names)}: not evaluated on {', '.join(missing)}")
    return said
