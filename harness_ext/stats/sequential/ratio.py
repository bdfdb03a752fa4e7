"""Is a share small or large? Wald's sequential probability ratio test, which stops as soon as it is sure.

Documents are looked at one after another; each is of a kind or not. Two shares are told apart: `low` is harmless,
`high` is not. Whichever of them is true, the other one is accepted with a probability of at most about `error`
(Wald, "Sequential Tests of Statistical Hypotheses", Ann. Math. Statist. 16, 1945). To look only after blocks of
documents keeps that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Share = Literal["low", "high"]


@dataclass(frozen=True)
class ShareTest:
    """Tells two shares apart.

    Args:
        low: share that counts as small.
        high: share that counts as large.
        error: probability of accepting the other one.

    Raises:
        ValueError: not 0 < low < high < 1, or no probability below one half.
    """

    low: float = 0.05
    high: float = 0.4
    error: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what is no test."""
        if not (0 < self.low < self.high < 1 and 0 < self.error < 0.5):
            raise ValueError(f"need 0 < low < high < 1 and 0 < error < 0.5, got {self}")

    def ratio(self, count: int, total: int) -> float:
        """The logarithm of how much likelier the high share makes these counts than the low one."""
        return count * math.log(self.high / self.low) + (total - count) * math.log((1 - self.high) / (1 - self.low))

    def decide(self, count: int, total: int) -> Share | None:
        """The share that is accepted; None while more documents are needed.

        Args:
            count: documents of the kind.
            total: documents so far.

        >>> ShareTest().decide(0, 10), ShareTest().decide(3, 3), ShareTest().decide(1, 6)
        ('low', 'high', None)
        """
        bound, ratio = math.log((1 - self.error) / self.error), self.ratio(count, total)
        return "high" if ratio >= bound else "low" if ratio <= -bound else None
