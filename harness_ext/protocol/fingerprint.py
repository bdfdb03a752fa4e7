"""The protocol fingerprint: a hash of everything that shapes prompts and scores, to compare two runs by."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from harness_ext.protocol import documents
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask, dataset_name, filters_of, is_plain, metrics_of
from harness_ext.protocol.render import PromptSettings

PROMPT_FIELDS = (
    "description",
    "doc_to_text",
    "target_delimiter",
    "gen_prefix",
    "fewshot",
    "system_instruction",
    "chat_template",
    "process_docs",
    "dataset",
)
SCORING_FIELDS = (
    "output_type",
    "doc_to_target",
    "doc_to_choice",
    "generation_kwargs",
    "filters",
    "process_results",
    "evaluation_split",
    "version",
    "class",
)
CLASS_SETTINGS = ("content_free", "prompts")  # metadata that change a task class's prompts; a threshold does not


class Fingerprint(NamedTuple):
    """Identifies a protocol."""

    digest: str  # sha256 over the fields
    fields: dict[str, str]  # each field's value, or a short hash of it when it is long


def fingerprint(task: ConfigurableTask, settings: PromptSettings, lm: HFLM | None = None) -> Fingerprint:
    """Identify everything that shapes a task's prompts and scores.

    Args:
        task: a loaded task; overrides of its generation settings must be applied already.
        settings: few-shot, chat template, system instruction.
        lm: provides the chat template; needed only when one is applied.
    """
    values = _protocol_values(task, settings, lm)
    encoded = {name: json.dumps(values[name], sort_keys=True, ensure_ascii=False) for name in sorted(values)}
    digest = hashlib.sha256(json.dumps(encoded, sort_keys=True).encode()).hexdigest()
    return Fingerprint(digest, {name: _abbreviate(text) for name, text in encoded.items()})


def differing_fields(one: Mapping[str, str], other: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Names of the fields that differ between two fingerprints, among `names`.

    >>> differing_fields({"version": "1", "fewshot": "0"}, {"version": "2", "fewshot": "0"}, SCORING_FIELDS)
    ['version']
    """
    return [name for name in names if one.get(name) != other.get(name)]


def _protocol_values(task: ConfigurableTask, settings: PromptSettings, lm: HFLM | None) -> dict[str, Any]:
    config = task.config
    shots = config.num_fewshot if config.num_fewshot == 0 or settings.num_fewshot is None else settings.num_fewshot
    fewshot = {
        "num_fewshot": shots,
        "split": config.fewshot_split,
        "seed": settings.fewshot_seed,
        "multiturn": settings.multiturn,
        "delimiter": config.fewshot_delimiter,
        "config": _source(asdict(config.fewshot_config)) if config.fewshot_config else None,
    }
    chat = None
    if settings.apply_chat_template and lm is not None:
        chat = lm.chat_template(settings.apply_chat_template)
    return {
        "description": config.description,
        "doc_to_text": _source(config.doc_to_text),
        "target_delimiter": config.target_delimiter,
        "gen_prefix": config.gen_prefix,
        "fewshot": fewshot if shots else 0,
        "system_instruction": settings.system_instruction,
        "chat_template": chat,
        "process_docs": _source(config.process_docs),
        "dataset": _dataset_identity(task),
        "output_type": config.output_type,
        "doc_to_target": _source(config.doc_to_target),
        "doc_to_choice": _source(config.doc_to_choice),
        "generation_kwargs": config.generation_kwargs or None,
        "filters": _source(filters_of(task)),
        # Without a hook, the metrics and their options decide the score.
        "process_results": _source(config.process_results or metrics_of(task)),
        "evaluation_split": config.test_split or config.validation_split,
        "version": str(task.VERSION),
        **_class_identity(task),
    }


def _class_identity(task: ConfigurableTask) -> dict[str, Any]:
    """The task class that a YAML names, and its settings; empty for an ordinary task."""
    if is_plain(task):
        return {}
    metadata = task.config.metadata or {}
    return {"class": [_source(type(task)), {name: metadata[name] for name in CLASS_SETTINGS if name in metadata}]}


def _dataset_identity(task: ConfigurableTask) -> dict[str, Any]:
    """Name and revision of the documents, and whether they are the bundled sample; their folder does not matter."""
    kwargs = dict(task.config.dataset_kwargs or {})
    if task.config.custom_dataset is documents.load_documents:
        hub = documents.CATALOGUE.get(kwargs["dataset"])
        return {
            "name": kwargs["dataset"],
            "revision": hub.revision if hub else None,
            "choices": kwargs.get("choices"),
            "sample": documents.is_sample(task.config.custom_dataset, kwargs, task.config.metadata),
        }
    path, config = dataset_name(task)
    name = Path(path).name if path and Path(path).exists() else path
    return {"name": name, "config": config, "revision": kwargs.get("revision")}


def _source(value: Any) -> Any:
    """A config value as JSON, the same on every machine; a function becomes its name and a hash of its source."""
    if isinstance(value, functools.partial):
        return {"function": _source(value.func), "args": _source(value.args), "keywords": _source(value.keywords)}
    if callable(value):
        function = value if hasattr(value, "__qualname__") else type(value)
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):
            text = ""
        # lm-eval uses the absolute path of a Python file next to the YAML as its module name.
        module = Path(function.__module__).name
        return f"{module}.{function.__qualname__}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if isinstance(value, Mapping):
        return {str(key): _source(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_source(item) for item in value]
    return value


def _abbreviate(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}…#{hashlib.sha256(text.encode()).hexdigest()[:12]}"
