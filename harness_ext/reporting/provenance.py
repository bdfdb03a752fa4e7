"""Where the numbers of a run come from."""

from __future__ import annotations

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness_ext.errors import InputError
from harness_ext.names import clean_name
from harness_ext.reading.files import open_regular
from harness_ext.reporting.commands import training_command
from harness_ext.reporting.contents import RunFacts
from harness_ext.reporting.datasets import dataset_of
from harness_ext.results.run import LM_EVAL, Run, TaskResult

_CHUNK = 1 << 20
_DEFAULT_SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}  # of lm-eval
_MACHINE = ("task", "model", "output", "report_to", "include_path")  # fields of a recipe with flags of their own


def facts_of(run: Run) -> RunFacts:
    """What is known about a run, in the order of reading, and the command that trains its adapter."""
    facts = {
        "base": run.base,
        "adapter": run.adapter,
        "written by": _tool(run),
        "evaluated": _date(run.origin.get("date")),
        "model": _text(run.config.get("model")),
        "number format": _text(run.config.get("model_dtype")),
        "revision": _text(run.config.get("model_sha")),
        **{f"sha256 of {name}": str(value) for name, value in _mapping(run.origin.get("adapter_sha256")).items()},
        **_card_facts(run.card),
    }
    for source, tasks in _sources(run).items():
        facts[f"results of {', '.join(tasks[:4])}{' …' if tasks[4:] else ''}"] = f"{source} sha256:{_sha256(source)}"
    for task, result in run.tasks.items():
        facts[f"documents of {task}"] = _documents(result) if run.tool == LM_EVAL and not result.is_group else None
        facts[f"sha256 of the protocol of {task}"] = result.fingerprint
        facts[f"sha256 of the documents and prompts of {task}"] = result.digest
    known = {name: value for name, value in facts.items() if value}
    return RunFacts(run.name, _what_is(run), known, training_command(run))


def _what_is(run: Run) -> str:
    """The model of a run in one phrase."""
    base = clean_name(run.card.get("base") or Path(run.base or "").name) or "a model that was not logged"
    if not run.adapter:
        return base if run.tool == LM_EVAL else f"{base}, evaluated by {run.tool}"
    task, examples = run.card.get("task"), run.card.get("examples")
    trained = f", trained on {clean_name(task)}" if task else ""
    size = f" with {examples:,} examples" if task and isinstance(examples, int) else ""
    return f"an adapter on {base}{trained}{size}"


def _sources(run: Run) -> dict[Path, list[str]]:
    """The results files of a run, each with its tasks."""
    sources: dict[Path, list[str]] = defaultdict(list)
    for task, result in run.tasks.items():
        sources[result.source or run.path].append(task)
    return sources


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(file) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except InputError:
        return "unknown"
    return digest.hexdigest()


def _tool(run: Run) -> str:
    names = {"lm_eval_version": "lm-eval", "harness_ext_version": "harness-ext", "transformers_version": "transformers"}
    versions = [f"{name} {run.origin[key]}" for key, name in names.items() if run.origin.get(key)]
    return ", ".join(versions) or run.tool


def _date(value: Any) -> str | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return _text(value)
    try:
        return datetime.datetime.fromtimestamp(value, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return None


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "", {}, []) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _card_facts(card: Mapping[str, Any]) -> dict[str, str | None]:
    recipe = _mapping(card.get("recipe"))
    names = ("lora_rank", "lora_alpha", "learning_rate", "epochs", "batch_size")
    return {
        "trained on": _text(card.get("task")),
        "training examples": _text(card.get("examples")),
        "sha256 of the training data": _text(card.get("data_sha256")),
        "sha256 of the base": _text(card.get("base_sha256")),
        "seed of the training": _text(card.get("seed")),
        "recipe": ", ".join(f"{name} {recipe[name]}" for name in names if name in recipe) or None,
        "versions in training": ", ".join(f"{name} {each}" for name, each in _mapping(card.get("versions")).items())
        or None,
    }


def _documents(result: TaskResult) -> str:
    data = dataset_of(result)
    return f"{data}, revision {data.revision}" if data.revision else str(data)
