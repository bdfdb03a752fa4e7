"""Runs from the results files and folders of lm-eval, ours or stock, and from those of other tools."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness_ext.errors import ResultsError
from harness_ext.results import evalscope, inspect_log
from harness_ext.results.file import DATE, date_of, ours_in, parse_run, read_payload
from harness_ext.results.run import LM_EVAL, PRIMARY_METRICS, MetricValue, Run, TaskResult
from harness_ext.results.table import read_table

__all__ = ["PRIMARY_METRICS", "MetricValue", "Run", "TaskResult", "load_runs"]

logger = logging.getLogger(__name__)

HOW_FAST = ("merge", "pack_tokens", "cache_tokens")  # arguments of `hf-tree` that leave the scores as they are


@dataclass(frozen=True)
class _Part:
    """What one results file says of one run."""

    run: Run
    place: str  # its folder; of a file that was named itself, the file: such a run stands alone
    identity: tuple[str, ...]  # what files of one run have in common, wherever they lie
    date: tuple[str, str]


def load_runs(*paths: str | os.PathLike[str]) -> list[Run]:
    """Read runs from results files and from folders, which are searched recursively.

    In a folder, several dates of one run (same folder, same model arguments) become one run that takes
    every task from its newest file. The same run in several folders becomes one where no task stands twice,
    and so does a base that scored the same wherever it stands twice. A results file that is named itself is
    always a run of its own. Names are unique: runs of equal name get their parent folders in front.

    Results of other tools are found by their form: Inspect's logs (`*.eval`, or JSON), EvalScope's reports. A CSV with
    one row for each document has to be named itself. Logs of one model, named one by one, are one run unless they
    have a task in common.

    Raises:
        ResultsError: a path without results, an unreadable file.
    """
    groups: dict[tuple[str, ...], list[_Part]] = defaultdict(list)
    seen: set[Path] = set()
    for path in map(Path, paths):
        for file, parts in _find(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                for part in parts:
                    key = part.place, *part.identity
                    groups[key].append(part)
    if not groups:
        raise ResultsError("no results given; name a results file or a folder written with --output_path")
    folders: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for identity, found in groups.items():
        dated = [part.run for part in sorted(found, key=lambda part: part.date)]
        folders[identity[1:] or identity] += dated if _are_apart(dated) else [_merge(dated)]
    return _unique_names([run for parts in folders.values() for run in _joined(parts)])


def _find(path: Path) -> list[tuple[Path, list[_Part]]]:
    """Results files at a path with the runs in them, sorted by path."""
    if path.is_file():
        return [(path, _named_file(path))]
    if not path.is_dir():
        raise ResultsError(f"{path}: no such file or folder; evaluate with --output_path {path} --log_samples first")
    found = []
    unfinished: list[inspect_log.UnfinishedLog] = []
    for file in sorted([*path.rglob("*.json"), *path.rglob(f"*{inspect_log.SUFFIX}")]):
        try:
            part = _file_in_folder(file)
        except inspect_log.UnfinishedLog as error:
            logger.warning("%s (left out)", error)
            unfinished.append(error)
        else:
            found += [(file, [part])] if part else []
    if unfinished and not found:
        raise unfinished[0]
    if not found:
        raise ResultsError(
            f"{path}: no results_*.json below it; evaluate with --output_path {path} --log_samples, or name results "
            "of Inspect or EvalScope, or a CSV file itself"
        )
    return found


def _file_in_folder(file: Path) -> _Part | None:
    """The run in a file of a folder, told by its name, its place or how it begins; None for other files."""
    if not file.is_file():
        return None
    if file.suffix == inspect_log.SUFFIX or inspect_log.begins_log(file):
        return _inspect_part(file, inspect_log.read_log(file), str(file.parent.resolve()))
    if file.name.startswith("results") or DATE.search(file.stem):
        payload = read_payload(file)
        if isinstance(payload.get("results"), dict):
            return _lm_eval_part(file, payload, str(file.parent.resolve()))
    elif file.parent.parent.name == evalscope.REPORTS and evalscope.is_report(payload := read_payload(file)):
        return _evalscope_part(file, payload, str(evalscope.root_of(file).resolve()))
    return None


def _named_file(file: Path) -> list[_Part]:
    """The runs in a file that was named itself, whatever tool wrote it."""
    place = str(file.resolve())
    if file.suffix == ".csv":
        return [_Part(run, place, (run.tool, run.name), ("", file.name)) for run in read_table(file)]
    if file.suffix == inspect_log.SUFFIX or inspect_log.begins_log(file):
        return [_inspect_part(file, inspect_log.read_log(file), place)]
    payload = read_payload(file)
    if evalscope.is_report(payload):
        return [_evalscope_part(file, payload, place)]
    if isinstance(payload.get("results"), dict):
        return [replace(_lm_eval_part(file, payload, place), identity=())]
    raise ResultsError(f"{file}: not a results file of lm-eval (no 'results' in it); name results_DATE.json")


def _lm_eval_part(file: Path, payload: Mapping[str, Any], place: str) -> _Part:
    run = parse_run(file, payload)
    telling = {name: value for name, value in run.model_args.items() if name not in HOW_FAST}
    identity = _text(telling), str(run.adapter), str(ours_in(payload).get("variant"))
    return _Part(run, place, identity, (date_of(file), file.name))


def _inspect_part(file: Path, log: Mapping[str, Any], place: str) -> _Part:
    run = inspect_log.parse_run(file, log)
    return _Part(run, place, (run.tool, run.name, _text(run.model_args)), (str(log["eval"].get("created")), file.name))


def _evalscope_part(file: Path, payload: Mapping[str, Any], place: str) -> _Part:
    run = evalscope.parse_run(file, payload)
    return _Part(run, place, (run.tool, run.name, _text(run.model_args)), ("", file.name))


def _text(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=str)


def _are_apart(runs: Sequence[Run]) -> bool:
    """Whether another tool's logs in one folder ask one task in different ways: no new evaluation of an old run."""
    protocols: dict[str, set[str | None]] = defaultdict(set)
    for run in runs:
        for task, result in run.tasks.items():
            protocols[task].add(result.fingerprint)
    return runs[0].tool != LM_EVAL and any(len(each) > 1 for each in protocols.values())


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
    if first.adapter is not None or first.tool != LM_EVAL:
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
