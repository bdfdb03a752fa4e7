"""Checks of stop strings and token lengths: whether gold answers and labels fit the task's limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from harness_ext.check.documents import Sampled
from harness_ext.check.templates import gold_answers
from harness_ext.check.yaml_source import TaskSource
from harness_ext.errors import ModelError
from harness_ext.findings import Level
from harness_ext.protocol.lm_eval_api import ConfigurableTask, choices_of
from harness_ext.protocol.token_settings import check_appends_nothing

Encode = Callable[[str], Sequence[int]]  # text to token ids, without special tokens
DEFAULT_MAX_GEN_TOKS = 256  # in lm-eval's HFLM
RARE = 0.01  # share of documents; up to this, answers that are cut are a warning


def encoder(place: str) -> Encode:
    """A function that turns text into a model's token ids, without special tokens; no weights are loaded.

    Args:
        place: a folder with a tokenizer, or a Hub id.

    Raises:
        ModelError: there is no tokenizer, or it appends a token to every text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # tokenizers raises exceptions of its own
        raise ModelError(
            f"the tokenizer of {place} cannot be loaded; name a model, or a folder with tokenizer.json"
        ) from error
    if not _is_encoder_decoder(place):
        check_appends_nothing(tokenizer, place)

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return encode


def _is_encoder_decoder(place: str) -> bool:
    """Whether the model is an encoder–decoder; False for a tokenizer without a model."""
    try:
        return bool(AutoConfig.from_pretrained(place).is_encoder_decoder)
    except (OSError, ValueError, KeyError):
        return False


def stops_of(arguments: Mapping[str, Any]) -> list[str]:
    """The stop strings of a generation request."""
    until = arguments.get("until") or []
    return [until] if isinstance(until, str) else [str(stop) for stop in until]


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """A generated text up to its first stop string, cut as lm-eval does.

    >>> cut_at_stop(" yes. No", ["."])
    ' yes'
    """
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


def check_stops(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> None:
    """Note stop strings that would cut gold answers."""
    if task.OUTPUT_TYPE != "generate_until":
        return
    stops = stops_of(task.config.generation_kwargs or {})
    delimiter = task.config.target_delimiter
    if hit := [stop for stop in stops if stop and stop in delimiter]:
        source.add("C23", "error", f"stop string {hit[0]!r} occurs in target_delimiter {delimiter!r}, so a trained "
                   "model stops before its answer; change one of them", "target_delimiter")  # fmt: skip
        return
    cut: dict[str, list[int]] = defaultdict(list)
    for number, doc in zip(sampled.numbers, sampled.docs, strict=True):
        answers = gold_answers(task, doc)
        for stop in stops:
            if stop and answers and all(stop in answer.strip(" ") for answer in answers):
                cut[stop].append(number)
    for stop, numbers in cut.items():
        source.add("C23", "error", f"stop string {stop!r} occurs in the gold answers of {len(numbers)} of "
                   f"{len(sampled.docs)} documents (first: {numbers[0]}) and cuts them; choose another",
                   "generation_kwargs", "until")  # fmt: skip


def check_lengths(source: TaskSource, task: ConfigurableTask, sampled: Sampled, encode: Encode) -> None:
    """Note gold answers that are longer than max_gen_toks."""
    if task.OUTPUT_TYPE != "generate_until":
        return
    limit = (task.config.generation_kwargs or {}).get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)
    lengths = []
    for doc in sampled.docs:
        answers = gold_answers(task, doc)
        lengths.append(min(len(encode(f"{task.config.target_delimiter}{answer}")) for answer in answers))
    over = [length for length in lengths if length > int(limit)]
    if over:
        level: Level = "error" if len(over) > RARE * len(lengths) else "warning"
        source.add("C24", level, f"max_gen_toks {limit} is too small: {len(over)} of {len(lengths)} gold answers are "
                   f"longer (up to {max(over)} tokens); raise it", "generation_kwargs", "max_gen_toks")  # fmt: skip


def check_label_tokens(source: TaskSource, task: ConfigurableTask, sampled: Sampled, encode: Encode) -> None:
    """Note labels of a forced choice that begin with the same token or have several tokens."""
    if task.OUTPUT_TYPE != "multiple_choice" or not sampled.docs:
        return
    choices = choices_of(task, sampled.docs[0])
    if any(choices_of(task, doc) != choices for doc in sampled.docs):
        return  # each document has its own answers; these are not labels
    ids = {choice: list(encode(f"{task.config.target_delimiter}{choice}")) for choice in choices}
    by_first: dict[Any, list[str]] = defaultdict(list)
    for choice, tokens in ids.items():
        by_first[tokens[0] if tokens else None].append(choice)
    for same in by_first.values():
        if len(same) > 1:
            source.add("C25", "warning", f"labels {', '.join(map(repr, same))} begin with the same token, which cannot "
                       "tell them apart; choose other words", "doc_to_choice")  # fmt: skip
    several = {choice: len(tokens) for choice, tokens in ids.items() if len(tokens) > 1}
    if several:
        counts = ", ".join(f"{choice!r} {number}" for choice, number in several.items())
        uneven = len({len(tokens) for tokens in ids.values()}) > 1
        source.add("C25", "note", f"labels with several tokens: {counts}"
                   + ("; longer labels tend to have lower log-probabilities: prefer words of one token, or report "
                      "acc_norm" if uneven else ""), "doc_to_choice")  # fmt: skip
