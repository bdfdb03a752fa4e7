"""The table of known metrics of lm-eval's tasks and ours: units, ranges, directions, and how they are computed.

A name means what lm-eval 0.4.13 logs under it. Metrics that are not listed have no unit; see `declarations.declared`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from harness_ext.metrics.statistic import POINTS, SHARE, Floats, Numbers, Statistic

# -- pairs of labels: gold and predicted -------------------------------------------------------------------------


def label_pair(logged: Any) -> tuple[float, float]:
    """(gold, predicted), class indices; None for an output that did not parse."""
    gold, predicted = logged
    if (
        not isinstance(gold, int)
        or gold < 0
        or not (predicted is None or (isinstance(predicted, int) and predicted >= 0))
    ):
        raise TypeError(f"not a pair of labels: {logged!r}")
    return float(gold), -1.0 if predicted is None else float(predicted)


def abstain_decision(logged: Any) -> tuple[float, float]:
    """(abstained, has an answer) as a pair of labels: (should have abstained, abstained)."""
    abstained, has_answer = logged
    return float(not has_answer), float(bool(abstained))


def one_hot(pairs: Floats, classes: int) -> Floats:
    """Per-document terms of a confusion table's margins: correct, gold and predicted by class, then unparsed.

    Returns:
        (n, 3k + 1) for k classes.
    """
    gold, predicted = pairs.astype(int).T
    rows = np.zeros((len(pairs), 3 * classes + 1))
    index, right = np.arange(len(pairs)), gold == predicted
    rows[index[right], gold[right]] = 1
    rows[index, classes + gold] = 1
    rows[index, np.where(predicted < 0, 3 * classes, 2 * classes + predicted)] = 1
    return rows


def _margins(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Correct, gold and predicted counts, each (r, k); the column of unparsed outputs is left out."""
    right, gold, predicted = np.split(sums[:, :-1], 3, axis=1)
    return right, gold, predicted


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def _class_f1(sums: Floats) -> Floats:
    right, gold, predicted = _margins(sums)
    return _ratio(2 * right, gold + predicted)  # (r, k)


def _macro_f1(sums: Floats) -> Floats:
    """Mean F1 of the classes that occur in the gold labels; an unparsed output lowers the recall of its gold class."""
    gold = _margins(sums)[1] > 0
    return np.asarray(np.where(gold, np.nan_to_num(_class_f1(sums)), 0).sum(axis=1) / gold.sum(axis=1))


def _mcc(sums: Floats) -> Floats:
    """Gorodkin's R_K (2004, doi:10.1016/j.compbiolchem.2004.09.006) from the margins of the confusion table.

    R_K = (c·n − Σ t_k·p_k) / √((n² − Σ t_k²)(n² − Σ p_k²)), with c of n correct, t_k gold labels and p_k predictions of
    class k; 0 if gold labels or predictions are constant. Unparsed outputs are a predicted class of their own.
    """
    right, gold, predicted = _margins(sums)
    n, predicted = gold.sum(axis=1), np.concatenate([predicted, sums[:, -1:]], axis=1)
    gold = np.concatenate([gold, np.zeros((len(sums), 1))], axis=1)
    covariance = right.sum(axis=1) * n - (gold * predicted).sum(axis=1)
    spread = (n**2 - (gold**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
    return np.nan_to_num(_ratio(covariance, np.sqrt(np.maximum(spread, 0))))


def _of_class_one(measure: Callable[[Floats, Floats, Floats], Floats]) -> Callable[[Floats], Floats]:
    """A measure of class 1 from its correct, gold and predicted counts."""
    return lambda sums: measure(*(part[:, 1] for part in _margins(sums)))


def _f1_of_counts(right: Floats, gold: Floats, predicted: Floats) -> Floats:
    return _ratio(2 * right, gold + predicted)


def _labels(metric: str, score: Callable[[Floats], Floats], numbers: Numbers = label_pair, low: float = 0) -> Statistic:
    return Statistic(metric, SHARE, low, 1, higher_is_better=True, numbers=numbers, score=score, expand=one_hot)


MACRO_F1 = _labels("macro_f1", _macro_f1)
MCC = _labels("mcc", _mcc, low=-1)
# Decisions to abstain, 0–100. Precision is NaN without abstentions, recall without unanswerable questions, F1 without
# either.
ABSTAIN_PRECISION, ABSTAIN_RECALL, ABSTAIN_F1 = (
    _labels(f"abstain_{name}", _of_class_one(measure), abstain_decision).in_points()
    for name, measure in (
        ("precision", lambda right, _, predicted: _ratio(right, predicted)),
        ("recall", lambda right, gold, _: _ratio(right, gold)),
        ("f1", _f1_of_counts),
    )
)


# -- sums of log-likelihoods: perplexity and bits per byte -------------------------------------------------------


def loglikelihood_and_length(logged: Any) -> tuple[float, float]:
    """(log-likelihood in nats, words or bytes)."""
    loglikelihood, length = logged
    return float(loglikelihood), float(length)


def _counted(logged: Any) -> tuple[float, float]:
    if not isinstance(logged, (int, float)):
        raise TypeError(f"not a number: {logged!r}")
    return float(logged), 1.0


def _perplexity(metric: str, numbers: Numbers) -> Statistic:
    return Statistic(
        metric, "perplexity", 1, None, higher_is_better=False, margin=0.01, scale="log", numbers=numbers,
        score=lambda sums: np.exp(-sums[:, 0] / sums[:, 1]),
    )  # fmt: skip


def _bits(metric: str, numbers: Numbers | None = None) -> Statistic:
    plain = Statistic(metric, "bits per byte", 0, None, higher_is_better=False, margin=0.01)
    if numbers is None:
        return plain
    return replace(plain, numbers=numbers, score=lambda sums: -sums[:, 0] / sums[:, 1] / math.log(2))


# -- probabilities of choices ------------------------------------------------------------------------------------


def _brier_pair(logged: Any) -> tuple[float, float]:
    """lm-eval's (gold, probabilities); the sum over the choices, which is twice our `brier`."""
    gold, probabilities = logged
    target = [float(place == gold) for place in range(len(probabilities))]
    return sum((float(p) - t) ** 2 for p, t in zip(probabilities, target, strict=True)), 1.0


_BRIER_SCORE = Statistic("brier_score", "sum of squares", 0, 2, higher_is_better=False, margin=0.02)


def _ranked_pair(logged: Any) -> tuple[float, float]:
    gold, score = logged
    if gold not in (0, 1) or math.isnan(score):
        raise ValueError(f"not a binary class and its score: {logged!r}")
    return float(gold), float(score)


AUROC = Statistic("auroc", SHARE, 0, 1, higher_is_better=True, numbers=_ranked_pair, ranks_classes=True)


# -- corpus BLEU -------------------------------------------------------------------------------------------------


def _bleu(metric: str, order: int, *, references_first: bool) -> Statistic:
    """Corpus BLEU of (prediction, references) as our tasks log it, or of (references, prediction) as lm-eval does."""
    bleu = _sacrebleu(order)

    def numbers(logged: Any) -> Sequence[float]:
        references, prediction = logged if references_first else logged[::-1]
        texts = [references] if isinstance(references, str) else list(references)
        if not isinstance(prediction, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError("not a prediction with references")
        (row,) = bleu._extract_corpus_statistics([prediction], [[text] for text in texts])
        return [float(number) for number in row]

    def score(sums: Floats) -> Floats:
        counts = np.rint(sums).astype(int).tolist()  # sacrebleu writes into its argument
        return np.array([bleu._compute_score_from_stats(row).score for row in counts])

    return Statistic(metric, POINTS, 0, 100, higher_is_better=True, numbers=numbers, score=score)


@cache
def _sacrebleu(order: int) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(max_ngram_order=order)


# -- the table ---------------------------------------------------------------------------------------------------

# A task's primary metric is the first of these that it has.
PRIMARY_METRICS = ("acc", "exact_match", "exact", "em", "f1")
_SHARES = (
    "acc", "acc_*", "*_acc", "accuracy", "exact_match", "em", "mc1", "mc2", "pass@*", "pass_at_*", "contains",
    "quasi_*", "precision", "recall", "f1", "rouge[0-9L]*", "consistency", "parsed_rate", "empty_rate", "mapped_rate",
    "greedy_rate", "*_accuracy", "prompt_level_*", "inst_level_*", "meteor", "pct_stereotype", "extractive_match",
)  # fmt: skip
_SQUAD = ("exact", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "best_exact", "best_f1", "exact_tuned")
_POINTS = (*_SQUAD, "chrf", "bleu_max", "rouge*_max", "abstain_baseline")
_DESCRIBES = (
    "majority_baseline", "abstain_baseline", "content_free_share", "top_class_share", "best_threshold",
    "threshold_rate",
)  # fmt: skip


def _error_rate(metric: str) -> Statistic:
    return Statistic(metric, SHARE, 0, None, higher_is_better=False)


_COMPUTED: Mapping[str, Callable[[str], tuple[Statistic, ...]]] = {
    "macro_f1": lambda _: (MACRO_F1,),
    "mcc": lambda _: (MCC,),
    "f1": lambda name: (
        Statistic(name, SHARE, 0, 1, higher_is_better=True),
        _labels(name, _of_class_one(_f1_of_counts)),
    ),
    "abstain_precision": lambda _: (ABSTAIN_PRECISION,),
    "abstain_recall": lambda _: (ABSTAIN_RECALL,),
    "abstain_f1": lambda _: (ABSTAIN_F1,),
    "*auroc": lambda name: (replace(AUROC, metric=name),),
    "perplexity": lambda name: (_perplexity(name, _counted), _perplexity(name, loglikelihood_and_length)),
    "word_perplexity": lambda name: (_perplexity(name, loglikelihood_and_length),),
    "byte_perplexity": lambda name: (_perplexity(name, loglikelihood_and_length),),
    "bits_per_byte": lambda name: (_bits(name), _bits(name, loglikelihood_and_length)),
    "*_bits_per_byte": lambda name: (_bits(name), _bits(name, loglikelihood_and_length)),
    "log_loss": lambda name: (Statistic(name, "nats", 0, None, higher_is_better=False, margin=0.01),),
    "brier": lambda name: (Statistic(name, SHARE, 0, 1, higher_is_better=False),),
    "ece": lambda name: (Statistic(name, SHARE, 0, 1, higher_is_better=False),),
    "brier_score": lambda _: (
        _BRIER_SCORE,
        replace(_BRIER_SCORE, numbers=_brier_pair, score=lambda sums: sums[:, 0] / sums[:, 1]),
    ),
    "wer": lambda name: (_error_rate(name),),
    "cer": lambda name: (_error_rate(name),),
    "ter": lambda name: (Statistic(name, POINTS, 0, None, higher_is_better=False),),
    "bleu_diff": lambda name: (Statistic(name, POINTS, -100, 100, higher_is_better=True),),
    "rouge*_diff": lambda name: (Statistic(name, POINTS, -100, 100, higher_is_better=True),),
    "bleu": lambda name: (
        Statistic(name, POINTS, 0, 100, higher_is_better=True),
        _bleu(name, 4, references_first=True),
        _bleu(name, 4, references_first=False),
    ),
    "bleu_1": lambda name: (_bleu(name, 1, references_first=False),),
}


@cache
def _known(metric: str, *, beside_exact: bool) -> tuple[Statistic, ...]:
    if metric in _DESCRIBES:
        return (Statistic(metric, POINTS if metric == "abstain_baseline" else SHARE, describes=True),)
    if metric == "f1" and beside_exact:  # SQuAD's
        return (Statistic(metric, POINTS, 0, 100, higher_is_better=True),)
    for pattern, make in _COMPUTED.items():
        if fnmatch.fnmatchcase(metric, pattern):
            return make(metric)
    for patterns, unit, top in ((_POINTS, POINTS, 100.0), (_SHARES, SHARE, 1.0)):
        if any(fnmatch.fnmatchcase(metric, pattern) for pattern in patterns):
            return (Statistic(metric, unit, 0, top, higher_is_better=True),)
    return ()


def known_statistics(metric: str, siblings: Sequence[str] = ()) -> tuple[Statistic, ...]:
    """The table's declarations of a metric; empty if it is not in the table.

    Args:
        metric: its name.
        siblings: the other metrics of the task.
    """
    return _known(metric, beside_exact="exact" in siblings)
