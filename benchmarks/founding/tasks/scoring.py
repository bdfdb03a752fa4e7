"""Scoring of the founding experiment: as it should be, and as it is often written, letter by letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness_ext.hooks import score_squad_v2
from harness_ext.metrics import squad

KEPT = ("exact", "f1", "HasAns_exact", "NoAns_exact", "abstain_baseline", "empty_rate", "bleu")


def score_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What `score_squad_v2` says, without the metrics that the task does not list."""
    return {name: value for name, value in score_squad_v2(doc, results).items() if name in KEPT}


def score_answer_raw(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1, 0-100; an abstention is right only as the empty text."""
    text, references = results[0], doc["answers"]["text"] or [""]
    exact, f1 = 100.0 * squad.exact_match(text, references), 100.0 * squad.token_f1(text, references)
    group = "HasAns" if doc["answers"]["text"] else "NoAns"
    return {"exact": exact, "f1": f1, f"{group}_exact": exact, "abstain_baseline": score_squad_v2(doc, [""])["exact"]}


def score_label_raw(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the text is the label, letter by letter, 0-1."""
    return {"acc": float(results[0].strip() == doc["choices"][doc["label"]])}
