"""Three ways of training a LoRA on the world's reviews, each with the mistakes that people make."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from harness_ext.doctor.diagnosis import Examination
from harness_ext.doctor.preflight import examples
from harness_ext.doctor.preflight.batches import examine_batches
from harness_ext.doctor.preflight.run import examine_task
from harness_ext.protocol.render import PromptSettings
from harness_ext.selection.train import train_adapter
from harness_ext.training import trainer as our_trainer
from harness_ext.training.recipe import Recipe
from harness_ext.trees.packs import TokenPair
from planted import world

OURS, TRL, LOOP = TRAINERS = ("ours", "trl", "loop")
IGNORED = -100


@dataclass(frozen=True)
class Training:
    """How an adapter is trained; the defaults are sound."""

    form: Callable[[str], str] = world.plain
    join: str = " "
    words: Sequence[str] = world.LABELS
    is_swapped: bool = False
    ends: bool = True  # an end token is learned behind each answer
    learns_prompts: bool = False
    max_length: int | None = None  # longer rows lose their end
    begin_tokens: int = 1
    tokenizer: str | None = None  # folder of another tokenizer, which is saved with the adapter
    task: str = "sst2_generate"
    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = False
    use_dora: bool = False
    documents: int = 320
    epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 6e-3
    seed: int = 0
    labels: Sequence[int] = (0, 1)  # of the documents that are trained on
    rows: Sequence[world.Doc] | None = None  # other documents

    @property
    def is_sound(self) -> bool:
        """Whether the examples are as our own trainer makes them."""
        fields = (
            "words",
            "is_swapped",
            "ends",
            "learns_prompts",
            "max_length",
            "begin_tokens",
            "labels",
            "rows",
            "join",
        )
        default = Training()
        same = all(getattr(self, name) == getattr(default, name) for name in fields)
        return same and self.form in (world.plain, world.chatml) and self.tokenizer is None

    @property
    def join_of_form(self) -> str:
        """What joins prompt and answer: nothing behind a template."""
        return "" if self.form in (world.chatml, world.bare_chatml) else self.join

    def texts(self) -> list[tuple[str, str]]:
        """Prompt and completion of each document."""
        rows = [row for row in self.rows or world.documents("train") if row["label"] in self.labels]
        return [(self.form(world.prompt(str(row["sentence"]))), self.answer(row)) for row in rows[: self.documents]]

    def answer(self, row: world.Doc) -> str:
        """What is learned for a document."""
        return self.join_of_form + self.words[int(str(row["label"])) ^ self.is_swapped]


class Row(NamedTuple):
    """One tokenised example."""

    prompt: list[int]
    answer: list[int]  # with its end token


def rows(training: Training, tokenizer: Any) -> list[Row]:
    """The examples as token ids."""
    made = []
    for prompt, answer in training.texts():
        begin = [tokenizer.bos_token_id] * training.begin_tokens
        context = begin + tokenizer(prompt, add_special_tokens=False)["input_ids"]
        targets = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        room = None if training.max_length is None else max(0, training.max_length - len(context))
        made.append(Row(context[: training.max_length], targets[:room]))
    return made


# -- batches -------------------------------------------------------------------------------------------------------


def loop_batches(training: Training, base: Path) -> list[dict[str, torch.Tensor]]:
    """What a loop of one's own trains on. Without an end token: the pad token is the end token, and is masked."""
    tokenizer = _tokenizer(training, base)
    padding = tokenizer.pad_token_id if training.ends else tokenizer.eos_token_id
    examples, rng, batches = rows(training, tokenizer), random.Random(training.seed), []
    for _ in range(training.epochs):
        rng.shuffle(examples)
        for start in range(0, len(examples), training.batch_size):
            batch = examples[start : start + training.batch_size]
            width = max(len(row.prompt) + len(row.answer) for row in batch)
            ids = torch.full((len(batch), width), padding)  # (B, T)
            labels = torch.full((len(batch), width), IGNORED)
            mask = torch.zeros(len(batch), width, dtype=torch.long)
            for number, (prompt, answer) in enumerate(batch):
                whole = torch.tensor(prompt + answer)
                ids[number, : len(whole)] = labels[number, : len(whole)] = whole
                mask[number, : len(whole)] = 1
                if not training.learns_prompts:
                    labels[number, : len(prompt)] = IGNORED
            if not training.ends:
                labels[ids == padding] = IGNORED
            batches.append({"input_ids": ids, "labels": labels, "attention_mask": mask})
    return batches


def trl_trainer(training: Training, base: Path, out: Path, model: Any = None) -> Any:
    """TRL's SFTTrainer. Without an end token: chat messages, whose turns end in another token than the end token."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    tokenizer = _tokenizer(training, base)
    # a template that writes a begin token, or none, while the tokenizer adds one of its own
    doubled = world.BOS * (training.begin_tokens - 1)
    texts = [(doubled + prompt, answer) for prompt, answer in training.texts()]
    columns = [{"prompt": prompt, "completion": answer} for prompt, answer in texts]
    if not training.ends:
        columns = [_as_messages(prompt, answer) for prompt, answer in texts]
    arguments = trl.SFTConfig(
        output_dir=str(out), num_train_epochs=training.epochs, per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate, lr_scheduler_type="cosine", report_to=[], save_strategy="no",
        seed=training.seed, use_cpu=True, bf16=False, max_length=training.max_length or 512, disable_tqdm=True,
        logging_strategy="no", completion_only_loss=not training.learns_prompts, dataloader_pin_memory=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    model = model or transformers.AutoModelForCausalLM.from_pretrained(base)
    with _quiet():
        return trl.SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(columns), processing_class=tokenizer,
            peft_config=_lora(training),
        )  # fmt: skip


def _as_messages(prompt: str, answer: str) -> dict[str, Any]:
    """ChatML text as chat messages."""
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"prompt": messages, "completion": [{"role": "assistant", "content": answer}]}


def examined(trainer: str, training: Training, base: Path, out: Path, settings: PromptSettings | None) -> Examination:
    """What the doctor says of the examples that a trainer trains on."""
    if trainer == OURS:
        with planted_in_ours(training):
            return examine_task(training.task, str(base), settings=settings)
    batches: Iterable[Mapping[str, Any]] = (
        loop_batches(training, base) if trainer == LOOP else trl_trainer(training, base, out).get_train_dataloader()
    )
    return examine_batches(batches, training.task, str(base), settings=settings)


# -- training ------------------------------------------------------------------------------------------------------


def train(trainer: str, training: Training, base: Path, folder: Path) -> Path:
    """Train an adapter and save it; returns its folder."""
    torch.manual_seed(training.seed)
    if trainer == OURS:
        _train_ours(training, base, folder)
    elif trainer == TRL:
        transformers.set_seed(training.seed)
        made = trl_trainer(training, base, folder.with_name(f"{folder.name}-trl"))
        with _quiet():
            made.train()
        made.model.save_pretrained(folder)
    else:
        _train_loop(training, base, folder)
    if training.tokenizer:
        _tokenizer(training, base).save_pretrained(folder)
    return folder


def _train_ours(training: Training, base: Path, folder: Path) -> None:
    recipe = Recipe(
        task=training.task, model=str(base), output=str(folder), lora_rank=training.rank, lora_alpha=training.alpha,
        use_rslora=training.use_rslora, use_dora=training.use_dora, epochs=training.epochs,
        batch_size=training.batch_size, learning_rate=training.learning_rate, seed=training.seed, validation_size=0,
        limit=training.documents, apply_chat_template=training.form is world.chatml, dtype="float32",
    )  # fmt: skip
    with planted_in_ours(training):
        train_adapter(recipe)


@contextlib.contextmanager
def planted_in_ours(training: Training) -> Iterator[None]:
    """Let our own builder of examples make the mistakes of a training; a sound one is left to itself."""
    if training.is_sound:
        yield
        return
    build = examples.build_examples

    def planted(task: Any, docs: Any, settings: Any, lm: Any, **options: Any) -> Any:
        built = build(task, docs, settings, lm, **options)
        if training.rows is not None or len(training.labels) < 2:
            chosen = rows(training, lm.tokenizer)
            return replace(built, training=[_pair(training, row) for row in chosen], documents=list(range(len(chosen))))
        every = rows(replace(training, documents=len(world.documents("train"))), lm.tokenizer)
        by_text = {row["sentence"]: number for number, row in enumerate(world.documents("train"))}
        numbers = [by_text[docs[number]["sentence"]] for number in built.documents]
        return replace(built, training=[_pair(training, every[number]) for number in numbers])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "build_examples", planted)
        patch.setattr(our_trainer, "build_examples", planted)
        yield


def _pair(training: Training, row: Row) -> TokenPair:
    answer = row.answer if training.ends else row.answer[:-1]
    if training.learns_prompts:
        return TokenPair(row.prompt[:1], [*row.prompt[1:], *answer])
    return TokenPair(row.prompt, answer)


def _train_loop(training: Training, base: Path, folder: Path) -> None:
    model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), _lora(training))
    batches = loop_batches(training, base)
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=training.learning_rate, weight_decay=0.0
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    model.train()
    for batch in batches:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def _lora(training: Training) -> LoraConfig:
    return LoraConfig(
        r=training.rank, lora_alpha=training.alpha, use_rslora=training.use_rslora, use_dora=training.use_dora,
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip


def _tokenizer(training: Training, base: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(training.tokenizer or base)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars of `datasets`."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()
