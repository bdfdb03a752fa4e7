"""Boundaries of group-sequential tests: alpha spending, and the joint normal distribution of the looks.

The statistics at the looks, Z_1 … Z_K, are jointly normal with Cov(Z_j, Z_k) = sqrt(t_j / t_k) for information
fractions t_j <= t_k (Jennison & Turnbull, "Group Sequential Methods with Applications to Clinical Trials", 2000,
ch. 3). The probability of leaving the continuation region at each look follows by recursive numerical integration
(Armitage, McPherson & Rowe, JRSS A 132, 1969), here with Gauss–Legendre quadrature. How much of the error may be spent
until each look is a function of its information fraction (Lan & DeMets, Biometrika 70, 1983), so that looks may be
moved or left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from harness_ext.stats.units import Floats

Family = Literal["power", "obrien-fleming", "pocock"]
NEVER = 38.0  # beyond what a normal statistic reaches
_TAIL = 9.0  # standard deviations beyond which a normal density counts as zero
_NODES = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024)  # of quadrature; few sizes, so that rules are reused


@dataclass(frozen=True)
class Spending:
    """How much of a two-sided error probability may be spent until an information fraction.

    power: alpha * t**exponent (Kim & DeMets, Biometrika 74, 1987). obrien-fleming and pocock: the functions of Lan and
    DeMets (1983) that resemble these boundaries; they take no exponent.

    Raises:
        ValueError: an unknown family, or an exponent that is missing, superfluous or not positive.
    """

    family: Family = "power"
    exponent: float | None = 1.5

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"unknown spending function {self.family!r}; choose from {', '.join(get_args(Family))}")
        if self.family != "power" and self.exponent is not None:
            raise ValueError(f"the spending function {self.family!r} has no exponent")
        is_number = isinstance(self.exponent, (int, float)) and not isinstance(self.exponent, bool)
        if self.family == "power" and not (is_number and 0 < float(self.exponent or 0) < math.inf):
            raise ValueError(f"the exponent of power spending must be a positive number, not {self.exponent!r}")

    def spent(self, fraction: float, alpha: float) -> float:
        """The error probability that may have been spent at an information fraction of 0 to 1.

        >>> Spending("power", 1.5).spent(0.25, 0.05)
        0.00625
        """
        if fraction >= 1:
            return alpha
        if self.family == "obrien-fleming":
            return float(4 * ndtr(ndtri(alpha / 4) / math.sqrt(fraction)))
        if self.family == "pocock":
            return alpha * math.log1p((math.e - 1) * fraction)
        assert self.exponent is not None
        return float(alpha * fraction**self.exponent)


@dataclass(frozen=True)
class Path:
    """Where a test that has not stopped may stand: a density of Z at the last look, on quadrature nodes."""

    fraction: float = 0.0
    nodes: Floats | None = None  # values of Z
    mass: Floats | None = None  # density times quadrature weight; sums to the probability of having gone on

    def exits(self, fraction: float, limit: float, drift: float = 0.0) -> tuple[float, float]:
        """Probabilities of Z >= `limit` and of Z <= -`limit` at the next look, without an earlier exit.

        Args:
            fraction: information fraction of the next look, larger than that of the last one.
            limit: boundary of the next look.
            drift: mean of Z at information fraction 1; the mean at t is drift * sqrt(t).
        """
        return self.above(fraction, limit, drift), self.above(fraction, limit, -drift, mirrored=True)

    def above(self, fraction: float, limit: float, drift: float = 0.0, *, mirrored: bool = False) -> float:
        """Probability of Z >= `limit` at the next look without an earlier exit; `mirrored`: of -Z."""
        if self.nodes is None or self.mass is None:
            return float(ndtr(drift * math.sqrt(fraction) - limit))
        nodes = -self.nodes if mirrored else self.nodes
        step = fraction - self.fraction
        distance = limit * math.sqrt(fraction) - nodes * math.sqrt(self.fraction) - drift * step
        return float(self.mass @ ndtr(-distance / math.sqrt(step)))

    def going_on(self, fraction: float, limit: float, drift: float = 0.0) -> Path:
        """The path after the next look, if Z stayed between -`limit` and `limit`."""
        mean = drift * math.sqrt(fraction)
        low, high = max(-limit, -_TAIL + min(mean, 0.0)), min(limit, _TAIL + max(mean, 0.0))
        step = fraction - self.fraction
        width = math.sqrt(step / fraction)  # standard deviation of Z given the last look
        places, weights = _quadrature(next((n for n in _NODES if n >= 5 * (high - low) / width), _NODES[-1]))
        nodes = (high + low) / 2 + (high - low) / 2 * places
        weights = weights * (high - low) / 2
        if self.nodes is None or self.mass is None:
            density = np.exp(-((nodes - mean) ** 2) / 2) / math.sqrt(2 * math.pi)
        else:
            centres = (self.nodes * math.sqrt(self.fraction) + drift * step) / math.sqrt(fraction)
            kernel = np.exp(-(((nodes[:, None] - centres) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
            density = kernel @ self.mass
        return Path(fraction, nodes, density * weights)


@lru_cache(maxsize=64)
def _quadrature(count: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights


def exit_probabilities(
    fractions: Sequence[float], limits: Sequence[float], drift: float = 0.0
) -> list[tuple[float, float]]:
    """For each look: the probabilities of a first exit above the upper and below the lower boundary.

    Args:
        fractions: information fractions of the looks, increasing, in (0, 1].
        limits: boundaries of |Z| at the looks.
        drift: mean of Z at information fraction 1.
    """
    path, probabilities = Path(), []
    for fraction, limit in zip(fractions, limits, strict=True):
        probabilities.append(path.exits(fraction, limit, drift))
        path = path.going_on(fraction, limit, drift)
    return probabilities


def boundaries(fractions: Sequence[float], alpha: float, spending: Spending | None = None) -> tuple[float, ...]:
    """Boundaries of |Z| at the looks, so that the error spent until each look is that of the spending function.

    Args:
        fractions: information fractions of the looks, increasing, in (0, 1].
        alpha: two-sided error probability, spent at information fraction 1.
        spending: the spending function; None: alpha * t**1.5.

    Raises:
        ValueError: the fractions do not increase, or alpha is not in (0, 1).

    >>> [round(limit, 3) for limit in boundaries([0.5, 1.0], 0.05, Spending("obrien-fleming", None))]
    [2.963, 1.969]
    """
    steps = np.diff([0.0, *fractions])
    if not len(steps) or steps.min() <= 0 or fractions[-1] > 1 + 1e-12:
        raise ValueError(f"information fractions must increase from above 0 to at most 1, not {list(fractions)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    return _boundaries(tuple(float(fraction) for fraction in fractions), float(alpha), spending or Spending())


@lru_cache(maxsize=4_096)
def _boundaries(fractions: tuple[float, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    earlier = _boundaries(fractions[:-1], alpha, spending) if len(fractions) > 1 else ()
    return (*earlier, next_boundary(fractions, earlier, spending.spent(fractions[-1], alpha)))


def next_boundary(fractions: Sequence[float], earlier: Sequence[float], allowed: float) -> float:
    """The boundary of the last of these looks, where those of the earlier ones have been what they were.

    Args:
        fractions: information fractions of all looks.
        earlier: boundaries of |Z| that were applied at all but the last; wider ones than planned leave error to spend.
        allowed: error probability that may be spent until the last look.

    Returns:
        The boundary; infinite if the error is already spent.
    """
    path, spent = _followed(tuple(fractions[:-1]), tuple(earlier))
    excess = allowed - spent
    if excess <= allowed * 1e-9:
        return math.inf
    return float(brentq(lambda c: 2 * path.above(fractions[-1], c) - excess, 0.0, NEVER, xtol=1e-9))


@lru_cache(maxsize=4_096)
def _followed(fractions: tuple[float, ...], limits: tuple[float, ...]) -> tuple[Path, float]:
    """The path without a drift after looks with these boundaries, and the probability of having left it."""
    if not fractions:
        return Path(), 0.0
    path, spent = _followed(fractions[:-1], limits[:-1])
    limit = min(limits[-1], NEVER)
    return path.going_on(fractions[-1], limit), spent + sum(path.exits(fractions[-1], limit))
