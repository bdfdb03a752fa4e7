"""The functions task YAMLs name with `!function harness_ext.hooks.…`: the public face for task authors.

A scoring hook is an lm-eval `process_results`: it gets one document and the model's results for it, and returns one
value for each metric. The aggregation of a metric that is no plain mean is a second function, named by the YAML, too.

Classification hooks read the columns `label` (an index) and `choices` (the label words) of a document;
question-answering hooks read `answers` with its list `text`, empty for an unanswerable question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness_ext.errors import MetricError
from harness_ext.metrics import labels, squad
from harness_ext.protocol.datasets import load_documents

__all__ = [
    "abstain_f1",
    "abstain_precision",
    "abstain_recall",
    "auroc",
    "ece",
    "load_documents",
    "macro_f1",
    "majority_baseline",
    "mcc",
    "score_choice",
    "score_label",
    "score_squad_v2",
    "top_class_share",
]

Doc = Mapping[str, Any]


# -- classification ----------------------------------------------------------------------------------------------


def score_choice(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score a forced choice from the log-probability of each of the document's `choices`.

    Returns:
        `acc` (0 or 1), `brier` and `log_loss` (nats) of the softmax over the choices, and what the aggregations need:
        `macro_f1`, `mcc` (gold, predicted), `ece` (confidence, correct), `majority_baseline` (gold), `top_class_share`
        (predicted) and, for two choices, `auroc` (gold, difference of log-probabilities).
    """
    gold = _gold_label(doc, expected=len(results))
    logprobs = [logprob for logprob, _ in results]
    predicted = int(np.argmax(logprobs))
    probabilities = labels.softmax(logprobs)
    correct = float(predicted == gold)
    scores: dict[str, Any] = {
        "acc": correct,
        "macro_f1": (gold, predicted),
        "mcc": (gold, predicted),
        "brier": labels.brier([gold], [probabilities]),
        "log_loss": labels.log_loss([gold], [probabilities]),
        "ece": (float(max(probabilities)), correct),
        "majority_baseline": gold,
        "top_class_share": predicted,
    }
    if len(logprobs) == 2:
        scores["auroc"] = (gold, logprobs[1] - logprobs[0])
    return scores


def score_label(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score a generated label: parsed with `metrics.labels.parse_label`, unparsed text is wrong.

    Returns:
        `acc`, `parsed_rate` (0 or 1 each), `acc_parsed` (only for documents that parsed), and what the aggregations of
        `macro_f1`, `majority_baseline` and `top_class_share` need. `acc` = `parsed_rate` x `acc_parsed`.
    """
    choices = doc["choices"]
    gold = _gold_label(doc, expected=len(choices))
    predicted = labels.parse_label(results[0], choices)
    correct = float(predicted == gold)
    scores: dict[str, Any] = {
        "acc": correct,
        "parsed_rate": float(predicted is not None),
        "macro_f1": (gold, predicted),
        "majority_baseline": gold,
        "top_class_share": predicted,
    }
    if predicted is not None:
        scores["acc_parsed"] = correct
    return scores


def _gold_label(doc: Doc, *, expected: int) -> int:
    gold = doc["label"]
    if not 0 <= gold < expected:
        raise MetricError(f"document {dict(doc)!r:.120} has label {gold!r}, outside its {expected} choices; correct it")
    return int(gold)


def macro_f1(pairs: Sequence[tuple[int, int | None]]) -> float:
    """Unweighted mean of the F1 of the classes that occur in the gold labels."""
    golds, predictions = zip(*pairs, strict=True)
    return labels.macro_f1(golds, predictions, labels=sorted(set(golds)))


def mcc(pairs: Sequence[tuple[int, int | None]]) -> float:
    """Matthews correlation coefficient, -1 to 1."""
    golds, predictions = zip(*pairs, strict=True)
    return labels.mcc(golds, predictions)


def auroc(pairs: Sequence[tuple[int, float]]) -> float:
    """Area under the ROC curve of the log-probability difference of the two choices."""
    golds, scores = zip(*pairs, strict=True)
    return labels.auroc(golds, scores)


def ece(pairs: Sequence[tuple[float, float]]) -> float:
    """Expected calibration error over 15 bins of equal mass."""
    confidences, correct = zip(*pairs, strict=True)
    return labels.expected_calibration_error(confidences, correct)


def majority_baseline(golds: Sequence[int]) -> float:
    """Accuracy of always answering the commonest gold label."""
    return labels.majority_baseline(golds)


def top_class_share(predictions: Sequence[int | None]) -> float:
    """Share of the commonest prediction: 1.0 when the model always says the same."""
    return max(
        labels.class_shares(predictions, sorted({p for p in predictions if p is not None})).values(), default=0.0
    )


# -- question answering ------------------------------------------------------------------------------------------


def score_squad_v2(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score one SQuAD v2 answer, 0-100, abstention words mapped to the empty answer.

    Returns:
        `exact`, `f1`, the same under `HasAns_` or `NoAns_` for the class of the document only, `abstain_baseline`
        (what always abstaining would score), `empty_rate`, `mapped_rate`, and for `abstain_precision`, `abstain_recall`
        and `abstain_f1` the pair (abstained, has an answer).
    """
    score = squad.score_squad_v2(results[0], doc["answers"]["text"])
    exact, f1 = 100.0 * score.exact, 100.0 * score.f1
    group = "HasAns" if score.has_answer else "NoAns"
    decision = (score.abstained, score.has_answer)
    return {
        "exact": exact,
        "f1": f1,
        f"{group}_exact": exact,
        f"{group}_f1": f1,
        "abstain_baseline": 0.0 if score.has_answer else 100.0,
        "abstain_precision": decision,
        "abstain_recall": decision,
        "abstain_f1": decision,
        "empty_rate": 100.0 * score.empty,
        "mapped_rate": 100.0 * score.mapped,
    }


def abstain_precision(decisions: Sequence[tuple[bool, bool]]) -> float:
    """Of the abstentions, the share on unanswerable questions, 0-100; NaN without abstentions."""
    return 100.0 * squad.abstain_precision(decisions)


def abstain_recall(decisions: Sequence[tuple[bool, bool]]) -> float:
    """Of the unanswerable questions, the share abstained from, 0-100; NaN without unanswerable questions."""
    return 100.0 * squad.abstain_recall(decisions)


def abstain_f1(decisions: Sequence[tuple[bool, bool]]) -> float:
    """Harmonic mean of abstention precision and recall, 0-100; NaN when either has no documents."""
    return 100.0 * squad.abstain_f1(decisions)
