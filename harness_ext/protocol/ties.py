"""Ties between the best choices: accuracy then measures how often the first choice is right, not the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_TIED = 0.5  # share of tied documents; above this ties are not a coincidence
_SAME_SCORE = 1e-6  # nats


def tied_choices(samples: Iterable[Mapping[str, Any]]) -> float | None:
    """Share of documents whose best two choices are tied; None if no document has scored choices.

    Args:
        samples: samples of one task, as lm-eval logs or returns them.
    """
    ties = [tied for sample in samples if (tied := has_tie(sample)) is not None]
    return sum(ties) / len(ties) if ties else None


def has_tie(sample: Mapping[str, Any]) -> bool | None:
    """Whether the best two choices of a logged sample are tied; None if it has fewer than two scored choices."""
    return is_tie(choice_scores(sample))


def is_tie(choices: Sequence[float]) -> bool | None:
    """Whether the best two of these log-probabilities are equal; None for fewer than two, or NaN."""
    scores = sorted(choices)
    if len(scores) < 2 or any(map(math.isnan, scores)):
        return None
    return math.isclose(scores[-1], scores[-2], rel_tol=0.0, abs_tol=_SAME_SCORE)


def choice_scores(sample: Mapping[str, Any]) -> list[float]:
    """Log-probabilities of the choices; see `scored_choices`."""
    return [score for _, score in scored_choices(sample)]


def scored_choices(sample: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Text and log-probability of each choice: continuations of one context, or contexts of one continuation.

    Other requests of the document (without its context, or after content-free texts) are not choices.
    """
    scores: dict[tuple[str, str], float] = {}
    responses = sample.get("resps")
    for arguments, response in zip(_arguments(sample), responses if isinstance(responses, list) else [], strict=False):
        score = _score(response)
        if score is not None and len(arguments) == 2:
            scores.setdefault((arguments[0], arguments[1]), score)
    if not scores:
        return []
    context, continuation = next(iter(scores))
    choices = [(key[1], score) for key, score in scores.items() if key[0] == context]
    if len(choices) > 1:
        return choices
    return [(key[0], score) for key, score in scores.items() if key[1] == continuation]


def _arguments(sample: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Texts of each request: `{"gen_args_0": {"arg_0": …}}` in a file, tuples in memory; none if one is no text."""
    logged = sample.get("arguments")
    requests = logged.values() if isinstance(logged, Mapping) else logged if isinstance(logged, (list, tuple)) else ()
    parts = [request.values() if isinstance(request, Mapping) else request for request in requests]
    return [tuple(request) if not isinstance(request, str) and _is_texts(request) else () for request in parts]


def _is_texts(request: Any) -> bool:
    return isinstance(request, Iterable) and all(isinstance(part, str) for part in request)


def _score(response: Any) -> float | None:
    """The log-probability in `[[-1.2, False]]`, a number or text; None for generated text."""
    try:
        logprob, _is_greedy = response[0]
        return float(logprob)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
