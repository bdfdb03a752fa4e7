"""Write results the way lm-eval 0.4.13 lays them out (EvaluationTracker), without running a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

DATE = "2025-06-01T10-00-00.000000"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(doc_id: int, doc: dict[str, Any], scores: dict[str, Any], *, prompt: str = "", target: Any = 0) -> dict:
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": str(target),
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {}}},
        "resps": [["x"]],
        "filtered_resps": ["x"],
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": digest(json.dumps(doc)),
        "prompt_hash": digest(prompt + json.dumps(doc)),
        "target_hash": digest(str(target)),
        **scores,
    }


def labelled(values: Sequence[float], metric: str = "acc") -> list[dict]:
    """One document per value; the reference alternates between two labels."""
    return [sample(i, {"idx": i}, {metric: value}, target=i % 2) for i, value in enumerate(values)]


def mean(samples: Sequence[dict], metric: str) -> float:
    """The mean of what documents logged; 0 of what is no number, whose aggregate a test gives itself."""
    values = [s[metric] for s in samples if metric in s]
    return sum(values) / len(values) if all(isinstance(value, (int, float)) for value in values) else 0.0
