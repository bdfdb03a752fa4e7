"""Results of other tools in lm-eval's terms: documents and prompts by hash, a protocol by named fields."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

# What a generation config says about the answers; the rest says how fast and how often they are asked for.
_SAMPLING = (
    "best_of", "effort", "frequency_penalty", "logit_bias", "max_tokens", "num_choices", "presence_penalty",
    "reasoning_effort", "reasoning_mode", "reasoning_tokens", "repetition_penalty", "response_schema", "stop_seqs",
    "system_message", "temperature", "top_k", "top_p", "verbosity",
)  # fmt: skip


def hash_of(*parts: Any) -> str:
    """64 bits of anything JSON can hold, in hex; the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Hash of a protocol's fields, by which two results are known to be comparable."""
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sampling(*configs: Any) -> dict[str, Any]:
    """What generation configs say about the answers; later ones win."""
    found: dict[str, Any] = {}
    for config in map(mapping, configs):
        found |= {name: config[name] for name in _SAMPLING if config.get(name) is not None}
    return found


def turns(messages: Any) -> list[tuple[Any, Any]]:
    """(role, content) of logged messages, whose ids differ from run to run."""
    return [(message.get("role"), message.get("content")) for message in entries(messages)]


def prompt_of(messages: Any) -> list[tuple[Any, Any]]:
    """The turns before the model's first answer; answers in few-shot examples are not the model's."""
    answers = [place for place, each in enumerate(entries(messages)) if each.get("role") == "assistant"]
    own = [place for place in answers if entries(messages)[place].get("source") == "generate"]
    first = (own or answers)[:1]
    return turns(messages)[: first[0] if first else None]


def sample(
    number: int, doc: Mapping[str, Any], document: str, prompt: str, target: Any, values: Mapping[str, Any]
) -> dict[str, Any]:
    """One document's scores as lm-eval logs them.

    Args:
        number: its place among the documents.
        doc: its columns, of which one may name the unit of evidence.
        document: hash of the document.
        prompt: hash of what the model was asked.
        target: the reference.
        values: metric -> what the document scored.
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
    """The mean of numbers; NaN of none."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


def mapping(value: Any) -> Mapping[str, Any]:
    """An object of parsed JSON or YAML; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> list[Mapping[str, Any]]:
    """The objects in an array of parsed JSON; none for anything else."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def is_number(value: Any) -> TypeGuard[float]:
    """Whether parsed JSON is a number that counts: not a truth value, not NaN, not infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
