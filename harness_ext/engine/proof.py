"""Proof that an engine applies an adapter, and that the base is the base: by greedy answers and their probabilities."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from harness_ext.errors import ModelError, NotAppliedError

logger = logging.getLogger(__name__)

PROBED_TOKENS = 8  # generated behind each probe
LEAST_CHANGE = 1e-6  # nats
MOST_DRIFT = 1e-2  # nats
LEAST_TEXT = 64  # characters: shorter answers may well be equal by chance, where nothing is known of their probability


class Answer(NamedTuple):
    """What was generated behind a prompt."""

    generated: Any  # tokens or text
    logprob: float | None  # of what was generated; None where an engine does not say


class Proof:
    """What the base answers to some prompts, and how much its answers differ when it is asked twice.

    Args:
        engine: name of what answers, for messages.
        ask: generates greedily behind the same prompts each time.
    """

    def __init__(self, engine: str, ask: Callable[[], Sequence[Answer]]) -> None:
        self._engine = engine
        self._ask = ask
        self._base = list(ask())
        self._noise = largest_change(self._base, ask())

    def check_applied(self, adapter: str, hint: str) -> None:
        """Make sure that the engine, which should apply an adapter now, does not answer as the base.

        Raises:
            NotAppliedError: it does not.
        """
        answers = self._ask()
        if not answers or largest_change(self._base, answers) > max(LEAST_CHANGE, 2 * self._noise):
            return
        if not any(answer.logprob is not None for answer in answers) and _characters(answers) < LEAST_TEXT:
            logger.warning(
                "%s gives no log-probabilities, and its answers with %s are too short to tell whether it applies it",
                self._engine,
                adapter,
            )
        else:
            raise NotAppliedError(
                f"{self._engine} answers {len(answers)} prompts of the tasks with {adapter} exactly as without it: it "
                f"does not apply the adapter; {hint}"
            )

    def check_base(self, after: str) -> None:
        """Make sure that the engine, which is to apply no adapter now, still answers as the base.

        Raises:
            ModelError: it does not.
        """
        if largest_change(self._base, self._ask()) > max(MOST_DRIFT, 4 * self._noise):
            raise ModelError(f"after {after} the base no longer gives the answers it gave before; evaluate each alone")


def largest_change(before: Sequence[Answer], after: Sequence[Answer]) -> float:
    """The largest difference between two sets of answers, in nats; infinite where something else was generated."""
    return max((_change(*pair) for pair in zip(before, after, strict=True)), default=0.0)


def _characters(answers: Sequence[Answer]) -> int:
    return sum(len(str(answer.generated)) for answer in answers)


def _change(before: Answer, after: Answer) -> float:
    if before.generated != after.generated:
        return math.inf
    if before.logprob is None or after.logprob is None:
        return 0.0
    return abs(before.logprob - after.logprob)
