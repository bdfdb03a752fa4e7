"""Evaluate a base and its adapters under one protocol, in one process.

```
EvaluationPlan ──> base loaded once ──> [ base │ adapter A │ adapter B ] ──> lm-eval ──> one results folder for each
                                              └─ answers ──> response store
```

The numbers are lm-eval's: `simple_evaluate` renders, scores and aggregates, `EvaluationTracker` writes. We choose what
runs, and add the key `harness_ext` to each results file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from harness_ext.engine.adapter_switch import within_tables
from harness_ext.engine.asking import Answering
from harness_ext.engine.content import ContentOf, ModelContent, device_name
from harness_ext.engine.from_store import StoreHost, check_stored
from harness_ext.engine.hosts import ADAPTER_ARGUMENTS, Host, host_for, prompt_settings
from harness_ext.engine.isolation import evaluate_isolated, one_line
from harness_ext.engine.provenance import key_of_each, provenance
from harness_ext.engine.sharding import Shards
from harness_ext.engine.store import ResponseStore, StoredModel
from harness_ext.engine.variants import Variant
from harness_ext.engine.writing import why_not_writable, write_results
from harness_ext.errors import (
    AdapterError,
    HarnessExtError,
    LostProcessError,
    StoreError,
    TaskError,
    first_line,
    suggest,
)
from harness_ext.models.devices import choose_device
from harness_ext.protocol.lm_eval_api import (
    EvaluationTracker,
    EvaluatorConfig,
    Group,
    Task,
    TaskManager,
    loggers_of,
    simple_evaluate,
)
from harness_ext.protocol.render import check_askable
from harness_ext.protocol.tasks import load_tasks
from harness_ext.protocol.ties import MOST_TIED, tied_choices

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hf-tree"


@dataclass(frozen=True)
class VariantResults:
    """What lm-eval made of one variant."""

    variant: Variant
    results: Mapping[str, Any]  # as in `results_*.json`, the logged samples under "samples" when asked for
    folder: Path | None  # where they were written
    failures: Mapping[str, str] = field(default_factory=dict)  # task -> why it has no results, or not all of its files
    error: HarnessExtError | None = None  # why an adapter could not be evaluated at all


def evaluate(
    base: str | None = None,
    *,
    tasks: Sequence[str],
    adapters: Sequence[str | Path] = (),
    model: str = DEFAULT_MODEL,
    store: str | Path | Literal[False] | None = None,
    from_store: bool = False,
    **settings: Any,
) -> list[VariantResults]:
    """Evaluate a base, then each adapter, on the same tasks.

    Args:
        base: Hub id, local folder or packaged model; read from the first adapter when left out.
        tasks: names, or paths of YAML files.
        adapters: adapter folders.
        model: lm-eval's name of the model class.
        store: folder of the response store; that of `output_path` when left out, and none if False.
        from_store: take all answers from the store, and load no weights.
        settings: any field of lm-eval's `EvaluatorConfig`: `limit`, `num_fewshot`, `output_path`, `log_samples`, ...

    Returns:
        One entry for the base and one for each adapter, in that order; tasks that failed stand in `failures`. One that
        lacks the chat template that the others have is named there, and has no results. An adapter that cannot be
        evaluated has an `error`.

    Raises:
        HarnessExtError: one line on what is wrong; of adapters only if none could be evaluated.
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
    done = list(run(config, adapters=adapters, store=store, from_store=from_store))
    errors = [each.error for each in done if each.error is not None]
    if errors and len(errors) == sum(each.variant.adapter is not None for each in done):
        raise errors[0]
    for each in done:
        if each.error is not None:
            logger.error("%s: %s", each.variant.name, each.error)
        for name, reason in each.failures.items():
            logger.error("%s, %s: %s", each.variant.name, name, reason)
    return done


def run(
    config: EvaluatorConfig,
    *,
    adapters: Sequence[str | Path] = (),
    store: str | Path | Literal[False] | None = None,
    from_store: bool = False,
) -> Iterator[VariantResults]:
    """Evaluate what a config asks for; yields each variant's results as soon as they are written.

    With `peft` among the model arguments and no `adapters`, only that adapter is evaluated, as in stock lm-eval. An
    adapter that cannot be evaluated does not stop the others. Where several processes are launched, they share the
    requests; the first one has the results.

    Args:
        config: checked by lm-eval.
        adapters: adapter folders, evaluated after the base.
        store: folder of the response store; that of `output_path` when left out, and none if False.
        from_store: take all answers from the store, and load no weights.
    """
    if not config.tasks:
        raise TaskError("no task is named; add --tasks TASK (sst2_choice, squad_v2_generate, or any of lm-eval's)")
    include_path = [config.include_path] if isinstance(config.include_path, str) else config.include_path or []
    folder = _store_folder(config, store, from_store=from_store)
    host = StoreHost(config, adapters) if from_store else host_for(config, adapters)
    if folder is not None and not from_store and (reason := _why_not_stored(host, is_asked_for=store is not None)):
        logger.warning("answers of %s are not stored: %s", host.base, reason)
        folder = None
    shards = Shards.of_launch(cpu=choose_device(config.device).type == "cpu") if host.takes_shards else Shards()
    with contextlib.ExitStack() as stack:
        with shards.together():
            _check_settings(config)
            answers = _Answers(stack.enter_context(ResponseStore(folder, must_exist=from_store)), config, host)
            manager, tasks = load_tasks(config.tasks, include_path=include_path, metadata=config.metadata)
            host.load(_leaves(tasks))
            shards.adopt(host.lm)
        for variant in host.variants:
            if reason := host.why_not(variant):
                failures = {} if shards.rank else {"all tasks": f"not evaluated: {reason}"}
                yield VariantResults(variant, {}, None, failures)
                continue
            try:
                done = _in_its_turn(config, host, shards, variant, manager, tasks, answers)
            except LostProcessError:
                raise
            except Exception as error:  # whatever peft, transformers or torch raise of an adapter
                if variant.adapter is None or len(host.variants) == 1 or not host.is_intact:
                    raise
                logger.debug("%s failed", variant.name, exc_info=error)
                done = VariantResults(variant, {}, None, error=_without_frames(error))
            yield done


def _store_folder(
    config: EvaluatorConfig, store: str | Path | Literal[False] | None, *, from_store: bool
) -> Path | None:
    """Where the answers of a run are kept: where `--store` says, else beside the results; None for nowhere."""
    if config.use_cache is not None:
        if store is not None:
            raise StoreError("--use_cache and --store (or --no-store) contradict each other; leave out --use_cache")
        logger.warning(
            "--use_cache %s: answers are kept in the response store in this folder, since lm-eval's own cache does not "
            "notice other weights; use --store",
            config.use_cache,
        )
        store, config.use_cache = config.use_cache, None
    if store is None and config.output_path:
        output = Path(config.output_path)
        store = output.parent if output.suffix == ".json" else output
    if from_store and not store:
        raise StoreError("--from-store needs a store; add --store DIR, or the --output_path of the evaluation")
    return Path(store).expanduser() if store else None


def _why_not_stored(host: Host, *, is_asked_for: bool) -> str | None:
    """Why answers cannot be kept beyond the run; None where they can."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not host.takes_shards:
        return "several processes compute each of them together"
    if host.weights is None and not is_asked_for:
        return "its weights are not on this machine; see --store"
    return None


class _Answers:
    """Where the answers of each variant come from, and go to."""

    def __init__(self, store: ResponseStore, config: EvaluatorConfig, host: Host) -> None:
        self._store = store
        self._config = config
        self._host = host
        self._from_store = isinstance(host, StoreHost)
        hashed = None if store.path is None else host.weights
        self._base = ContentOf(config.model, hashed, revision=config.model_args.get("revision"))

    def of(self, variant: Variant, tokenizer_notes: Mapping[str, str]) -> Answering:
        """Of the active variant.

        Raises:
            ModelError: files of the base have changed while they were read.
            StoreError: all answers are to come from the store, which has none of this variant.
        """
        lm, content = self._host.lm, self._content(variant, tokenizer_notes)
        if self._from_store:
            lm.model_info = check_stored(self._store, content, variant.name)
        elif hasattr(lm, "get_model_info"):
            self._store.add_model(content.digest, StoredModel(dict(content.parts), lm.get_model_info()))
        seeds = self._config.seed or ()
        store = self._store if self._store.path else ResponseStore(None)  # nobody asks for another variant's any more
        return Answering(store, content.digest, lm, seeds=seeds, computes=not self._from_store)

    def _content(self, variant: Variant, tokenizer_notes: Mapping[str, str]) -> ModelContent:
        """What the answers of the active variant depend on; where it is not hashed, all that is known of it."""
        config, adapter = self._config, self._host.snapshot
        arguments = {name: value for name, value in config.model_args.items() if name not in ("pretrained", "peft")}
        folders = {name: str(arguments.pop(name)) for name in ("tokenizer", "delta") if arguments.get(name)}
        others = {
            "device": device_name(config.device),
            "batch_size": [config.batch_size, config.max_batch_size],
            "tokenizer_of": tokenizer_notes.get("tokenizer"),
        }
        content = self._base.read(
            {name: value for name, value in arguments.items() if name not in ADAPTER_ARGUMENTS},
            adapter=None if adapter is None else adapter.sha256,
            folders=folders if not tokenizer_notes else {**folders, "adapter_tokenizer": str(variant.folder)},
            others=others,
        )
        if content is not None:
            return content
        known = {"engine": config.model, "name": variant.name, "model_args": {**config.model_args}}
        return ModelContent({**known, **others})


def _without_frames(error: Exception) -> HarnessExtError:
    """An error without the frames it passed through, which hold the adapter's weights."""
    kind = type(error) if isinstance(error, HarnessExtError) else AdapterError
    bare = kind(one_line(error))
    bare.is_said = getattr(error, "is_said", False)
    return bare


def _in_its_turn(
    config: EvaluatorConfig,
    host: Host,
    shards: Shards,
    variant: Variant,
    manager: TaskManager,
    tasks: list[Task | Group],
    answers: _Answers,
) -> VariantResults:
    """Let the model become a variant in every process, then evaluate it in the first one."""
    with contextlib.ExitStack() as stack:
        with shards.together():
            tokenizer_notes = stack.enter_context(host.active(variant))
            answering = stack.enter_context(answers.of(variant, tokenizer_notes))
        if shards.rank:
            shards.serve(host.lm)
            return VariantResults(variant, {}, None)
        with shards.asking(host.lm):
            return _evaluate_variant(config, host, shards, variant, manager, tasks, tokenizer_notes, answering)
    raise AssertionError("unreachable: the block returns or raises")


def _leaves(tasks: Sequence[Task | Group]) -> list[Task]:
    return [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]


def _evaluate_variant(
    config: EvaluatorConfig,
    host: Host,
    shards: Shards,
    variant: Variant,
    manager: TaskManager,
    tasks: list[Task | Group],
    tokenizer_notes: Mapping[str, str],
    answering: Answering,
) -> VariantResults:
    """Ask and score all tasks, and write what went well; one that fails is named in `failures`."""
    host.check()
    lm, model_args = host.lm, host.model_args(variant)
    tracker = _tracker(config)
    started = time.monotonic()
    ask = functools.partial(
        simple_evaluate,
        model=lm,
        model_args=model_args,
        task_manager=manager,
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
                "repeats",  # lm-eval 0.5
            )
            if hasattr(config, name)
        },
        **_seeds(config),
    )  # fmt: skip

    def explain(task: Task) -> None:
        answering.check(task.task_name)
        check_askable(task, prompt_settings(config), host.hf)

    results, failures = evaluate_isolated(
        within_tables(lm)(lambda some: ask(tasks=list(some), gen_kwargs=copy.deepcopy(config.gen_kwargs))),
        tasks,
        lm,
        explain=explain,
    )
    if results is None:  # not the first of several processes
        return VariantResults(variant, {}, None)
    results["config"]["model"] = config.model
    for name, samples in results.get("samples", {}).items():
        with failures.catching(name, "no finish reasons in its samples: "):
            host.add_records({name: samples})
    for name, samples in results.get("samples", {}).items():
        with failures.catching(name, "ties between its choices were not counted: "):
            _warn_of_ties({name: samples})
    seconds = time.monotonic() - started
    scored = [leaf for leaf in _leaves(tasks) if leaf.task_name in results["configs"]]
    ours = key_of_each(
        lambda some: provenance(config, host, variant, some, tokenizer_notes, seconds=seconds), scored, failures
    )
    if ours is not None:
        results["harness_ext"] = {**ours, "answers_from_store": answering.found + shards.from_store}
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


def _check_settings(config: EvaluatorConfig) -> None:
    """Raise for what no task could be evaluated with."""
    if config.limit is not None and config.limit <= 0:
        raise TaskError(f"--limit must be positive, got {config.limit}")
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise TaskError(f"--num_fewshot must not be negative, got {config.num_fewshot}")
    if config.output_path and (reason := why_not_writable(Path(config.output_path))):
        raise TaskError(f"--output_path {config.output_path}: {reason}; name another folder")


def _seeds(config: EvaluatorConfig) -> dict[str, int | None]:
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return dict(zip(names, config.seed or [None] * 4, strict=True))


def report_to_trackers(config: EvaluatorConfig, done: VariantResults) -> None:
    """Send one variant's results to W&B and trackio, where `--wandb_args` or `--trackio_args` asks for it."""
    results = {name: value for name, value in done.results.items() if name != "samples"}
    for tracker in loggers_of(config):
        tracker.post_init(results)
        tracker.log_eval_result()
        if config.log_samples:
            tracker.log_eval_samples(done.results["samples"])
        tracker.run.finish() if hasattr(tracker, "run") else tracker.finish()
