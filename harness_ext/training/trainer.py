"""LoRA training on a task: setup, fit, write.

Uses a `transformers.Trainer` on batches of packs, which handles checkpoints, resuming, several devices and reporting.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from harness_ext.atomic import replacing_folder
from harness_ext.cpu.fast_paths import use_fast_paths
from harness_ext.errors import ModelError, RecipeError, StoppedError, TrainingError, WriteError, first_line
from harness_ext.models.adapters import save_adapter
from harness_ext.models.card import AdapterCard, hub_name
from harness_ext.models.devices import choose_device, choose_dtype
from harness_ext.models.sources import check_is_plain, resolve_model, weights_sha256
from harness_ext.protocol import documents
from harness_ext.protocol.fingerprint import Fingerprint, fingerprint
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask
from harness_ext.protocol.render import training_docs
from harness_ext.protocol.tasks import load_task
from harness_ext.protocol.token_settings import check_appends_nothing
from harness_ext.training.batches import Collator, ExampleSet, GroupedBatches, build_examples, group_by_prefix
from harness_ext.training.callbacks import FewSteps, PauseAt, StopOnInterrupt, TrainingBar
from harness_ext.training.checkpoints import checkpoint_step, last_checkpoint
from harness_ext.training.evaluating import StateEvaluation
from harness_ext.training.evaluator import Evaluator
from harness_ext.training.model_card import model_card
from harness_ext.training.pack_trainer import PackTrainer
from harness_ext.training.recipe import Recipe
from harness_ext.training.workspace import (
    INITIAL_FOLDER,
    RECIPE_FILE,
    Claim,
    kept_only_with_checkpoint,
    prepare,
)
from harness_ext.trees.support import why_no_trees

logger = logging.getLogger(__name__)

# renamed in transformers 5.2x, where the old name gives a warning
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(TrainingArguments)}
)
REPORTED_PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft")


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter that was trained and written."""

    folder: Path
    card: AdapterCard


@dataclass(frozen=True)
class Progress:
    """How far a training has come, and what the whole of it takes."""

    step: int
    planned_steps: int
    examples: int  # that the planned steps see
    parameters: int  # that are trained
    training_seconds: float


@dataclass(frozen=True)
class TrainingStart:
    """What training starts from."""

    recipe: Recipe
    base: str  # folder or Hub id
    task: ConfigurableTask
    docs: Any  # of the training split
    lm: HFLM  # holds the base and its tokenizer


def start_training(recipe: Recipe) -> TrainingStart:
    """Load the task and the base of a recipe, and seed all generators.

    Raises:
        HarnessExtError: one line on what is wrong.
    """
    base = resolve_model(recipe.model)
    task = load_task(recipe.task, include_path=recipe.include_paths)
    docs = training_docs(task)
    set_seed(recipe.seed)
    model, tokenizer = _load_base(base, recipe)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", max_length=recipe.max_length)
    return TrainingStart(recipe, base, task, docs, lm)


class Training:
    """A training of an adapter in a workspace that has been claimed: examples, fit, write.

    Args:
        start: what it starts from.
        claim: of the output folder.
        evaluator: scores the model; what it holds out is not trained on. A recipe with `evaluate_every` needs one.

    Raises:
        HarnessExtError: there is nothing to train on.
    """

    def __init__(self, start: TrainingStart, claim: Claim, evaluator: Evaluator | None = None) -> None:
        assert evaluator is not None or start.recipe.evaluate_every is None, "nobody could score the checkpoints"
        recipe, lm = start.recipe, start.lm
        self._start, self._claim, self._evaluator = start, claim, evaluator
        self._learning_rate = recipe.learning_rate_for(lm.model.num_parameters())
        self._examples = build_examples(
            start.task, start.docs, recipe.prompt, lm,
            limit=recipe.limit, validation_size=recipe.validation_size, max_length=lm.max_length, seed=recipe.seed,
            excluded=frozenset() if evaluator is None else evaluator.excluded,
        )  # fmt: skip
        self._selection: Mapping[str, Any] | None = None
        self.model: Any = None  # the base with its LoRA, from `fit` on
        self.trainer: Any = None

    def fit(self, *, until: float = 1.0) -> None:
        """Put the LoRA on the base, and train it.

        Args:
            until: share of the planned steps at which training pauses; a checkpoint holds what has been reached, and
                a later run goes on from it bit-identically.

        Raises:
            HarnessExtError: it fails; without a checkpoint the workspace is emptied.
        """
        recipe, lm, claim, evaluator = self._start.recipe, self._start.lm, self._claim, self._evaluator
        self.model = add_lora(lm.model, recipe)
        use_fast_paths(self.model)
        self._before = _starting_point(self.model)
        evaluation = None
        if evaluator is not None and recipe.evaluate_every is not None:
            evaluation = StateEvaluation(evaluator, recipe, claim.workspace)
        with kept_only_with_checkpoint(claim):
            if claim.lock is not None:
                held_out = None if evaluator is None else evaluator.data_sha256
                prepare(claim, self.model, recipe, self._examples, held_out=held_out)
            self.trainer, interrupt = _make_trainer(
                self.model, lm.tokenizer, self._examples, recipe, claim.workspace, self._learning_rate
            )
            if evaluation is not None:
                evaluation.trainer = self.trainer
                self.trainer.add_callback(evaluation)
            self.trainer.add_callback(PauseAt(until))
            _fit(self.trainer, interrupt, recipe, claim, evaluation, until=until)
            self._selection = None if evaluation is None else evaluation.finish(self.model)

    def progress(self) -> Progress:
        """How far `fit` has come."""
        recipe, state = self._start.recipe, self.trainer.state
        batch = recipe.batch_size * recipe.gradient_accumulation_steps * self.trainer.args.world_size
        seconds = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
        return Progress(
            state.global_step,
            state.max_steps,
            state.max_steps * batch,
            _trainable(self.model),
            max(seconds, default=0.0),
        )

    def write(self, **records: Any) -> TrainedAdapter:
        """Write the adapter to its folder.

        Args:
            records: further fields of its card.

        Raises:
            TrainingError: training changed nothing, or the folder cannot be written.
        """
        recipe, lock, trainer, start = self._start.recipe, self._claim.lock, self.trainer, self._start
        weights, dtype = trainer.trained_weights(), _save_dtype(recipe)
        if _all_say(lambda: _changes_nothing(weights or _by_name(self.model), self._before, dtype)):
            if lock is not None:
                lock.clear_workspace()
            steps = trainer.state.global_step
            raise TrainingError(
                f"training of {recipe.output} changed nothing: after {steps} optimiser step{'' if steps == 1 else 's'} "
                "the adapter equals its initialisation and is not written; raise --learning-rate "
                f"({self._learning_rate:g})"
            )
        protocol = fingerprint(start.task, recipe.prompt, start.lm)
        config = start.task.config
        sample = documents.is_sample(config.custom_dataset, config.dataset_kwargs, config.metadata)
        card = _card(recipe, start.base, protocol, self._examples, trainer, sample)
        card = dataclasses.replace(card, selection=self._selection, **records)
        if lock is not None:
            _write(trainer, weights, recipe, card, self._claim)
        PartialState().wait_for_everyone()
        return TrainedAdapter(Path(recipe.output).expanduser(), card)


def _load_base(base: str, recipe: Recipe) -> tuple[Any, Any]:
    device = choose_device()
    quantised = recipe.quantization == "nf4"
    if quantised and device.type != "cuda":
        raise RecipeError("quantization nf4 needs a CUDA GPU and bitsandbytes; use --quantization none here")
    dtype = choose_dtype(recipe.dtype, device)
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    ) if quantised else None  # fmt: skip
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, revision=recipe.revision)
        check_appends_nothing(tokenizer, recipe.model)
        model = AutoModelForCausalLM.from_pretrained(
            base, revision=recipe.revision, dtype=dtype, quantization_config=quantization_config
        )
        check_is_plain(model, recipe.model)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"base {recipe.model!r} cannot be loaded: {first_line(error):.200}; check --model") from error
    if quantised:
        return prepare_model_for_kbit_training(model), tokenizer
    return model.to(device), tokenizer


def add_lora(model: Any, recipe: Recipe) -> PeftModel:
    """Put a recipe's LoRA, untrained, on a model.

    Raises:
        RecipeError: peft refuses it.
    """
    initialisation: Any = {"default": True}.get(recipe.init_lora_weights, recipe.init_lora_weights)
    try:
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=recipe.target_modules,
            modules_to_save=recipe.modules_to_save,
            use_rslora=recipe.use_rslora,
            use_dora=recipe.use_dora,
            init_lora_weights=initialisation,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"peft rejects this recipe: {first_line(error):.200}; change the recipe") from error


def _starting_point(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the trainable weights, except the A matrices.

    A change of A means nothing: weight decay shrinks A even while its factor B is zero.
    """
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not any(first in name for first in ("lora_A", "lora_embedding_A"))
    }


def _by_name(model: PeftModel) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _changes_nothing(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], dtype: torch.dtype | None) -> bool:
    """Whether training left every weight unchanged, at the precision in which it is saved."""
    return all(torch.equal(weights[name].detach().cpu().to(dtype), before.to(dtype)) for name, before in start.items())


def _all_say(ask: Callable[[], bool]) -> bool:
    """What the first process, which alone may know, answers."""
    answer = [ask() if PartialState().is_main_process else False]
    broadcast_object_list(answer)
    return answer[0]


def _make_trainer(
    model: PeftModel,
    tokenizer: Any,
    examples: ExampleSet,
    recipe: Recipe,
    workspace: Path,
    learning_rate: float,
) -> tuple[PackTrainer, StopOnInterrupt]:
    trees = recipe.prefix_trees
    if trees and (reason := why_no_trees(model, [*examples.training, *examples.validation])):
        logger.warning("prefix trees are disabled for this model: %s", reason)
        trees = False
    groups = (
        group_by_prefix(examples.training) if recipe.group_by_prefix else [[n] for n in range(len(examples.training))]
    )
    padding = next((id_ for id_ in (tokenizer.pad_token_id, tokenizer.eos_token_id) if id_ is not None), 0)
    interrupt = StopOnInterrupt()
    try:
        trainer = PackTrainer(
            model=model,
            args=_arguments(recipe, workspace, learning_rate, experts=_has_experts(model)),
            train_dataset=examples.training,
            eval_dataset=examples.validation or None,
            data_collator=Collator(trees, recipe.max_tokens, padding),
            callbacks=[
                interrupt,
                FewSteps(recipe, len(examples.training)),
                TrainingBar(f"train {recipe.task_name}"),
            ],
            batches=GroupedBatches(groups, batch_size=recipe.batch_size, seed=recipe.seed),
            kept_with_checkpoints=[workspace / RECIPE_FILE, workspace / INITIAL_FOLDER],
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError(f"transformers rejects this recipe: {first_line(error):.200}; change the recipe") from error
    for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(callback)
    return trainer, interrupt


def _has_experts(model: Any) -> bool:
    """Whether the model has experts, so that some layers may be unused in a pass."""
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def _arguments(recipe: Recipe, workspace: Path, learning_rate: float, *, experts: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(workspace),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=learning_rate,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_ratio,  # below 1: a share of the steps
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        save_steps=recipe.save_steps,
        logging_steps=recipe.logging_steps,
        report_to=recipe.report_to,
        use_cpu=choose_device().type == "cpu",
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=experts,
        **{CHECKPOINTING: recipe.gradient_checkpointing},
    )
    # One GPU per process, since torch's DataParallel would split packs. Use `accelerate launch` for several GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _fit(
    trainer: PackTrainer,
    interrupt: StopOnInterrupt,
    recipe: Recipe,
    claim: Claim,
    evaluation: StateEvaluation | None,
    *,
    until: float,
) -> None:
    """Run the training; if a signal or an error stops it, raise an error that says how to continue."""
    workspace = claim.workspace
    checkpoint = last_checkpoint(workspace) if claim.resume else None
    if checkpoint is not None and evaluation is not None:
        evaluation.resume(checkpoint_step(checkpoint))
    stopped = evaluation is not None and evaluation.has_stopped()
    try:
        with interrupt.listening():
            if checkpoint is None or not trainer.restore_finished(checkpoint, until=until, stopped=stopped):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt as error:
        number = interrupt.signal or signal.SIGINT
        message = f"training of {recipe.output} was interrupted; {_next_step(workspace)}"
        raise StoppedError(message, number) from error
    except (OSError, SafetensorError, RuntimeError, WriteError) as error:
        if not isinstance(error, RuntimeError):
            problem = f"stopped: {first_line(error)}"
        elif "closed by peer" in str(error) or "Connection reset" in str(error):
            problem = "stopped: another process of it has ended, see its message"
        elif isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            problem = "does not fit into memory: lower --max-tokens, or add --gradient-checkpointing"
        else:
            raise
        raise TrainingError(f"training of {recipe.output} {problem:.300}; {_next_step(workspace)}") from error
    step, planned = trainer.state.global_step, trainer.state.max_steps
    stopped = evaluation is not None and evaluation.has_stopped()
    if interrupt.signal is not None and step < planned and not stopped:
        raise StoppedError(
            f"training of {recipe.output} stopped at step {step} of {planned}; continue with --resume", interrupt.signal
        )


def _next_step(workspace: Path) -> str:
    if last_checkpoint(workspace) is None:
        return "there is no checkpoint yet, so start again"
    return "fix the problem, then continue with --resume"


def _write(
    trainer: PackTrainer, weights: Mapping[str, Tensor] | None, recipe: Recipe, card: AdapterCard, claim: Claim
) -> None:
    """Write the finished adapter to its folder; by the process that holds the lock."""
    output, lock = Path(recipe.output).expanduser().absolute(), claim.lock
    assert lock is not None
    readme = model_card(card, output.name)
    initial = claim.workspace / INITIAL_FOLDER if recipe.changes_base else None
    try:
        with replacing_folder(output) as partial:
            saved = trainer.accelerator.unwrap_model(trainer.model)
            dtype = _save_dtype(recipe)
            save_adapter(saved, partial, card=card, readme=readme, dtype=dtype, initial=initial, weights=weights)
            lock.check()
            if not claim.overwrite and output.is_dir() and any(output.iterdir()):
                raise TrainingError(
                    f"{recipe.output} was written by something else during the training and is not replaced; move it "
                    "away, then run again with --resume"
                )
    except (WriteError, SafetensorError) as error:
        reason = error.__cause__ if isinstance(error, WriteError) and error.__cause__ else error
        raise TrainingError(
            f"{recipe.output} cannot be written ({first_line(reason)}); free some space, then run again with --resume"
        ) from error
    lock.clear_workspace()


def _card(
    recipe: Recipe, base: str, protocol: Fingerprint, examples: ExampleSet, trainer: PackTrainer, sample: bool
) -> AdapterCard:
    train_loss, validation = trainer.mean_loss(), None
    progress = next(entry for entry in reversed(trainer.state.log_history) if "seconds" in entry)
    if examples.validation:
        validation = round(trainer.evaluate()["eval_loss"], 5)
    return AdapterCard(
        base=_base_name(recipe.model, base),
        base_revision=recipe.revision,
        base_sha256=weights_sha256(base, revision=recipe.revision),
        task=recipe.task_name,
        fingerprint=protocol.digest,
        fingerprint_fields=protocol.fields,
        recipe=recipe.for_card(),
        data_sha256=examples.data_sha256,
        sample_data=sample,
        examples=len(examples.training),
        tokens=progress["label_tokens"],
        trainable_parameters=_trainable(trainer.model),
        seed=recipe.seed,
        seconds=progress["seconds"],
        train_loss=round(train_loss, 5),
        validation_loss=validation,
        versions={name: importlib.metadata.version(name) for name in REPORTED_PACKAGES},
    )


def _trainable(model: Any) -> int:
    """Number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _base_name(model: str, resolved: str) -> str:
    """A base's name without the path of its folder."""
    return Path(resolved).resolve().name if Path(resolved).is_dir() else hub_name(model)


def _save_dtype(recipe: Recipe) -> torch.dtype | None:
    return None if recipe.save_dtype == "auto" else getattr(torch, recipe.save_dtype)
