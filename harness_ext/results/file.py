"""Parse a results file of lm-eval, `results_DATE.json`, with its samples in `samples_TASK_DATE.jsonl`.

Files of `harness-ext eval` have one more key than those of stock lm-eval: `harness_ext`. All of its entries are
optional: `variant` (base, or the adapter's name), `base`, `adapter`, `card` (the adapter's card), `adapter_sha256`
{file: sha256}, `fingerprints` {task: sha256}, `fingerprint_fields` {task: {field: hash or value}}, `token_settings`
{setting: value}, `sample_data`, `local_data` [tasks whose documents came from files of the machine], and `sequential`
(the design and the looks of an evaluation with `--until-decided`; see `harness_ext.stats.sequential.record`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from harness_ext.errors import InputError, ResultsError
from harness_ext.names import clean_name, visible
from harness_ext.protocol.sample_files import samples_file
from harness_ext.protocol.token_settings import parse_model_args, token_settings
from harness_ext.reading.files import RESULTS_SIZE, is_regular
from harness_ext.reading.json_input import parse_json, read_json_object
from harness_ext.results.run import MetricValue, Run, TaskResult
from harness_ext.stats.sequential.record import Record, read_record

DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)$")
LARGEST = 1e100  # of a number; its square is finite, too
_SEEDS = [0, 1234, 1234, 1234]  # lm-eval's defaults
_BASE_KEYS = ("pretrained", "model", "path", "engine")  # in the order in which lm-eval uses them to name a run
ADAPTER_KEYS = ("peft", "lora_local_path", "delta")


def read_payload(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ResultsError: the file cannot be read, or does not hold an object.
    """
    try:
        return read_json_object(file, limit=RESULTS_SIZE)
    except InputError as error:
        raise ResultsError(f"{error}; evaluate again or remove the file") from None


def date_of(file: Path) -> str:
    """The ISO date in the name of a results file; '' if the file was renamed."""
    match = DATE.search(file.stem)
    return match.group(1) if match else ""


def harness_ext_keys(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries that harness-ext added to a results file; empty for stock results."""
    return _mapping(payload, "harness_ext")


def _mapping(payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = payload.get(key)
    return value if isinstance(value, Mapping) else {}


def parse_run(file: Path, payload: Mapping[str, Any]) -> Run:
    """The run in a results file."""
    config, extension = _mapping(payload, "config"), harness_ext_keys(payload)
    records = _sequential_records(file, extension)
    arguments = parse_model_args(config.get("model_args"))
    adapter = _text(extension.get("adapter")) or _first(arguments, ADAPTER_KEYS)
    base = _text(extension.get("base")) or _first(arguments, _BASE_KEYS)
    fallback = base or _text(config.get("model")) or file.parent.name
    name = clean_name(_text(extension.get("variant")) or _last_part(adapter or fallback))
    tasks = {clean_name(task): _parse_task(task, file, payload, records) for task in _entries(payload)}
    return Run(
        name, file, arguments, tasks, base, adapter, config, _mapping(extension, "card"),
        seconds_per_document=_seconds_per_document(payload, tasks), origin=_origin(payload, extension),
    )  # fmt: skip


def _seconds_per_document(payload: Mapping[str, Any], tasks: Mapping[str, TaskResult]) -> float | None:
    """Evaluation time of one document; lm-eval logs its total time as text. None where answers were there before."""
    if harness_ext_keys(payload).get("answers_from_store"):
        return None
    documents = sum(result.n for result in tasks.values() if not result.is_group)
    logged = harness_ext_keys(payload).get("seconds", payload.get("total_evaluation_time_seconds"))
    try:
        seconds = float(logged or 0)
    except (TypeError, ValueError):
        return None
    return seconds / documents if documents and 0 < seconds < float("inf") else None


def run_in_memory(results: Mapping[str, Any]) -> Run:
    """The run in what lm-eval returns, before anything is written.

    Args:
        results: of `simple_evaluate`, with `samples`.
    """
    run = parse_run(Path("results in memory"), {**results, "task_hashes": {}})
    tasks = {}
    for name, task in run.tasks.items():
        samples = results["samples"].get(name, [])
        tasks[name] = replace(task, samples_path=Path(name), read_samples=partial(_logged, samples))
    return replace(run, tasks=tasks)


def _logged(samples: Iterable[Mapping[str, Any]], _: Path) -> Iterator[dict[str, Any]]:
    """Samples as they are read from a file."""
    for sample in samples:
        yield parse_json(json.dumps(sample, default=str), place="a sample in memory")


def _origin(payload: Mapping[str, Any], extension: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, date, and hashes of the adapter's files, as far as they were logged."""
    origin = {name: payload.get(name) for name in ("lm_eval_version", "transformers_version", "git_hash", "date")}
    origin["harness_ext_version"] = extension.get("version")
    origin["adapter_sha256"] = extension.get("adapter_sha256")
    for name in ("chat_template", "system_instruction", "fewshot_as_multiturn"):
        origin[name] = payload.get(name)
    return {name: value for name, value in origin.items() if value is not None}


def _entries(payload: Mapping[str, Any]) -> list[str]:
    """Tasks, and groups that have an aggregate; a group without one is only a heading."""
    configs, groups = _mapping(payload, "configs"), _mapping(payload, "groups")
    results = {name: entry for name, entry in payload["results"].items() if isinstance(entry, Mapping)}
    return [name for name in results if name in configs or (name in groups and _parse_metrics(results[name], {}))]


def _first(arguments: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    return next((visible(str(arguments[key])) for key in keys if arguments.get(key)), None)


def _text(value: Any) -> str | None:
    """A name or a path in one visible line; None if there is none."""
    return visible(str(value)) if value else None


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _sequential_records(file: Path, extension: Mapping[str, Any]) -> dict[str, Record]:
    if extension.get("sequential") is None:
        return {}
    try:
        return read_record(extension["sequential"])
    except (ValueError, OverflowError) as error:
        raise ResultsError(
            f"{file}: the record of its sequential evaluation is not valid ({error}); evaluate again"
        ) from None


def _parse_task(task: str, file: Path, payload: Mapping[str, Any], records: Mapping[str, Record]) -> TaskResult:
    extension, entry = harness_ext_keys(payload), payload["results"][task]
    count = _mapping(_mapping(payload, "n-samples"), task).get("effective", entry.get("sample_len", 0))
    version, shots = _mapping(payload, "versions").get(task), _mapping(payload, "n-shot").get(task)
    is_group = task not in _mapping(payload, "configs")
    return TaskResult(
        task=clean_name(task),
        version=None if version is None else visible(str(version)),
        n_shot=shots if isinstance(shots, int) else 0,
        metrics=_parse_metrics(entry, _mapping(_mapping(payload, "higher_is_better"), task)),
        fingerprint=_text(_mapping(extension, "fingerprints").get(task)),
        n=count if isinstance(count, int) else 0,
        documents=None if is_group else _documents(task, payload),
        digest=_text(_mapping(payload, "task_hashes").get(task)),
        samples_path=None if is_group else _samples_path(task, file),
        config=_mapping(_mapping(payload, "configs"), task),
        fingerprint_fields=_mapping(_mapping(extension, "fingerprint_fields"), task),
        sample_data=extension.get("sample_data"),
        local_data=_is_listed(task, extension.get("local_data")),
        source=file,
        limit=_limit(_mapping(payload, "config").get("limit")),
        settings=_settings(payload),
        token_settings=_requested_token_settings(payload),
        resolved_token_settings=_resolved_token_settings(payload),
        available=_available(task, payload),
        sequential=records.get(task),
        is_group=is_group,
        members=_members(task, payload) if is_group else (),
        adapter_sha256={name: str(value) for name, value in _mapping(extension, "adapter_sha256").items()},
        evaluation=_evaluation(payload),
    )


def _is_listed(task: str, names: Any) -> bool:
    return isinstance(names, list) and task in names


def _limit(value: Any) -> float | None:
    return value if _is_number(value) else None


def _documents(task: str, payload: Mapping[str, Any]) -> int | None:
    """How many documents the samples of a task must have.

    Before lm-eval 0.4.13, `n-samples` is that of the last task where --limit is a share, and of the whole split where
    --samples chooses; the length of a metric counts instead.
    """
    count = _mapping(_mapping(payload, "n-samples"), task).get("effective")
    if _version(payload) < (0, 4, 13):
        count = payload["results"][task].get("sample_len")
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _available(task: str, payload: Mapping[str, Any]) -> int | None:
    count = _mapping(_mapping(payload, "n-samples"), task).get("original")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


def _version(payload: Mapping[str, Any]) -> tuple[int, ...]:
    """The version of lm-eval; a very new one if it was not logged."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", str(payload.get("lm_eval_version")))
    return tuple(map(int, numbers.groups())) if numbers else (9,)


def _members(group: str, payload: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks of a group, including those of nested groups."""
    subtasks, configs = _mapping(payload, "group_subtasks"), _mapping(payload, "configs")
    tasks: dict[str, None] = {}
    queue, seen = [group], {group}
    while queue:
        for name in _names(subtasks.get(queue.pop(0))):
            if name in configs:
                tasks[clean_name(name)] = None
            elif name not in seen:
                seen.add(name)
                queue.append(name)
    return tuple(tasks)


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _requested_token_settings(payload: Mapping[str, Any]) -> dict[str, str] | None:
    arguments = _mapping(payload, "config").get("model_args")
    return token_settings(arguments) if arguments else None


def _resolved_token_settings(payload: Mapping[str, Any]) -> dict[str, str] | None:
    settings = harness_ext_keys(payload).get("token_settings")
    return {name: str(value) for name, value in settings.items()} if isinstance(settings, Mapping) else None


def _settings(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that hold for every task of the file, as far as they were logged."""
    config = _mapping(payload, "config")
    dtype = config.get("model_dtype") or parse_model_args(config.get("model_args")).get("dtype")
    settings: dict[str, Any] = {} if dtype in (None, "auto") else {"dtype": str(dtype).removeprefix("torch.")}
    for name in ("chat_template", "system_instruction"):
        if f"{name}_sha" in payload:
            settings[name] = payload[f"{name}_sha"]
    if payload.get("chat_template_sha"):
        settings["fewshot_as_multiturn"] = bool(payload.get("fewshot_as_multiturn"))
    return settings


def _evaluation(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with which all tasks of the file were evaluated, where they differ from lm-eval's defaults."""
    config = _mapping(payload, "config")
    seeds = [config.get(f"{name}_seed") for name in ("random", "numpy", "torch", "fewshot")]
    limit, multiturn = config.get("limit"), payload.get("fewshot_as_multiturn")
    given = {
        "apply_chat_template": bool(payload.get("chat_template")) or None,
        "fewshot_as_multiturn": False if payload.get("chat_template") and multiturn is False else None,
        "system_instruction": payload.get("system_instruction"),
        "limit": limit if _is_number(limit) else None,
        "seed": seeds if all(isinstance(seed, int) for seed in seeds) and seeds != _SEEDS else None,
        "gen_kwargs": dict(_mapping(config, "gen_kwargs")) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _parse_metrics(entry: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, MetricValue]:
    metrics: dict[str, MetricValue] = {}
    for key, value in entry.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = entry.get(f"{metric}_stderr,{name}")
        logged = higher.get(metric)
        direction = logged if isinstance(logged, bool) else None
        metrics[key if metric in metrics else metric] = MetricValue(
            clean_name(metric), clean_name(name), float(value), float(stderr) if _is_number(stderr) else None, direction
        )
    return metrics


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number that can be squared, or infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not LARGEST < abs(value) < math.inf


def _samples_path(task: str, file: Path) -> Path | None:
    """The samples file of the same date; for a renamed results file, the only samples file of the task."""
    if date := date_of(file):
        path = file.parent / samples_file(task, date)
        return path if is_regular(path) else None
    name = samples_file(task, "").removesuffix("_.jsonl")
    paths = [path for path in file.parent.glob("samples_*.jsonl") if DATE.sub("", path.stem) == name]
    return paths[0] if len(paths) == 1 else None
