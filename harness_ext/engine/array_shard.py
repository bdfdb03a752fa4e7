"""Which part of an evaluation a shard is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from harness_ext.errors import TaskError


@dataclass(frozen=True)
class Interval:
    """A part of the requests of a variant, `low` included and `high` not; 0 to 1 are all of them."""

    low: Fraction
    high: Fraction

    def __contains__(self, place: Fraction) -> bool:
        return self.low <= place < self.high


@dataclass(frozen=True)
class Shard:
    """One of `count` shards, numbered from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `I/N`.

        Raises:
            TaskError: it is not of this form, or I is not one of 1 to N.

        >>> Shard.parse("2/8")
        Shard(number=2, count=8)
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
        if match is None:
            raise TaskError(f"--shard {text!r:.60} must have the form I/N, such as 2/8")
        number, count = int(match[1]), int(match[2])
        if not 1 <= number <= count:
            raise TaskError(f"--shard {text}: shards are numbered from 1, so with {count} of them from 1 to {count}")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of_variant(self, place: int, variants: int) -> Interval | None:
        """What this shard asks of a variant; None for nothing.

        Args:
            place: of the variant in the order of evaluation, from 0.
            variants: how many there are.

        >>> [Shard(2, 3).of_variant(place, 2) for place in range(2)]  # the second half of one, the first of the other
        [Interval(low=Fraction(2, 3), high=Fraction(1, 1)), Interval(low=Fraction(0, 1), high=Fraction(1, 3))]
        >>> [Shard(2, 2).of_variant(place, 2) for place in range(2)]
        [None, Interval(low=Fraction(0, 1), high=Fraction(1, 1))]
        """
        low = max(Fraction((self.number - 1) * variants, self.count) - place, Fraction(0))
        high = min(Fraction(self.number * variants, self.count) - place, Fraction(1))
        return Interval(low, high) if low < high else None
