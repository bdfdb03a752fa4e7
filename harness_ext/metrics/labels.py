"""Scores of predicted labels and probabilities for any number of classes, and a parser for generated labels.

Scores are on a scale of 0 to 1, `log_loss` in nats. Metrics of (gold, predicted) pairs are in `known`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence, Sized
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from harness_ext.errors import MetricError

# --- scores of labels ---


def majority_baseline(golds: Sequence[int | str]) -> float:
    """Accuracy of always predicting the most frequent gold label, 0..1.

    Raises:
        MetricError: no documents.

    >>> majority_baseline([1, 0, 1, 1])
    0.75
    """
    _check_lengths("majority_baseline", golds=golds)
    return max(Counter(golds).values()) / len(golds)


# --- scores of probabilities ---


def softmax(logprobs: Sequence[float]) -> list[float]:
    """Probabilities of one document's choices: exp(lp_k) / Σ_j exp(lp_j).

    Args:
        logprobs: natural logs, (K,), any common offset; -inf is a probability of 0.

    Raises:
        MetricError: no choices, nan or +inf, or every choice -inf.

    >>> softmax([-1000.0, -1000.0])
    [0.5, 0.5]
    """
    peak = max(logprobs, default=-math.inf)
    if not math.isfinite(peak) or any(math.isnan(logprob) for logprob in logprobs):
        raise MetricError(f"softmax: cannot normalise {list(logprobs)}; every choice needs a log-probability")
    weights = [math.exp(logprob - peak) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def brier(golds: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float:
    """Brier score halved: mean over documents of ½ Σ_k (p_k − [gold = k])², 0..1, lower is better.

    For two classes this is the binary form, mean (p_positive − y)². For more it is half of Brier's (1950) original sum.

    Args:
        golds: indices of the gold classes, (n,).
        probabilities: one row per document, (n, K).

    Raises:
        MetricError: no documents, unequal lengths, a gold outside 0..K−1, or a row that is not a distribution.

    >>> round(brier([1, 0], [[0.2, 0.8], [0.7, 0.3]]), 6)
    0.065
    """
    p = _distributions("brier", golds, probabilities)
    truth = np.eye(p.shape[1])[list(golds)]  # (n, K)
    return float(((p - truth) ** 2).sum(axis=1).mean() / 2)


def log_loss(golds: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float:
    """Mean of −ln p(gold), nats, with p clipped to [ε, 1 − ε], ε = 2.2e-16, as scikit-learn does.

    Args:
        golds: indices of the gold classes, (n,).
        probabilities: one row per document, (n, K).

    Raises:
        MetricError: no documents, unequal lengths, a gold outside 0..K−1, or a row that is not a distribution.

    >>> round(log_loss([1, 0], [[0.5, 0.5], [0.5, 0.5]]), 6)
    0.693147
    """
    p = _distributions("log_loss", golds, probabilities)
    epsilon = float(np.finfo(np.float64).eps)
    gold_p = p[np.arange(len(golds)), list(golds)].clip(epsilon, 1 - epsilon)
    return float(-np.log(gold_p).mean())


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[float], *, bins: int = 15) -> float:
    """Expected calibration error: Σ_b (n_b/n)·|accuracy_b − mean confidence_b|, 0..1, over equal-mass bins.

    A document's bin is ⌊bins·(r − ½)/n⌋ with r its mid-rank by confidence. Without ties bin sizes differ by at most
    one; equal confidences share a bin, so the order of the documents does not matter.

    Args:
        confidences: probability of the predicted class, 0..1.
        correct: whether the prediction is correct.
        bins: number of bins, at least 1.

    Raises:
        MetricError: no documents, unequal lengths, no bins, or a confidence outside 0..1.

    >>> round(expected_calibration_error([0.5, 0.5, 0.9, 0.9], [True, False, True, True], bins=2), 6)
    0.05
    """
    return math.fsum(
        bin.n * abs(bin.accuracy - bin.confidence) for bin in calibration_bins(confidences, correct, bins=bins)
    ) / len(confidences)


class CalibrationBin(NamedTuple):
    """Documents of similar confidence."""

    n: int
    confidence: float  # mean, 0..1
    accuracy: float  # share that is correct
    spread: float  # standard error of the accuracy if the confidences are right


def calibration_bins(confidences: Sequence[float], correct: Sequence[float], *, bins: int = 15) -> list[CalibrationBin]:
    """The equal-mass bins of `expected_calibration_error`, by rising confidence; empty bins are left out.

    Raises:
        MetricError: as `expected_calibration_error`.
    """
    _check_lengths("expected_calibration_error", confidences=confidences, correct=correct)
    p, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    if bins < 1 or not ((p >= 0) & (p <= 1)).all():
        raise MetricError(
            f"expected_calibration_error: {bins} bins, confidences {p.min()}..{p.max()}; "
            "use at least one bin and probabilities from 0 to 1"
        )
    bin_of = np.floor(bins * (_mid_ranks(p) - 0.5) / len(p)).astype(int)
    n, sums, hits, variances = (
        np.bincount(bin_of, weights=values) for values in (np.ones(len(p)), p, right, p * (1 - p))
    )
    return [
        CalibrationBin(int(n[b]), float(sums[b] / n[b]), float(hits[b] / n[b]), float(np.sqrt(variances[b]) / n[b]))
        for b in np.flatnonzero(n)
    ]


def calibration_error_of_chance(bins: Sequence[CalibrationBin]) -> float:
    """The expected calibration error that a perfectly calibrated model is expected to have in these bins, 0..1.

    The error is a mean of absolute values, so noise in the bins raises it: its bias. In each bin the accuracy is taken
    as normal around the confidence, and the mean of the absolute value of a normal variable is sqrt(2 / pi) times its
    standard deviation.

    >>> round(calibration_error_of_chance([CalibrationBin(100, 0.5, 0.5, 0.05)]), 4)
    0.0399
    """
    total = sum(bin.n for bin in bins)
    return math.sqrt(2 / math.pi) * math.fsum(bin.n * bin.spread for bin in bins) / total


def calibration_p(bins: Sequence[CalibrationBin]) -> float:
    """p-value for the hypothesis that confidences are right: chi-squared over the bins, 0..1.

    The sum over bins of ((accuracy - confidence) / standard error)^2, with one degree of freedom per bin: Hosmer and
    Lemeshow's statistic for probabilities that were not fitted to these documents. A bin whose confidences are all 0 or
    1 has no variance: it is left out if its accuracy is the confidence, and makes the p-value 0 if it is not.

    >>> round(calibration_p([CalibrationBin(100, 0.5, 0.6, 0.05)]), 4)
    0.0455
    """
    certain = [bin for bin in bins if bin.spread == 0]
    if any(bin.accuracy != bin.confidence for bin in certain):
        return 0.0
    others = [bin for bin in bins if bin.spread > 0]
    total = math.fsum(((bin.accuracy - bin.confidence) / bin.spread) ** 2 for bin in others)
    return float(chi2.sf(total, len(others))) if others else 1.0


# --- labels in generated text ---


class _Mention(NamedTuple):
    start: int  # first character in the line
    end: int  # one past the last
    choice: int  # index into the choices


# Dropped first, so that an opening code fence or quote does not count as the first line.
_OPENING_MARKS = "`*_#>\"'“”‘’«» \t\r\n"
_CLAUSE_END = re.compile(r"[.,;:!?()—–，。；：！？、]")
_NEGATION = re.compile(r"\b(?:not|no|non|never|neither|nor|cannot|hardly)\b|n['’]t\b")
_MARKUP = re.compile(r"[\s*_`\"'“”‘’«»()\[\]]+")
_LISTINGS = {"or", "and", "and/or", "/", "|", "&", ",", ",or", ",and"}
# Words of a line after `_shape`: hyphen, apostrophe and underscore join two parts of a word, and so does a decimal
# separator between digits.
_WORD = re.compile(r"[w0]+(?:[-‐‑_'’][w0]+|(?<=0)[.,](?=0)[w0]+)*")


def parse_label(text: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that a generated text gives as its answer, or None if there is none (unparsed).

    Text and choices are compared after strip, casefold and Unicode composition (NFC). The rules, in order:

    1. Opening quotes and markdown (`*`, `_`, a code fence, `#`, `>`) are dropped; only the first line then counts.
    2. A choice is mentioned if it is a whole word: not part of a longer one ("positively"), and not joined to a
       neighbour by hyphen, apostrophe, underscore or a decimal separator ("non-positive", "3.5"). Scripts written
       without spaces need punctuation around the label. White space inside a choice matches any white space.
    3. If mentions overlap, the leftmost wins, then the longest ("sports news" over "sports").
    4. No mention: None.
    5. Two different choices in the line: None, unless the line starts with one (only punctuation before it).
       A line that starts by listing them is also None: "positive or negative", "positive/negative", "yes, no".
    6. Otherwise the first mention is the answer, unless an English negation (not, no, non, never, neither, nor, cannot,
       hardly, -n't) precedes it in its clause: None. A clause begins after any of . , ; : ! ? ( ) or a dash.

    Args:
        text: the raw generation.
        choices: the label words, one or more words each, in any language.

    Raises:
        MetricError: no choices, a blank one, or two that are equal after casefold.

    >>> choices = ["negative", "positive"]
    >>> [parse_label(text, choices) for text in ("**Positive**", "Sentiment: negative.", "Positive, I am not negative")]
    [1, 0, 1]
    >>> [parse_label(text, choices) for text in ("", "positively", "not positive", "is it positive or negative?")]
    [None, None, None, None]
    """
    words = _check_choices(choices)
    line = _fold(text).lstrip(_OPENING_MARKS).partition("\n")[0]
    mentions = _mentions(line, words)
    if not mentions:
        return None
    first, *later = mentions
    if rival := next((mention for mention in later if mention.choice != first.choice), None):
        starts = not any(character.isalnum() for character in line[: first.start])
        if not starts or _MARKUP.sub("", line[first.end : rival.start]) in _LISTINGS:
            return None
    clause = _CLAUSE_END.split(line[: first.start])[-1]
    return None if _NEGATION.search(clause) else first.choice


def _mentions(line: str, choices: Sequence[str]) -> list[_Mention]:
    """Whole-word mentions from left to right; if some overlap, the leftmost, then the longest."""
    words = [match.span() for match in _WORD.finditer(_shape(line))]
    mentions = [
        _Mention(*match.span(), index)
        for index, choice in enumerate(choices)
        for match in re.finditer(r"\s+".join(map(re.escape, choice.split())), line)
        if not any(start < edge < end for start, end in words for edge in match.span())
    ]
    kept: list[_Mention] = []
    for mention in sorted(mentions, key=lambda mention: (mention.start, -mention.end)):
        if not kept or mention.start >= kept[-1].end:
            kept.append(mention)
    return kept


def _shape(line: str) -> str:
    """The line with every digit as 0 and every letter and combining mark as w; `\\w` of `re` excludes the marks."""
    return "".join(
        "0" if c.isdecimal() else "w" if c.isalnum() or unicodedata.category(c).startswith("M") else c for c in line
    )


def _fold(text: str) -> str:
    return "\n".join(unicodedata.normalize("NFC", text.casefold()).strip().splitlines())


def _check_choices(choices: Sequence[str]) -> list[str]:
    words = [_fold(choice) for choice in choices]
    if not words or "" in words or len(set(words)) < len(words) or isinstance(choices, str):
        raise MetricError(f"parse_label: choices {choices!r} must be a list of different words, none of them blank")
    return words


# --- shared checks ---


def _mid_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share their mean rank."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return ranks


def _distributions(metric: str, golds: Sequence[int], probabilities: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The probabilities as an array (n, K), each row checked against its gold."""
    _check_lengths(metric, golds=golds, probabilities=probabilities)
    classes = len(probabilities[0])
    for index, (gold, row) in enumerate(zip(golds, probabilities, strict=True)):
        # Written so that nan fails; the tolerance admits a softmax in float32.
        if not classes or len(row) != classes or not (min(row) >= 0 and abs(math.fsum(row) - 1) < 1e-4):
            raise MetricError(f"{metric}: document {index} has {list(row)}; pass {classes} probabilities that sum to 1")
        if gold not in range(classes):
            raise MetricError(
                f"{metric}: document {index} has gold {gold!r}; pass the index of one of {classes} classes"
            )
    return np.asarray(probabilities, dtype=np.float64)


def _check_lengths(metric: str, **columns: Sized) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        sizes = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise MetricError(f"{metric}: got {sizes}; pass one of each per document, and at least one document")
