"""Simulated tournaments of trainings: one entry is better than all others. All random draws are seeded.

Whether an entry has a document right is a threshold of a normal variable: of the document, of the entry on it,
and of its state at this rung. The two correlations say how much of it entries, and states of an entry, have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from harness_ext.stats.halving import decide_rung, default_first_rung, places, rung_shares

Rng = np.random.Generator
GAP = 0.03  # of the better entry, at the end of the training


def constant(_: float) -> float:
    """The whole gap from the first rung on."""
    return 1.0


def growing(share: float) -> float:
    """Half of the gap at a twelfth of the training, the whole of it at a third."""
    return min(1.0, (3 * share) ** 0.5)


@dataclass(frozen=True)
class Scenario:
    """Entries, one of which is better than the others, which are all equal: the hardest case of such a gap."""

    entries: int
    documents: int
    gap_at: Callable[[float], float] = constant  # share of the training -> share of the gap
    gap: float = GAP
    accuracy: float = 0.85  # of the better entry
    between_entries: float = 0.85  # correlation of two entries on a document
    between_rungs: float = 0.95  # correlation of two states of an entry

    @property
    def name(self) -> str:
        """Names it in a store."""
        return (
            f"{self.entries} entries, {self.documents} documents, gap {100 * self.gap:g} {self.gap_at.__name__}, "
            f"accuracy {self.accuracy:g}, correlation {self.between_entries:g} and {self.between_rungs:g}"
        )

    def rungs(self) -> list[float]:
        """Share of the training at which each rung ends."""
        return rung_shares(self.entries, default_first_rung(self.entries))

    def draw(self, rng: Rng) -> NDArray[np.float64]:
        """Scores at each rung, (rungs, entries, documents); the last entry is the better one, so ties never help."""
        shares, shape = self.rungs(), (self.entries, self.documents)
        document, own, state = (
            weight**0.5
            for weight in (self.between_entries, self.between_rungs - self.between_entries, 1 - self.between_rungs)
        )
        common = document * rng.standard_normal(self.documents) + own * rng.standard_normal(shape)
        gaps = np.array([self.gap * self.gap_at(share) for share in shares])
        accuracy = np.full((len(shares), self.entries), self.accuracy - gaps[:, None])
        accuracy[:, -1] = self.accuracy
        latent = common + state * rng.standard_normal((len(shares), *shape))
        scores: NDArray[np.float64] = (latent < norm.ppf(accuracy)[:, :, None]).astype(float)
        return scores


@dataclass
class Rates:
    """What came of the tournaments of a scenario."""

    right: list[bool] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)  # training, as a share of training all entries
    discordant: list[float] = field(default_factory=list)  # documents on which the better entry and another differ


def simulate(scenario: Scenario, runs: int, *, seed: int = 0) -> Rates:
    """Play tournaments with the code that decides real ones."""
    rng, rates = np.random.default_rng(seed), Rates()
    for _ in range(runs):
        scores = scenario.draw(rng)
        winner, cost = play(scenario, scores)
        rates.right.append(winner == scenario.entries - 1)
        rates.cost.append(cost)
        rates.discordant.append(float(np.mean(scores[-1, 0] != scores[-1, -1])))
    return rates


def play(scenario: Scenario, scores: NDArray[np.float64]) -> tuple[int, float]:
    """The winner, and the training that it took as a share of training all entries."""
    alive, trained, before = list(range(scenario.entries)), 0.0, 0.0
    for number, (share, most) in enumerate(zip(scenario.rungs(), places(scenario.entries), strict=True)):
        if len(alive) == 1:
            break
        trained += len(alive) * (share - before)
        before = share
        rung = decide_rung({entry: scores[number, entry] for entry in alive}, [0] * len(alive), most=most)
        alive = sorted(rung.kept)
    return alive[0], (trained + 1 - before) / scenario.entries


def all_trained(scenario: Scenario, runs: int, *, seed: int = 0) -> float:
    """How often the highest mean is the right one if all entries are trained to the end: the price of the rungs."""
    rng = np.random.default_rng(seed)
    means = (scenario.draw(rng)[-1].mean(axis=1) for _ in range(runs))
    return float(np.mean([np.argmax(mean) == scenario.entries - 1 for mean in means]))
