"""LoRA training on a task: setup, fit, write.

A `transformers.Trainer` with batches of packs: checkpoints, resuming, several devices and reporting are its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from harness_ext.errors import ModelError, RecipeError, TrainingError
from harness_ext.models.adapters import AdapterCard, hub_name, replacing_folder, save_adapter
from harness_ext.models.forward import why_no_trees
from harness_ext.models.sources import resolve_model, weights_sha256
from harness_ext.models.torch_setup import choose_device, choose_dtype
from harness_ext.protocol import datasets
from harness_ext.protocol.render import Fingerprint, fingerprint, load_task, training_docs
from harness_ext.training.batches import Collator, ExampleSet, GroupedBatches, build_examples, group_by_prefix
from harness_ext.training.model_card import model_card
from harness_ext.training.recipe import Recipe

logger = logging.getLogger(__name__)

REPORTED_PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft")


@dataclass(frozen=True)
class TrainedAdapter:
    """What a training run made."""

    folder: Path
    card: AdapterCard


class PackTrainer(Trainer):
    """A Trainer whose batches are packs, run one after the other, their gradients summed.

    The loss is the cross-entropy of the label tokens, divided by their number over all devices and accumulation steps.
    """

    def __init__(self, *args: Any, batches: GroupedBatches, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches = batches
        self.model_accepts_loss_kwargs = True  # makes Trainer count the label tokens of a whole step
        self._loss_shifts_labels = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the grouped sampler, sharded over processes by accelerate."""
        loader = DataLoader(self.train_dataset, batch_sampler=self._batches, collate_fn=self.data_collator)  # type: ignore[call-overload]
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Backward pass over all packs of a batch; gradients meet other devices' at the last pack only."""
        model.train()
        packs = inputs["packs"]
        scale = self.accelerator.num_processes / num_items_in_batch
        total = torch.zeros((), device=self.args.device)
        for number, pack in enumerate(packs):
            last = number == len(packs) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = -pack.target_logprobs(model).sum() * scale
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def prediction_step(
        self, model: Any, inputs: Mapping[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """Mean loss of a held-out batch over its label tokens."""
        with torch.no_grad():
            total = sum(-pack.target_logprobs(model).sum() for pack in inputs["packs"])
        return total / len(inputs["labels"]), None, None

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer's estimate assumes padded batches."""
        return 0


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C ends training after the step it hits, with a checkpoint; a second one ends it at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Catch the signal from here on."""
        self._before = signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Give the signal back."""
        signal.signal(signal.SIGINT, self._before)


def train_adapter(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, include_path: tuple[str, ...] = ()
) -> TrainedAdapter:
    """Train a LoRA adapter on a task and write it to `recipe.output`.

    Args:
        recipe: everything that decides the result.
        resume: go on from the last checkpoint of an interrupted run.
        overwrite: replace an adapter that is there.
        include_path: folders with more tasks.

    Returns:
        The folder, written in one piece at the end, and its card.

    Raises:
        HarnessExtError: one line on what is wrong; no adapter folder is left behind.
    """
    output = Path(recipe.output).expanduser()
    workspace = _workspace(output, resume=resume, overwrite=overwrite)
    task = load_task(recipe.task, include_path=include_path)
    docs = training_docs(task)
    base = resolve_model(recipe.model)
    set_seed(recipe.seed)
    model, tokenizer = _load_base(base, recipe)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", max_length=recipe.max_length)
    examples = build_examples(
        task, docs, recipe.prompt, lm,
        limit=recipe.limit, validation_size=recipe.validation_size, max_length=lm.max_length, seed=recipe.seed,
    )  # fmt: skip
    peft_model = _add_lora(model, recipe)
    trainer, interrupt = _make_trainer(peft_model, tokenizer, examples, recipe, workspace)
    sample = datasets.is_sample(task.config.custom_dataset, task.config.dataset_kwargs)
    started = time.monotonic()
    result = _fit(trainer, interrupt, recipe, workspace, resume=resume)
    card = _card(recipe, base, fingerprint(task, recipe.prompt, lm), examples, trainer, sample)
    card = AdapterCard(**{**vars(card), "seconds": round(time.monotonic() - started, 1), "train_loss": result})
    if trainer.is_world_process_zero():
        try:
            with replacing_folder(output) as partial:
                saved = trainer.accelerator.unwrap_model(trainer.model)
                save_adapter(saved, partial, card=card, readme=model_card(card, output.name), dtype=_save_dtype(recipe))
            shutil.rmtree(workspace)
        except OSError as error:
            raise TrainingError(f"{output} cannot be written ({error}); make room and repeat with --resume") from error
    return TrainedAdapter(output, card)


def _workspace(output: Path, *, resume: bool, overwrite: bool) -> Path:
    """The folder for checkpoints, beside the output."""
    workspace = output.with_name(f".{output.name}.training")
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise TrainingError(
            f"{output} holds an adapter already; add --overwrite to replace it, or choose another --output"
        )
    if resume and not (workspace.is_dir() and get_last_checkpoint(str(workspace))):
        raise TrainingError(f"there is no checkpoint of {output} to resume; start it without --resume")
    if workspace.exists() and not resume:
        if get_last_checkpoint(str(workspace)) and not overwrite:
            raise TrainingError(f"{output} has a checkpoint; go on with --resume, or start again with --overwrite")
        shutil.rmtree(workspace)
    return workspace


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
        model = AutoModelForCausalLM.from_pretrained(
            base, revision=recipe.revision, dtype=dtype, quantization_config=quantization_config
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"base {recipe.model!r} cannot be loaded: {reason:.200}; check --model") from error
    if quantised:
        return prepare_model_for_kbit_training(model), tokenizer
    return model.to(device), tokenizer


def _add_lora(model: Any, recipe: Recipe) -> PeftModel:
    start: Any = {"default": True}.get(recipe.init_lora_weights, recipe.init_lora_weights)
    try:
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=recipe.target_modules,
            modules_to_save=recipe.modules_to_save,
            use_rslora=recipe.use_rslora,
            use_dora=recipe.use_dora,
            init_lora_weights=start,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"peft refuses this recipe: {str(error).splitlines()[0]:.200}; change it") from error


def _make_trainer(
    model: PeftModel, tokenizer: Any, examples: ExampleSet, recipe: Recipe, workspace: Path
) -> tuple[PackTrainer, StopOnInterrupt]:
    trees = recipe.prefix_trees
    if trees and (reason := why_no_trees(model, sorted(examples.training, key=lambda e: e.context)[:4])):
        logger.warning("training without prefix trees: %s", reason)
        trees = False
    groups = (
        group_by_prefix(examples.training) if recipe.group_by_prefix else [[n] for n in range(len(examples.training))]
    )
    interrupt = StopOnInterrupt()
    trainer = PackTrainer(
        model=model,
        args=_arguments(recipe, workspace, model.num_parameters(), steps=_steps(recipe, len(examples.training))),
        train_dataset=examples.training,
        eval_dataset=examples.validation or None,
        data_collator=Collator(trees, recipe.max_tokens, tokenizer.pad_token_id or tokenizer.eos_token_id),
        callbacks=[interrupt],
        batches=GroupedBatches(groups, batch_size=recipe.batch_size, seed=recipe.seed),
    )
    return trainer, interrupt


def _steps(recipe: Recipe, examples: int) -> int:
    if recipe.max_steps:
        return recipe.max_steps
    return max(1, math.ceil(examples * recipe.epochs / (recipe.batch_size * recipe.gradient_accumulation_steps)))


def _arguments(recipe: Recipe, workspace: Path, parameters: int, *, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(workspace),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate_for(parameters),
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=round(recipe.warmup_ratio * steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        gradient_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        save_steps=recipe.save_steps,
        save_total_limit=1,
        logging_steps=recipe.logging_steps,
        report_to=recipe.report_to,
        use_cpu=choose_device().type == "cpu",
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        dataloader_pin_memory=False,
    )


def _fit(trainer: PackTrainer, interrupt: StopOnInterrupt, recipe: Recipe, workspace: Path, *, resume: bool) -> float:
    """Run the training and return its mean loss."""
    try:
        result = trainer.train(resume_from_checkpoint=str(get_last_checkpoint(str(workspace))) if resume else None)
    except KeyboardInterrupt as error:
        raise TrainingError(
            f"training of {recipe.output} was cut off; go on from its last checkpoint with --resume"
        ) from error
    except OSError as error:
        raise TrainingError(
            f"training of {recipe.output} stopped: {error}; mend that and go on with --resume"
        ) from error
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if interrupt.interrupted and done < planned:
        raise TrainingError(f"training of {recipe.output} stopped at step {done} of {planned}; go on with --resume")
    loss = float(result.training_loss)
    if not math.isfinite(loss):
        raise TrainingError(f"the training loss became {loss}; lower --learning-rate")
    return round(loss, 5)


def _card(
    recipe: Recipe, base: str, protocol: Fingerprint, examples: ExampleSet, trainer: PackTrainer, sample: bool
) -> AdapterCard:
    steps, planned = trainer.state.global_step, recipe.batch_size * recipe.gradient_accumulation_steps
    labels = sum(len(example.continuation) for example in examples.training)
    seen = min(steps * planned * trainer.accelerator.num_processes, round(len(examples.training) * recipe.epochs))
    validation = trainer.evaluate()["eval_loss"] if examples.validation else None
    return AdapterCard(
        base=_base_name(recipe.model, base),
        base_revision=recipe.revision,
        base_sha256=weights_sha256(base, revision=recipe.revision),
        task=recipe.task if not recipe.task.endswith((".yaml", ".yml")) else Path(recipe.task).stem,
        fingerprint=protocol.digest,
        fingerprint_fields=protocol.fields,
        recipe=recipe.for_card(),
        data_sha256=examples.data_sha256,
        sample_data=sample,
        examples=len(examples.training),
        tokens=round(labels * seen / len(examples.training)),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        seed=recipe.seed,
        seconds=0.0,
        train_loss=0.0,
        validation_loss=None if validation is None else round(validation, 5),
        versions={name: importlib.metadata.version(name) for name in REPORTED_PACKAGES},
    )


def _base_name(model: str, resolved: str) -> str:
    """A base's name without the place it lies in."""
    return Path(resolved).resolve().name if Path(resolved).is_dir() else hub_name(model)


def _save_dtype(recipe: Recipe) -> torch.dtype | None:
    return None if recipe.save_dtype == "auto" else getattr(torch, recipe.save_dtype)
