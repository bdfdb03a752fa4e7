"""Checks of the YAML alone: keys, functions, metrics and filters, against lm-eval's own registries."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harness_ext.check.yaml_source import FunctionName, TaskSource
from harness_ext.errors import suggest
from harness_ext.protocol.documents import load_documents
from harness_ext.protocol.lm_eval_api import (
    SAMPLER_REGISTRY,
    FewshotConfig,
    GroupConfig,
    TaskConfig,
    aggregation_names,
    filter_registry,
    has_aggregation,
    has_direction,
    import_function,
    metric_names,
    output_types,
)

STRUCTURE_KEYS = {"include", "group", "task_list", "class"}
TASK_KEYS = {field.name for field in dataclasses.fields(TaskConfig) if not field.name.startswith("_")} | STRUCTURE_KEYS
GROUP_KEYS = {field.name for field in dataclasses.fields(GroupConfig)}
FEWSHOT_KEYS = {field.name for field in dataclasses.fields(FewshotConfig)}
# Keys that change a score when mistyped; others are passed to `generate` of transformers unchanged.
GENERATION_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "num_beams"}
DOCUMENTS_HOOK = "harness_ext.hooks.load_documents"
LISTS = ("metric_list", "filter_list")
# What a setting may be; a function by its name is accepted for all of them.
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs", "fewshot_config"), ((Mapping,), "a mapping")),
    **dict.fromkeys(LISTS, ((list,), "a list")),
    **dict.fromkeys(
        (
            "output_type", "dataset_path", "dataset_name", "training_split", "validation_split", "test_split",
            "fewshot_split", "description", "doc_to_text", "target_delimiter", "fewshot_delimiter", "gen_prefix",
        ),
        ((str,), "a text"),
    ),
    "doc_to_target": ((str, int, list), "a text, a number or a list"),
    "doc_to_choice": ((str, list, Mapping), "a list or a text"),
    **dict.fromkeys(("num_fewshot", "repeats"), ((int,), "a whole number")),
    **dict.fromkeys(("process_docs", "process_results", "custom_dataset"), ((FunctionName,), "a !function")),
    "tag": ((str, list), "a text or a list"),
}  # fmt: skip


def check_settings(source: TaskSource) -> None:
    """Note everything that can be found without documents and without a task object."""
    if "group" in source.values and "class" not in source.values and not isinstance(source.values.get("task"), str):
        _check_keys(source, source.values, GROUP_KEYS | TASK_KEYS, ())
        check_functions(source)
        return
    _check_keys(source, source.values, TASK_KEYS, ())
    _check_name(source)
    check_functions(source)
    if _check_kinds(source):
        _check_inner_keys(source)
        _check_output_type(source)
        _check_metrics(source)
        _check_filters(source)
        _check_sampler(source)


# -- keys --------------------------------------------------------------------------------------------------------


def _check_keys(source: TaskSource, values: Mapping[Any, Any], known: Collection[str], path: tuple[str, ...]) -> None:
    inside = f" in {'.'.join(path)}" if path else ""
    for key in values:
        if str(key) not in known:
            hint = suggest(str(key), known) or "; lm-eval has no such setting: remove it"
            source.add("C04", "error", f"unknown key {str(key)!r}{inside}{hint}", *path, str(key))


def _check_inner_keys(source: TaskSource) -> None:
    values = source.values
    if isinstance(fewshot := values.get("fewshot_config"), Mapping):
        _check_keys(source, fewshot, FEWSHOT_KEYS, ("fewshot_config",))
    if values.get("custom_dataset") == DOCUMENTS_HOOK:
        known = set(inspect.signature(load_documents).parameters) - {"_unused"}
        kwargs = values.get("dataset_kwargs") or {}
        _check_keys(source, kwargs, known, ("dataset_kwargs",))
        if "dataset" not in kwargs:
            source.add("C08", "error", "dataset_kwargs has no 'dataset'; add the name of the data set",
                       "dataset_kwargs")  # fmt: skip
    for key in values.get("generation_kwargs") or {}:
        if key not in GENERATION_KEYS and (hint := suggest(str(key), GENERATION_KEYS)):
            source.add("C04", "error", f"unknown key {key!r} in generation_kwargs{hint}", "generation_kwargs", str(key))


def _check_name(source: TaskSource) -> None:
    name = source.values.get("task")
    if not isinstance(name, str) or not name.strip():
        source.add("C06", "error", "has no task name, so lm-eval skips the file; add `task: NAME` "
                   "(or begin the file name with _ if other files include it)", "task")  # fmt: skip


def _check_kinds(source: TaskSource) -> bool:
    """Whether settings are of the kinds that lm-eval expects; the other checks rely on it."""
    valid = True
    for key, (kinds, noun) in KINDS.items():
        value = source.values.get(key)
        if value is not None and (not isinstance(value, (*kinds, FunctionName)) or isinstance(value, bool)):
            source.add("C08", "error", f"{key} is {value!r:.40}, not {noun}; write it as {noun}", key)
            valid = False
    if any(str(value).strip() == "" for value in _names_of_documents(source)):
        source.add("C08", "error", "an empty text names no data set and no split; name one, or remove it", "task")
        valid = False
    for key in LISTS if valid else ():
        for number, item in enumerate(source.values.get(key) or []):
            if not isinstance(item, Mapping):
                source.add("C08", "error", f"{key} contains {item!r:.40}; begin each entry with "
                           f"`- {'metric' if key == 'metric_list' else 'name'}: …`", key, number)  # fmt: skip
                valid = False
    return valid


def _names_of_documents(source: TaskSource) -> list[str]:
    keys = ("dataset_path", "training_split", "validation_split", "test_split", "fewshot_split")
    return [value for key in keys if isinstance(value := source.values.get(key), str)]


def _is_name(source: TaskSource, what: str, value: Any, *path: str | int) -> bool:
    """Whether a value may be looked up by name; a finding if not."""
    if isinstance(value, str):
        return True
    source.add("C08", "error", f"{what} is {value!r:.40}, not a name; write the name of one", *path)
    return False


def _check_output_type(source: TaskSource) -> None:
    output_type = source.values.get("output_type", "generate_until")
    if output_type not in (known := output_types()):
        hint = suggest(str(output_type), known) or f"; use one of {', '.join(known)}"
        source.add("C08", "error", f"output_type {output_type!r} is unknown{hint}", "output_type")
    elif output_type == "multiple_choice" and "doc_to_choice" not in source.values and "class" not in source.values:
        source.add("C08", "error", "multiple_choice without doc_to_choice; add the choices", "output_type")
    elif output_type != "generate_until" and _is_in_file(source, "generation_kwargs"):
        source.add("C08", "warning", f"generation_kwargs has no effect with output_type {output_type}; remove it",
                   "generation_kwargs")  # fmt: skip


def _is_in_file(source: TaskSource, key: str) -> bool:
    """Whether a key is in the YAML itself, not in a file that it includes."""
    return source.values.get(key) is not None and source.place(key).file == source.file


# -- functions ---------------------------------------------------------------------------------------------------


def check_functions(source: TaskSource) -> None:
    """Import every `!function` as lm-eval does: from the folder of the YAML that names it, else an installed module."""
    for path, name in source.functions():
        folder = source.place(*path).file.parent
        if problem := _import_problem(str(name), folder):
            source.add("C07", "error", f"!function {name}: {problem}", *path)


def _import_problem(name: str, folder: Path) -> str | None:
    module, _, attribute = name.rpartition(".")
    if not module:
        return f"names no module; write `!function FILE.{name}` for a FILE.py next to this YAML"
    try:
        import_function(name, folder)
    except AttributeError as error:
        if module_names := _names_of(module, folder):
            return f"module {module!r} has no {attribute!r}{suggest(attribute, module_names) or '; define it there'}"
        return f"importing {module!r} fails (AttributeError: {error}); fix that module"
    except ModuleNotFoundError as error:
        return f"module {module!r} needs {error.name!r}, which is not installed; install it, or correct the import"
    except ImportError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and not f"{module}.".startswith(f"{cause.name}."):
            return f"module {module!r} needs {cause.name!r}, which is not installed; install it"
        return (f"there is no module {module!r}, neither {module.replace('.', '/')}.py next to this YAML nor an "
                "installed one; correct the name")  # fmt: skip
    except Exception as error:  # whatever a module raises when it is imported
        return f"importing {module!r} fails ({type(error).__name__}: {error}); fix that module"
    return None


def _names_of(module: str, folder: Path) -> list[str]:
    local = (folder / f"{module.replace('.', '/')}.py").resolve()
    loaded = sys.modules.get(str(local.with_suffix(""))) if local.is_file() else None
    try:
        return dir(loaded or importlib.import_module(module))
    except Exception:  # importing raised the AttributeError
        return []


# -- metrics, filters, few-shot ----------------------------------------------------------------------------------


def _check_metrics(source: TaskSource) -> None:
    values = source.values
    hooked = "process_results" in values or "class" in values
    names = []
    for number, entry in enumerate(values.get("metric_list") or []):
        if "metric" not in entry:
            source.add("C09", "error", f"entry {number + 1} of metric_list has no `metric:`; add it",
                       "metric_list", number)  # fmt: skip
            continue
        metric = entry["metric"]
        names.append(str(metric).rpartition(".")[2] if isinstance(metric, FunctionName) else str(metric))
        _check_metric(source, number, entry, hooked=hooked)
    if "process_results" in values and not names and "class" not in values:
        source.add("C10", "error", "process_results without metric_list: lm-eval would report the mean of everything "
                   "it returns; list its metrics", "process_results")  # fmt: skip
    metadata = values["metadata"] if isinstance(values.get("metadata"), Mapping) else {}  # lm-eval accepts anything
    declared = metadata.get("primary_metric")
    if declared is not None and names and declared not in names:
        source.add("C33", "error", f"primary_metric {declared!r} is not in metric_list ({', '.join(names)})"
                   f"{suggest(str(declared), names) or '; add it, or choose another'}",
                   "metadata", "primary_metric")  # fmt: skip
    if metadata.get("metric_scale", 1) not in (1, 100):
        source.add("C34", "error", f"metric_scale is {metadata['metric_scale']!r}; use 1 or 100",
                   "metadata", "metric_scale")  # fmt: skip


def _check_metric(source: TaskSource, number: int, entry: Mapping[str, Any], *, hooked: bool) -> None:
    metric, aggregation = entry["metric"], entry.get("aggregation")
    named = [_is_name(source, "the metric", metric, "metric_list", number, "metric")]
    named += [aggregation is None or _is_name(source, "aggregation", aggregation, "metric_list", number, "aggregation")]
    if not all(named):
        return
    own = isinstance(metric, FunctionName)
    where = ("metric_list", number)
    if not own and not hooked and metric not in metric_names() and entry.get("hf_evaluate") is not True:
        hint = suggest(str(metric), metric_names()) or (
            "; add hf_evaluate: true if it is a metric of Hugging Face Evaluate, or return it from process_results"
        )
        source.add("C09", "error", f"unknown metric {metric!r}{hint}", *where, "metric")
    if aggregation is None and (own or not has_aggregation(str(metric))):
        source.add("C10", "error", f"metric {str(metric)!r} has no aggregation; add `aggregation: mean`, or a function",
                   *where, "metric")  # fmt: skip
    elif isinstance(aggregation, FunctionName):
        pass  # check_functions imports it
    elif aggregation is not None and aggregation not in (names := aggregation_names()):
        hint = suggest(str(aggregation), names)
        known = ", ".join(sorted(names))
        source.add("C11", "error", f"unknown aggregation {aggregation!r} of {str(metric)!r}"
                   f"{hint or f'; use one of {known}, or a !function'}", *where, "aggregation")  # fmt: skip
    if "higher_is_better" not in entry and (own or not has_direction(str(metric))):
        source.add("C10", "warning", f"metric {str(metric)!r} does not say whether higher is better; add "
                   "`higher_is_better: true` or false", *where, "metric")  # fmt: skip


def _check_filters(source: TaskSource) -> None:
    for number, entry in enumerate(source.values.get("filter_list") or []):
        where = ("filter_list", number)
        steps = entry.get("filter")
        if not isinstance(entry.get("name"), str) or not isinstance(steps, list) or not steps:
            source.add("C12", "error", f"entry {number + 1} of filter_list needs `name:`, and a list under `filter:`",
                       *where)  # fmt: skip
            continue
        for step, function in enumerate(steps):
            name = function.get("function") if isinstance(function, Mapping) else None
            if name is None:
                source.add("C12", "error", f"step {step + 1} of filter {entry['name']!r} has no `function:`; add it",
                           *where, "filter", step)  # fmt: skip
            elif not _is_name(source, "the filter", name, *where, "filter", step):
                continue
            elif not isinstance(name, FunctionName) and name not in filter_registry:
                hint = suggest(str(name), filter_registry.keys())
                known = ", ".join(sorted(filter_registry.keys()))
                source.add("C12", "error", f"unknown filter {name!r}{hint or f'; use one of {known}'}",
                           *where, "filter", step)  # fmt: skip


def _check_sampler(source: TaskSource) -> None:
    fewshot = source.values.get("fewshot_config")
    sampler = fewshot.get("sampler") if isinstance(fewshot, Mapping) else None
    if sampler is None or not _is_name(source, "sampler", sampler, "fewshot_config", "sampler"):
        return
    if not isinstance(sampler, FunctionName) and sampler not in SAMPLER_REGISTRY:
        known = ", ".join(SAMPLER_REGISTRY)
        source.add("C08", "error", f"unknown sampler {sampler!r}"
                   f"{suggest(str(sampler), SAMPLER_REGISTRY) or f'; use one of {known}, or a !function'}",
                   "fewshot_config", "sampler")  # fmt: skip
