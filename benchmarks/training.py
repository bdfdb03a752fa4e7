"""Training: TRL's SFTTrainer, padded and packed, against ours, on the same examples in the same order."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import datasets
import torch
from fresh import in_fresh_process
from lines import Line
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from harness_ext.cpu.fast_paths import use_fast_paths
from harness_ext.protocol.render import PromptSettings, training_docs
from harness_ext.protocol.tasks import load_task
from harness_ext.training.batches import Collator, GroupedBatches, build_examples, group_by_prefix
from harness_ext.training.pack_trainer import PackTrainer
from harness_ext.trees.packs import TokenPair

BATCH = 32
MICRO_BATCH = 8  # of TRL: with all 32 at once it is slower here and needs four times the memory
PACKED_TOKENS = 1024
LOSS_TOLERANCE = 1e-3  # relative, of any step; both train, so differences add up
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SHARED = {
    "learning_rate": 1e-4, "num_train_epochs": 1, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
    "use_cpu": True, "lr_scheduler_type": "constant", "disable_tqdm": True, "seed": 0, "bf16": False,
}  # fmt: skip


class Trained(NamedTuple):
    """A few steps of one trainer."""

    seconds: float  # from the first step to the last
    losses: list[float]


def against_trl(base: str, task_name: str, steps: int, *, minimum: float, aim: float) -> list[Line]:
    """Time one epoch over a few batches with each trainer."""
    examples = in_our_order(base, task_name, steps)
    done = {way: in_fresh_process(trained, base, way, examples) for way in WAYS}
    best, other = sorted(("padded", "packed"), key=lambda way: done[way].seconds)
    pairs = zip(done["padded"].losses, done["ours"].losses, strict=True)
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    if difference > LOSS_TOLERANCE:
        raise SystemExit(f"losses differ: {done['padded'].losses} and {done['ours'].losses}")
    return [
        Line(
            f"training on `{task_name}`, {steps} steps of {BATCH}",
            f"TRL's SFTTrainer, {best} ({other}: {done[other].seconds:.1f} s)",
            done[best].seconds,
            done["ours"].seconds,
            f"losses of all {steps} steps within {difference:.0e} of TRL's (padded)",
            minimum=minimum,
            aim=aim,
        )
    ]


def trained(base: str, way: str, examples: list[TokenPair], *, dtype: torch.dtype = torch.float32) -> Trained:
    """Train once over the examples."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        trainer = WAYS[way](model, examples, folder)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return Trained(seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def in_our_order(base: str, task_name: str, steps: int) -> list[TokenPair]:
    """The first batches that our sampler would give, one after the other."""
    task = load_task(task_name)
    model = AutoModelForCausalLM.from_pretrained(base)
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(base), backend="causal")
    found = build_examples(
        task, training_docs(task), PromptSettings(), lm,
        limit=None if "squad" in task_name else 4000, validation_size=0, max_length=lm.max_length, seed=0,
    ).training  # fmt: skip
    batches = list(GroupedBatches(group_by_prefix(found), batch_size=BATCH, seed=0))[:steps]
    return [found[number] for batch in batches for number in batch]


class InOrder:
    """A batch sampler that keeps the order of the examples."""

    drop_last = False
    batch_size = BATCH

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size // BATCH

    def __iter__(self) -> Any:
        return iter([list(range(start, start + BATCH)) for start in range(0, self._size, BATCH)])


def ours(model: Any, examples: list[TokenPair], folder: str) -> PackTrainer:
    """Trees, as `harness-ext train` lays them out."""
    peft_model = get_peft_model(model, LoraConfig(**LORA))
    use_fast_paths(peft_model)
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=BATCH, remove_unused_columns=False,
        average_tokens_across_devices=True, dataloader_pin_memory=False, **SHARED,
    )  # fmt: skip
    return PackTrainer(
        model=peft_model, args=arguments, train_dataset=examples,
        data_collator=Collator(True, 1024, 0), batches=InOrder(len(examples)),
    )  # fmt: skip


class SequentialSFTTrainer(SFTTrainer):
    """TRL's trainer on the examples in their order, so that losses can be compared step by step."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def padded(model: Any, examples: list[TokenPair], folder: str) -> SFTTrainer:
    """TRL's batches, padded to the longest of each."""
    return trl_trainer(
        model, examples, folder, SequentialSFTTrainer, per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
    )  # fmt: skip


def packed(model: Any, examples: list[TokenPair], folder: str) -> SFTTrainer:
    """TRL's packing: examples one after the other in rows of 1,024 tokens."""
    return trl_trainer(
        model, examples, folder, SFTTrainer, packing=True, max_length=PACKED_TOKENS, per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )  # fmt: skip


def trl_trainer(
    model: Any, examples: list[TokenPair], folder: str, kind: type[SFTTrainer], **settings: Any
) -> SFTTrainer:
    """An SFTTrainer, completion only, without its memory savers, which cost time."""
    rows = {
        "input_ids": [[*context, *continuation] for context, continuation in examples],
        "completion_mask": [[0] * len(context) + [1] * len(continuation) for context, continuation in examples],
    }
    defaults = {"max_length": None, "completion_only_loss": True, "gradient_checkpointing": False}
    arguments = SFTConfig(output_dir=folder, **{**SHARED, **defaults, **settings})
    return kind(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_dict(rows), peft_config=LoraConfig(**LORA),
        processing_class=AutoTokenizer.from_pretrained(model.config._name_or_path),
    )  # fmt: skip


WAYS: dict[str, Callable[[Any, list[TokenPair], str], Any]] = {"ours": ours, "padded": padded, "packed": packed}
