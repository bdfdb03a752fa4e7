"""Runs from the results files and folders that lm-eval wrote, ours or stock."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness_ext.errors import ResultsError
from harness_ext.results.file import DATE, date_of, ours_in, parse_run, read_payload
from harness_ext.results.run import PRIMARY_METRICS, MetricValue, Run, TaskResult

__all__ = ["PRIMARY_METRICS", "MetricValue", "Run", "TaskResult", "load_runs"]

logger = logging.getLogger(__name__)

HOW_FAST = ("merge", "pack_tokens", "cache_tokens")  # arguments of `hf-tree` that leave the scores as they are


def load_runs(*paths: str | os.PathLike[str]) -> list[Run]:
    """Read runs from results files and from folders, which are searched recursively.

    In a folder, several dates of one run (same folder, same model arguments) become one run that takes
    every task from its newest file. The same run in several folders becomes one where no task stands twice,
    and so does a base that scored the same wherever it stands twice. A results file that is named itself is
    always a run of its own. Names are unique: runs of equal name get their parent folders in front.

    Raises:
        ResultsError: a path without results, an unreadable file.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, Run]]] = defaultdict(list)
    seen: set[Path] = set()
    for path in map(Path, paths):
        for file, payload in _find(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                run = parse_run(file, payload)
                groups[_identity(run, file, payload, explicit=path.is_file())].append((file, run))
    if not groups:
        raise ResultsError("no results given; name a results file or a folder written with --output_path")
    folders: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for identity, found in groups.items():
        folders[identity[1:] or identity].append(_merge([run for _, run in sorted(found, key=_by_date)]))
    return _unique_names([run for parts in folders.values() for run in _joined(parts)])


def _find(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Results files at a path with their content, sorted by path."""
    if path.is_file():
        payload = read_payload(path)
        if not isinstance(payload.get("results"), dict):
            raise ResultsError(f"{path}: not a results file of lm-eval (no 'results' in it); name results_DATE.json")
        return [(path, payload)]
    if not path.is_dir():
        raise ResultsError(f"{path}: no such file or folder; evaluate with --output_path {path} --log_samples first")
    files = [f for f in sorted(path.rglob("*.json")) if f.name.startswith("results") or DATE.search(f.stem)]
    found = [(file, payload) for file in files if isinstance((payload := read_payload(file)).get("results"), dict)]
    if not found:
        raise ResultsError(f"{path}: no results_*.json below it; evaluate with --output_path {path} --log_samples")
    return found


def _by_date(found: tuple[Path, Run]) -> tuple[str, str]:
    return date_of(found[0]), found[0].name


def _identity(run: Run, file: Path, payload: Mapping[str, Any], *, explicit: bool) -> tuple[str, ...]:
    """What files of one run have in common; a file that was named itself is its own run."""
    if explicit:
        return (str(file.resolve()),)
    telling = {name: value for name, value in run.model_args.items() if name not in HOW_FAST}
    arguments = json.dumps(telling, sort_keys=True, default=str)
    return str(file.parent.resolve()), arguments, str(run.adapter), str(ours_in(payload).get("variant"))


def _merge(runs: Sequence[Run]) -> Run:
    """One run out of several dates, oldest first: every task from its newest file."""
    tasks: dict[str, TaskResult] = {}
    for run in runs:
        for task, result in run.tasks.items():
            if task in tasks and result.n < tasks[task].n:
                logger.warning("%s: %s has %d documents, an older run %d", run.path, task, result.n, tasks[task].n)
            tasks[task] = result
    return replace(runs[-1], tasks=tasks)


def _joined(parts: Sequence[Run]) -> list[Run]:
    """One run out of its parts in several folders, unless they contradict each other."""
    for place, first in enumerate(parts):
        if not all(_agree(first, second) for second in parts[place + 1 :]):
            return list(parts)
    return [_merge(sorted(parts, key=lambda run: date_of(run.path)))]


def _agree(first: Run, second: Run) -> bool:
    """Whether no task stands in both, or, of a base, with the same numbers."""
    shared = first.tasks.keys() & second.tasks.keys()
    if first.adapter is not None:
        return not shared
    return all(_numbers(first.tasks[task]) == _numbers(second.tasks[task]) for task in shared)


def _numbers(result: TaskResult) -> tuple[object, ...]:
    values = [(name, repr(metric.value)) for name, metric in result.metrics.items()]
    return result.n, result.fingerprint, result.version, result.n_shot, sorted(values)


def _unique_names(runs: Sequence[Run]) -> list[Run]:
    """Put in front of a name that is not unique the nearest parent folder that tells its runs apart."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.name].append(run)
    labels = {id(run): label for group in groups.values() for run, label in zip(group, _labels(group), strict=True)}
    return [replace(run, name=labels[id(run)]) for run in runs]


def _labels(group: Sequence[Run]) -> list[str]:
    """Names for runs that share one: folder/name, or name (date) for files in one folder."""
    if len(group) == 1:
        return [group[0].name]
    parents = [run.path.resolve().parent.parts[::-1] for run in group]  # nearest folder first
    for folders in zip(*parents, strict=False):
        if len(set(folders)) == len(group):
            return [f"{folder}/{run.name}" for folder, run in zip(folders, group, strict=True)]
    return [f"{run.path.resolve().parent.name}/{run.name} ({date_of(run.path) or run.path.name})" for run in group]
