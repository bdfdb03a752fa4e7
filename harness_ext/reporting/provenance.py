"""Where the numbers of a run come from, and the commands that repeat them."""

from __future__ import annotations

import datetime
import hashlib
import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from harness_ext.errors import InputError
from harness_ext.names import clean_name
from harness_ext.protocol.task_folders import task_names, tasks_path
from harness_ext.reading.files import open_regular
from harness_ext.reporting.contents import RunFacts
from harness_ext.reporting.datasets import dataset_of
from harness_ext.results.file import ADAPTER_KEYS
from harness_ext.results.run import LM_EVAL, Run, TaskResult
from harness_ext.stats.sequential.design import LOOKS
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
        facts[f"documents of {task}"] = str(dataset_of(result)) if run.tool == LM_EVAL and not result.is_group else None
        facts[f"protocol of {task}"] = result.fingerprint
        facts[f"samples of {task}"] = result.digest
    known = {name: value for name, value in facts.items() if value}
    return RunFacts(run.name, _what_is(run), known, commands_of(run))


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
    """One command for all tasks with the same number of examples in the prompt, the same limit and the same stopping.

    A base that was watched together with its adapters is evaluated by their commands.
    """
    groups: dict[tuple[int, float | None, tuple[str, ...]], list[TaskResult]] = defaultdict(list)
    for result in run.tasks.values():
        if not result.is_group and (result.sequential is None or run.adapter):
            groups[result.n_shot, result.limit, _stopping(result)].append(result)
    commands = []
    for (shots, limit, stopping), results in groups.items():
        program = _program(run, watched=bool(stopping))
        words = [*program, *_tasks(results, shots, limit), *stopping, *_settings(run)]
        commands.append(shlex.join(words) + _own_tasks(run, results))
    return commands


def _program(run: Run, *, watched: bool) -> list[str]:
    """The program with its model; a run that was watched is evaluated beside its base."""
    left_out = ADAPTER_KEYS if watched else ()
    arguments = ",".join(f"{name}={value}" for name, value in run.model_args.items() if name not in left_out)
    words = [*_name(run), "--model", str(run.config.get("model") or "hf"), "--model_args", arguments]
    return [*words, "--adapters", str(run.adapter)] if watched else words


def _name(run: Run) -> list[str]:
    return ["harness-ext", "eval"] if run.origin.get("harness_ext_version") else ["lm_eval"]


def _tasks(results: Sequence[TaskResult], shots: int, limit: float | None) -> list[str]:
    words = ["--tasks", ",".join(result.task for result in results)]
    folders = {folder: None for result in results if (folder := _further_folder(result))}
    for folder in folders:
        words += ["--include_path", folder]
    words += ["--num_fewshot", str(shots)] if shots else []
    return words + ([] if limit is None else ["--limit", f"{limit:g}"])


def _further_folder(result: TaskResult) -> str | None:
    """The folder of a task that is neither lm-eval's nor this package's; below the working directory, from there."""
    source = result.metadata.get("config_source")
    if not isinstance(source, str) or "lm_eval" in Path(source).parts or result.task in _our_tasks():
        return None
    folder = Path(source).parent
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


@cache
def _our_tasks() -> frozenset[str]:
    return frozenset(task_names([tasks_path()]))


def _own_tasks(run: Run, results: Sequence[TaskResult]) -> str:
    """What stock lm-eval needs to find the tasks of this package, for a shell."""
    if _name(run) != ["lm_eval"] or not _our_tasks() & {result.task for result in results}:
        return ""
    return ' --include_path "$(harness-ext tasks-path)"'


def _stopping(result: TaskResult) -> tuple[str, ...]:
    """The flags of an evaluation that was watched."""
    record = result.sequential
    if record is None:
        return ()
    planned, words = record.planned, ["--until-decided"]
    if planned.margin is not None and planned.span == 1:
        words += [] if math.isclose(planned.margin, 0.01) else ["--margin", f"{100 * planned.margin:g}"]
    elif planned.margin is not None:
        words += ["--margin", f"{planned.metric}={planned.margin:g}"]
    if record.design.looks != LOOKS:
        words += ["--looks", *(f"{look:g}" for look in record.design.looks)]
    if result.available is not None and planned.documents < result.available:
        words += ["--max-documents", str(planned.documents)]
    return tuple(words)


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
