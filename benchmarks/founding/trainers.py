"""Two ways in which people train an adapter, TRL's SFTTrainer and a loop of their own, each with its usual mistakes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
LEARNING_RATE = 1e-3
BATCH = 8
IGNORED = -100
SEED = 0


@dataclass(frozen=True)
class Pair:
    """A prompt and the answer that is to be learned."""

    prompt: str
    answer: str  # without white space around it


@dataclass(frozen=True)
class Training:
    """One way to train, with its mistake."""

    trainer: str  # "TRL" or "loop"
    chat: bool = False  # prompts are rendered in the tokenizer's chat template
    masks_end: bool = False  # the pad token is the end token, and the collator masks both
    on_prompt: bool = False  # the loss covers the prompt, too
    answer_tokens: int | None = None  # answers are cut to so many tokens

    def run(self, base: str, pairs: Sequence[Pair], output: Path) -> None:
        """Train an adapter and save it as peft does."""
        torch.manual_seed(SEED)
        (_trl if self.trainer == "TRL" else _loop)(self, base, pairs, output)


def batches(training: Training, base: str, pairs: Sequence[Pair], output: Path) -> Iterable[Mapping[str, torch.Tensor]]:
    """The batches that a training reads, without training."""
    if training.trainer == "TRL":
        return _trl_trainer(training, base, pairs, output).get_train_dataloader()
    tokenizer = AutoTokenizer.from_pretrained(base)
    return _batches(training, tokenizer, [_tokens(training, tokenizer, pair) for pair in pairs])


def _trl(training: Training, base: str, pairs: Sequence[Pair], output: Path) -> None:
    trainer = _trl_trainer(training, base, pairs, output)
    trainer.train()
    trainer.model.save_pretrained(output)


def _trl_trainer(training: Training, base: str, pairs: Sequence[Pair], output: Path) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(output / "trainer"), per_device_train_batch_size=BATCH, num_train_epochs=1, use_cpu=True,
        learning_rate=LEARNING_RATE, lr_scheduler_type="cosine", warmup_steps=3, seed=SEED, report_to="none",
        save_strategy="no", logging_steps=5, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        completion_only_loss=not training.on_prompt,
    )  # fmt: skip
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list([_row(pair, chat=training.chat) for pair in pairs]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(**LORA),
    )


def _row(pair: Pair, *, chat: bool) -> dict[str, Any]:
    """An example as TRL reads it: of texts, or of messages."""
    if chat:
        return {"prompt": [_message("user", pair.prompt)], "completion": [_message("assistant", pair.answer)]}
    return {"prompt": pair.prompt, "completion": f" {pair.answer}"}


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _loop(training: Training, base: str, pairs: Sequence[Pair], output: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**LORA))
    rows = [_tokens(training, tokenizer, pair) for pair in pairs]
    steps = len(rows) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, steps)
    model.train()
    for step, batch in enumerate(_batches(training, tokenizer, rows)):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"  step {step}/{steps}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(output)


def _tokens(training: Training, tokenizer: Any, pair: Pair) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its answer with the end token."""
    prompt, answer = pair.prompt, f" {pair.answer}"
    if training.chat:
        messages = [_message("user", pair.prompt)]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        answer = pair.answer
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"][: training.answer_tokens]
    return tokenizer(prompt)["input_ids"], [*ids, tokenizer.eos_token_id]


def _batches(
    training: Training, tokenizer: Any, rows: Sequence[tuple[list[int], list[int]]]
) -> Iterator[Mapping[str, torch.Tensor]]:
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    pad = tokenizer.eos_token_id if training.masks_end else tokenizer.pad_token_id
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = [rows[number] for number in order[start : start + BATCH]]
        ids = [torch.tensor(prompt + answer) for prompt, answer in chosen]
        labels = [torch.tensor([IGNORED] * len(prompt) + answer) for prompt, answer in chosen]
        batch = pad_sequence(ids, batch_first=True, padding_value=pad)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        if training.masks_end:  # what collators do that take every pad token for padding
            targets[batch == pad] = IGNORED
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in ids], batch_first=True)
        yield {"input_ids": batch, "attention_mask": mask, "labels": targets}
