"""Random cases for the differential test: what is evaluated, with which settings. Pure; `build.py` writes them to disk.

A seed names a case for good only within one version of this file: a new choice shifts the later draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")

SPECIAL = ("<|im_start|>", "<|im_end|>")
ADDED = ("<|user|>", "<|bot|>")  # what an adapter with added tokens brings
APPENDS_EOS = "appends-eos"

# Weights: what is common in practice, and what shares most code with it, comes up most often.
ARCHITECTURES = {
    "llama": 8, "qwen2": 5, "mistral": 2, "mistral-window": 3, "gemma2": 3, "gemma3": 3, "gpt2": 2, "gpt-neox": 2,
    "phi": 1, "phi3": 1, "opt": 2, "bloom": 1, "falcon": 1, "falcon-alibi": 1, "mpt": 1, "mixtral": 2, "qwen2-moe": 1,
    "granite": 1, "olmo2": 1, "cohere": 1, "cohere2": 1, "qwen3": 2, "gptj": 1, "gpt-bigcode": 1, "stablelm": 1,
    "starcoder2": 1, "smollm3": 1, "llama4-chunks": 1, "gpt-oss": 1, "mamba": 1, "mamba2": 1, "lfm2": 1,
    "qwen3-next": 1, "t5": 2, "bart": 1,
}  # fmt: skip
TOKENIZERS = {"bpe-adds-bos": 6, "bpe": 4, "bpe-unused-bos": 3, "unigram": 3, "metaspace-bpe": 2, APPENDS_EOS: 0.25}
ADAPTERS = {
    "lora": 8, "rslora": 1, "dora": 2, "bias-all": 2, "bias-lora-only": 2, "modules-to-save": 2, "trainable-tokens": 2,
    "trainable-tokens-alone": 1, "embedding-lora": 2, "head-lora": 1, "pissa": 2, "olora": 2, "ia3": 2, "loha": 1,
    "lokr": 1, "vera": 2, "oft": 1, "boft": 1, "adalora": 1, "ln-tuning": 1, "fourierft": 1, "prefix-tuning": 2,
    "prompt-tuning": 2, "p-tuning": 1, "alora": 2, "added-tokens": 2, "added-tokens-modules": 1, "own-template": 1,
    "rank-pattern": 1, "some-layers": 1, "expert-lora": 1, "hra": 1, "miss": 1, "randlora": 1, "shira": 1, "c3a": 1,
    "road": 1, "vblora": 1, "save-embedding": 1, "torch-file": 0.3, "zero": 0.3, "no-template": 1,
    "added-tokens-no-template": 1, "shadow": 1,
}  # fmt: skip
# Of the architectures whose rotary embedding takes any of them; those that look at the length change beyond ROPE_RANGE.
ROPES = {"default": 4, "dynamic": 2, "longrope": 2, "llama3": 1, "yarn": 1}
ROPED = ("llama", "qwen2", "qwen3", "mistral", "mistral-window", "granite", "olmo2", "smollm3", "gemma3")
ROPE_RANGE = 40  # tokens
TASK_KINDS = {"multiple_choice": 5, "loglikelihood": 2, "loglikelihood_rolling": 1.5, "generate_until": 6}
UNTIL: tuple[Any, ...] = (
    ["\n"], ["\n\n"], [], None, ["e"], ["ed"], ["r o"], ["e ", "s"], [" the", " The"], ["."], [" "], "e",
    ["<|im_end|>"], ["Question:", "</s>", "<|im_end|>"], ["<|im_end|>", "<|im_start|>"], ["Review", "o"], ["nine ten"],
    ["s", "n"],
)  # fmt: skip
# What a model's own generation_config.json may hold. Ids are drawn below.
GENERATION_SETTINGS = (
    "repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens", "min_new_tokens",
    "min_length", "max_new_tokens", "max_length", "bad_words_ids", "forced_eos_token_id", "eos_token_id", "sampling",
    "stop_strings", "sequence_bias", "exponential_decay_length_penalty", "num_beams", "remove_invalid_values",
    "encoder_repetition_penalty", "renormalize_logits", "cache_implementation", "forced_bos_token_id", "top_k_only",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterCase:
    """One adapter: its kind and the seed of its weights and its smaller choices."""

    kind: str
    seed: int


@dataclass(frozen=True)
class TaskCase:
    """One task over a few documents of its own."""

    kind: str  # lm-eval's output_type
    seed: int  # of the documents
    documents: int
    doc_to_text: str
    delimiter: str = " "
    choices: str = "words"  # which choices: words, phrases, nested, own
    until: Any = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_kwargs but `until`
    repeats: int = 1
    metrics: str = "listed"  # or "hook": process_results
    filters: bool = False
    num_fewshot: int | None = None  # in the YAML
    fails: str = ""  # its "hook" raises on a document, or its "split" is missing


@dataclass(frozen=True)
class Case:
    """All that one comparison depends on."""

    seed: int
    architecture: str
    tied: bool
    padding_rows: int  # rows of the embedding beyond the tokenizer's tokens
    tokenizer: str
    chat_template: str  # none, plain or strict (refuses the system role)
    generation_config: Mapping[str, Any]
    tasks: tuple[TaskCase, ...]
    adapters: tuple[AdapterCase, ...]
    dtype: str
    shared_args: Mapping[str, Any]  # model_args that `hf` knows, too
    own_args: Mapping[str, Any]  # model_args of hf-tree
    batch_size: int  # ours; `hf` runs at 1
    num_fewshot: int | None
    apply_chat_template: bool
    system_instruction: str | None
    fewshot_as_multiturn: bool
    gen_kwargs: Mapping[str, Any]
    adapter_as_argument: bool  # the only adapter is given as model_args peft=
    rope: str = "default"

    @property
    def merged(self) -> bool:
        return bool(self.own_args.get("merge"))

    @property
    def loose(self) -> bool:
        """Whether low precision takes part."""
        low = ("bfloat16", "float16")
        return self.dtype in low or any(self.shared_args.get(name) in low for name in _PRECISIONS)


_PRECISIONS = ("softmax_dtype", "mixed_precision_dtype")


def random_case(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    tokenizer = _weighted(rng, TOKENIZERS)
    chat = rng.choice(("none", "plain", "plain", "strict"))
    adapters = _random_adapters(rng)
    apply_chat = chat != "none" and rng.random() < 0.4
    brought = any(adapter.kind == "own-template" for adapter in adapters)
    if chat == "none" and rng.random() < (0.7 if brought else 0.02):
        apply_chat = True  # asked of a tokenizer that has none
    tasks = _random_tasks(rng)
    architecture = _weighted(rng, ARCHITECTURES)
    rope = _weighted(rng, ROPES) if architecture in ROPED else "default"
    if architecture == "phi3":  # knows no other
        rope = rng.choice(("default", "longrope"))
    return Case(
        seed=seed,
        architecture=architecture,
        tied=rng.random() < 0.5,
        padding_rows=rng.choice((0, 0, 0, 5, 29)),
        tokenizer=tokenizer,
        chat_template=chat,
        generation_config=_random_generation_config(rng),
        tasks=tasks,
        adapters=adapters,
        dtype="bfloat16" if rng.random() < 0.08 else "float32",
        shared_args=_without_random_weights(architecture, _random_shared_args(rng, rope)),
        own_args=_random_own_args(rng),
        batch_size=rng.choice((1, 1, 1, 1, 4)),
        num_fewshot=rng.choice((None, None, 0, 1, 2, 3)) if rng.random() > 0.01 else 40,
        apply_chat_template=apply_chat,
        system_instruction=rng.choice((None, None, None, "The old mill .", "Question the river <|im_end|>")),
        fewshot_as_multiturn=apply_chat and rng.random() < 0.6,
        gen_kwargs=_random_gen_kwargs(rng),
        adapter_as_argument=len(adapters) == 1 and rng.random() < 0.3,
        rope=rope,
    )


def _weighted(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _random_adapters(rng: random.Random) -> tuple[AdapterCase, ...]:
    count = rng.choices((0, 1, 2, 3, 4), (2, 3, 4, 2, 1))[0]
    kinds = [_weighted(rng, ADAPTERS) for _ in range(count)]
    if count > 1 and rng.random() < 0.3:
        kinds[rng.randrange(1, count)] = kinds[0]
    return tuple(AdapterCase(kind, rng.randrange(10**6)) for kind in kinds)


def _random_tasks(rng: random.Random) -> tuple[TaskCase, ...]:
    tasks = [_random_task(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    if len(tasks) > 1 and rng.random() < 0.15:
        number = rng.randrange(len(tasks))
        documents = max(2, tasks[number].documents)  # lm-eval tries the hook on the first one by itself
        tasks[number] = replace(tasks[number], documents=documents, fails=rng.choice(("hook", "split")))
    return tuple(tasks)


def _random_task(rng: random.Random) -> TaskCase:
    kind = _weighted(rng, TASK_KINDS)
    common = {
        "kind": kind,
        "seed": rng.randrange(10**6),
        "documents": rng.choice((1, 1, 2, 3, 4, 5, 6)),
        "doc_to_text": _random_text(rng),
        "delimiter": rng.choice((" ", " ", " ", "", "\n")),
        "metrics": rng.choice(("listed", "listed", "hook")),
        "num_fewshot": rng.choice((None, None, None, 0, 1, 2)),
    }
    if kind == "loglikelihood_rolling":
        return TaskCase(**{**common, "doc_to_text": "", "metrics": "listed", "num_fewshot": None})
    if kind != "generate_until":
        return TaskCase(**common, choices=rng.choice(("words", "phrases", "nested", "own")))
    sampled = rng.random() < 0.15
    return TaskCase(
        **common,
        until=rng.choice(UNTIL),
        generation=_random_sampling(rng) if sampled else _random_greedy(rng),
        repeats=rng.choice((1, 2)) if sampled else rng.choice((1,) * 9 + (2,)),
        filters=rng.random() < 0.3,
    )


def _random_text(rng: random.Random) -> str:
    return rng.choices(
        (
            "Passage : {{passage}} Question : {{question}} Answer :",
            "Question : {{question}} Answer :",
            "Review : {{passage}}\nAnswer :",
            "Passage : {{passage}}\nQuestion : {{question}} Answer : ",
            "{{passage}}\n\n",
            "<|im_start|> Passage : {{passage}}<|im_end|>\nQuestion : {{question}} Answer :",
            "<|user|> {{question}}<|bot|> Answer :",
            "<s> Question : {{question}} Answer :",
            "{{question}} déjà — 東京 Answer :",
            "",
        ),
        (6, 4, 4, 2, 1, 3, 3, 1, 1, 0.3),
    )[0]


def _random_limit(rng: random.Random) -> dict[str, Any]:
    name = rng.choices(("max_gen_toks", "max_new_tokens", None), (8, 1, 0.05))[0]
    return {} if name is None else {name: rng.choice((1, 2, 5, 8, 13, 24, 40))}


def _random_greedy(rng: random.Random) -> dict[str, Any]:
    settings = _random_limit(rng)
    greedy = ({"do_sample": False}, {}, {"do_sample": False, "temperature": 0.0}, {"temperature": 0})
    settings.update(rng.choice(greedy))
    if rng.random() < 0.2:
        settings.update(
            rng.choice((
                {"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}, {"num_beams": 2}, {"min_new_tokens": 6},
                {"suppress_tokens": [5, 40, 300]}, {"max_length": 60}, {"top_k": 3},
                {"num_beams": 2, "length_penalty": 0.5}, {"do_sample": False, "top_p": 0.5}, {"use_cache": False},
                {"bad_words_ids": [[40], [60, 61]]}, {"stop_strings": ["e"]}, {"penalty_alpha": 0.6, "top_k": 4},
                {"guidance_scale": 1.5}, {"pad_token_id": 1}, {"prompt_lookup_num_tokens": 2},
                {"logits_processor": None}, {"eos_token_id": [270, 2]}, {"renormalize_logits": True},
            ))
        )  # fmt: skip
    return settings


def _random_sampling(rng: random.Random) -> dict[str, Any]:
    # top_k 1 leaves no choice: the texts have to be alike.
    settings = {**_random_limit(rng), "do_sample": True}
    if rng.random() < 0.9:  # `hf` refuses to sample at its default, 0
        settings["temperature"] = rng.choice((0.3, 0.7, 1.0, 1.5))
    settings.update(rng.choice(({}, {"top_k": 1}, {"top_k": 1}, {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.4})))
    return settings


def _random_generation_config(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {}
    ids = [rng.randrange(3, 380) for _ in range(12)]
    values: dict[str, dict[str, Any]] = {
        "repetition_penalty": {"repetition_penalty": rng.choice((1.05, 1.3))},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": rng.choice((1, 2, 3))},
        "suppress_tokens": {"suppress_tokens": ids},
        "begin_suppress_tokens": {"begin_suppress_tokens": [*ids, *range(250, 330)]},
        "min_new_tokens": {"min_new_tokens": rng.choice((2, 6))},
        "min_length": {"min_length": rng.choice((10, 40))},
        "max_new_tokens": {"max_new_tokens": rng.choice((2, 9, 100))},
        "max_length": {"max_length": rng.choice((20, 50))},
        "bad_words_ids": {"bad_words_ids": [ids[:1], ids[1:3]]},
        "forced_eos_token_id": {"forced_eos_token_id": ids[0]},
        "forced_bos_token_id": {"forced_bos_token_id": ids[1]},
        "eos_token_id": {"eos_token_id": ids[:4]},
        "sampling": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9},
        "top_k_only": {"top_k": 2},
        "stop_strings": {"stop_strings": ["e", "river"]},
        "sequence_bias": {"sequence_bias": [[ids[:1], 4.0], [ids[1:3], -3.0]]},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 1.3]},
        "num_beams": {"num_beams": 2},
        "remove_invalid_values": {"remove_invalid_values": True},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.3},
        "renormalize_logits": {"renormalize_logits": True},
        "cache_implementation": {"cache_implementation": "static"},
    }
    config: dict[str, Any] = {}
    for name in rng.sample(GENERATION_SETTINGS, rng.choice((1, 1, 2, 3))):
        config.update(values[name])
    return config


def _without_random_weights(architecture: str, args: dict[str, Any]) -> dict[str, Any]:
    """An encoder-decoder that is loaded as a decoder misses weights, which are then drawn anew at every load."""
    return {name: value for name, value in args.items() if name != "backend" or architecture not in ("t5", "bart")}


def _random_shared_args(rng: random.Random, rope: str) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if rope == "dynamic" and rng.random() < 0.7:  # else prompts are cut to the range
        args["max_length"] = 200
    if rng.random() < 0.2:
        args["add_bos_token"] = rng.random() < 0.5
    if "max_length" not in args and rng.random() < 0.2:
        args["max_length"] = rng.choice((24, 40, 64, 90))
    if rng.random() < 0.15:
        args["think_end_token"] = rng.choice((" river", "e", "<|im_end|>", 265, 270, "280"))
    if rng.random() < 0.1:
        args["prefix_token_id"] = rng.randrange(3, 300)
    if rng.random() < 0.05:
        args["truncation"] = True
    if rng.random() < 0.1:
        args["logits_cache"] = False
    if rng.random() < 0.06:
        args["softmax_dtype"] = rng.choice(("float32", "float64", "bfloat16"))
    if rng.random() < 0.04:
        args["mixed_precision_dtype"] = "bfloat16"
    if rng.random() < 0.03:
        args["attn_implementation"] = "eager"
    if rng.random() < 0.03:
        args["backend"] = "causal"
    return args


def _random_own_args(rng: random.Random) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if rng.random() < 0.7:
        args["pack_tokens"] = rng.choice((64, 128, 256, 1024))
    if rng.random() < 0.7:
        args["cache_tokens"] = rng.choice((128, 200, 512, 8192))
    if rng.random() < 0.2:
        args["merge"] = True
    return args


def _random_gen_kwargs(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.85:
        return {}
    return rng.choice((
        {"max_gen_toks": 5}, {"repetition_penalty": 1.2}, {"until": ["s"]}, {"temperature": 0}, {"max_gen_toks": 1},
        {"do_sample": False, "no_repeat_ngram_size": 3}, {"do_sample": True, "temperature": 1.0, "top_k": 1},
    ))  # fmt: skip
