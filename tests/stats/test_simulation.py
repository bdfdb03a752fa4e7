"""Simulations of what the methods promise: false verdicts in at most 5 %, intervals that cover, power as stated.

Scenarios: no difference, and a loss as large as the margin; 2 to 1,000 documents; base rates .05, .5, .95; few and many
discordant documents; graded scores with many ties, rare large losses, skewed differences; few passages, and passages
of uneven size; seeds that differ and seeds that do not; AUROC with few positives. All random draws are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from harness_ext.stats import resampling, verdicts
from harness_ext.stats.paired import PairedDifference, paired_aggregates, paired_auroc, paired_difference
from harness_ext.stats.power import detectable_difference, needed_size
from harness_ext.stats.seeds import two_level_difference
from harness_ext.stats.units import Clusters
from harness_ext.stats.verdicts import Hypothesis, decide

pytestmark = pytest.mark.slow

EXPERIMENTS = 800
MARGIN = 0.01
FALSE = 0.05 + 3 * math.sqrt(0.05 * 0.95 / EXPERIMENTS)  # three standard errors above the nominal level
COVERAGE = 0.95 - 3 * math.sqrt(0.05 * 0.95 / EXPERIMENTS)

Rng = np.random.Generator
Draw = Callable[[Rng], PairedDifference]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws, and no planned sizes, on which verdicts do not depend."""
    monkeypatch.setattr(resampling, "PERMUTATIONS", 499)
    monkeypatch.setattr(verdicts, "needed_size", lambda *_, **__: None)
    monkeypatch.setattr(verdicts, "detectable_difference", lambda *_, **__: None)


def rates(draw: Draw, *, truth: float = 0.0, seed: int = 0, count: int = EXPERIMENTS) -> tuple[float, float, float]:
    """Shares of `better` or `worse`, of `equivalent`, and of intervals that contain the truth."""
    rng, outcomes = np.random.default_rng(seed), np.zeros((count, 3))
    for place in range(count):
        paired = draw(rng)
        verdict = decide([Hypothesis(paired, MARGIN)])[0].verdict
        inside = paired.interval.low - 1e-9 <= truth <= paired.interval.high + 1e-9
        outcomes[place] = verdict in ("better", "worse"), verdict == "equivalent", inside
    return tuple(outcomes.mean(axis=0).tolist())


# -- right or wrong, and graded; documents are independent --------------------------------------------------------


def binary(n: int, base: float, redrawn: float) -> Draw:
    def draw(rng: Rng) -> PairedDifference:
        before = rng.random(n) < base
        after = np.where(rng.random(n) < redrawn, rng.random(n) < base, before)
        return paired_difference(before.astype(float), after.astype(float))

    return draw


@pytest.mark.parametrize("n", [2, 5, 20, 50, 200, 1000])
@pytest.mark.parametrize("base", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("redrawn", [0.05, 0.6])
def test_nothing_is_found_where_nothing_differs(n: int, base: float, redrawn: float) -> None:
    decided, _, coverage = rates(binary(n, base, redrawn))
    assert decided <= FALSE
    assert coverage >= COVERAGE


@pytest.mark.parametrize("n", [20, 50, 200, 1000])
@pytest.mark.parametrize(("gained", "lost"), [(0.005, 0.015), (0.02, 0.03), (0.295, 0.305)])
def test_a_loss_as_large_as_the_margin_is_not_equivalent(n: int, gained: float, lost: float) -> None:
    def draw(rng: Rng) -> PairedDifference:
        change = rng.random(n)
        before = (change < lost).astype(float)
        return paired_difference(before, ((change >= lost) & (change < lost + gained)).astype(float))

    _, equivalent, coverage = rates(draw, truth=-MARGIN)
    assert equivalent <= FALSE
    assert coverage >= COVERAGE


def half_zeros(rng: Rng, n: int) -> np.ndarray:
    z = rng.random(n)
    return np.where(z < 0.5, 0.0, np.where(z < 0.6, 1.0, np.round(rng.random(n), 1)))


def graded(n: int, same: float) -> Draw:
    def draw(rng: Rng) -> PairedDifference:
        before = half_zeros(rng, n)
        return paired_difference(before, np.where(rng.random(n) < same, before, half_zeros(rng, n)))

    return draw


def skewed(n: int) -> Draw:
    """One in ten gains .9, all others lose .1."""
    return lambda rng: paired_difference(np.full(n, 0.1), 0.1 + np.where(rng.random(n) < 0.1, 0.9, -0.1))


@pytest.mark.parametrize("n", [2, 5, 6, 20, 50, 200, 1000])
@pytest.mark.parametrize("make", [lambda n: graded(n, 0.7), lambda n: graded(n, 0.95), skewed])
def test_graded_scores(n: int, make: Callable[[int], Draw]) -> None:
    decided, equivalent, coverage = rates(make(n))
    assert decided <= FALSE
    assert coverage >= COVERAGE
    assert equivalent <= FALSE or n >= 1000  # where it is true


@pytest.mark.parametrize("n", [2, 5, 20, 50, 100, 200, 300, 500, 1000])
def test_rare_large_losses_are_not_equivalent(n: int) -> None:
    """Two documents in a hundred lose half a point, others vary by .02: a loss as large as the margin."""

    def draw(rng: Rng) -> PairedDifference:
        delta = np.where(rng.random(n) < 0.3, rng.choice([-0.02, 0.02], n), 0.0)
        delta[rng.random(n) < 0.02] = -0.5
        return paired_difference(np.full(n, 0.6), 0.6 + delta)

    _, equivalent, coverage = rates(draw, truth=-MARGIN)
    assert equivalent <= FALSE
    assert coverage >= COVERAGE


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_intervals_are_not_too_wide_either(n: int) -> None:
    """Many documents differ."""
    for draw in (binary(n, 0.5, 0.6), graded(n, 0.2)):
        _, _, coverage = rates(draw)
        assert coverage <= 0.975 + 3 * math.sqrt(0.025 * 0.975 / EXPERIMENTS)


# -- passages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "interaction"),
    [
        ([50] * 2, 0.2), ([20] * 5, 0.2), ([10] * 12, 0.2), ([10] * 20, 0.2), ([10] * 48, 0.2),
        ([127] + [10] * 19, 0.3), ([260] + [10] * 39, 0.3), ([160] + [10] * 47, 0.3),
        (np.random.default_rng(0).geometric(0.1, 60).tolist(), 0.2),
    ],
    ids=["2", "5", "12", "20", "48", "20-uneven", "40-uneven", "48-uneven", "60-geometric"],
)  # fmt: skip
def test_passages(sizes: list[int], interaction: float) -> None:
    codes = np.repeat(np.arange(len(sizes)), sizes)
    clusters, n = Clusters(codes), len(codes)

    def draw(rng: Rng) -> PairedDifference:
        level = rng.beta(2, 2, len(sizes))[codes]
        before = (rng.random(n) < level).astype(float)
        shift = rng.normal(0, interaction, len(sizes))[codes]
        redrawn = (rng.random(n) < np.clip(level + shift, 0, 1)).astype(float)
        return paired_difference(before, np.where(rng.random(n) < 0.4, redrawn, before), clusters)

    decided, equivalent, coverage = rates(draw)
    assert decided <= FALSE
    assert equivalent <= FALSE
    assert coverage >= COVERAGE


@pytest.mark.parametrize(("count", "size"), [(8, 40), (15, 40), (30, 40)])
def test_passages_of_which_one_in_ten_loses_ten_points(count: int, size: int) -> None:
    codes = np.repeat(np.arange(count), size)

    def draw(rng: Rng) -> PairedDifference:
        hit = (rng.random(count) < 0.1)[codes] & (rng.random(count * size) < 0.1)
        return paired_difference(np.ones(count * size), 1.0 - hit, Clusters(codes))

    assert rates(draw)[1] <= FALSE


# -- seeds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("n", [20, 100, 872])
@pytest.mark.parametrize("between", [0.0, 0.01, 0.03])
def test_seeds(seeds: int, n: int, between: float) -> None:
    def draw(rng: Rng) -> PairedDifference:
        latent, level, document = rng.random(n), rng.normal(0, between, (seeds, 1)), rng.normal(0, 0.1, n)
        share = np.clip(0.7 + level + document, 0, 1)
        after = np.where(rng.random((seeds, n)) < 0.7, latent < share, rng.random((seeds, n)) < share)
        return two_level_difference((latent < 0.7).astype(float), after.astype(float), limits=(0, 1))

    decided, equivalent, coverage = rates(draw, count=EXPERIMENTS // 2)
    assert decided <= FALSE + 0.01
    assert equivalent <= FALSE + 0.01
    assert coverage >= COVERAGE - 0.01


def test_two_seeds_speak_of_these_adapters() -> None:
    """The estimate is of the mean of these two adapters, not of all adapters that the method could give."""
    rng, hits = np.random.default_rng(1), []
    for _ in range(EXPERIMENTS):
        levels = 0.7 + rng.normal(0, 0.03, (2, 1))
        before = (rng.random(872) < 0.7).astype(float)
        interval = two_level_difference(before, (rng.random((2, 872)) < levels).astype(float), limits=(0, 1)).interval
        hits.append(interval.low <= float(levels.mean()) - 0.7 <= interval.high)
    assert np.mean(hits) >= COVERAGE


# -- classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "share"), [(12, 0.5), (30, 0.1), (30, 0.2), (50, 0.1), (50, 0.2), (100, 0.05), (100, 0.1), (100, 0.5)]
)
def test_auroc_with_few_positives(n: int, share: float) -> None:
    def draw(rng: Rng) -> PairedDifference:
        labels = np.zeros(n)
        labels[: min(max(2, rng.binomial(n, share)), n - 2)] = 1
        return paired_auroc(labels, rng.normal(labels, 1), rng.normal(labels, 1))

    decided, equivalent, _ = rates(draw)
    assert decided <= FALSE
    assert equivalent <= FALSE


@pytest.mark.parametrize(("count", "size"), [(2, 50), (3, 50), (5, 40), (8, 25), (20, 15)])
def test_auroc_with_few_passages(count: int, size: int) -> None:
    codes = np.repeat(np.arange(count), size)

    def draw(rng: Rng) -> PairedDifference:
        labels = (rng.random(count * size) < 0.5).astype(float)
        sides = [rng.normal(labels * (1 + rng.normal(0, 1, count)[codes]), 1) for _ in range(2)]
        return paired_auroc(labels, *sides, Clusters(codes))

    decided, equivalent, _ = rates(draw)
    assert decided <= FALSE
    assert equivalent <= FALSE


def test_a_metric_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 300)

    def draw(rng: Rng) -> PairedDifference:
        sums = [np.column_stack([rng.exponential(1, 60), np.full(60, 2.0)]) for _ in range(2)]
        return paired_aggregates(*sums, lambda total: np.log(total[:, 0] / total[:, 1]), n=60)

    decided, equivalent, coverage = rates(draw, count=400)
    assert decided <= FALSE + 0.01
    assert equivalent <= FALSE + 0.01
    assert coverage >= COVERAGE - 0.02


# -- many tests at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tasks", "adapters"), [(1, 10), (20, 1), (20, 10)])
def test_holm_over_a_whole_comparison(tasks: int, adapters: int) -> None:
    rng, alarms = np.random.default_rng(2), []
    for _ in range(60):
        hypotheses = []
        for _ in range(tasks):
            before = (rng.random(100) < 0.6).astype(float)
            for _ in range(adapters):
                after = np.where(rng.random(100) < 0.4, rng.random(100) < 0.6, before).astype(float)
                hypotheses.append(Hypothesis(paired_difference(before, after), MARGIN))
        alarms.append(any(decision.verdict in ("better", "worse") for decision in decide(hypotheses)))
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


# -- power --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "discordance"), [(50, 0.2), (100, 0.1), (200, 0.05), (872, 0.1), (3000, 0.1)])
def test_the_detectable_difference_is_found_four_times_in_five(n: int, discordance: float) -> None:
    half = round(n * discordance / 2)
    before = np.zeros(n)
    before[:half] = 1
    after = np.zeros(n)
    after[half : 2 * half] = 1
    difference = detectable_difference(paired_difference(before, after))
    assert difference is not None
    total = max(2 * half / n, difference)
    cells = np.random.default_rng(3).multinomial(
        n, [(total + difference) / 2, (total - difference) / 2, 1 - total], 2000
    )
    detected = [_verdict_of_counts(int(up), int(down), n) == "better" for up, down, _ in cells]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.03)


def _verdict_of_counts(gained: int, lost: int, n: int) -> str:
    before, after = np.zeros(n), np.zeros(n)
    before[:lost], after[lost : lost + gained] = 1, 1
    return decide([Hypothesis(paired_difference(before, after), MARGIN)])[0].verdict


@pytest.mark.parametrize("units", [8, 12, 40])
def test_power_over_passages(units: int) -> None:
    codes, rng = np.repeat(np.arange(units), 20), np.random.default_rng(4)

    def one(effect: float) -> PairedDifference:
        delta = effect + rng.normal(0, 0.2, 20 * units) + rng.normal(0, 0.05, units)[codes]
        return paired_difference(np.full(20 * units, 0.3), 0.3 + delta, Clusters(codes), limits=(None, None))

    plain = [one(0.0) for _ in range(200)]
    typical = plain[0]
    variance = float(np.mean([paired.estimate.variances[0][0] for paired in plain]))
    estimate = type(typical.estimate)(0.0, ((variance, typical.estimate.variances[0][1]),))
    effect = detectable_difference(PairedDifference(**{**vars(typical), "estimate": estimate}))
    assert effect is not None
    detected = [decide([Hypothesis(one(effect), None)])[0].verdict == "better" for _ in range(1000)]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("difference", [0.0, 0.0025, 0.005])
def test_the_size_that_would_decide_does(difference: float) -> None:
    n, total = 2000, 0.05
    gained, lost = round(n * (total + difference) / 2), round(n * (total - difference) / 2)
    before, after = np.zeros(n), np.zeros(n)
    before[:lost], after[lost : lost + gained] = 1, 1
    needed = needed_size(paired_difference(before, after), margin=MARGIN)
    assert needed.number is not None
    assert needed.low is not None
    assert needed.high is not None
    assert needed.low <= needed.number <= needed.high
    shares = [gained / n, lost / n, 1 - (gained + lost) / n]
    cells = np.random.default_rng(5).multinomial(needed.number, shares, 1500)
    words = [_verdict_of_counts(int(up), int(down), needed.number) for up, down, _ in cells]
    decided = max(words.count("equivalent"), words.count("better")) / len(words)
    assert decided == pytest.approx(0.8, abs=0.035)
