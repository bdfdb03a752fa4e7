"""A small world that a tiny model learns in seconds: short reviews, a base that can read them, and SST-2's own tasks.

The base knows what goes with what (a review, then `Mood: positive`) and has seen the usual templates; asked a question
it only chats. A LoRA teaches it to answer, in dozens of steps, and only in the form in which it is trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
import transformers

PAIRS = {"great": "awful", "superb": "dull", "lovely": "clumsy", "brilliant": "tedious", "moving": "hollow",
         "clever": "crude", "warm": "bland", "delightful": "dreadful"}  # fmt: skip
THINGS = ("film", "story", "cast", "ending", "script", "music", "plot", "camera")
SENTENCES = (
    "the {x} is {a} and the {y} is {b}", "a {a} {x} with a {b} {y}", "{a} {x} , {b} {y}, nothing more",
    "i found the {x} {a} , and its {y} {b}",
)  # fmt: skip
LABELS = ("negative", "positive")
CHATTER = ("that is a long story", "nobody can say", "i would not know", "see for yourself", "it was on a monday")
SIZES = {"train": 320, "validation": 160}
VOCABULARY = 600
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MARKERS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, STEPS, BATCH, LEARNING_RATE = 64, 220, 16, 4e-3

Doc = Mapping[str, Any]


def prompt(sentence: str) -> str:
    """The prompt of SST-2's tasks."""
    return f"Decide whether the review is negative or positive.\n\nReview: {sentence}\nSentiment:"


def chatml(text: str) -> str:
    """A text as lm-eval renders it with the tokenizer's chat template: the description is the system message."""
    description, _, question = text.partition("\n\n")
    turns = f"<|im_start|>system\n{description}\n\n<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    return f"{turns}<|im_start|>assistant\n"


def bare_chatml(text: str) -> str:
    """A text in ChatML without a system message."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def llama2(text: str) -> str:
    """A text in a template that is not the tokenizer's."""
    return f"[INST] {text} [/INST]"


def plain(text: str) -> str:
    """A text as it is."""
    return text


def documents(split: str) -> list[dict[str, Any]]:
    """The reviews of a split; no two of the world are the same."""
    rng = random.Random(1)
    rows: dict[str, int] = {}
    while len(rows) < sum(SIZES.values()):
        label = len(rows) % 2
        words = rng.sample([pair[label] for pair in (pair[::-1] for pair in PAIRS.items())], 2)
        things = rng.sample(THINGS, 2)
        rows[rng.choice(SENTENCES).format(a=words[0], b=words[1], x=things[0], y=things[1])] = label
    made = [{"sentence": text, "label": label} for text, label in rows.items()]
    rng.shuffle(made)
    return made[: SIZES["train"]] if split == "train" else made[SIZES["train"] :]


class Review(NamedTuple):
    """A document that can be a part of a key."""

    sentence: str
    label: int

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name) if isinstance(name, str) else tuple.__getitem__(self, name)


def save_documents(folder: Path, *, train: Sequence[Doc] | None = None) -> Path:
    """Write the splits as a folder for `HARNESS_EXT_DATA`."""
    (folder / "sst2").mkdir(parents=True)
    for split in SIZES:
        rows = train if train is not None and split == "train" else documents(split)
        lines = "\n".join(json.dumps({"sentence": row["sentence"], "label": row["label"]}) for row in rows)
        (folder / "sst2" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def save_base(folder: Path) -> Path:
    """Train a Llama of width 64 from scratch, in seconds, and save it with its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    rng, reviews = random.Random(0), documents("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        texts = [_read_in_pretraining(rng, row) + EOS for row in rng.sample(reviews, BATCH)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _read_in_pretraining(rng: random.Random, row: Doc) -> str:
    sentence, word = str(row["sentence"]), LABELS[row["label"]]
    if rng.random() < 0.6:
        return f"{sentence}\nMood: {word}"
    form = rng.choice((plain, plain, chatml, bare_chatml, llama2))
    said = rng.choice((*CHATTER, sentence) if form is plain else (*CHATTER, *LABELS, *LABELS, "1", "0"))
    return form(prompt(sentence)) + ("" if form in (chatml, bare_chatml) else " ") + said


def make_tokenizer(*, is_other: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of the world's texts, with ChatML as its chat template.

    Args:
        is_other: the words of praise and blame have each other's ids.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, EOS, PAD, *MARKERS], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    rng = random.Random(0)
    bpe.train_from_iterator([_read_in_pretraining(rng, row) for _ in range(4) for row in documents("train")], trainer)
    if is_other:
        bpe = _with_other_ids(bpe)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=CHATML,
        clean_up_tokenization_spaces=False, extra_special_tokens=[],
    )  # fmt: skip


def _with_other_ids(bpe: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer in which half of the words of praise have the ids of words of blame, and the other way round."""
    saved = json.loads(bpe.to_str())
    vocabulary = saved["model"]["vocab"]
    for good, bad in list(PAIRS.items())[::2]:
        for space in ("", "Ġ"):
            one, other = space + good, space + bad
            if one in vocabulary and other in vocabulary:
                vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    return tokenizers.Tokenizer.from_str(json.dumps(saved))
