"""Scores of a choice among labels: forced, calibrated, with several prompts, or generated and parsed.

Documents have the columns `label` (an index) and `choices` (the label words).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness_ext.errors import MetricError
from harness_ext.metrics import calibration, labels
from harness_ext.metrics.known import AUROC, MACRO_F1, MCC

Doc = Mapping[str, Any]


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


def score_choice_calibrated(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score a forced choice of `CalibratedChoice` after contextual calibration.

    Args:
        doc: as for `score_choice`.
        results: those of the document's choices, then those after each content-free input.

    Returns:
        What `score_choice` returns, `acc_uncalibrated`, and `content_free_share`: the probability of the choice that
        the model prefers when it is shown nothing.
    """
    size = len(doc["choices"])
    rows = [[logprob for logprob, _ in results[start : start + size]] for start in range(0, len(results), size)]
    calibrated = calibration.calibrate(rows[0], rows[1:])
    return {
        **score_choice(doc, [(score, False) for score in calibrated]),
        "acc_uncalibrated": float(int(np.argmax(rows[0])) == doc["label"]),
        "content_free_share": max(calibration.content_free_prior(rows[1:])),
    }


def score_prompts(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score a forced choice of `PromptSpread`: one document under several prompts.

    Returns:
        `acc_mean`, the share of prompts under which it is right; `consistency`, 1 when all prompts give the same
        answer; and for `acc_min`, `acc_median` and `acc_max` whether it is right, prompt by prompt.
    """
    size = len(doc["choices"])
    gold = _gold_label(doc, expected=size)
    logprobs = np.array([logprob for logprob, _ in results]).reshape(-1, size)  # (prompts, K)
    predicted = logprobs.argmax(axis=1).tolist()
    correct = tuple(float(each == gold) for each in predicted)  # no list: lm-eval 0.5 takes a list for repeats
    return {
        "acc_mean": statistics.fmean(correct),
        "consistency": float(len(set(predicted)) == 1),
        "acc_min": correct,
        "acc_median": correct,
        "acc_max": correct,
    }


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
    """Unweighted mean of the F1 of the classes that occur in the gold labels, 0-1."""
    return MACRO_F1(pairs)


def mcc(pairs: Sequence[tuple[int, int | None]]) -> float:
    """Matthews correlation coefficient, -1 to 1."""
    return MCC(pairs)


def auroc(pairs: Sequence[tuple[int, float]]) -> float:
    """Area under the ROC curve of the log-probability difference of two choices, 0-1; NaN if a class is missing."""
    return AUROC(pairs)


def ece(pairs: Sequence[tuple[float, float]]) -> float:
    """Expected calibration error, 0-1, with 15 bins of equal mass."""
    confidences, correct = zip(*pairs, strict=True)
    return labels.expected_calibration_error(confidences, correct)


def majority_baseline(golds: Sequence[int]) -> float:
    """Accuracy of always giving the most frequent gold label, 0-1."""
    return labels.majority_baseline(golds)


def top_class_share(predictions: Sequence[int | None]) -> float:
    """Share of the most frequent prediction, 0-1; 1 if the model always gives the same answer."""
    parsed = Counter(predicted for predicted in predictions if predicted is not None)
    return max(parsed.values(), default=0) / len(predictions)


def minimum(rows: Sequence[Sequence[float]]) -> float:
    """Mean over documents with the worst prompt."""
    return min(_columns(rows))


def median(rows: Sequence[Sequence[float]]) -> float:
    """Median over prompts of the mean over documents."""
    return statistics.median(_columns(rows))


def maximum(rows: Sequence[Sequence[float]]) -> float:
    """Mean over documents with the best prompt, which is known only after evaluation."""
    return max(_columns(rows))


def _columns(rows: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]
