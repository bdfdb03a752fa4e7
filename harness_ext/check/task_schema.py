"""The JSON schema of task YAMLs, for completion and checks in editors: made of the keys that `harness-ext check` knows.

`docs/generate.py` writes it to `task.schema.json`. A schema cannot see tags, so `!function NAME` counts as a text.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from harness_ext.check.settings import FEWSHOT_KEYS, GENERATION_KEYS, GROUP_KEYS, KINDS, TASK_KEYS
from harness_ext.check.yaml_source import FunctionName
from harness_ext.metrics.declarations import DECLARABLE
from harness_ext.protocol.documents import load_documents
from harness_ext.protocol.lm_eval_api import output_types

FILE = "task.schema.json"
URL = "https://raw.githubusercontent.com/harness-ext/harness-ext/main/harness_ext/check/task.schema.json"

_TYPES = {Mapping: "object", list: "array", str: "string", int: "integer", FunctionName: "string"}
_FLAG = {"type": ["boolean", "null"]}
_TEXT = {"type": ["string", "null"]}
_TEXTS = {"type": ["string", "array", "null"], "items": {"type": "string"}}

DESCRIPTIONS = {
    "aggregate_metric_list": "Metrics of the group: how those of its tasks become one number.",
    "class": "A Python class that replaces lm-eval's own task: !function FILE.CLASS.",
    "custom_dataset": "A function that loads the documents, such as !function harness_ext.hooks.load_documents.",
    "dataset_kwargs": "Arguments of the loader, such as `dataset`, `choices` or `data_files`.",
    "dataset_name": "Config of the data set, if it has several.",
    "dataset_path": "Hub id of the data set, or a loader of Hugging Face Datasets (json, csv, parquet).",
    "description": "Text that stands once before the examples and the question.",
    "doc_to_audio": "Column or template of the audio of a document.",
    "doc_to_choice": "The choices: a list, a column, or a template that gives a list.",
    "doc_to_decontamination_query": "Template of the text that is searched for in training data.",
    "doc_to_image": "Column or template of the images of a document.",
    "doc_to_target": "The reference answer: a column, a template, or the index of a choice.",
    "doc_to_text": "Template of the prompt (Jinja), or the name of a column.",
    "fewshot_config": "Where examples come from, and how they are chosen and written.",
    "fewshot_delimiter": "Text between examples.",
    "fewshot_split": "Split that examples are drawn from.",
    "filter_list": "How answers are taken from outputs: named lists of filters.",
    "gen_prefix": "Text that the answer begins with.",
    "generation_kwargs": "How answers are generated: stop strings, length, sampling.",
    "group": "Name of a group of tasks.",
    "group_alias": "Name of the group in tables.",
    "include": "Another YAML, whose keys this one inherits.",
    "metadata": "version, primary_metric, metric_scale, metrics, and whatever else is to be logged.",
    "metric_list": "The metrics, each with its aggregation and direction.",
    "num_fewshot": "Number of examples in the prompt.",
    "output_type": "What is asked of the model.",
    "process_docs": "A function that changes the documents of a split.",
    "process_results": "A function that scores one document; its keys are the metrics.",
    "repeats": "How often each document is asked.",
    "should_decontaminate": "Whether documents are searched for in training data.",
    "tag": "Names under which several tasks can be called together.",
    "target_delimiter": "Text between prompt and answer.",
    "task": "Name of the task; of a group, its tasks.",
    "task_alias": "Name of the task in tables.",
    "task_list": "Tasks that this file defines, each with the keys in which it differs.",
    "test_split": "Split that is evaluated; takes precedence over validation_split.",
    "training_split": "Split that `harness-ext train` trains on.",
    "unsafe_code": "Whether scoring runs code that the model wrote.",
    "use_prompt": "Name of a prompt of promptsource.",
    "validation_split": "Split that is evaluated if there is no test_split.",
}


def task_schema() -> dict[str, Any]:
    """The JSON schema (draft 7) of task and group YAMLs."""
    keys = sorted(TASK_KEYS | GROUP_KEYS)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": URL,
        "title": "Task or group of lm-evaluation-harness",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: {"description": DESCRIPTIONS.get(key, key), **_value(key)} for key in keys},
    }


def _value(key: str) -> dict[str, Any]:
    """What a key may hold."""
    if key in _DETAILED:
        return _DETAILED[key]
    if key in KINDS:
        kinds, _ = KINDS[key]
        types = dict.fromkeys([*(_TYPES[kind] for kind in kinds), "string", "null"])
        return {"type": list(types)}
    return {}


def _open(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "string", "null"], "properties": dict(properties)}


_METRIC = {
    "type": "object",
    "required": ["metric"],
    "properties": {
        "metric": {"type": "string", "description": "Name of a metric, or a !function."},
        "aggregation": {"type": "string", "description": "mean, or another function over all documents."},
        "higher_is_better": {"type": "boolean"},
        "hf_evaluate": {"type": "boolean", "description": "Whether it is a metric of Hugging Face Evaluate."},
    },
}
_FILTER = {
    "type": "object",
    "required": ["name", "filter"],
    "properties": {
        "name": {"type": "string"},
        "filter": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["function"],
                "properties": {"function": {"type": "string", "description": "Name of a filter, or a !function."}},
            },
        },
    },
}
_DECLARED = {
    "unit": {"type": "string", "description": "share (0–1), points (0–100), or another unit."},
    "range": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 2},
    "margin": {"type": ["number", "null"], "description": "Difference up to which two values are equivalent."},
    "higher_is_better": _FLAG,
    "scale": {"enum": ["linear", "log"]},
}
_METADATA = {
    "version": {"type": ["number", "string"], "description": "Version of the task; raise it when scores change."},
    "primary_metric": {"type": "string", "description": "The metric that `harness-ext compare` compares."},
    "metric_scale": {"enum": [1, 100], "description": "Whether the metrics are 0–1 or 0–100."},
    "metrics": {
        "type": "object",
        "description": "Declarations of metrics by name.",
        "additionalProperties": {
            "type": "object", "additionalProperties": False, "properties": {key: _DECLARED[key] for key in DECLARABLE},
        },
    },
}  # fmt: skip
_NAMES = {"type": "array", "items": {"type": ["string", "object"]}}
_DETAILED: dict[str, dict[str, Any]] = {
    "aggregate_metric_list": {"type": ["array", "object", "null"]},
    "class": {"type": "string"},
    "dataset_kwargs": _open({key: {} for key in inspect.signature(load_documents).parameters if key != "_unused"}),
    "fewshot_config": {**_open({key: {} for key in sorted(FEWSHOT_KEYS)}), "additionalProperties": False},
    "filter_list": {"type": ["array", "string", "null"], "items": _FILTER},
    "generation_kwargs": _open({key: {} for key in sorted(GENERATION_KEYS)}),
    "group": _TEXTS,
    "group_alias": _TEXT,
    "include": _TEXTS,
    "metadata": _open(_METADATA),
    "metric_list": {"type": ["array", "string", "null"], "items": _METRIC},
    "output_type": {"enum": sorted(output_types())},
    "should_decontaminate": _FLAG,
    "tag": _TEXTS,
    "task": {"anyOf": [_TEXT, _NAMES]},
    "task_alias": _TEXT,
    "task_list": _NAMES,
    "unsafe_code": _FLAG,
}
