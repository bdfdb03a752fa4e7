"""Evaluate a base and its adapters under one protocol, in one process.

```
EvaluationPlan ──> base loaded once ──> [ base │ adapter A │ adapter B ] ──> lm-eval ──> one results folder for each
```

The numbers are lm-eval's: `simple_evaluate` renders, scores and aggregates, `EvaluationTracker` writes. We choose what
runs, and add the key `harness_ext` to each results file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
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
from lm_eval.utils import handle_non_serializable

import harness_ext
from harness_ext.engine.lm import TreeLM, record_key
from harness_ext.errors import AdapterError, ModelError, TaskError, suggest
from harness_ext.models.adapters import WEIGHTS_FILE, AdapterSwitch, check_adapter, find_base, read_card
from harness_ext.models.sources import resolve_model
from harness_ext.models.torch_setup import choose_device, choose_dtype
from harness_ext.protocol import datasets
from harness_ext.protocol.fingerprint import PROMPT_FIELDS, Fingerprint, differing_fields, fingerprint
from harness_ext.protocol.render import PromptSettings, load_tasks

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hf-tree"


@dataclass(frozen=True)
class Variant:
    """One thing to evaluate: the base, or the base with an adapter."""

    name: str
    adapter: str | None


@dataclass(frozen=True)
class VariantResults:
    """What lm-eval made of one variant."""

    variant: Variant
    results: Mapping[str, Any]  # as in `results_*.json`, the logged samples under "samples" when asked for
    folder: Path | None  # where they were written


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
        One entry for the base and one for each adapter, in that order.

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
    config = EvaluatorConfig(model=model, model_args=model_args, tasks=list(tasks), **settings)._configure()
    return list(run(config, adapters=adapters))


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
        yield _evaluate_variant(config, lm, Variant(config.model, None), manager, tasks)
        return
    only = config.model_args.pop("peft", None)
    variants = [Variant("base", None)] if only is None else []
    variants += [Variant(name, folder) for name, folder in _named([only] if only else [], adapters)]
    base = _resolve_base(config.model_args, [v.adapter for v in variants if v.adapter])
    manager, tasks = load_tasks(config.tasks, include_path=include_path, metadata=config.metadata)
    lm = _load(model_class, config, base)
    switch = AdapterSwitch(lm.model, merge=isinstance(lm, TreeLM) and lm.merge)
    for variant in variants:
        if variant.adapter is not None:
            switch.attach(variant.adapter, base=base)
        switch.activate(variant.adapter)
        lm._model, lm.peft = switch.model, variant.adapter
        yield _evaluate_variant(config, lm, variant, manager, tasks)


def _named(only: Sequence[str], adapters: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Name adapters by their folders, with the parent's name where two are alike."""
    folders = [str(folder).rstrip("/") for folder in (*only, *adapters)]
    for folder in folders:
        check_adapter(folder)
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise AdapterError(f"{twice.pop()} is named twice; name each adapter once")
    short = [Path(folder).resolve().name for folder in folders]
    return [
        (name if short.count(name) == 1 and name != "base" else str(Path(folder)), folder)
        for name, folder in zip(short, folders, strict=True)
    ]


def _resolve_base(model_args: Mapping[str, Any], adapters: Sequence[str]) -> str:
    if named := model_args.get("pretrained"):
        return resolve_model(str(named))
    if not adapters:
        raise ModelError("no model is named; add --model_args pretrained=MODEL (or peft=ADAPTER)")
    bases = {adapter: find_base(adapter) for adapter in adapters}
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{adapter} on {base}" for adapter, base in bases.items())
        raise AdapterError(f"these adapters belong to different bases: {listed}; evaluate them in separate runs")
    return resolve_model(bases[adapters[0]])


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
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{base} cannot be loaded: {reason:.200}; check --model_args") from error


def _evaluate_variant(
    config: EvaluatorConfig, lm: LM, variant: Variant, manager: TaskManager, tasks: list[Task | Group]
) -> VariantResults:
    model_args = {**config.model_args, **({"peft": variant.adapter} if variant.adapter else {})}
    tracker = EvaluationTracker(**{**config.hf_hub_log_args, "output_path": config.output_path})
    started = time.monotonic()
    results = lm_eval.simple_evaluate(
        model=lm,
        model_args=model_args,
        tasks=tasks,
        task_manager=manager,
        use_cache=_cache_file(config.use_cache, lm, model_args),
        evaluation_tracker=tracker,
        cache_requests=config.cache_requests.get("cache_requests", False),
        rewrite_requests_cache=config.cache_requests.get("rewrite_requests_cache", False),
        delete_requests_cache=config.cache_requests.get("delete_requests_cache", False),
        gen_kwargs=copy.deepcopy(config.gen_kwargs),
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
    if results is None:  # not the first of several processes
        return VariantResults(variant, {}, None)
    results["config"]["model"] = config.model
    leaves = [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]
    if isinstance(lm, TreeLM):
        _add_generation_records(results.get("samples", {}), lm)
    results["harness_ext"] = _our_key(config, lm, variant, leaves, seconds=time.monotonic() - started)
    return VariantResults(variant, results, _write(config, tracker, results))


def _add_generation_records(samples: Mapping[str, list[dict[str, Any]]], lm: TreeLM) -> None:
    """Put finish reason and token counts into the logged samples, which lm-eval does not keep."""
    for logged in samples.values():
        for sample in logged:
            found = [lm.generation_records.get(record_key(*arguments)) for arguments in sample["arguments"]]
            if record := next((record for record in found if record is not None), None):
                sample.update(record._asdict())


def _seeds(config: EvaluatorConfig) -> dict[str, int | None]:
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return dict(zip(names, config.seed or [None] * 4, strict=True))


def _cache_file(prefix: str | None, lm: LM, model_args: Mapping[str, Any]) -> str | None:
    """A response cache of its own for each model, adapter and dtype: lm-eval keys responses by the request alone."""
    if prefix is None:
        return None
    identity = json.dumps({**model_args, "class": type(lm).__name__}, sort_keys=True, default=str)
    if adapter := model_args.get("peft"):
        identity += hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()
    return f"{prefix}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _our_key(
    config: EvaluatorConfig, lm: LM, variant: Variant, tasks: Sequence[Task], *, seconds: float
) -> dict[str, Any]:
    settings = PromptSettings(
        num_fewshot=config.num_fewshot,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        system_instruction=config.system_instruction,
        **({"fewshot_seed": config.seed[3]} if config.seed else {}),
    )
    template_of = lm if isinstance(lm, HFLM) else None
    prints = {task.task_name: fingerprint(task, settings, template_of) for task in tasks}
    if variant.adapter is not None:
        _warn_of_other_prompts(variant.adapter, prints)
    return {
        "version": harness_ext.__version__,
        "variant": variant.name,
        "base": config.model_args.get("pretrained"),
        "adapter": variant.adapter,
        "card": _card(variant.adapter),
        "fingerprints": {name: each.digest for name, each in prints.items()},
        "fingerprint_fields": {name: each.fields for name, each in prints.items()},
        "sample_data": any(
            datasets.is_sample(task.config.custom_dataset, task.config.dataset_kwargs, task.config.metadata)
            for task in tasks
        ),
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
    }


def _card(adapter: str | None) -> dict[str, Any] | None:
    """What an adapter's card says, and the size of its weights, for whoever compares."""
    card = None if adapter is None else read_card(adapter)
    if adapter is None or card is None:
        return None
    return {**asdict(card), "adapter_bytes": (Path(adapter).expanduser() / WEIGHTS_FILE).stat().st_size}


def _warn_of_other_prompts(adapter: str, prints: Mapping[str, Fingerprint]) -> None:
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


def _write(config: EvaluatorConfig, tracker: EvaluationTracker, results: dict[str, Any]) -> Path | None:
    """Let lm-eval write its files; returns their folder."""
    if not config.output_path:
        return None
    written = {name: value for name, value in results.items() if name != "samples"}
    samples = results.get("samples")
    # lm-eval swallows whatever goes wrong here, so prove first that the results can be written.
    json.dumps(written, default=handle_non_serializable)
    tracker.save_results_aggregated(results=written, samples=samples if config.log_samples else None)
    if config.log_samples and samples:
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    path = Path(config.output_path)
    folder = path.parent if path.suffix == ".json" else path / str(tracker.general_config_tracker.model_name_sanitized)
    if not any(
        folder.glob(f"*results_{tracker.date_id}.json" if path.suffix != ".json" else f"*{tracker.date_id}.json")
    ):
        raise TaskError(f"results could not be written to {folder}; check permissions and disk space")
    return folder
