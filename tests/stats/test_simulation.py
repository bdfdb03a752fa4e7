"""What the methods promise, simulated: coverage of 95 % intervals, false alarms of each test, power as predicted."""

from __future__ import annotations

import numpy as np
import pytest

from harness_ext.comparison.aggregates import compare_aggregates, readings_of
from harness_ext.stats import resampling
from harness_ext.stats.intervals import bonett_price, describe_mean, mcnemar_p, mean_interval
from harness_ext.stats.paired import minimum_detectable_difference, paired_difference
from harness_ext.stats.seeds import two_level_difference

EXPERIMENTS = 2_000
COVERAGE, FALSE_ALARMS = (0.93, 0.97), (0.03, 0.07)


def within(hits: np.ndarray | list[bool], bounds: tuple[float, float]) -> bool:
    return bounds[0] <= float(np.mean(hits)) <= bounds[1]


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch):
    monkeypatch.setattr(resampling, "PERMUTATIONS", 199)


@pytest.mark.parametrize("clustered", [False, True])
def test_coverage_of_a_mean(clustered):
    rng = np.random.default_rng(1)
    passages = np.repeat(np.arange(50), 4) if clustered else None
    levels = np.clip(rng.normal(0.4, 0.1 if clustered else 0, (EXPERIMENTS, 50)), 0, 1)
    scores = rng.beta(4 * levels + 0.1, 4 * (1 - levels) + 0.1, (4, EXPERIMENTS, 50)).transpose(1, 2, 0)
    truth = np.mean((4 * np.clip(0.4 + 0.1 * rng.normal(0, 1, 10**6), 0, 1) + 0.1) / 4.2) if clustered else 1.7 / 4.2
    found = [mean_interval(row.reshape(-1), passages) for row in scores]
    assert within([each.low <= truth <= each.high for each in found], COVERAGE)


def test_coverage_of_a_rare_clustered_share_that_t_would_put_below_zero():
    rng = np.random.default_rng(2)
    passages = np.repeat(np.arange(60), 5)
    rates = rng.beta(1, 24, (EXPERIMENTS, 60))  # mean .04
    found = [describe_mean((rng.random(300) < np.repeat(row, 5)).astype(float), passages).interval for row in rates]
    assert min(each.low for each in found) >= 0
    assert within([each.low <= 0.04 <= each.high for each in found], (0.92, 0.98))


def test_coverage_of_a_binary_difference():
    cells = np.random.default_rng(3).multinomial(300, [0.15, 0.05, 0.80], EXPERIMENTS)
    found = [bonett_price(int(gained), int(lost), 300) for gained, lost, _ in cells]
    assert within([each.low <= 0.10 <= each.high for each in found], COVERAGE)


def test_coverage_of_a_clustered_difference():
    rng = np.random.default_rng(4)
    passages = np.repeat(np.arange(50), 4)
    hits = []
    for shift in rng.normal(0.05, 0.2, (EXPERIMENTS, 50)):
        found = mean_interval(np.repeat(shift, 4) + rng.normal(0, 0.2, 200), passages)
        hits.append(found.low <= 0.05 <= found.high)
    assert within(hits, COVERAGE)


@pytest.mark.parametrize(("seeds", "between"), [(3, 0.02), (3, 0.05), (5, 0.05)])
def test_coverage_over_documents_and_seeds(seeds, between):
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(EXPERIMENTS):
        documents, levels = rng.normal(0.05, 0.3, 100), rng.normal(0, between, (seeds, 1))
        found = two_level_difference(np.zeros(100), documents + levels + rng.normal(0, 0.3, (seeds, 100))).interval
        hits.append(found.low <= 0.05 <= found.high)
    assert within(hits, (0.93, 0.98))  # from above where seeds hardly differ


def test_coverage_of_the_bootstrap_of_macro_f1(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 400)
    rng = np.random.default_rng(6)
    (reading,) = readings_of("macro_f1")
    truth = 0.9 - 0.75  # of symmetric errors on balanced classes macro-F1 is accuracy
    hits = []
    for _ in range(400):
        gold = np.arange(300) % 2
        sides = [np.stack([gold, np.where(rng.random(300) < p, gold, 1 - gold)], axis=1) for p in (0.75, 0.9)]
        found = compare_aggregates(reading, sides[0].astype(float), sides[1].astype(float), None).interval
        hits.append(found.low <= truth <= found.high)
    assert within(hits, (0.92, 0.975))


def test_false_alarms_of_mcnemar():
    cells = np.random.default_rng(7).multinomial(2_000, [0.1, 0.1, 0.8], EXPERIMENTS)
    assert within([mcnemar_p(int(gained), int(lost)) < 0.05 for gained, lost, _ in cells], FALSE_ALARMS)


@pytest.mark.parametrize("units", [12, 60])
def test_false_alarms_of_the_sign_flip(units):
    rng = np.random.default_rng(8)
    draws = rng.exponential(1, (EXPERIMENTS, units)) * rng.choice([-1, 1], (EXPERIMENTS, units))
    assert within([resampling.sign_flip_p(row, seed=n) < 0.05 for n, row in enumerate(draws)], FALSE_ALARMS)


def test_false_alarms_of_pooled_sign_flips(monkeypatch):
    monkeypatch.setattr(resampling, "POOLED_UNITS", 40)
    draws = np.random.default_rng(9).standard_t(5, (EXPERIMENTS, 400))
    assert within([resampling.sign_flip_p(row, seed=n) < 0.05 for n, row in enumerate(draws)], FALSE_ALARMS)


def test_false_alarms_of_randomised_macro_f1(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 2)
    rng = np.random.default_rng(10)
    (reading,) = readings_of("macro_f1")
    gold = np.arange(120) % 3
    alarms = []
    for n in range(1_000):
        sides = [
            np.stack([gold, np.where(rng.random(120) < 0.7, gold, rng.integers(0, 3, 120))], axis=1) for _ in range(2)
        ]
        alarms.append(compare_aggregates(reading, *(s.astype(float) for s in sides), None, seed=n).p_value < 0.05)
    assert within(alarms, FALSE_ALARMS)


def test_false_alarms_over_documents_and_seeds():
    rng = np.random.default_rng(11)
    alarms = []
    for _ in range(1_000):
        documents, levels = rng.normal(0, 0.3, 100), rng.normal(0, 0.04, (3, 1))
        delta = documents + levels + rng.normal(0, 0.3, (3, 100))
        alarms.append(two_level_difference(np.zeros(100), delta).p_value < 0.05)
    assert within(alarms, (0.025, 0.07))


def test_power_is_as_predicted():
    rng = np.random.default_rng(12)
    plain = paired_difference(np.zeros(200), rng.normal(0, 0.3, 200))
    effect = minimum_detectable_difference(plain) * 0.3 / (plain.standard_error * np.sqrt(200))  # at the true spread
    found = [resampling.sign_flip_p(row, seed=n) < 0.05 for n, row in enumerate(rng.normal(effect, 0.3, (1_000, 200)))]
    assert within(found, (0.76, 0.84))
