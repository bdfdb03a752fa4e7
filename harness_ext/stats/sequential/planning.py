"""Planning: how many documents show which difference, and how many of them a sequential evaluation asks.

Statistics of the looks are taken as normal, and the standard deviation of the differences as known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from harness_ext.stats.intervals import ALPHA, jackknife
from harness_ext.stats.power import POWER
from harness_ext.stats.sequential.boundaries import Spending, boundaries, exit_probabilities
from harness_ext.stats.sequential.design import FUTILITY, LEAST_UNITS, LOOKS
from harness_ext.stats.units import Clusters, Floats

_PATHS = 20_000


@dataclass(frozen=True)
class Spread:
    """How much the differences of documents vary, with the effect of passages."""

    deviation: float  # standard deviation of one document's difference
    design_effect: float = 1.0  # variance of the mean, relative to independent documents (Kish)
    correlation: float | None = None  # of two documents of a passage; None without passages
    documents: int | None = None  # of the pilot; None: assumed

    @property
    def effective(self) -> float:
        """Standard deviation that independent documents would need to have the same variance of the mean."""
        return self.deviation * math.sqrt(self.design_effect)


@dataclass(frozen=True)
class Need:
    """What it takes to find one difference."""

    difference: float  # in the unit of the metric
    fixed: int  # documents of an evaluation of fixed size
    planned: int  # documents to plan with --until-decided
    share: float  # of them, asked on average if this is the difference


def measured_spread(differences: Floats, clusters: Clusters | None) -> Spread:
    """The spread of a pilot; the intra-passage correlation by the design effect deff = 1 + (m - 1) * correlation.

    Args:
        differences: (n,) of the documents.
        clusters: their passages; m is the mean size of the passage of a document.

    Raises:
        ValueError: there are fewer than two documents or passages, or no document differs.
    """
    n = len(differences)
    independent = jackknife(differences, None).standard_error
    if independent == 0:
        raise ValueError("no document differs between the two runs, so that their spread is unknown")
    deviation = independent * math.sqrt(n)
    if clusters is None:
        return Spread(deviation, documents=n)
    effect = (jackknife(differences, clusters).standard_error / independent) ** 2
    size = float((clusters.sizes**2).sum() / n)
    correlation = (effect - 1) / (size - 1)
    return Spread(deviation, max(effect, 1.0), min(max(correlation, 0.0), 1.0), n)


def assumed_spread(discordant: float, *, passage_size: float = 1.0, correlation: float = 0.0) -> Spread:
    """The spread of 0/1 scores of which this share differs.

    >>> round(assumed_spread(0.2, passage_size=5, correlation=0.5).effective, 3)
    0.775
    """
    effect = 1 + (passage_size - 1) * correlation
    return Spread(math.sqrt(discordant), effect, correlation if passage_size > 1 else None)


def drift_of(looks: Sequence[float], *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Mean of Z at the last look with which a boundary is crossed on the right side with this probability."""
    limits = boundaries(looks, alpha)
    return float(brentq(lambda drift: sum(up for up, _ in exit_probabilities(looks, limits, drift)) - power, 0.0, 12.0))


def need(spread: Spread, difference: float, *, rows: int = 1, power: float = POWER, passages: float = 1.0) -> Need:
    """Documents for one difference, with a fixed number and with looks.

    Args:
        spread: of the documents' differences.
        difference: the true one, above 0.
        rows: tests that share an error of .05.
        power: probability of finding it.
        passages: mean number of documents of a passage.
    """
    alpha = ALPHA / rows
    ratio = spread.effective / difference
    fixed = math.ceil((ratio * float(ndtri(1 - alpha / 2) + ndtri(power))) ** 2)
    planned = math.ceil((ratio * drift_of(LOOKS, alpha=alpha, power=power)) ** 2)
    least = math.ceil(LEAST_UNITS * passages)
    planned = max(planned, least)
    return Need(difference, max(fixed, 2), planned, expected_share(spread, difference, planned, rows=rows, least=least))


def detectable(spread: Spread, documents: int, *, rows: int = 1, power: float = POWER) -> float:
    """Smallest difference that so many documents, with looks, show with this power."""
    return spread.effective * drift_of(LOOKS, alpha=ALPHA / rows, power=power) / math.sqrt(documents)


def expected_share(
    spread: Spread, difference: float, documents: int, *, rows: int = 1, margin: float | None = None,
    least: int = LEAST_UNITS, futility: float | None = FUTILITY, seed: int = 0,
) -> float:  # fmt: skip
    """Share of the planned documents that is asked on average, from simulated paths of 20,000 evaluations.

    Args:
        spread: of the documents' differences.
        difference: the true one.
        documents: planned.
        rows: tests that share an error of .05.
        margin: of equivalence.
        least: documents before the first look.
        futility: predictive probability of a verdict below which an evaluation stops.
        seed: of the paths.
    """
    fractions = sorted({max(share, min(1.0, least / documents)) for share in LOOKS})
    looks, limits = np.asarray(fractions), np.asarray(boundaries(fractions, ALPHA / rows, Spending()))
    error = spread.effective / np.sqrt(documents * looks)  # of the difference at each look
    steps = np.random.default_rng(seed).standard_normal((_PATHS, len(looks))) * np.sqrt(np.diff([0.0, *looks]))
    estimates = difference + np.cumsum(steps, axis=1) / looks * spread.effective / math.sqrt(documents)
    stops = np.abs(estimates) >= limits * error
    final, rest = limits[-1] * error * np.sqrt(looks), error * np.sqrt(np.maximum(1 - looks, 1e-12))
    power = ndtr((-final - estimates) / rest) + ndtr((estimates - final) / rest)
    if margin is not None:
        stops |= np.abs(estimates) <= margin - limits * error
        room = np.maximum(margin - final, 0.0)
        power += ndtr((room - estimates) / rest) - ndtr((-room - estimates) / rest)
    if futility is not None:
        stops |= power < futility
    stops[:, -1] = True
    return float(looks[stops.argmax(axis=1)].mean())
