"""Group-sequential boundaries against published tables and Monte Carlo; the monitor, its records and its estimates."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from harness_ext.stats.paired import mcnemar, paired_difference
from harness_ext.stats.sequential import (
    LOOKS,
    Design,
    Look,
    Monitor,
    Spending,
    TaskDesign,
    boundaries,
    exit_probabilities,
    final_result,
    look_sizes,
    order_units,
    sequential_record,
)
from harness_ext.stats.sequential.exact import sign_boundaries, sign_p_value
from harness_ext.stats.sequential.record import read_record
from harness_ext.stats.sequential.stagewise import upper_tail

RUNS = 400_000


def wang_tsiatis(looks: int, delta: float, alpha: float = 0.05) -> float:
    """The constant C of boundaries C * (k / K)**(delta - 1/2): Pocock's at delta 1/2, O'Brien and Fleming's at 0."""
    fractions = [(k + 1) / looks for k in range(looks)]

    def excess(constant: float) -> float:
        limits = [constant * t ** (delta - 0.5) for t in fractions]
        return sum(map(sum, exit_probabilities(fractions, limits))) - alpha

    return float(brentq(excess, 1.5, 5))


# Oracle: Jennison & Turnbull (2000), tables 2.1 (Pocock), 2.3 (O'Brien and Fleming) and 2.9 (Wang and Tsiatis).
@pytest.mark.parametrize(
    ("looks", "delta", "constant"),
    [
        (1, 0.5, 1.960), (2, 0.5, 2.178), (3, 0.5, 2.289), (4, 0.5, 2.361), (5, 0.5, 2.413), (10, 0.5, 2.555),
        (20, 0.5, 2.672), (2, 0.0, 1.977), (3, 0.0, 2.004), (4, 0.0, 2.024), (5, 0.0, 2.040), (10, 0.0, 2.087),
        (20, 0.0, 2.126), (2, 0.1, 1.994), (3, 0.1, 2.026), (4, 0.1, 2.050), (5, 0.1, 2.068), (2, 0.25, 2.038),
        (3, 0.25, 2.083), (4, 0.25, 2.113), (5, 0.25, 2.136), (10, 0.25, 2.199), (2, 0.4, 2.111), (3, 0.4, 2.186),
        (4, 0.4, 2.233), (5, 0.4, 2.267),
    ],
)  # fmt: skip
def test_published_boundaries(looks: int, delta: float, constant: float) -> None:
    assert wang_tsiatis(looks, delta) == pytest.approx(constant, abs=0.0006)


# Oracles: Lan & DeMets (1983) and Reboussin et al., Controlled Clinical Trials 21 (2000), five equal looks at .05;
# the last two: unit tests of the R package rpact (one-sided .03; the lower boundary is too far to matter).
@pytest.mark.parametrize(
    ("spending", "alpha", "fractions", "published"),
    [
        (Spending("obrien-fleming", None), 0.05, (0.2, 0.4, 0.6, 0.8, 1), (4.877, 3.357, 2.680, 2.290, 2.031)),
        (Spending("pocock", None), 0.05, (0.2, 0.4, 0.6, 0.8, 1), (2.438, 2.427, 2.410, 2.397, 2.386)),
        (Spending("power", 1), 0.05, (0.2, 0.4, 0.6, 0.8, 1), (2.576, 2.492, 2.411, 2.339, 2.276)),
        (Spending("power", 1), 0.06, (0.2, 0.4, 1), (2.5121, 2.4229, 2.0280)),
        (Spending("power", 2.2), 0.06, (0.3, 0.7, 1), (2.8594, 2.2436, 1.9736)),
    ],
)
def test_published_spending_boundaries(
    spending: Spending, alpha: float, fractions: tuple[float, ...], published: tuple[float, ...]
) -> None:
    assert boundaries(fractions, alpha, spending) == pytest.approx(published, abs=0.0006)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 20])
@pytest.mark.parametrize("looks", [LOOKS, (0.31, 0.33, 0.99, 1.0)])
def test_boundaries_by_monte_carlo(looks: tuple[float, ...], alpha: float) -> None:
    """Oracle: simulated random walks; the share that has crossed until each look is the error spent until then."""
    rng = np.random.default_rng(1)
    steps = np.diff([0.0, *looks])
    walks = np.cumsum(rng.standard_normal((RUNS, len(looks))) * np.sqrt(steps), axis=1)
    crossed = np.abs(walks / np.sqrt(looks)) >= boundaries(looks, alpha)
    until = np.maximum.accumulate(crossed, axis=1).mean(axis=0)
    spent = np.array([Spending().spent(t, alpha) for t in looks])
    assert np.all(np.abs(until - spent) <= 4 * np.sqrt(spent / RUNS))


def test_exit_probabilities_under_a_difference() -> None:
    """Oracle: the multivariate normal distribution of two looks."""
    (first, _), (second, _) = exit_probabilities([0.4, 1.0], [2.5, 2.0], drift=2.0)
    assert first == pytest.approx(stats.norm.sf(2.5 - 2 * math.sqrt(0.4)))
    r = math.sqrt(0.4)
    joint = stats.multivariate_normal(mean=[2 * r, 2.0], cov=[[1, r], [r, 1]])
    inside = joint.cdf([2.5, 2.0]) - joint.cdf([-2.5, 2.0])
    assert second == pytest.approx(stats.norm.cdf(2.5 - 2 * r) - stats.norm.cdf(-2.5 - 2 * r) - inside, abs=1e-5)


@pytest.mark.parametrize("fractions", [[], [0.5, 0.5], [0.6, 0.5], [0.0, 1.0], [0.5, 1.2]])
def test_fractions_must_increase(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="must increase"):
        boundaries(fractions, 0.05)


# -- the exact sign test -------------------------------------------------------------------------------------------


def test_sign_boundaries_by_enumeration() -> None:
    """Oracle: all 2**14 orders in which 14 discordant documents can be gained or lost."""
    discordant, allowed = [5, 9, 14], [0.07, 0.1, 0.2]
    limits = sign_boundaries(discordant, allowed)
    walks = np.cumsum(list(itertools.product((-1, 1), repeat=14)), axis=1)[:, [4, 8, 13]]
    crossed = np.maximum.accumulate(np.abs(walks) >= limits, axis=1).mean(axis=0)
    assert np.all(crossed <= allowed)
    for look, limit in enumerate(limits):  # and the next smaller one would spend too much
        smaller = [*limits[:look], limit - 2]
        assert (np.abs(walks[:, : look + 1]) >= smaller).any(axis=1).mean() > allowed[look]
    for difference in (0, 4, 10):
        extreme = (np.abs(walks[:, :2]) >= limits[:2]).any(axis=1) | (np.abs(walks[:, 2]) >= difference)
        assert sign_p_value(discordant, allowed, difference) == pytest.approx(extreme.mean())


def test_one_look_is_exact_mcnemar() -> None:
    assert sign_p_value([24], [0.05], 10) == pytest.approx(mcnemar(17, 7))


# -- the monitor ---------------------------------------------------------------------------------------------------


def design(n: int = 872, **changes: object) -> Design:
    of_task = {name: changes.pop(name) for name in ("margin", "higher_is_better", "span") if name in changes}
    task = {"documents": n, "metric": "acc", "margin": 0.01, **of_task}
    return Design({"t": TaskDesign(**task)}, **{"family": 1, **changes})  # type: ignore[arg-type]


def followed(differences: np.ndarray, plan: Design, units: np.ndarray | None = None) -> Monitor:
    monitor = Monitor(plan, "t")
    sizes = look_sizes(len(differences) if units is None else units, plan.looks, least_units=plan.least_units)
    for size in sizes:
        if monitor.look(differences[:size], None if units is None else units[:size]).outcome:
            break
    return monitor


def drawn(rng: np.random.Generator, n: int, *, discordant: float, difference: float = 0.0) -> np.ndarray:
    x = rng.random(n)
    return np.where(x < (discordant + difference) / 2, 1.0, np.where(x < discordant, -1.0, 0.0))


def test_a_large_gain_needs_few_documents() -> None:
    differences = drawn(np.random.default_rng(5), 872, discordant=0.2, difference=0.15)
    monitor = followed(differences, design())
    assert monitor.outcome == "better"
    assert monitor.looks[-1].fraction <= 0.25
    final = monitor.final()
    assert 0 < final.interval.low < final.estimate < final.interval.high
    assert final.p_value <= Spending().spent(monitor.looks[-1].fraction, 0.05)
    assert followed(-differences, design()).outcome == "worse"
    assert followed(-differences, design(higher_is_better=False)).outcome == "better"


def test_outcomes_without_a_difference() -> None:
    ties = drawn(np.random.default_rng(0), 10_000, discordant=0.02)
    equivalent = followed(ties, design(10_000))
    assert equivalent.outcome == "equivalent"
    assert equivalent.looks[-1].fraction <= 0.5
    null = drawn(np.random.default_rng(1), 872, discordant=0.3)
    assert followed(null, design()).outcome == "cannot decide"
    assert followed(null, design(futility=None)).outcome == "undecided"
    assert followed(null, design(futility=None)).looks[-1].documents == 872


def test_one_look_is_the_test_of_fixed_size() -> None:
    """Oracle: the t interval of passage means by hand, and the interval of a comparison of fixed size."""
    rng = np.random.default_rng(2)
    differences, units = rng.normal(0.05, 0.3, 400), np.repeat(np.arange(80), 5)
    monitor = Monitor(design(400, looks=(1.0,)), "t")
    look = monitor.look(differences, units)
    assert look.limit == pytest.approx(1.96, abs=1e-3)
    final = monitor.final()
    assert final.estimate == pytest.approx(differences.mean(), rel=1e-4)
    half = 400 / 402 * stats.t.isf(0.025, 79) * differences.reshape(80, 5).mean(axis=1).std(ddof=1) / math.sqrt(80)
    assert (final.interval.high - final.interval.low) / 2 == pytest.approx(half, rel=1e-3)
    fixed = paired_difference(np.zeros(400), differences, units).interval  # with one document in each direction
    assert (final.repeated.low, final.repeated.high) == pytest.approx((fixed.low, fixed.high), abs=1e-4)


def test_the_repeated_interval_reaches_zero_at_the_boundary() -> None:
    rng = np.random.default_rng(3)
    monitor = Monitor(design(1_000, margin=None, futility=None, span=None), "t")
    for size in (100, 300, 700, 1_000):
        look = monitor.look(rng.normal(0.02, 0.3, 1_000)[:size])
        assert (look.interval.side != 0) == (abs(look.centre) >= look.standard_error * half_width(look))


def half_width(look: Look) -> float:
    """In standard errors: the t quantile at the tail probability of the boundary."""
    return float(stats.t.isf(stats.norm.sf(look.limit), look.degrees))


def test_estimates_solve_the_tail_probabilities() -> None:
    monitor = followed(drawn(np.random.default_rng(7), 872, discordant=0.15, difference=0.06), design())
    final, look = monitor.final(), monitor.looks[-1]
    assert len(monitor.looks) > 2
    error = look.standard_error
    for difference, tail, value in (
        (final.estimate, 0.5, look.estimate),
        (final.interval.low, 0.025, look.centre),
        (final.interval.high, 0.975, look.centre),
    ):
        assert upper_tail(monitor.looks, difference, value=value, error=error) == pytest.approx(tail, abs=1e-4)
    assert abs(final.estimate) < abs(look.estimate)  # stopping exaggerates


def test_an_evaluation_goes_on_where_it_was_left() -> None:
    differences = drawn(np.random.default_rng(11), 872, discordant=0.1, difference=0.03)
    whole = followed(differences, design())
    cut = Monitor(design(), "t", [Look.from_json(json.loads(json.dumps(k.to_json()))) for k in whole.looks[:2]])
    for look in whole.looks[2:]:
        cut.look(differences[: look.documents])
    assert cut.looks == whole.looks
    assert cut.final() == whole.final()


@pytest.mark.parametrize(
    ("differences", "units", "message"),
    [
        (np.zeros(20), None, "at least 30 independent"),
        (np.zeros(60), np.repeat(np.arange(20), 3), "got 20"),
        (np.zeros(101), None, "at most 100 documents"),
        (np.append(np.zeros(49), np.nan), None, "not a finite number"),
    ],
)
def test_looks_that_cannot_be_taken(differences: np.ndarray, units: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Monitor(design(100), "t").look(differences, units)


def test_a_look_needs_new_documents() -> None:
    monitor = Monitor(design(100, futility=None), "t")
    monitor.look(np.zeros(40))
    with pytest.raises(ValueError, match="more than 40"):
        monitor.look(np.zeros(40))


# -- order and looks -----------------------------------------------------------------------------------------------


def test_units_are_asked_whole_and_in_seeded_order() -> None:
    labels = np.array(["a", "b", "a", "c", "b", "d"])
    order = order_units(labels, seed=1)
    assert sorted(order) == list(range(6))
    asked = labels[order]
    assert sum(asked[1:] != asked[:-1]) == 3  # every unit in one piece
    assert order.tolist() == order_units(labels, seed=1).tolist()
    assert any(order_units(labels, seed=seed).tolist() != order.tolist() for seed in range(2, 6))


def test_looks_fall_between_units() -> None:
    units = np.repeat(np.arange(100), 7)
    sizes = look_sizes(units)
    assert all(size % 7 == 0 for size in sizes)
    assert sizes[0] == 30 * 7
    assert sizes[-1] == 700


# -- the design in a file ------------------------------------------------------------------------------------------


def test_a_design_survives_json() -> None:
    plan = design(family=3, looks=(0.5, 1.0), spending=Spending("pocock", None))
    again = Design.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.digest == plan.digest
    assert plan.differences(again) == []
    assert plan.differences(design(family=3, looks=(0.5, 1.0))) == ["spending.exponent", "spending.family"]
    assert design().differences(design(margin=0.02, seed=1)) == ["seed", "tasks.t.margin"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", 0), ("alpha", 1.5), ("looks", [0.5]), ("looks", [0.5, 0.4, 1.0]), ("looks", "all"), ("seed", True),
        ("futility", -1), ("spending", {"family": "power", "exponent": None}), ("tasks", {}), ("tasks", {"t": {}}),
        ("spending", {"family": "linear", "exponent": 1}), ("least_units", 1), ("unknown", 1), ("alpha", None),
    ],
)  # fmt: skip
def test_a_design_is_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        Design.from_json({**design().to_json(), field: value})


def test_a_record_survives_json() -> None:
    monitor = followed(drawn(np.random.default_rng(5), 872, discordant=0.2, difference=0.15), design())
    documents = monitor.looks[-1].documents
    written = sequential_record(design(), {"t": monitor.looks}, baseline="base", documents={"t": documents})
    record = read_record(json.loads(json.dumps(written)))["t"]
    assert record.is_stopped_early
    assert record.outcome == "better"
    assert record.final() == monitor.final() == final_result(monitor.looks, spending=Spending(), alpha=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("z", None), ("z", float("inf")), ("estimate", float("nan")), ("fraction", 0.9), ("gained", 10_000),
        ("lost", None), ("documents", 1.5), ("outcome", "best"), ("degrees", -1), ("interval", {"low": 0}),
        ("limit", "x"), ("standard_error", -1.0), ("power", True),
    ],
)  # fmt: skip
def test_the_looks_of_a_record_are_checked(field: str, value: object) -> None:
    monitor = followed(drawn(np.random.default_rng(5), 872, discordant=0.2, difference=0.15), design())
    documents = monitor.looks[-1].documents
    record = sequential_record(design(), {"t": monitor.looks}, baseline="base", documents={"t": documents})
    record["tasks"]["t"]["looks"][-1][field] = value
    with pytest.raises(ValueError, match=r".{10}"):
        read_record(record)


@pytest.mark.parametrize("path", ["digest", "design", "tasks", "baseline", "tasks.t.documents", "tasks.t.looks"])
def test_a_record_is_checked(path: str) -> None:
    monitor = followed(drawn(np.random.default_rng(5), 872, discordant=0.2, difference=0.15), design())
    written = sequential_record(design(), {"t": monitor.looks}, baseline="base", documents={"t": 300})
    record = json.loads(json.dumps(written))
    *parents, last = path.split(".")
    place = record
    for name in parents:
        place = place[name]
    for wrong in (None, -1, [{}], "x"):
        place[last] = wrong
        if path == "baseline" and wrong == "x":
            continue
        with pytest.raises(ValueError, match=r".{10}"):
            read_record(record)
