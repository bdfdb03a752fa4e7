"""The group-sequential sign test: exact boundaries for documents that became right or wrong.

Without a difference, every discordant document is as likely gained as lost, whatever their number at each look. Given
these numbers, gained - lost is a random walk of fair steps, so the boundaries follow from binomial distributions
without approximation (the sequential form of exact McNemar; for exact tests of binary data see Jennison & Turnbull,
2000, ch. 12). Error that could not be spent at a look, because counts are integers, is spent at later ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from harness_ext.stats.units import Floats


class SignWalk:
    """The distribution of gained - lost under no difference, among the tests that have not stopped."""

    def __init__(self) -> None:
        self.discordant = 0  # documents, at the last look
        self.spent = 0.0  # probability of having stopped
        self._mass: Floats = np.ones(1)  # (discordant + 1,): probability of each number gained, without a stop

    def look(self, discordant: int, allowed: float) -> float:
        """Advance to a look and spend its share of the error.

        Args:
            discordant: documents on which the runs differ, of all so far.
            allowed: error probability that may be spent until this look, on both sides together.

        Returns:
            The boundary: the smallest abs(gained - lost) that stops; infinite if none may.
        """
        self._advance(discordant)
        distance = self._distances()
        tail = np.bincount(distance, weights=self._mass, minlength=discordant + 1)[::-1].cumsum()[::-1]
        reachable = np.flatnonzero((self.spent + tail <= allowed * (1 + 1e-12)) & (np.arange(discordant + 1) > 0))
        reachable = reachable[(reachable - discordant) % 2 == 0]  # gained - lost has the parity of their sum
        if not len(reachable):
            return math.inf
        limit = int(reachable[0])
        self.spent += float(tail[limit])
        self._mass = np.where(distance >= limit, 0.0, self._mass)
        return float(limit)

    def p_value(self, discordant: int, difference: int) -> float:
        """Stage-wise p-value of a test that stops at this look: an earlier stop, or as large a difference now."""
        self._advance(discordant)
        return min(1.0, self.spent + float(self._mass[self._distances() >= abs(difference)].sum()))

    def _advance(self, discordant: int) -> None:
        steps = discordant - self.discordant
        if steps:
            self._mass = np.convolve(self._mass, _binomial(steps))
        self.discordant = discordant

    def _distances(self) -> np.ndarray:
        return np.abs(2 * np.arange(self.discordant + 1) - self.discordant)


def _binomial(n: int) -> Floats:
    k = np.arange(n + 1)
    return np.asarray(np.exp(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) - n * math.log(2)))


def sign_boundaries(discordant: Sequence[int], allowed: Sequence[float]) -> list[float]:
    """Boundaries of abs(gained - lost) at the looks.

    Args:
        discordant: discordant documents until each look.
        allowed: error probability that may be spent until each look.

    >>> sign_boundaries([8, 20], [0.01, 0.05])
    [8.0, 10.0]
    """
    walk = SignWalk()
    return [walk.look(count, error) for count, error in zip(discordant, allowed, strict=True)]


def sign_p_value(discordant: Sequence[int], allowed: Sequence[float], difference: int) -> float:
    """Stage-wise p-value of a test that stopped at the last look with this gained - lost."""
    walk = SignWalk()
    for count, error in zip(discordant[:-1], allowed[:-1], strict=True):
        walk.look(count, error)
    return walk.p_value(discordant[-1], difference)
