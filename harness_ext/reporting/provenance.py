"""Where the numbers of a run come from, and the commands that repeat them."""

from __future__ import annotations

import datetime
import hashlib
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from harness_ext.errors import InputError
from harness_ext.reading.files import open_regular
from harness_ext.reporting.contents import RunFacts
from harness_ext.results.run import LM_EVAL, Run
from harness_ext.training.recipe import Recipe, flag

_CHUNK = 1 << 20
_DEFAULT_SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}  # of lm-eval
_MACHINE = ("task", "model", "output", "report_to", "include_path")  # fields of a recipe with flags of their own


def facts_of(run: Run) -> RunFacts:
    """What is known about a run, in the order of reading, and the commands that repeat it."""
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
        facts[f"protocol of {task}"] = result.fingerprint
        facts[f"samples of {task}"] = result.digest
    return RunFacts(run.name, {name: value for name, value in facts.items() if value}, commands_of(run))


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


# -- commands ------------------------------------------------------------------------------------------------------


def commands_of(run: Run) -> list[str]:
    """The commands that train the adapter, if its card says how, and evaluate the run; empty for other tools."""
    if run.tool != LM_EVAL or not run.model_args:
        return []
    return [*_training(run), *_evaluations(run)]


def _training(run: Run) -> list[str]:
    recipe = _mapping(run.card.get("recipe"))
    task, base = run.card.get("task"), run.card.get("base")
    if not recipe or not task or not base:
        return []
    words = ["harness-ext", "train", str(task), "--model", str(base), "--output", run.adapter or f"adapters/{run.name}"]
    for field in fields(Recipe):
        value = recipe.get(field.name)
        default = None if field.default is MISSING else field.default
        if field.name in _MACHINE or value is None or value == default:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name) if value else flag(field.name).replace("--", "--no-", 1))
        elif isinstance(value, (int, float, str)):
            words += [flag(field.name), f"{value:g}" if isinstance(value, float) else str(value)]
    return [shlex.join(words)]


def _evaluations(run: Run) -> list[str]:
    """One command for all tasks with the same number of examples in the prompt and the same limit."""
    groups: dict[tuple[int, float | None], list[str]] = defaultdict(list)
    for name, result in run.tasks.items():
        if not result.is_group:
            groups[result.n_shot, result.limit].append(name)
    return [
        shlex.join([*_program(run), *_tasks(names, shots, limit), *_settings(run)])
        for (shots, limit), names in groups.items()
    ]


def _program(run: Run) -> list[str]:
    arguments = ",".join(f"{name}={value}" for name, value in run.model_args.items())
    program = ["harness-ext", "eval"] if run.origin.get("harness_ext_version") else ["lm_eval"]
    return [*program, "--model", str(run.config.get("model") or "hf"), "--model_args", arguments]


def _tasks(names: list[str], shots: int, limit: float | None) -> list[str]:
    words = ["--tasks", ",".join(names), *(["--num_fewshot", str(shots)] if shots else [])]
    return [*words, *([] if limit is None else ["--limit", f"{limit:g}"])]


def _settings(run: Run) -> list[str]:
    words = []
    seeds = {name: run.config.get(name, default) for name, default in _DEFAULT_SEEDS.items()}
    if seeds != _DEFAULT_SEEDS:
        words += ["--seed", ",".join(map(str, seeds.values()))]
    if gen_kwargs := run.config.get("gen_kwargs"):
        items = gen_kwargs.items() if isinstance(gen_kwargs, Mapping) else ()
        words += ["--gen_kwargs", ",".join(f"{name}={value}" for name, value in items) or str(gen_kwargs)]
    if run.origin.get("chat_template"):
        words.append("--apply_chat_template")
    if instruction := run.origin.get("system_instruction"):
        words += ["--system_instruction", str(instruction)]
    return [*words, "--output_path", "results", "--log_samples"]
