"""Runs as lm-eval wrote them: `results_DATE.json` and, beside it, `samples_TASK_DATE.jsonl`.

Files of stock lm-eval and ours are read alike; ours add a key `harness_ext`, all of it optional:
`variant` (base or the adapter's name), `base`, `adapter`, `fingerprints` {task: sha256},
`fingerprint_fields` {task: {field: hash or value}} and `sample_data`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from harness_ext.analysis.samples import SampleScores, first_sample, has_scores, is_bundled, read_scores
from harness_ext.errors import ResultsError, suggest

logger = logging.getLogger(__name__)

PRIMARY_METRICS = ("acc", "exact_match", "exact", "em", "f1")  # the first one found is the headline
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)$")
_BASE_KEYS = ("pretrained", "model", "path", "engine")  # the order lm-eval names a run by
_ADAPTER_KEYS = ("peft", "lora_local_path", "delta")


@dataclass(frozen=True)
class MetricValue:
    """One aggregated number of a task, in the unit lm-eval logged."""

    metric: str
    filter: str
    value: float
    stderr: float | None = None  # lm-eval's own; None where it prints N/A
    higher_is_better: bool = True


@dataclass(frozen=True)
class TaskResult:
    """One task of one run.

    `metrics` is keyed by the metric's name; where several filters produced it, the first filter has the
    plain name and the others have lm-eval's `metric,filter`.
    """

    task: str
    version: str | None
    n_shot: int
    metrics: Mapping[str, MetricValue]
    fingerprint: str | None  # sha256 of the protocol; None in stock results
    n: int  # documents evaluated
    samples_path: Path | None  # None when the run did not log samples
    config: Mapping[str, Any] = field(repr=False)
    fingerprint_fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sample_data: bool | None = None  # what the results file says about the bundled sample

    @property
    def primary(self) -> MetricValue:
        """The headline metric: `metadata.primary_metric`, else acc, exact_match, exact, em, f1, else the first.

        Raises:
            ResultsError: the declared metric was not logged, or no metric was.
        """
        metadata = self.config.get("metadata")
        declared = metadata.get("primary_metric") if isinstance(metadata, Mapping) else None
        if declared is not None:
            return self.metric(str(declared))
        if not self.metrics:
            raise ResultsError(f"{self.task}: no metric was logged; evaluate without --predict_only")
        return self.metrics[next((name for name in PRIMARY_METRICS if name in self.metrics), next(iter(self.metrics)))]

    @property
    def metric_scale(self) -> float | None:
        """What `metadata.metric_scale` declares the top of the metrics to be, 1 or 100; None when it does not."""
        metadata = self.config.get("metadata")
        declared = metadata.get("metric_scale") if isinstance(metadata, Mapping) else None
        return float(declared) if declared in (1, 100) else None

    @cached_property
    def is_sample(self) -> bool:
        """Whether the documents are the bundled sample: the first logged sample tells, else the results file."""
        sample = first_sample(self.samples_path) if self.samples_path else None
        return bool(self.sample_data) if sample is None else is_bundled(sample)

    def metric(self, name: str, filter: str | None = None) -> MetricValue:
        """Find an aggregated metric; without `filter`, under the first filter that has it.

        Raises:
            ResultsError: the task has no such metric.
        """
        for key in (name, f"{name},{filter}"):
            found = self.metrics.get(key)
            if found is not None and filter in (None, found.filter):
                return found
        wanted = name if filter is None else f"{name},{filter}"
        known = ", ".join(self.metrics) or "none"
        raise ResultsError(f"{self.task}: no metric {wanted!r} (it has {known}){suggest(name, self.metrics)}")

    def has_scores(self, metric: str, filter: str | None = None) -> bool:
        """Whether `samples` can give this metric: samples were logged and it is a number per document."""
        if self.samples_path is None:
            return False
        return has_scores(self.samples_path, metric, filter or self.metric(metric).filter)

    def samples(self, metric: str, filter: str | None = None) -> SampleScores:
        """Read the metric's per-document scores from the samples file; see `read_scores`.

        Raises:
            ResultsError: no samples were logged, or they cannot be read.
        """
        if self.samples_path is None:
            raise ResultsError(f"{self.task}: no samples were logged; evaluate again with --log_samples")
        return read_scores(self.samples_path, metric, filter or self.metric(metric).filter)


@dataclass(frozen=True)
class Run:
    """One model, or one model with one adapter, and what it scored."""

    name: str
    path: Path  # the (newest) results file
    model_args: Mapping[str, Any] = field(repr=False)
    tasks: Mapping[str, TaskResult] = field(repr=False)
    base: str | None
    adapter: str | None
    config: Mapping[str, Any] = field(repr=False)


def load_runs(*paths: str | os.PathLike[str]) -> list[Run]:
    """Read runs from results files and from folders, which are searched recursively.

    In a folder, several dates of one run (same folder, same model arguments) become one run that takes
    every task from its newest file. A results file that is named itself is always a run of its own.
    Names are unique: runs of equal name get their parent folders in front.

    Raises:
        ResultsError: a path without results, an unreadable file.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, Run]]] = defaultdict(list)
    seen: set[Path] = set()
    for path in map(Path, paths):
        for file, payload in _find(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                run = _parse(file, payload)
                groups[_identity(run, file, payload, explicit=path.is_file())].append((file, run))
    if not groups:
        raise ResultsError("no results given; name a results file or a folder written with --output_path")
    return _unique_names([_merge([run for _, run in sorted(found, key=_by_date)]) for found in groups.values()])


def _find(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Results files at a path with their content, sorted by path."""
    if path.is_file():
        payload = _read(path)
        if not isinstance(payload.get("results"), dict):
            raise ResultsError(f"{path}: not a results file of lm-eval (no 'results' in it); name results_DATE.json")
        return [(path, payload)]
    if not path.is_dir():
        raise ResultsError(f"{path}: no such file or folder; evaluate with --output_path {path} --log_samples first")
    files = [f for f in sorted(path.rglob("*.json")) if f.name.startswith("results") or _DATE.search(f.stem)]
    found = [(file, payload) for file in files if isinstance((payload := _read(file)).get("results"), dict)]
    if not found:
        raise ResultsError(f"{path}: no results_*.json below it; evaluate with --output_path {path} --log_samples")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        payload = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file}: cannot be read as JSON ({error}); evaluate again or remove it") from None
    if not isinstance(payload, dict):
        raise ResultsError(f"{file}: holds a JSON {type(payload).__name__}, not results of lm-eval; remove it")
    return payload


def _by_date(found: tuple[Path, Run]) -> tuple[str, str]:
    return _date(found[0]), found[0].name


def _date(file: Path) -> str:
    """The ISO date in a results file's name; '' when it was renamed."""
    match = _DATE.search(file.stem)
    return match.group(1) if match else ""


def _identity(run: Run, file: Path, payload: Mapping[str, Any], *, explicit: bool) -> tuple[str, ...]:
    """What files of one run have in common; a file that was named itself is its own run."""
    if explicit:
        return (str(file.resolve()),)
    arguments = json.dumps(run.model_args, sort_keys=True, default=str)
    return str(file.parent.resolve()), arguments, str(run.adapter), str(_ours(payload).get("variant"))


def _ours(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """What harness-ext added to a results file; empty in stock results."""
    return _mapping(payload, "harness_ext")


def _mapping(payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = payload.get(key)
    return found if isinstance(found, Mapping) else {}


def _parse(file: Path, payload: Mapping[str, Any]) -> Run:
    config, ours = _mapping(payload, "config"), _ours(payload)
    arguments = parse_model_args(config.get("model_args"))
    adapter = _text(ours.get("adapter")) or _first(arguments, _ADAPTER_KEYS)
    base = _text(ours.get("base")) or _first(arguments, _BASE_KEYS)
    fallback = base or _text(config.get("model")) or file.parent.name
    name = _text(ours.get("variant")) or _last_part(adapter or fallback)
    # Groups have results but no task config: they are aggregates, not something to pair.
    leaves = [task for task in payload["results"] if task in _mapping(payload, "configs")]
    tasks = {task: _parse_task(task, file, payload) for task in leaves}
    return Run(name, file, arguments, tasks, base, adapter, config)


def parse_model_args(model_args: Any) -> dict[str, Any]:
    """Model arguments as a dict, from the dict or the `key=value,key=value` string that lm-eval logs.

    >>> parse_model_args("pretrained=org/model,peft=adapters/sst2")
    {'pretrained': 'org/model', 'peft': 'adapters/sst2'}
    """
    if isinstance(model_args, Mapping):
        return dict(model_args)
    if not isinstance(model_args, str):
        return {}
    pairs = (part.partition("=") for part in model_args.split(",") if "=" in part)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _first(arguments: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    return next((str(arguments[key]) for key in keys if arguments.get(key)), None)


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _parse_task(task: str, file: Path, payload: Mapping[str, Any]) -> TaskResult:
    ours, entry = _ours(payload), payload["results"][task]
    count = _mapping(_mapping(payload, "n-samples"), task).get("effective", entry.get("sample_len", 0))
    version = _mapping(payload, "versions").get(task)
    return TaskResult(
        task=task,
        version=None if version is None else str(version),
        n_shot=int(_mapping(payload, "n-shot").get(task) or 0),
        metrics=_parse_metrics(entry, _mapping(_mapping(payload, "higher_is_better"), task)),
        fingerprint=_text(_mapping(ours, "fingerprints").get(task)),
        n=int(count),
        samples_path=_samples_path(task, file),
        config=_mapping(payload["configs"], task),
        fingerprint_fields=_mapping(_mapping(ours, "fingerprint_fields"), task),
        sample_data=ours.get("sample_data"),
    )


def _parse_metrics(entry: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, MetricValue]:
    metrics: dict[str, MetricValue] = {}
    for key, value in entry.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = entry.get(f"{metric}_stderr,{name}")
        direction = higher.get(metric) is not False
        found = MetricValue(metric, name, float(value), float(stderr) if _is_number(stderr) else None, direction)
        metrics[key if metric in metrics else metric] = found
    return metrics


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _samples_path(task: str, file: Path) -> Path | None:
    """The samples of the same date; for a renamed results file, the only ones there are."""
    if date := _date(file):
        path = file.parent / f"samples_{task}_{date}.jsonl"
        return path if path.is_file() else None
    found = [path for path in file.parent.glob("samples_*.jsonl") if _DATE.sub("", path.stem) == f"samples_{task}"]
    return found[0] if len(found) == 1 else None


def _merge(runs: Sequence[Run]) -> Run:
    """One run out of several dates, oldest first: every task from its newest file."""
    tasks: dict[str, TaskResult] = {}
    for run in runs:
        for task, result in run.tasks.items():
            if task in tasks and result.n < tasks[task].n:
                logger.warning("%s: %s has %d documents, an older run %d", run.path, task, result.n, tasks[task].n)
            tasks[task] = result
    return replace(runs[-1], tasks=tasks)


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
    return [f"{run.path.resolve().parent.name}/{run.name} ({_date(run.path) or run.path.name})" for run in group]
