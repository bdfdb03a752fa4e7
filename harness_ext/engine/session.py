"""One model with what it is evaluated with: tasks, adapters, processes, and the store of its answers.

```
Session ──> base loaded once ──> [ base │ adapter A │ adapter B ] ──> lm-eval ──> one results folder for each
                                              └─ answers ──> response store
```
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness_ext.engine.adapter_switch import within_tables
from harness_ext.engine.array_job import Tally, asking_part
from harness_ext.engine.array_shard import Interval, Shard
from harness_ext.engine.asking import EVALUATE_ONCE, MOST_NAMED, Answering
from harness_ext.engine.content import ContentOf, ModelContent, WatchedFolder, device_name
from harness_ext.engine.engines import host_for
from harness_ext.engine.from_store import StoreHost, stored_as
from harness_ext.engine.hosts import ADAPTER_ARGUMENTS, Host, prompt_settings
from harness_ext.engine.isolation import evaluate_isolated, leaves, one_line
from harness_ext.engine.provenance import key_of_each, provenance
from harness_ext.engine.sharding import Shards
from harness_ext.engine.store import ResponseStore, StoredModel
from harness_ext.engine.variants import Variant
from harness_ext.engine.writing import why_not_writable, write_results
from harness_ext.errors import AdapterError, HarnessExtError, LostProcessError, StoreError, TaskError
from harness_ext.models.devices import choose_device
from harness_ext.protocol.fingerprint import fingerprint
from harness_ext.protocol.lm_eval_api import (
    AllAskedError,
    EvaluationTracker,
    EvaluatorConfig,
    Group,
    Task,
    TaskManager,
    ending_unscored,
    quiet,
    simple_evaluate,
)
from harness_ext.protocol.render import check_askable
from harness_ext.protocol.tasks import load_tasks
from harness_ext.protocol.ties import MOST_TIED, tied_choices
from harness_ext.stats.sequential import Design

logger = logging.getLogger(__name__)

# Folder of the response store, or several, of which the first takes new answers; False for none, None for the default
Store = str | Path | Sequence[str | Path] | Literal[False] | None


@dataclass(frozen=True)
class VariantResults:
    """What lm-eval made of one variant."""

    variant: Variant
    results: Mapping[str, Any]  # as in `results_*.json`, the logged samples under "samples" when asked for
    folder: Path | None  # where they were written
    failures: Mapping[str, str] = field(default_factory=dict)  # task -> why it has no results, or not all of its files
    error: HarnessExtError | None = None  # why an adapter could not be evaluated at all
    tally: Tally | None = None  # of a shard, which has no results


@dataclass(frozen=True)
class Part:
    """What of the tasks a variant is asked; everything, if nothing is said."""

    tasks: Sequence[Task | Group] | None = None
    samples: Mapping[str, list[int]] | None = None  # doc_ids by task
    writes: bool = True  # results go to `output_path`, if there is one
    extra: Mapping[str, Any] = field(default_factory=dict)  # for the key `harness_ext` of the results
    asked: Interval | None = None  # ask these requests only, and score nothing


EVERYTHING = Part()


@dataclass(frozen=True)
class Session:
    """A loaded model, its variants, and the tasks that they are asked."""

    config: EvaluatorConfig
    host: Host
    shards: Shards
    manager: TaskManager
    tasks: list[Task | Group]
    answers: _Answers

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        config: EvaluatorConfig,
        *,
        adapters: Sequence[str | Path] = (),
        store: Store = None,
        from_store: bool = False,
        asks_again: bool = False,
        must_store: bool = False,
    ) -> Iterator[Session]:
        """Load model and tasks; see `harness_ext.engine.evaluate.run`.

        Args:
            config: checked by lm-eval.
            adapters: adapter folders.
            store: folder of the response store.
            from_store: take all answers from the store.
            asks_again: a variant is evaluated more than once, so its answers are kept even without a folder.
            must_store: raise StoreError where answers cannot be kept.
        """
        if not config.tasks:
            raise TaskError("no task is named; add --tasks TASK (sst2_choice, squad_v2_generate, or any of lm-eval's)")
        include_path = [config.include_path] if isinstance(config.include_path, str) else config.include_path or []
        folders = _store_folders(config, store)
        if from_store and not folders:
            raise StoreError("--from-store needs a store; add --store DIR, or the --output_path of the evaluation")
        host = StoreHost(config, adapters) if from_store else host_for(config, adapters)
        if folders and not from_store and (reason := _why_not_stored(host, is_asked_for=store is not None)):
            if must_store:
                raise StoreError(f"answers of {host.base} cannot be stored: {reason}; evaluate without --shard")
            logger.warning("answers of %s are not stored: %s", host.base, reason)
            folders = []
        if must_store and not folders:
            raise StoreError("a shard keeps its answers in a store; add --store DIR, or leave out --no-store")
        shards = Shards.of_launch(cpu=choose_device(config.device).type == "cpu") if host.takes_shards else Shards()
        with contextlib.ExitStack() as stack:
            with shards.together():
                _check_settings(config)
                first = folders[0] if folders else None
                kept = stack.enter_context(ResponseStore(first, must_exist=from_store, others=folders[1:]))
                answers = _Answers(kept, config, host, asks_again=asks_again)
                manager, tasks = load_tasks(config.tasks, include_path=include_path, metadata=config.metadata)
                host.load(leaves(tasks))
                shards.adopt(host.lm)
            session = cls(config, host, shards, manager, tasks, answers)
            answers.evaluation = session.content
            yield session

    def content(self) -> bytes:
        """Digest of what is evaluated: variants, tasks and documents, each in order."""
        settings, config = prompt_settings(self.config), self.config
        tasks = []
        for task in leaves(self.tasks):
            try:
                tasks.append(fingerprint(task, settings, self.host.hf).digest)
            except Exception as error:  # whatever a task's own code raises: it fails in its turn, too
                logger.debug("%s has no fingerprint", task.task_name, exc_info=error)
                tasks.append(task.task_name)
        folders = [variant.folder and WatchedFolder(variant.folder).sha256() for variant in self.host.variants]
        what = [config.model, self.answers.base_sha256(), folders, tasks, config.limit, config.samples]
        return hashlib.sha256(json.dumps(what, default=str).encode()).digest()

    def evaluate(self, variant: Variant, part: Part = EVERYTHING) -> VariantResults:
        """Ask a variant, and score and write what it answers.

        One that fails does not stop the others: it has an `error`.

        Raises:
            HarnessExtError: nothing else can be evaluated after this.
        """
        return self._guarded(variant, lambda: self._in_its_turn(variant, part))

    @contextlib.contextmanager
    def staying(self) -> Iterator[Callable[[Variant, Part], VariantResults]]:
        """Evaluate variants of one process in the block; each stays on the model until it is another's turn.

        Yields:
            What `evaluate` does, without putting on and proving again the variant that was evaluated last.
        """
        host, model = self.host, contextlib.ExitStack()
        stays: Variant | None = None
        notes: Mapping[str, str] = {}

        def evaluate(variant: Variant, part: Part) -> VariantResults:
            nonlocal stays, notes
            if variant is not stays:
                stays = None
                model.close()
                notes = model.enter_context(host.active(variant))
            else:
                getattr(host.lm, "generation_records", {}).clear()
            stays = None  # where the rest raises, it is put on anew
            with self.answers.of(variant, notes) as answering:
                done = self._evaluate_active(variant, part, notes, answering)
            stays = variant
            return done

        with model:
            yield lambda variant, part: self._guarded(variant, lambda: evaluate(variant, part))

    def _guarded(self, variant: Variant, evaluate: Callable[[], VariantResults]) -> VariantResults:
        """What an evaluation gives, or why the variant cannot be evaluated."""
        host = self.host
        if reason := host.why_not(variant):
            failures = {} if self.shards.rank else {"all tasks": f"not evaluated: {reason}"}
            return VariantResults(variant, {}, None, failures)
        try:
            return evaluate()
        except LostProcessError:
            raise
        except Exception as error:  # whatever peft, transformers or torch raise of an adapter
            if variant.adapter is None or len(host.variants) == 1 or not host.is_intact:
                raise
            logger.debug("%s failed", variant.name, exc_info=error)
            return VariantResults(variant, {}, None, error=_without_frames(error))

    def _in_its_turn(self, variant: Variant, part: Part) -> VariantResults:
        """Let the model become a variant in every process, then evaluate it in the first one."""
        host, shards = self.host, self.shards
        with contextlib.ExitStack() as stack:
            with shards.together():
                tokenizer_notes = stack.enter_context(host.active(variant))
                answering = stack.enter_context(self.answers.of(variant, tokenizer_notes))
            if shards.rank:
                shards.serve(host.lm)
                return VariantResults(variant, {}, None)
            with shards.asking(host.lm):
                if part.asked is not None:
                    return self._ask_active(variant, part.asked, answering)
                return self._evaluate_active(variant, part, tokenizer_notes, answering)
        raise AssertionError("unreachable: the block returns or raises")

    def _ask_active(self, variant: Variant, asked: Interval, answering: Answering) -> VariantResults:
        """Ask a part of the requests, so that the store has the answers; one task that fails costs only itself."""
        config, lm = self.config, self.host.lm
        self.host.check()
        if lm.world_size > 1:
            raise TaskError(f"--shard needs one process of {config.model}, or hf-tree or hf in several")
        part = Part(writes=False)
        ask = self._asking(variant, part, _tracker(config))

        def ask_unscored(tasks: Sequence[Task | Group]) -> dict[str, Any]:
            with ending_unscored(leaves(tasks)), contextlib.suppress(AllAskedError):
                ask(tasks)
            return {}

        with asking_part(lm, answering, asked, processes=self.shards.size) as tally:
            _, failures = evaluate_isolated(ask_unscored, self.tasks, lm, explain=self._explaining(answering))
        return VariantResults(variant, {}, None, failures, tally=tally)

    def _explaining(self, answering: Answering) -> Callable[[Task], None]:
        """Raises a clearer error for a task that has failed, if there is one."""

        def explain(task: Task) -> None:
            answering.check(task.task_name)
            check_askable(task, prompt_settings(self.config), self.host.hf)

        return explain

    def _evaluate_active(
        self, variant: Variant, part: Part, tokenizer_notes: Mapping[str, str], answering: Answering
    ) -> VariantResults:
        """Ask and score all tasks, and write what went well; one that fails is named in `failures`."""
        config, host = self.config, self.host
        host.check()
        tracker, started = _tracker(config), time.monotonic()
        tasks = self.tasks if part.tasks is None else part.tasks
        with contextlib.nullcontext() if part.writes else quiet():
            results, failures = evaluate_isolated(
                self._asking(variant, part, tracker), tasks, host.lm, explain=self._explaining(answering)
            )
        if results is None:  # not the first of several processes
            return VariantResults(variant, {}, None)
        results["config"]["model"] = config.model
        for name, samples in results.get("samples", {}).items():
            with failures.catching(name, "no finish reasons in its samples: "):
                host.add_records({name: samples}, config.samples if part.samples is None else part.samples)
        for name, samples in results.get("samples", {}).items() if part.writes else ():
            with failures.catching(name, "ties between its choices were not counted: "):
                _warn_of_ties({name: samples})
        seconds = time.monotonic() - started
        scored = [leaf for leaf in leaves(tasks) if leaf.task_name in results["configs"]]
        ours = key_of_each(
            lambda some: provenance(config, host, variant, some, tokenizer_notes, seconds=seconds), scored, failures
        )
        if ours is not None:
            found = answering.found + self.shards.from_store
            results["harness_ext"] = {**ours, "answers_from_store": found, **part.extra}
        folder = None
        if config.output_path and part.writes:
            with failures.catching("the results"):
                folder = write_results(tracker, results, failures, log_samples=config.log_samples)
        return VariantResults(variant, results, folder, failures)

    def _asking(
        self, variant: Variant, part: Part, tracker: EvaluationTracker
    ) -> Callable[[Sequence[Any]], dict[str, Any] | None]:
        """lm-eval's `simple_evaluate` of the active variant, for some tasks."""
        config, lm = self.config, self.host.lm
        ask = functools.partial(
            simple_evaluate,
            model=lm,
            model_args=self.host.model_args(variant),
            task_manager=self.manager,
            evaluation_tracker=tracker,
            cache_requests=config.cache_requests.get("cache_requests", False),
            rewrite_requests_cache=config.cache_requests.get("rewrite_requests_cache", False),
            delete_requests_cache=config.cache_requests.get("delete_requests_cache", False),
            **({} if part.writes else {"bootstrap_iters": 0}),  # standard errors that nobody reads
            samples=config.samples if part.samples is None else {name: [*ids] for name, ids in part.samples.items()},
            **{
                name: getattr(config, name)
                for name in (
                    "num_fewshot", "batch_size", "max_batch_size", "device", "limit", "check_integrity",
                    "write_out", "log_samples", "system_instruction", "apply_chat_template", "fewshot_as_multiturn",
                    "predict_only", "confirm_run_unsafe_code", "metadata",
                    "repeats",  # lm-eval 0.5
                )
                if hasattr(config, name)
            },
            **_seeds(config),
        )  # fmt: skip
        return within_tables(lm)(lambda some: ask(tasks=list(some), gen_kwargs=copy.deepcopy(config.gen_kwargs)))


def _store_folders(config: EvaluatorConfig, store: Store) -> list[Path]:
    """Where answers are kept, and where others are: what `--store` says, else beside the results, or nowhere."""
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
    named = [store] if isinstance(store, (str, Path)) else store or []
    return [Path(folder).expanduser() for folder in named if str(folder)]


def _why_not_stored(host: Host, *, is_asked_for: bool) -> str | None:
    """Why answers cannot be kept beyond the run; None where they can."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not host.takes_shards:
        return "several processes compute each of them together"
    if host.weights is None and not is_asked_for:
        return "its weights are not on this machine; see --store"
    return None


class _Answers:
    """Where the answers of each variant come from, and go to."""

    def __init__(self, store: ResponseStore, config: EvaluatorConfig, host: Host, *, asks_again: bool = False) -> None:
        self._store = store
        self._asks_again = asks_again  # else memory is freed when a variant is done
        self._config = config
        self._host = host
        self._from_store = isinstance(host, StoreHost)
        hashed = None if store.path is None else host.weights
        self._base = ContentOf(config.model, hashed, revision=config.model_args.get("revision"))
        self.evaluation: Callable[[], bytes] = bytes  # digest of what is evaluated

    def base_sha256(self) -> str | None:
        """Digest of the base, once it is loaded; None where it cannot be hashed."""
        return self._base.sha256()

    def check_written(self, shard: Shard) -> None:
        """Raise StoreError when this process could not write all answers of a shard."""
        if self._store.unwritten:
            raise StoreError(
                f"{self._store.unwritten} answers of shard {shard} could not be written to {self._store.path}; make "
                "room, then run it again"
            )

    def add_shard(self, shard: Shard) -> None:
        """Note that all answers of a shard are in the store."""
        self._store.add_shard(self.evaluation(), shard)

    def _remedy(self) -> str:
        """What to do when answers are missing."""
        done = self._store.shards(self.evaluation())
        counts = Counter(shard.count for shard in done)
        if counts:
            count, number = max(counts.items(), key=lambda item: (item[1], item[0]))
            missing = [str(shard) for n in range(1, count + 1) if (shard := Shard(n, count)) not in done]
            if missing:
                more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
                named = ", ".join(missing[:MOST_NAMED]) + more
                return f"{number} of {count} shards are done: run --shard {named}, then this again"
        return EVALUATE_ONCE

    def begun_design(self, design: Design, variants: Sequence[Variant], tasks: Sequence[str]) -> Design:
        """The design with which a sequential evaluation of these variants began; this one, if it begins now.

        Args:
            design: of the evaluation that is asked for.
            variants: base and adapters.
            tasks: digests of the tasks' fingerprints.

        Raises:
            ValueError: the store holds a design that cannot be read.
        """
        if self._store.path is None:
            return design
        folders = [WatchedFolder(variant.folder).sha256() for variant in variants if variant.folder]
        content = json.dumps([self._config.model, self._base.sha256(), sorted(folders), sorted(tasks)])
        digest = hashlib.sha256(content.encode()).digest()
        if (begun := self._store.design(digest)) is not None:
            return Design.from_json(begun)
        self._store.add_design(digest, design.to_json())
        return design

    def of(self, variant: Variant, tokenizer_notes: Mapping[str, str]) -> Answering:
        """Of the active variant.

        Raises:
            ModelError: files of the base have changed while they were read.
            StoreError: all answers are to come from the store, which has none of this variant.
        """
        lm, content = self._host.lm, self._content(variant, tokenizer_notes)
        digest = content.digest
        if self._from_store:
            digest, stored = stored_as(self._store, content, variant.name, remedy=self._remedy())
            lm.model_info = stored.info
        elif hasattr(lm, "get_model_info"):
            self._store.add_model(digest, StoredModel(dict(content.parts), lm.get_model_info()))
        seeds = self._config.seed or ()
        store = self._store if self._store.path or self._asks_again else ResponseStore(None)
        return Answering(store, digest, lm, seeds=seeds, computes=not self._from_store, remedy=self._remedy)

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
