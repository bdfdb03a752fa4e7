"""Evaluate a base and its adapters under one protocol, in one process.

```
EvaluationPlan ──> base loaded once ──> [ base │ adapter A │ adapter B ] ──> lm-eval ──> one results folder for each
```

The numbers are lm-eval's: `simple_evaluate` renders, scores and aggregates, `EvaluationTracker` writes. We choose what
runs, and add the key `harness_ext` to each results file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.group import Group
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.api.task import Task
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker, TrackioLogger, WandbLogger
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import harness_ext
from harness_ext.engine.generation_records import add_generation_records
from harness_ext.engine.hf_tree import DELTA_WITH_ADAPTER
from harness_ext.engine.isolation import Failures, evaluate_isolated, one_line
from harness_ext.engine.variants import PeftHost, Variant, base_and_adapters, probe_prompts, within_tables
from harness_ext.engine.writing import why_not_writable, write_results
from harness_ext.errors import AdapterError, ModelError, TaskError, first_line, suggest
from harness_ext.models.adapters import CONFIG_FILE, WEIGHTS_FILE, find_base
from harness_ext.models.card import read_card
from harness_ext.models.devices import choose_device, choose_dtype
from harness_ext.models.sources import check_is_plain, resolve_model, weights_sha256
from harness_ext.protocol import documents
from harness_ext.protocol.fingerprint import PROMPT_FIELDS, Fingerprint, differing_fields, fingerprint
from harness_ext.protocol.render import PromptSettings, check_askable, check_chat_template
from harness_ext.protocol.tasks import load_tasks
from harness_ext.protocol.ties import MOST_TIED, tied_choices
from harness_ext.protocol.token_settings import check_appends_nothing, token_settings

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hf-tree"


@dataclass(frozen=True)
class VariantResults:
    """What lm-eval made of one variant."""

    variant: Variant
    results: Mapping[str, Any]  # as in `results_*.json`, the logged samples under "samples" when asked for
    folder: Path | None  # where they were written
    failures: Mapping[str, str] = field(default_factory=dict)  # task -> why it has no results, or not all of its files


def evaluate(
    base: str | None = None,
    *,
    tasks: Sequence[str],
    adapters: Sequence[str | Path] = (),
    model: str = DEFAULT_MODEL,
    **settings: Any,
) -> list[VariantResults]:
    """Evaluate a base, then each adapter, on the same tasks.

    Args:
        base: Hub id, local folder or packaged model; read from the first adapter when left out.
        tasks: names, or paths of YAML files.
        adapters: adapter folders.
        model: lm-eval's name of the model class.
        settings: any field of lm-eval's `EvaluatorConfig`: `limit`, `num_fewshot`, `output_path`, `log_samples`, ...

    Returns:
        One entry for the base and one for each adapter, in that order; tasks that failed stand in `failures`. One that
        lacks the chat template that the others have is named there, and has no results.

    Raises:
        HarnessExtError: one line on what is wrong.
    """
    model_args = dict(settings.pop("model_args", None) or {})
    if base is not None:
        model_args["pretrained"] = base
    known = [field.name for field in fields(EvaluatorConfig)]
    if unknown := [name for name in settings if name not in known]:
        raise TaskError(
            f"evaluate knows no setting {unknown[0]!r}{suggest(unknown[0], known)}; see lm-eval's EvaluatorConfig"
        )
    try:
        config = EvaluatorConfig(model=model, model_args=model_args, tasks=list(tasks), **settings)._configure()
    except (TypeError, ValueError) as error:
        raise TaskError(f"evaluate: {first_line(error)}") from error
    done = list(run(config, adapters=adapters))
    for each in done:
        for name, reason in each.failures.items():
            logger.error("%s, %s: %s", each.variant.name, name, reason)
    return done


def run(config: EvaluatorConfig, *, adapters: Sequence[str | Path] = ()) -> Iterator[VariantResults]:
    """Evaluate what a config asks for; yields each variant's results as soon as they are written.

    With `peft` among the model arguments and no `adapters`, only that adapter is evaluated, as in stock lm-eval.

    Args:
        config: checked by lm-eval.
        adapters: adapter folders, evaluated after the base.
    """
    if not config.tasks:
        raise TaskError("no task is named; add --tasks TASK (sst2_choice, squad_v2_generate, or any of lm-eval's)")
    include_path = [config.include_path] if isinstance(config.include_path, str) else config.include_path or []
    model_class = get_model(config.model)
    if not issubclass(model_class, HFLM):
        if adapters:
            raise ModelError(f"--adapters needs --model hf; give {config.model} its adapter in --model_args")
        manager, tasks = load_tasks(config.tasks, include_path=include_path, metadata=config.metadata)
        lm = model_class.create_from_arg_obj(config.model_args, _loading(config))
        yield _evaluate_variant(config, lm, Variant(config.model), manager, tasks, {})
        return
    revision = config.model_args.get("revision")
    variants = base_and_adapters(adapters, only=config.model_args.pop("peft", None), revision=revision)
    if config.model_args.get("delta") and variants[-1].adapter:
        raise ModelError(DELTA_WITH_ADAPTER)
    base = _resolve_base(config.model_args, [variant for variant in variants if variant.adapter])
    manager, tasks = load_tasks(config.tasks, include_path=include_path, metadata=config.metadata)
    lm = _load(model_class, config, base)
    check_is_plain(lm.model, base)
    if lm.backend == "causal":
        check_appends_nothing(lm.tokenizer, base, add_bos_token=lm.add_bos_token)
    host = PeftHost(
        lm,
        base,
        prompts=probe_prompts(_leaves(tasks), _prompt_settings(config), lm),
        model_args=config.model_args,
        uses_chat_template=bool(config.apply_chat_template),
    )
    without_template = [variant for variant in variants if host.lacks_chat_template(variant)]
    for variant in variants:
        if variant in without_template and len(without_template) < len(variants):
            reason = f"not evaluated: the tokenizer of {variant.adapter or base} has no chat template"
            yield VariantResults(variant, {}, None, {"all tasks": reason})
            continue
        with host.active(variant) as tokenizer_notes:
            yield _evaluate_variant(config, lm, variant, manager, tasks, tokenizer_notes)


def _leaves(tasks: Sequence[Task | Group]) -> list[Task]:
    return [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]


def _resolve_base(model_args: Mapping[str, Any], adapters: Sequence[Variant]) -> str:
    if named := model_args.get("pretrained"):
        return resolve_model(str(named))
    if not adapters:
        raise ModelError("no model is named; add --model_args pretrained=MODEL (or peft=ADAPTER)")
    bases = {str(variant.adapter): find_base(variant.folder or str(variant.adapter)) for variant in adapters}
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{adapter} on {base}" for adapter, base in bases.items())
        raise AdapterError(f"these adapters belong to different bases: {listed}; evaluate them in separate runs")
    return resolve_model(next(iter(bases.values())))


def _loading(config: EvaluatorConfig) -> dict[str, Any]:
    return {"batch_size": config.batch_size, "max_batch_size": config.max_batch_size, "device": config.device}


def _load(model_class: type[HFLM], config: EvaluatorConfig, base: str) -> HFLM:
    """Load the base once; `auto` means a dtype that this device is fast at."""
    device = choose_device(config.device)
    dtype = choose_dtype(str(config.model_args.get("dtype", "auto")).removeprefix("torch."), device)
    config.model_args.update(pretrained=base, dtype=str(dtype).removeprefix("torch."))
    arguments = {**config.model_args, "device": str(device), "dtype": dtype}
    for name in ("batch_size", "max_batch_size"):
        if (value := getattr(config, name)) is not None:
            arguments[name] = value
    try:
        return model_class(**arguments)
    except TypeError as error:
        raise ModelError(f"--model_args: {error}; see the arguments of --model {config.model}") from error
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = first_line(error)
        raise ModelError(f"{base} cannot be loaded: {reason:.200}; check --model_args") from error


def _evaluate_variant(
    config: EvaluatorConfig,
    lm: LM,
    variant: Variant,
    manager: TaskManager,
    tasks: list[Task | Group],
    tokenizer_notes: Mapping[str, str],
) -> VariantResults:
    """Ask and score all tasks, and write what went well; one that fails is named in `failures`."""
    _check_settings(config, lm)
    model_args = {**config.model_args, **({"peft": variant.adapter} if variant.adapter else {})}
    tracker = _tracker(config)
    started = time.monotonic()
    simple_evaluate = functools.partial(
        lm_eval.simple_evaluate,
        model=lm,
        model_args=model_args,
        task_manager=manager,
        use_cache=_cache_file(config.use_cache, lm, model_args, variant),
        evaluation_tracker=tracker,
        cache_requests=config.cache_requests.get("cache_requests", False),
        rewrite_requests_cache=config.cache_requests.get("rewrite_requests_cache", False),
        delete_requests_cache=config.cache_requests.get("delete_requests_cache", False),
        **{
            name: getattr(config, name)
            for name in (
                "num_fewshot", "batch_size", "max_batch_size", "device", "limit", "samples", "check_integrity",
                "write_out", "log_samples", "system_instruction", "apply_chat_template", "fewshot_as_multiturn",
                "predict_only", "confirm_run_unsafe_code", "metadata",
            )
        },
        **_seeds(config),
    )  # fmt: skip
    results, failures = evaluate_isolated(
        within_tables(lm)(lambda some: simple_evaluate(tasks=list(some), gen_kwargs=copy.deepcopy(config.gen_kwargs))),
        tasks,
        lm,
        explain=lambda task: check_askable(task, _prompt_settings(config), lm if isinstance(lm, HFLM) else None),
    )
    if results is None:  # not the first of several processes
        return VariantResults(variant, {}, None)
    results["config"]["model"] = config.model
    if isinstance(lm, HFLM):
        for name, samples in results.get("samples", {}).items():
            with failures.catching(name, "no finish reasons in its samples: "):
                add_generation_records({name: samples}, lm, config.samples)
    for name, samples in results.get("samples", {}).items():
        with failures.catching(name, "ties between its choices were not counted: "):
            _warn_of_ties({name: samples})
    seconds = time.monotonic() - started
    scored = [leaf for leaf in _leaves(tasks) if leaf.task_name in results["configs"]]
    ours = _key_of_each(
        lambda some: _our_key(config, lm, variant, some, tokenizer_notes, seconds=seconds), scored, failures
    )
    if ours is not None:
        results["harness_ext"] = ours
    folder = None
    if config.output_path:
        with failures.catching("the results"):
            folder = write_results(tracker, results, failures, log_samples=config.log_samples)
    return VariantResults(variant, results, folder, failures)


def _warn_of_ties(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Warn of tasks whose choices score alike in most documents: their accuracy is the share of the first label."""
    for task, logged in samples.items():
        share = tied_choices(logged)
        if share is not None and share > MOST_TIED:
            logger.warning(
                "%s: the best choices tie in %.0f %% of the documents; check the tokenizer", task, 100 * share
            )


def _tracker(config: EvaluatorConfig) -> EvaluationTracker:
    try:
        return EvaluationTracker(**{**config.hf_hub_log_args, "output_path": config.output_path})
    except (TypeError, ValueError, OSError) as error:
        raise TaskError(f"--hf_hub_log_args: {one_line(error)}") from error


def _check_settings(config: EvaluatorConfig, lm: LM) -> None:
    """Raise for what no task could be evaluated with."""
    if config.limit is not None and config.limit <= 0:
        raise TaskError(f"--limit must be positive, got {config.limit}")
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise TaskError(f"--num_fewshot must not be negative, got {config.num_fewshot}")
    if config.output_path and (reason := why_not_writable(Path(config.output_path))):
        raise TaskError(f"--output_path {config.output_path}: {reason}; name another folder")
    if isinstance(lm, HFLM):
        check_chat_template(lm, config.apply_chat_template)


def _key_of_each(
    our_key: Callable[[Sequence[Task]], dict[str, Any]], tasks: Sequence[Task], failures: Failures
) -> dict[str, Any] | None:
    """What we add to a results file, for the tasks that it can be told of; None when it can be told of none."""
    with contextlib.suppress(Exception):
        return our_key(tasks)
    good = []
    for task in tasks:
        with failures.catching(task.task_name, "no fingerprint in its results: "):
            our_key([task])
            good.append(task)
    return our_key(good) if good else None


def _seeds(config: EvaluatorConfig) -> dict[str, int | None]:
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return dict(zip(names, config.seed or [None] * 4, strict=True))


def _cache_file(prefix: str | None, lm: LM, model_args: Mapping[str, Any], variant: Variant) -> str | None:
    """A response cache of its own for each model, adapter and dtype: lm-eval keys responses by the request alone."""
    if prefix is None:
        return None
    identity = json.dumps({**model_args, "class": type(lm).__name__}, sort_keys=True, default=str)
    identity += weights_sha256(str(model_args.get("pretrained")), revision=model_args.get("revision")) or ""
    if variant.folder is not None:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            identity += hashlib.sha256((variant.folder / name).read_bytes()).hexdigest()
    return f"{Path(prefix).expanduser()}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _prompt_settings(config: EvaluatorConfig) -> PromptSettings:
    return PromptSettings(
        num_fewshot=config.num_fewshot,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        system_instruction=config.system_instruction,
        **({"fewshot_seed": config.seed[3]} if config.seed else {}),
    )


def _our_key(
    config: EvaluatorConfig,
    lm: LM,
    variant: Variant,
    tasks: Sequence[Task],
    tokenizer_notes: Mapping[str, str],
    *,
    seconds: float,
) -> dict[str, Any]:
    settings = _prompt_settings(config)
    template_of = lm if isinstance(lm, HFLM) else None
    prints = {task.task_name: fingerprint(task, settings, template_of) for task in tasks}
    if variant.folder is not None:
        _warn_of_other_prompts(variant.folder, prints)
    return {
        "version": harness_ext.__version__,
        "variant": variant.name,
        "base": config.model_args.get("pretrained"),
        "adapter": variant.adapter,
        "card": _card(variant.folder),
        "token_settings": {**token_settings(config.model_args), **tokenizer_notes},
        "fingerprints": {name: each.digest for name, each in prints.items()},
        "fingerprint_fields": {name: each.fields for name, each in prints.items()},
        "sample_data": any(
            documents.is_sample(task.config.custom_dataset, task.config.dataset_kwargs, task.config.metadata)
            for task in tasks
        ),
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
    }


def _card(folder: Path | None) -> dict[str, Any] | None:
    """What an adapter's card says, and the size of its weights, for whoever compares."""
    card = None if folder is None else read_card(folder)
    if folder is None or card is None:
        return None
    return {**asdict(card), "adapter_bytes": (folder / WEIGHTS_FILE).stat().st_size}


def _warn_of_other_prompts(adapter: Path, prints: Mapping[str, Fingerprint]) -> None:
    """Warn when a task asks an adapter about its own data in other words than it was trained with."""
    card = read_card(adapter)
    if card is None:
        return
    for task, found in prints.items():
        differing = differing_fields(card.fingerprint_fields, found.fields, PROMPT_FIELDS)
        if differing and "dataset" not in differing:
            logger.warning(
                "%s was trained on %s with another prompt than %s has here: %s",
                adapter,
                card.task,
                task,
                ", ".join(differing),
            )


def report_to_trackers(config: EvaluatorConfig, done: VariantResults) -> None:
    """Send one variant's results to W&B and trackio, where `--wandb_args` or `--trackio_args` asks for it."""
    results = {name: value for name, value in done.results.items() if name != "samples"}
    for arguments, make in (
        (config.wandb_args, lambda args: WandbLogger(args, config.wandb_config_args)),
        (config.trackio_args, TrackioLogger),
    ):
        if not arguments:
            continue
        tracker = make(arguments)
        tracker.post_init(results)
        tracker.log_eval_result()
        if config.log_samples:
            tracker.log_eval_samples(done.results["samples"])
        tracker.run.finish() if hasattr(tracker, "run") else tracker.finish()
