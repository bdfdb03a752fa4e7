"""Contextual calibration, and tuning of an abstention threshold; neither uses the evaluation set."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from harness_ext.errors import MetricError
from harness_ext.metrics.labels import softmax


class Abstention(NamedTuple):
    """What a training document contributes to the tuning; a plain tuple of JSON values in the logged samples."""

    logprob: float  # natural log, of the abstention word after the prompt
    answered: float  # the score of the generated answer
    abstained: float  # the score of abstaining


class Threshold(NamedTuple):
    """Abstain when the log-probability of the abstention word is above `logprob`."""

    logprob: float
    score: float  # mean score on the documents that it was tuned on


def content_free_prior(content_free: Sequence[Sequence[float]]) -> list[float]:
    """Probabilities of the choices after inputs without content, averaged over these inputs, (K,).

    Args:
        content_free: log-probabilities of the choices after each content-free input, (inputs, K).

    Raises:
        MetricError: no inputs, or rows of different lengths.

    >>> content_free_prior([[0.0, 0.0], [0.0, -1000.0]])
    [0.75, 0.25]
    """
    if not content_free or len({len(row) for row in content_free}) != 1:
        raise MetricError(
            f"contextual calibration: got {[len(row) for row in content_free]} log-probabilities; "
            "score every choice after at least one content-free input"
        )
    rows = [softmax(row) for row in content_free]
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def calibrate(logprobs: Sequence[float], content_free: Sequence[Sequence[float]]) -> list[float]:
    """Log-probabilities of the choices minus those of the content-free prior; their softmax is calibrated.

    Nothing is fitted to the evaluation set. Source: contextual calibration, Zhao et al. (2021), arXiv:2102.09690, with
    W = diag(prior)⁻¹ and b = 0.

    Args:
        logprobs: natural logs of one document's choices, (K,).
        content_free: the same after each content-free input, (inputs, K).

    Raises:
        MetricError: no inputs, or unequal numbers of choices.

    >>> calibrate([-1.0, -2.0], [[-1.0, -2.0]])[0] == calibrate([-1.0, -2.0], [[-1.0, -2.0]])[1]
    True
    """
    prior = content_free_prior(content_free)
    if len(prior) != len(logprobs):
        raise MetricError(f"contextual calibration: {len(logprobs)} choices, but {len(prior)} after the empty inputs")
    logprior = [math.log(max(p, sys.float_info.min)) for p in prior]
    return [logprob - shift for logprob, shift in zip(logprobs, logprior, strict=True)]


def best_threshold(rows: Sequence[Abstention | tuple[float, float, float]]) -> Threshold:
    """The threshold with the highest mean score over these documents; in a tie the highest, which abstains least.

    Candidates are the midpoints between neighbouring distinct log-probabilities, so the order of the documents does not
    matter, and at the ends the highest log-probability (never abstain) and one nat below the lowest (always abstain).

    Args:
        rows: one row per document, from a split other than the evaluated one.

    Raises:
        MetricError: no documents.

    >>> best_threshold([(-0.5, 0.0, 1.0), (-3.5, 1.0, 0.0), (-0.5, 0.0, 1.0)])
    Threshold(logprob=-2.0, score=1.0)
    """
    if not rows:
        raise MetricError("best_threshold: no documents; tune on at least one document of the training split")
    ordered = sorted((Abstention(*row) for row in rows), key=lambda row: -row.logprob)
    score = math.fsum(row.answered for row in ordered)
    best = Threshold(ordered[0].logprob, score / len(ordered))
    groups = [(logprob, list(group)) for logprob, group in itertools.groupby(ordered, lambda row: row.logprob)]
    for index, (logprob, group) in enumerate(groups):
        score += math.fsum(row.abstained - row.answered for row in group)
        below = groups[index + 1][0] if index + 1 < len(groups) else logprob - 2.0
        if score / len(ordered) > best.score + 1e-12:
            halfway = (logprob + below) / 2
            best = Threshold(halfway if halfway < logprob else below, score / len(ordered))
    return best
