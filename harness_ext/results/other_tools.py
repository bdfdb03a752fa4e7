"""Helpers for results of other tools: hashes, fingerprints, and samples in the form in which lm-eval logs them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

# The fields of a generation config that influence answers; the others concern speed, retries and the like.
_SAMPLING = (
    "best_of", "effort", "frequency_penalty", "logit_bias", "max_tokens", "num_choices", "presence_penalty",
    "reasoning_effort", "reasoning_mode", "reasoning_tokens", "repetition_penalty", "response_schema", "stop_seqs",
    "system_message", "temperature", "top_k", "top_p", "verbosity",
)  # fmt: skip


def hash_of(*parts: Any) -> str:
    """A 64-bit hash, in hex, of anything JSON can hold; the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Hash of the fields of a protocol; results with equal fingerprints are comparable."""
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sampling(*configs: Any) -> dict[str, Any]:
    """The fields of generation configs that influence answers; later configs win."""
    fields: dict[str, Any] = {}
    for config in map(mapping, configs):
        fields |= {name: config[name] for name in _SAMPLING if config.get(name) is not None}
    return fields


def turns(messages: Any) -> list[tuple[Any, Any]]:
    """(role, content) of logged messages, without their ids, which differ from run to run."""
    return [(message.get("role"), message.get("content")) for message in entries(messages)]


def prompt_of(messages: Any) -> list[tuple[Any, Any]]:
    """The turns before the model's first answer; answers in few-shot examples do not count as the model's."""
    logged = entries(messages)
    answers = [index for index, message in enumerate(logged) if message.get("role") == "assistant"]
    generated = [index for index in answers if logged[index].get("source") == "generate"]
    first = (generated or answers)[:1]
    return turns(messages)[: first[0] if first else None]


def sample(
    number: int, doc: Mapping[str, Any], document: str, prompt: str, target: Any, values: Mapping[str, Any]
) -> dict[str, Any]:
    """One document's scores in the form in which lm-eval logs them.

    Args:
        number: index of the document.
        doc: its columns; one of them may name the unit of evidence.
        document: hash of the document.
        prompt: hash of the prompt.
        target: the reference answer.
        values: metric -> the document's score.
    """
    return {
        **values,
        "doc_id": number,
        "doc": doc,
        "doc_hash": document,
        "prompt_hash": prompt,
        "target_hash": hash_of(target),
    }


def mean(values: Iterable[float]) -> float:
    """The mean; NaN if there are no values."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def mapping(value: Any) -> Mapping[str, Any]:
    """The value itself if it is an object of parsed JSON or YAML; otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> list[Mapping[str, Any]]:
    """The objects in an array of parsed JSON; an empty list for anything else."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of parsed JSON is a finite number (booleans are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
