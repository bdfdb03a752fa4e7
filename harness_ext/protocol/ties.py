"""Choices that score alike: accuracy then counts how often the first choice is right, whatever the model knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_TIED = 0.5  # of the documents: above that share a tie is no chance
_SAME_SCORE = 1e-6  # nats


def tied_choices(samples: Iterable[Mapping[str, Any]]) -> float | None:
    """Share of documents whose best two choices score alike; None when no document chooses between scored texts.

    Args:
        samples: of one task, as lm-eval logs them or as it returns them.
    """
    ties = [tied for sample in samples if (tied := has_tie(sample)) is not None]
    return sum(ties) / len(ties) if ties else None


def has_tie(sample: Mapping[str, Any]) -> bool | None:
    """Whether the best two choices of a logged sample score alike; None when it has no two scored choices."""
    return is_tie(choice_scores(sample))


def is_tie(choices: Sequence[float]) -> bool | None:
    """Whether the best two of these log-probabilities are alike; None for fewer than two."""
    scores = sorted(choices)
    if len(scores) < 2 or any(map(math.isnan, scores)):
        return None
    return math.isclose(scores[-1], scores[-2], rel_tol=0.0, abs_tol=_SAME_SCORE)


def choice_scores(sample: Mapping[str, Any]) -> list[float]:
    """Log-probabilities of the choices: the continuations of one context, or one continuation of several contexts.

    Other requests of the document (without its context, after content-free texts) are no choices.
    """
    scores: dict[tuple[str, str], float] = {}
    for arguments, response in zip(_arguments(sample), sample.get("resps") or [], strict=False):
        score = _score(response)
        if score is not None and len(arguments) == 2 and isinstance(arguments[1], str):
            scores.setdefault((arguments[0], arguments[1]), score)
    if not scores:
        return []
    context, continuation = next(iter(scores))
    choices = [score for (each, _), score in scores.items() if each == context]
    return choices if len(choices) > 1 else [score for (_, each), score in scores.items() if each == continuation]


def _arguments(sample: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Arguments of each request: `{"gen_args_0": {"arg_0": …}}` in a file, tuples in memory."""
    logged = sample.get("arguments") or []
    requests = logged.values() if isinstance(logged, Mapping) else logged
    return [list(each.values()) if isinstance(each, Mapping) else each for each in requests]


def _score(response: Any) -> float | None:
    """The log-probability in `[[-1.2, False]]`, the numbers as numbers or as text; None of generated text."""
    try:
        logprob, _is_greedy = response[0]
        return float(logprob)
    except (IndexError, TypeError, ValueError):
        return None
