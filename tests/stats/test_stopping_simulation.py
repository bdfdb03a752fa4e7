"""What sequential evaluations promise, by simulation: 400 runs of each scenario, or 10,000 where marked `long`.

The scenarios are those of docs/stopping.md. Bounds allow for three standard errors of the simulation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from stopping import AT_MARGIN, FAMILIES, GAINS, NULLS, Scenario, family_wise, simulate

from harness_ext.stats.power import mcnemar_power

SOME = pytest.param(400, marks=pytest.mark.slow)
MANY = pytest.param(10_000, marks=pytest.mark.long)


def name(value: object) -> str | None:
    return value.name if isinstance(value, Scenario) else None


def noise(share: float, runs: int) -> float:
    """Three standard errors of a simulated share."""
    return 3 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize("runs", [SOME, MANY])
@pytest.mark.parametrize("scenario", NULLS, ids=name)
def test_error_of_the_first_kind_and_coverage(scenario: Scenario, runs: int) -> None:
    rates = simulate(scenario, runs)
    false = rates.share("better", "worse")
    assert false <= 0.05 + noise(0.05, runs)
    assert false >= 0.025 - noise(0.025, runs)
    assert 0.93 - noise(0.93, runs) <= np.mean(rates.covered) <= 0.975 + noise(0.975, runs)
    assert abs(np.mean(rates.below) - 0.5) <= 0.08 + noise(0.5, runs)
    assert np.mean(np.array(rates.p_values) < 0.05) <= 0.05 + noise(0.05, runs)


@pytest.mark.parametrize("runs", [SOME, MANY])
@pytest.mark.parametrize("scenario", AT_MARGIN, ids=name)
def test_false_equivalence(scenario: Scenario, runs: int) -> None:
    assert simulate(scenario, runs).share("equivalent") <= 0.05 + noise(0.05, runs)


@pytest.mark.parametrize("runs", [SOME, MANY])
@pytest.mark.parametrize(("scenario", "discordant"), list(zip(GAINS[:3], (0.1, 0.15, 0.25), strict=True)), ids=name)
def test_power_is_hardly_lost(scenario: Scenario, discordant: float, runs: int) -> None:
    fixed = mcnemar_power(scenario.n, discordant, scenario.truth)
    assert simulate(scenario, runs).share("better") >= fixed - 0.03 - noise(fixed, runs)


@pytest.mark.parametrize("runs", [SOME, MANY])
@pytest.mark.parametrize("scenario", GAINS, ids=name)
def test_intervals_of_gains(scenario: Scenario, runs: int) -> None:
    rates = simulate(scenario, runs, seed=1)
    assert 0.93 - noise(0.93, runs) <= np.mean(rates.covered) <= 0.98 + noise(0.98, runs)
    assert abs(np.mean(rates.below) - 0.5) <= 0.08 + noise(0.5, runs)


@pytest.mark.parametrize("experiments", [pytest.param(60, marks=pytest.mark.slow), MANY])
@pytest.mark.parametrize("scenario", FAMILIES, ids=name)
def test_family_wise_error(scenario: Scenario, experiments: int) -> None:
    assert family_wise(scenario, experiments) <= 0.05 + noise(0.05, experiments)


def test_many_documents_are_equivalent_early() -> None:
    rates = simulate(NULLS[-1], 20)
    assert rates.share("equivalent") >= 0.8
    assert np.mean(rates.shares) <= 0.75
