"""Checks that a task's documents can be loaded and have the splits that it names."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets as hf_datasets

from harness_ext.check.settings import DOCUMENTS_HOOK, TASK_KEYS
from harness_ext.check.yaml_source import TaskSource
from harness_ext.errors import DatasetError, HarnessExtError, described, suggest
from harness_ext.findings import Level
from harness_ext.protocol.documents import Source, hub_dataset, resolve_source
from harness_ext.protocol.lm_eval_api import ConfigurableTask, load_yaml
from harness_ext.protocol.lm_eval_api import bare_task as unchecked_task
from harness_ext.protocol.tasks import found_no_rows

logger = logging.getLogger(__name__)

SAMPLED = 200  # at most so many documents are rendered and scored, spread over the split
BUILDERS = ("csv", "json", "parquet", "text", "arrow", "xml", "pandas")
LATER_SPLITS = ("training_split", "fewshot_split")  # zero-shot evaluation does not read them
SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


class Sampled(NamedTuple):
    """A sample of the evaluated split."""

    docs: Sequence[Mapping[str, Any]]
    split: str
    total: int

    @property
    def numbers(self) -> Sequence[int]:
        """Position of each document in its split."""
        return spread(self.total)


def spread(total: int, size: int = SAMPLED) -> Sequence[int]:
    """Positions of at most `size` documents, evenly spread over `total`.

    >>> list(spread(10, 4))
    [0, 2, 5, 7]
    """
    return range(total) if total <= size else [number * total // size for number in range(size)]


def sample_of(task: ConfigurableTask) -> Sampled:
    """At most `SAMPLED` documents of the split that lm-eval evaluates."""
    docs = task.eval_docs
    split = "test" if task.has_test_docs() else "validation"
    name = getattr(task.config, f"{split}_split") or split
    numbers = spread(len(docs))
    sample = docs.select(numbers) if hasattr(docs, "select") else [docs[number] for number in numbers]
    return Sampled(list(sample), name, len(docs))


# -- loading -----------------------------------------------------------------------------------------------------


def needs_hub(source: TaskSource) -> bool:
    """Whether loading this task's documents may need the Hub."""
    if source.values.get("custom_dataset") == DOCUMENTS_HOOK:
        kwargs = source.values.get("dataset_kwargs") or {}
        try:
            return _resolved(kwargs, source.file).kind == "hub"
        except (HarnessExtError, TypeError, AttributeError):
            return False
    path = source.values.get("dataset_path")
    return "class" in source.values or (isinstance(path, str) and path not in BUILDERS and not _exists(path))


def _exists(path: str) -> bool:
    """Whether there is such a file or folder; False also for a text that cannot be a path."""
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises for names that are too long)


def _resolved(kwargs: Mapping[str, Any], file: Path) -> Source:
    return resolve_source(
        str(kwargs.get("dataset")), data_files=kwargs.get("data_files"), data_dir=kwargs.get("data_dir"), yaml_file=file
    )


def note_unloaded(source: TaskSource, error: Exception, *, hub_answers: bool) -> None:
    """Turn an exception from loading documents into a finding: a mistake in the task, or documents out of reach."""
    is_empty = found_no_rows(error)
    reason = "its files are empty" if is_empty else described(error)
    place = "dataset_kwargs" if source.values.get("dataset_kwargs") else "dataset_path"
    if _out_of_reach(source, error, hub_answers=hub_answers):
        remedy = reason if isinstance(error, HarnessExtError) else "connect to the Hub, or name local files"
        source.add("C38", "note", f"not verified: documents out of reach ({remedy})", place)
    elif isinstance(error, FileNotFoundError) or "does not exist" in reason or "is not a folder" in reason:
        source.add("C14", "error", f"documents are missing: {reason}; check the path", place)
    else:
        source.add("C15", "error", f"documents cannot be loaded: {reason}; correct the data or its settings", place)


def _out_of_reach(source: TaskSource, error: Exception, *, hub_answers: bool) -> bool:
    if isinstance(error, DatasetError):
        kwargs = source.values.get("dataset_kwargs") or {}
        if kwargs.get("data_files") or kwargs.get("data_dir"):
            return False
        if hub_dataset(str(kwargs.get("dataset"))) is None:
            return False
        try:
            return _resolved(kwargs, source.file).kind == "hub" and not hub_answers
        except DatasetError:
            return True  # the folder of HARNESS_EXT_DATA, or the sample, lacks these documents
    return not hub_answers and needs_hub(source)


def bare_task(source: TaskSource, *, hub_answers: bool) -> ConfigurableTask | None:
    """A task object made without lm-eval's constructor, so that a broken task can still render its documents.

    None if the documents cannot be loaded; a finding then says why.
    """
    try:
        values = load_yaml(source.file)
    except Exception as error:  # lm-eval's parser is stricter than ours, and it imports functions
        source.add("C01", "error", f"lm-eval cannot read it: {described(error)}; correct the YAML", "task")
        return None
    config = {key: value for key, value in values.items() if key in TASK_KEYS - {"class", "group"}}
    config = {key: value for key, value in config.items() if key not in ("include", "task_list", "tag")}
    metadata = config["metadata"] if isinstance(config.get("metadata"), Mapping) else {}
    config["metadata"] = {**metadata, "config_source": str(source.file)}
    try:
        task = unchecked_task(config)
    except Exception as error:  # of lm-eval, for values that it does not expect
        if not any(finding.level == "error" for finding in source.findings):
            source.add("C39", "error", f"cannot be built: {described(error)}; correct the YAML", "task")
        return None
    if not (task.config.dataset_path or task.config.custom_dataset):
        source.add("C08", "error", "has no documents; add dataset_path, or custom_dataset with dataset_kwargs", "task")
        return None
    try:
        task.download(dict(task.config.dataset_kwargs or {}))
    except Exception as error:  # whatever a loader raises
        note_unloaded(source, error, hub_answers=hub_answers)
        return None
    return task


# -- splits ------------------------------------------------------------------------------------------------------


def scores_whole_texts(task: ConfigurableTask) -> bool:
    """Whether a task scores whole texts (perplexity), so that it has no prompt and no answer to train on."""
    return bool(task.OUTPUT_TYPE == "loglikelihood_rolling")


def check_splits(source: TaskSource, task: ConfigurableTask) -> bool:
    """Note splits that are missing or empty; returns whether there is something to evaluate."""
    config, splits = task.config, getattr(task, "dataset", None)
    if not isinstance(splits, Mapping):
        source.add("C16", "error", f"the documents are a {type(splits).__name__}, not a mapping of splits; return a "
                   "DatasetDict from custom_dataset", "custom_dataset")  # fmt: skip
        return False
    names = [str(name) for name in splits]
    valid = True
    for key in SPLIT_KEYS:
        split = getattr(config, key)
        if split is None:
            continue
        if split not in splits:
            level: Level = "warning" if key in LATER_SPLITS else "error"
            source.add("C16", level, f"{key} {split!r} is not in the data, which has {', '.join(names)}"
                       f"{suggest(str(split), names) or '; name one of them'}", key)  # fmt: skip
            valid = valid and level != "error"
        elif not len(splits[split]):
            source.add("C15", "error", f"{key} {split!r} has no documents; add at least one", key)
            valid = False
    if not (task.has_validation_docs() or task.has_test_docs()):
        source.add("C16", "error", "has neither validation_split nor test_split, so there is nothing to evaluate; add "
                   f"one (the data has {', '.join(names)})", "validation_split")  # fmt: skip
        valid = False
    if not task.has_training_docs():
        source.add("C36", "note", "has no training_split: it can be evaluated, but not trained on", "task")
    elif scores_whole_texts(task):
        source.add("C36", "note", "scores whole texts, which have no answer: it can be evaluated, but not trained on",
                   "output_type")  # fmt: skip
    return valid


def columns_of(task: ConfigurableTask) -> list[str]:
    """Names of the columns of the evaluated documents."""
    docs = task.eval_docs
    if isinstance(docs, hf_datasets.Dataset):
        return list(docs.column_names)
    return list(docs[0]) if len(docs) else []
