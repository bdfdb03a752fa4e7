"""Load runs from results files and folders of lm-eval (stock or harness-ext) and of other tools."""

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
from harness_ext.names import clean_name
from harness_ext.results import evalscope, inspect_log
from harness_ext.results.file import DATE, date_of, harness_ext_keys, parse_run, read_payload
from harness_ext.results.run import LM_EVAL, Run, TaskResult
from harness_ext.results.table import read_table

logger = logging.getLogger(__name__)

SPEED_ARGUMENTS = ("merge", "pack_tokens", "cache_tokens")  # of `hf-tree`; they do not change scores


@dataclass(frozen=True)
class _Part:
    """One run as read from one results file; parts of the same run are merged."""

    run: Run
    place: str  # the file's folder; the file itself if it was given by name, so that it is not merged with its folder
    identity: tuple[str, ...]  # equal for all parts of a run, in any folder
    date: tuple[str, str]


@dataclass(frozen=True)
class LoadedResults:
    """What results files and folders hold."""

    runs: list[Run]
    unreadable: list[str]  # one line for each folder or run that is there and cannot be read


def load_runs(*paths: str | os.PathLike[str]) -> list[Run]:
    """The runs of `load_results`; what cannot be read is logged as a warning.

    Raises:
        ResultsError: a path has no results, or a file cannot be read.
    """
    loaded = load_results(*paths)
    for text in loaded.unreadable:
        logger.warning("%s (left out)", text)
    return loaded.runs


def load_results(*paths: str | os.PathLike[str]) -> LoadedResults:
    """Read runs from results files and from folders, which are searched recursively.

    Several results files of one run in one folder (same model arguments, different dates) are merged: every task comes
    from its newest file. Results of one run in several folders are merged if no task occurs twice, or, for a base, if
    tasks that occur twice have the same scores. A results file of lm-eval given by name is always a run of its own.
    Names are made unique: where two runs have the same name, their parent folders are put in front.

    Results of other tools are recognised by their format: logs of Inspect (`*.eval`, or JSON) and reports of EvalScope.
    A CSV with one row per document has to be given by name. Logs of one model that are given by name are one run,
    unless they share a task.

    Raises:
        ResultsError: a path has no results, or a file cannot be read.
    """
    groups: dict[tuple[str, ...], list[_Part]] = defaultdict(list)
    seen: set[Path] = set()
    unreadable: dict[str, None] = {}
    for path in map(Path, paths):
        for file, parts in _find(path, unreadable):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                for part in parts:
                    key = part.place, *part.identity
                    groups[key].append(part)
    if not groups:
        raise ResultsError("no results given; pass a results file or a folder written with --output_path")
    folders: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for identity, parts in groups.items():
        by_date = [part.run for part in sorted(parts, key=lambda part: part.date)]
        folders[identity[1:] or identity] += by_date if _protocols_differ(by_date) else [_merge(by_date)]
    runs = _unique_names([run for parts in folders.values() for run in _merged_over_folders(parts)])
    return LoadedResults(runs, [*unreadable])


def _find(path: Path, unreadable: dict[str, None]) -> list[tuple[Path, list[_Part]]]:
    """The results files at a path, sorted by path, each with its runs; notes what cannot be read."""
    if path.is_file():
        return [(path, _given_file(path))]
    if not path.is_dir():
        raise ResultsError(f"{path}: no such file or folder; evaluate with --output_path {path} --log_samples first")
    files: list[tuple[Path, list[_Part]]] = []
    unfinished: list[inspect_log.UnfinishedLog] = []
    found = _files_under(path, unreadable)
    for file in found:
        if file.suffix not in (".json", inspect_log.SUFFIX):
            continue
        try:
            part = _file_in_folder(file)
        except inspect_log.UnfinishedLog as error:
            unreadable[str(error)] = None
            unfinished.append(error)
        else:
            files += [(file, [part])] if part else []
    unreadable.update(dict.fromkeys(_samples_without_results(found)))
    if unfinished and not files:
        raise unfinished[0]
    if not files:
        raise ResultsError(
            f"{path}: no results_*.json in it; evaluate with --output_path {path} --log_samples, or pass results of "
            "Inspect or EvalScope; a CSV has to be passed by its file name"
        )
    return files


def _files_under(path: Path, unreadable: dict[str, None]) -> list[Path]:
    """All files below a folder, sorted by path; notes folders that cannot be listed."""

    def note(error: OSError) -> None:
        unreadable[f"{error.filename}: cannot be read ({error.strerror}); check its permissions"] = None

    return sorted(Path(folder) / name for folder, _, names in os.walk(path, onerror=note) for name in names)


def _samples_without_results(files: Sequence[Path]) -> list[str]:
    """What killed runs have left: samples files whose results were not written, nor those of a later run."""
    results: dict[Path, list[str]] = defaultdict(list)  # folder -> dates; "" of a renamed file
    for file in files:
        if file.suffix == ".json":
            results[file.parent].append(date_of(file))
    left: dict[tuple[Path, str], None] = {}
    for file in files:
        date = date_of(file)
        is_samples = file.suffix == ".jsonl" and file.name.startswith("samples_") and date
        if is_samples and not any(other in ("", date) or other > date for other in results[file.parent]):
            left[file.parent, date] = None
    return [
        f"{folder}: samples of {date} without results: the run was cut short; evaluate again, or remove them"
        for folder, date in left
    ]


def _file_in_folder(file: Path) -> _Part | None:
    """The run in a file of a searched folder, recognised by name, place or first bytes; None if it holds none."""
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


def _given_file(file: Path) -> list[_Part]:
    """The runs in a file that was given by name, written by any tool."""
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
    raise ResultsError(f"{file}: not a results file of lm-eval (no key 'results'); pass a results_DATE.json")


def _lm_eval_part(file: Path, payload: Mapping[str, Any], place: str) -> _Part:
    run = parse_run(file, payload)
    arguments = {name: value for name, value in run.model_args.items() if name not in SPEED_ARGUMENTS}
    identity = _text(arguments), str(run.adapter), str(harness_ext_keys(payload).get("variant"))
    return _Part(run, place, identity, (date_of(file), file.name))


def _inspect_part(file: Path, log: Mapping[str, Any], place: str) -> _Part:
    run = inspect_log.parse_run(file, log)
    return _Part(run, place, (run.tool, run.name, _text(run.model_args)), (str(log["eval"].get("created")), file.name))


def _evalscope_part(file: Path, payload: Mapping[str, Any], place: str) -> _Part:
    run = evalscope.parse_run(file, payload)
    return _Part(run, place, (run.tool, run.name, _text(run.model_args)), ("", file.name))


def _text(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=str)


def _protocols_differ(runs: Sequence[Run]) -> bool:
    """Whether logs of another tool evaluate one task under different protocols, so that they are not one run."""
    protocols: dict[str, set[str | None]] = defaultdict(set)
    for run in runs:
        for task, result in run.tasks.items():
            protocols[task].add(result.fingerprint)
    return runs[0].tool != LM_EVAL and any(len(fingerprints) > 1 for fingerprints in protocols.values())


def _merge(runs: Sequence[Run]) -> Run:
    """Merge parts of one run, oldest first: every task comes from its newest file."""
    tasks: dict[str, TaskResult] = {}
    for run in runs:
        for task, result in run.tasks.items():
            if task in tasks and result.n < tasks[task].n:
                logger.warning("%s: %s has %d documents, an older file has %d", run.path, task, result.n, tasks[task].n)
            tasks[task] = result
    return replace(runs[-1], tasks=tasks)


def _merged_over_folders(parts: Sequence[Run]) -> list[Run]:
    """Merge the parts of one run from several folders, unless they contradict each other."""
    for place, first in enumerate(parts):
        if not all(_agree(first, second) for second in parts[place + 1 :]):
            return list(parts)
    return [_merge(sorted(parts, key=lambda run: date_of(run.path)))]


def _agree(first: Run, second: Run) -> bool:
    """Whether the two have no task in common or, for a base of lm-eval, the same numbers on the common tasks."""
    shared = first.tasks.keys() & second.tasks.keys()
    if first.adapter is not None or first.tool != LM_EVAL:
        return not shared
    return all(_numbers(first.tasks[task]) == _numbers(second.tasks[task]) for task in shared)


def _numbers(result: TaskResult) -> tuple[object, ...]:
    values = [(name, repr(metric.value)) for name, metric in result.metrics.items()]
    return result.n, result.fingerprint, result.version, result.n_shot, sorted(values)


def _unique_names(runs: Sequence[Run]) -> list[Run]:
    """Put the nearest distinguishing parent folder in front of names that are not unique."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.name].append(run)
    labels = {id(run): label for group in groups.values() for run, label in zip(group, _labels(group), strict=True)}
    return [replace(run, name=clean_name(labels[id(run)])) for run in runs]


def _labels(group: Sequence[Run]) -> list[str]:
    """Unique names for runs of the same name: folder/name, or folder/name (date) for files in one folder."""
    if len(group) == 1:
        return [group[0].name]
    parents = [run.path.resolve().parent.parts[::-1] for run in group]  # nearest folder first
    for folders in zip(*parents, strict=False):
        if len(set(folders)) == len(group):
            return [f"{folder}/{run.name}" for folder, run in zip(folders, group, strict=True)]
    return [f"{run.path.resolve().parent.name}/{run.name} ({date_of(run.path) or run.path.name})" for run in group]
