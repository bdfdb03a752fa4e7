"""Simulated sequential evaluations: scenarios, and what a design promises about them. All random draws are seeded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness_ext.stats.intervals import ALPHA, holm
from harness_ext.stats.sequential import LOOKS, Design, Look, Monitor, TaskDesign, look_sizes, order_units
from harness_ext.stats.sequential.design import FUTILITY
from harness_ext.stats.sequential.looks import FUTILE
from harness_ext.stats.sequential.stagewise import normal_error, repeated_interval, stagewise_p, upper_tail

MARGIN = 0.01
Floats = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Scenario:
    """Differences of documents as they may occur, and the mean that they are drawn around."""

    name: str
    draw: Callable[[Rng, int], Floats]  # n differences
    n: int
    truth: float = 0.0
    sizes: Sequence[int] | None = None  # of the passages; None: independent documents
    margin: float | None = MARGIN
    futility: float | None = FUTILITY
    family: int = 1

    def design(self) -> Design:
        """The design with which it is watched."""
        task = TaskDesign(self.n, "acc", margin=self.margin)
        return Design({"task": task}, family=self.family, looks=LOOKS, futility=self.futility)


@dataclass
class Rates:
    """What came of the runs of a scenario."""

    outcomes: list[str] = field(default_factory=list)
    covered: list[bool] = field(default_factory=list)
    below: list[bool] = field(default_factory=list)  # median-unbiased estimate below the truth
    shares: list[float] = field(default_factory=list)  # of the documents
    p_values: list[float] = field(default_factory=list)
    repeated: list[bool] = field(default_factory=list)

    def share(self, *outcomes: str) -> float:
        """Share of the runs that ended so."""
        return sum(outcome in outcomes for outcome in self.outcomes) / len(self.outcomes)


def followed(differences: Floats, units: NDArray[np.intp] | None, design: Design, sizes: Sequence[int]) -> list[Look]:
    """The looks of one row until it stops."""
    monitor = Monitor(design, "task")
    for size in sizes:
        if monitor.look(differences[:size], None if units is None else units[:size]).outcome:
            break
    return monitor.looks


def simulate(scenario: Scenario, runs: int, *, seed: int = 0, orders: int = 25) -> Rates:
    """Draw a scenario many times and follow each until it stops.

    Args:
        scenario: what is drawn.
        runs: how often.
        seed: of all draws.
        orders: how many orders of the passages are drawn; each gives looks at other numbers of documents.
    """
    rng, design, rates = np.random.default_rng([seed, scenario.n]), scenario.design(), Rates()
    labels = None if scenario.sizes is None else np.repeat(np.arange(len(scenario.sizes)), scenario.sizes)
    for block in range(orders if labels is not None else 1):
        units = None if labels is None else labels[order_units(labels, seed=block)]
        sizes = look_sizes(scenario.n if units is None else units, design.looks, least_units=design.least_units)
        for _ in range(runs // (orders if labels is not None else 1)):
            differences = scenario.draw(rng, scenario.n)
            if labels is not None and units is not None:
                differences = clustered(rng, scenario, units)
            add(rates, followed(differences, units, design, sizes), scenario, design)
    return rates


def clustered(rng: Rng, scenario: Scenario, units: NDArray[np.intp]) -> Floats:
    """Differences of which those of one passage resemble each other: half of the documents copy the passage's own."""
    own = scenario.draw(rng, scenario.n)
    common = scenario.draw(rng, int(units.max()) + 1)[units]
    return np.where(rng.random(scenario.n) < 0.5, common, own)


def add(rates: Rates, looks: Sequence[Look], scenario: Scenario, design: Design) -> None:
    """Note how one run ended."""
    last = looks[-1]
    error = normal_error(last)
    tail = upper_tail(looks, scenario.truth, value=last.centre, error=error)
    rates.outcomes.append(str(last.outcome))
    if last.outcome == FUTILE:
        interval = repeated_interval(looks, design.spending)
        rates.covered.append(interval.low <= scenario.truth <= interval.high)
    else:
        rates.covered.append(ALPHA / 2 <= tail <= 1 - ALPHA / 2)
    rates.below.append(upper_tail(looks, scenario.truth, value=last.estimate, error=error) > 0.5)
    rates.shares.append(last.fraction)
    rates.repeated.append(last.interval.low <= scenario.truth <= last.interval.high)
    rates.p_values.append(stagewise_p(looks, spending=design.spending, alpha=design.alpha / design.family))


def family_wise(scenario: Scenario, experiments: int, *, seed: int = 0) -> float:
    """Share of experiments in which Holm's correction of the stage-wise p-values calls any of the rows different.

    Rows that stopped because they are equivalent or cannot be decided have given up their test.
    """
    rates = simulate(scenario, experiments * scenario.family, seed=seed)
    values = [
        1.0 if outcome in ("equivalent", "cannot decide") else p
        for outcome, p in zip(rates.outcomes, rates.p_values, strict=True)
    ]
    m = scenario.family
    return sum(min(holm(values[i * m : (i + 1) * m])) < ALPHA for i in range(experiments)) / experiments


# -- differences ---------------------------------------------------------------------------------------------------


def binary(rng: Rng, n: int, *, discordant: float, difference: float = 0.0) -> Floats:
    """Documents that became right or wrong."""
    x = rng.random(n)
    return np.where(x < (discordant + difference) / 2, 1.0, np.where(x < discordant, -1.0, 0.0))


def graded(rng: Rng, n: int, *, ties: float = 0.5, difference: float = 0.0) -> Floats:
    """Half of the documents unchanged, the others by a symmetric share such as token F1; then shifted."""
    changed = np.clip(rng.normal(0, 0.35, n), -1, 1)
    return np.where(rng.random(n) < ties, 0.0, changed) + difference


def skewed(rng: Rng, n: int) -> Floats:
    """One document in ten gains .9, the others lose .1: no difference on average."""
    return np.where(rng.random(n) < 0.1, 0.9, -0.1)


def rare_losses(rng: Rng, n: int) -> Floats:
    """Two documents in a hundred lose half a point: a loss as large as the margin."""
    return np.where(rng.random(n) < 0.02, -0.5, 0.0)


def of(draw: Callable[..., Floats], **options: float) -> Callable[[Rng, int], Floats]:
    """A draw with its options."""
    return functools.partial(draw, **options)


# -- the table -----------------------------------------------------------------------------------------------------

_UNEVEN = np.minimum(1 + np.random.default_rng(9).geometric(0.12, 150), 40).tolist()  # 2 to 40 documents a passage
_EQUAL = [5] * 200

NULLS = (
    Scenario("0/1, 10 % discordant", of(binary, discordant=0.1), 872),
    Scenario("0/1, 30 % discordant", of(binary, discordant=0.3), 872),
    Scenario("0/1, 30 % discordant, no futility", of(binary, discordant=0.3), 872, futility=None),
    Scenario("0/1, 20 % discordant, 200 documents", of(binary, discordant=0.2), 200),
    Scenario("graded", graded, 500),
    Scenario("graded, no futility", graded, 500, futility=None),
    Scenario("graded, 10 % +.9 and 90 % -.1", skewed, 500),
    Scenario("200 passages of 5, 0/1", of(binary, discordant=0.2), 1_000, sizes=_EQUAL),
    Scenario("200 passages of 5, 0/1, no futility", of(binary, discordant=0.2), 1_000, sizes=_EQUAL, futility=None),
    Scenario("40 passages of 15, graded", graded, 600, sizes=[15] * 40),
    Scenario("150 passages of 2 to 40, 0/1", of(binary, discordant=0.2), sum(_UNEVEN), sizes=_UNEVEN),
    Scenario("150 passages of 2 to 40, graded", graded, sum(_UNEVEN), sizes=_UNEVEN),
    Scenario("0/1, 5 % discordant, 10,000 documents", of(binary, discordant=0.05), 10_000),
)
AT_MARGIN = (
    Scenario("2 % lose half a point", rare_losses, 2_000, truth=-0.01),
    Scenario("0/1, 1 % lost", of(binary, discordant=0.0102, difference=-0.01), 5_000, truth=-0.01),
    Scenario("0/1, 3 % discordant", of(binary, discordant=0.03, difference=-0.01), 10_000, truth=-0.01),
    Scenario("passages of 5, 0/1", of(binary, discordant=0.03, difference=0.01), 5_000, sizes=[5] * 1_000, truth=0.01),
)
GAINS = (
    Scenario("+5, 10 % discordant", of(binary, discordant=0.1, difference=0.05), 872, truth=0.05),
    Scenario("+5, 15 % discordant", of(binary, discordant=0.15, difference=0.05), 872, truth=0.05),
    Scenario("+5, 25 % discordant", of(binary, discordant=0.25, difference=0.05), 872, truth=0.05),
    Scenario("+5, graded", of(graded, difference=0.05), 500, truth=0.05),
    Scenario("+11.5, 20 % discordant", of(binary, discordant=0.2, difference=0.115), 872, truth=0.115),
    Scenario("+20, 30 % discordant", of(binary, discordant=0.3, difference=0.2), 872, truth=0.2),
)
FAMILIES = tuple(Scenario(f"{rows} rows, 0/1", of(binary, discordant=0.2), 872, family=rows) for rows in (2, 5, 20))
