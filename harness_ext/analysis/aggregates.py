"""Metrics that are no mean of per-document scores: macro-F1, MCC, AUROC, BLEU, bits per byte.

As in sacrebleu a metric is two steps: a few numbers for each document, and a score from their sums. Tests and
intervals only resample or swap the sums, so every such metric is tested alike. The numbers come from what
lm-eval logs for its aggregations (gold and predicted label, prediction and references, …). Metrics carry no
definition in the samples, so a name may have several readings; the one that reproduces the logged value counts,
and where none does there is no test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness_ext.analysis import paired, resampling
from harness_ext.analysis.statistics import Clusters, Floats, Mean, effective_clusters

_WEIGHT_CELLS = 2e8  # drawn documents an AUROC is bootstrapped with, in all: seconds


@dataclass(frozen=True)
class Aggregate:
    """One reading of a metric: from a logged value to numbers, from numbers to the metric."""

    numbers: Callable[[Any], Sequence[float]]  # of one document; raises TypeError or ValueError on another shape
    value: Callable[[Floats], float]  # of all documents, (n, k); shares as fractions
    score: Callable[[Floats], Floats] | None = None  # of sums, (r, K) -> (r,); None when sums are not enough
    expand: Callable[[Floats, int], Floats] | None = None  # (n, k) numbers -> (n, K) summands; None: as they are


def compare_aggregates(
    reading: Aggregate, before: Floats, after: Floats, clusters: Clusters | None, *, seed: int = 0
) -> paired.PairedDifference:
    """Interval and p-value of the difference of two runs, as a fraction (perplexities: as they are).

    Args:
        reading: of the metric.
        before: (n, k) numbers of the baseline.
        after: (n, k) of the other run, document for document.
        clusters: passages.
        seed: of swaps and resamples.
    """
    groups = effective_clusters(clusters)
    n, classes = len(before), int(max(before.max(), after.max())) + 1 if reading.expand else 0
    if reading.score is None:
        (units, first), (_, second) = (_weighted_auroc(pairs, groups) for pairs in (before, after))
        return paired.paired_statistic(
            lambda weights: second(weights) - first(weights),
            n=n, units=units, by_passage=groups is not None, seed=seed, resamples=_resamples(n),
        )  # fmt: skip
    first_sums, second_sums = (_unit_sums(reading, rows, classes, groups) for rows in (before, after))
    return paired.paired_aggregates(
        first_sums, second_sums, reading.score, n=n, by_passage=groups is not None, seed=seed
    )


def describe_aggregate(reading: Aggregate, numbers: Floats, clusters: Clusters | None, *, seed: int = 0) -> Mean:
    """One run's value of the metric with its bootstrap interval.

    Args:
        reading: of the metric.
        numbers: (n, k), of one run.
        clusters: passages.
        seed: of the resamples.
    """
    groups, score = effective_clusters(clusters), reading.score
    resamples = resampling.RESAMPLES
    if score is None:
        units, statistic = _weighted_auroc(numbers, groups)
        resamples = _resamples(len(numbers))
    else:
        classes = int(numbers.max()) + 1 if reading.expand else 0
        sums = resampling.pooled(_unit_sums(reading, numbers, classes, groups), seed=seed)
        units, statistic = len(sums), lambda weights: score(weights @ sums)
    replicates = resampling.bootstrap(units, statistic, seed=seed, resamples=resamples)
    method = f"bootstrap of {'documents' if groups is None else 'passages'}"
    return Mean(reading.value(numbers), resampling.percentile_interval(replicates), method)


def _resamples(n: int) -> int:
    return int(min(resampling.RESAMPLES, max(1_000, _WEIGHT_CELLS // n)))


def _unit_sums(reading: Aggregate, numbers: Floats, classes: int, groups: Clusters | None) -> Floats:
    """What a score is computed from, summed over each document or passage: (n, k) -> (C, K)."""
    rows = numbers if reading.expand is None else reading.expand(numbers, classes)
    return rows if groups is None else groups.sums(rows)


def readings_of(metric: str) -> tuple[Aggregate, ...]:
    """How the pairs logged under a metric's name may be meant; none for metrics without a test."""
    return _bleu_readings(1 if metric.endswith("1") else 4) if "bleu" in metric.lower() else _READINGS.get(metric, ())


# -- pairs of labels: gold and predicted -------------------------------------------------------------------------


def _label_pair(logged: Any) -> tuple[float, float]:
    gold, predicted = logged
    if not isinstance(gold, int) or not isinstance(predicted, (int, type(None))):
        raise TypeError(f"not a pair of labels: {logged!r}")
    return float(gold), -1.0 if predicted is None else float(predicted)


def _decision(logged: Any) -> tuple[float, float]:
    """(abstained, has an answer) as a pair of labels: should it have abstained, did it."""
    abstained, has_answer = logged
    return float(not has_answer), float(bool(abstained))


def _one_hot(pairs: Floats, classes: int) -> Floats:
    """Summands of a confusion table's margins: right, gold and predicted per class, then unparsed; (n, 3k + 1)."""
    gold, predicted = pairs.astype(int).T
    rows = np.zeros((len(pairs), 3 * classes + 1))
    index, right = np.arange(len(pairs)), gold == predicted
    rows[index[right], gold[right]] = 1
    rows[index, classes + gold] = 1
    rows[index, np.where(predicted < 0, 3 * classes, 2 * classes + predicted)] = 1
    return rows


def _margins(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Right, gold and predicted counts, each (r, k); the column of unparsed outputs is left aside."""
    right, gold, predicted = np.split(sums[:, :-1], 3, axis=1)
    return right, gold, predicted


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def _class_f1(sums: Floats) -> Floats:
    right, gold, predicted = _margins(sums)
    return _ratio(2 * right, gold + predicted)  # (r, k)


def _macro_f1(sums: Floats) -> Floats:
    """Over the classes that occur in the gold labels, as `harness_ext.hooks.macro_f1`."""
    gold = _margins(sums)[1] > 0
    return np.where(gold, np.nan_to_num(_class_f1(sums)), 0).sum(axis=1) / gold.sum(axis=1)


def _mcc(sums: Floats) -> Floats:
    """Gorodkin's R_K from margins; unparsed outputs are a predicted class of their own."""
    right, gold, predicted = _margins(sums)
    n, predicted = gold.sum(axis=1), np.concatenate([predicted, sums[:, -1:]], axis=1)
    gold = np.concatenate([gold, np.zeros((len(sums), 1))], axis=1)
    covariance = right.sum(axis=1) * n - (gold * predicted).sum(axis=1)
    spread = (n**2 - (gold**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
    return np.nan_to_num(_ratio(covariance, np.sqrt(np.maximum(spread, 0))))


def _positive(measure: Callable[[Floats, Floats, Floats], Floats]) -> Callable[[Floats], Floats]:
    """A measure of class 1 from its right, gold and predicted counts."""
    return lambda sums: measure(*(part[:, 1] for part in _margins(sums)))


def _of_labels(
    score: Callable[[Floats], Floats], numbers: Callable[[Any], Sequence[float]] = _label_pair
) -> tuple[Aggregate, ...]:
    def value(pairs: Floats) -> float:
        classes = max(2, int(pairs.max()) + 1)
        return float(score(_one_hot(pairs, classes).sum(axis=0)[None])[0])

    return (Aggregate(numbers, value, score, lambda pairs, classes: _one_hot(pairs, max(2, classes))),)


# -- AUROC -------------------------------------------------------------------------------------------------------


def _ranked_pair(logged: Any) -> tuple[float, float]:
    gold, score = logged
    if gold not in (0, 1):
        raise ValueError(f"not a class of two: {gold!r}")
    return float(gold), float(score)


def _auroc(pairs: Floats) -> float:
    """Mann–Whitney: a positive outranks a negative, ties half."""
    positive = pairs[:, 0] == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return math.nan
    ranks = stats.rankdata(pairs[:, 1])
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def _weighted_auroc(pairs: Floats, groups: Clusters | None) -> tuple[int, Callable[[Floats], Floats]]:
    """How many units there are, and the AUROC when they are drawn so often: (r, C) -> (r,)."""
    order = np.argsort(pairs[:, 1], kind="stable")
    positive, scores = pairs[order, 0] == 1, pairs[order, 1]
    documents: NDArray[np.intp] = order if groups is None else groups.codes[order]
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))  # of runs of tied scores

    def of(weights: Floats) -> Floats:
        drawn = weights[:, documents]
        up, down = (np.add.reduceat(drawn * side, starts, axis=1) for side in (positive, ~positive))
        below = np.cumsum(down, axis=1) - down / 2
        return _ratio((up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))

    return len(pairs) if groups is None else groups.count, of


# -- sums of log-likelihoods: perplexity and bits per byte -------------------------------------------------------


def _two_numbers(logged: Any) -> tuple[float, float]:
    loglikelihood, length = logged
    return float(loglikelihood), float(length)


def _of_sums(score: Callable[[Floats], Floats]) -> tuple[Aggregate, ...]:
    return (Aggregate(_two_numbers, lambda rows: float(score(rows.sum(axis=0)[None])[0]), score),)


# -- BLEU --------------------------------------------------------------------------------------------------------


@cache
def _bleu_readings(order: int) -> tuple[Aggregate, ...]:
    """Corpus BLEU of (prediction, references) as our tasks log it, or of (references, prediction) as lm-eval does."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return ()
    bleu = BLEU(max_ngram_order=order)

    def numbers(prediction: Any, references: Any) -> Sequence[float]:
        listed = [references] if isinstance(references, str) else list(references)
        if not isinstance(prediction, str) or not listed or not all(isinstance(each, str) for each in listed):
            raise TypeError("not a prediction with references")
        (row,) = bleu._extract_corpus_statistics([prediction], [[each] for each in listed])
        return [float(number) for number in row]

    def score(sums: Floats) -> Floats:
        counts = np.rint(sums).astype(int).tolist()  # sacrebleu writes into its argument
        return np.array([bleu._compute_score_from_stats(row).score / 100 for row in counts])

    def value(rows: Floats) -> float:
        return float(score(rows.sum(axis=0)[None])[0])

    return (
        Aggregate(lambda logged: numbers(logged[0], logged[1]), value, score),
        Aggregate(lambda logged: numbers(logged[1], logged[0]), value, score),
    )


_READINGS: Mapping[str, tuple[Aggregate, ...]] = {
    "macro_f1": _of_labels(_macro_f1),
    "mcc": _of_labels(_mcc),
    "f1": _of_labels(_positive(lambda right, gold, predicted: _ratio(2 * right, gold + predicted))),
    "abstain_precision": _of_labels(_positive(lambda right, _, predicted: _ratio(right, predicted)), _decision),
    "abstain_recall": _of_labels(_positive(lambda right, gold, _: _ratio(right, gold)), _decision),
    "abstain_f1": _of_labels(_positive(lambda right, gold, predicted: _ratio(2 * right, gold + predicted)), _decision),
    "auroc": (Aggregate(_ranked_pair, _auroc),),
    "bits_per_byte": _of_sums(lambda sums: -sums[:, 0] / sums[:, 1] / math.log(2)),
    "byte_perplexity": _of_sums(lambda sums: np.exp(-sums[:, 0] / sums[:, 1])),
    "word_perplexity": _of_sums(lambda sums: np.exp(-sums[:, 0] / sums[:, 1])),
}
