"""`harness-ext plan`: documents for a difference, from a pilot and from assumed rates."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lm_eval_files import sample

from harness_ext.cli import main
from harness_ext.stats.power import mcnemar_power
from harness_ext.stats.sequential import LOOKS, boundaries, exit_probabilities
from harness_ext.stats.sequential.planning import (
    assumed_spread,
    detectable,
    drift_of,
    expected_share,
    measured_spread,
    need,
)
from harness_ext.stats.units import Clusters


def test_needs_against_known_power() -> None:
    """Oracles: the power of exact McNemar, and Jennison & Turnbull's inflation factor of a design with one look."""
    plan = need(assumed_spread(0.2), 0.05)
    assert mcnemar_power(plan.fixed, 0.2, 0.05) == pytest.approx(0.8, abs=0.02)
    assert 1.0 < plan.planned / plan.fixed < 1.15
    assert drift_of([1.0]) == pytest.approx(1.95996 + 0.84162, abs=1e-3)
    assert detectable(assumed_spread(0.2), plan.planned) == pytest.approx(0.05, rel=1e-3)


def test_expected_share_is_that_of_the_exit_probabilities() -> None:
    """Oracle: numerical integration, without futility and equivalence."""
    spread, difference = assumed_spread(0.2), 0.05
    drift = difference * np.sqrt(872) / spread.effective
    exits = [up + down for up, down in exit_probabilities(LOOKS, boundaries(LOOKS, 0.05), drift)]
    expected = sum(t * p for t, p in zip(LOOKS, exits, strict=True)) + (1 - sum(exits))
    assert expected_share(spread, difference, 872, futility=None) == pytest.approx(expected, abs=0.01)


def test_intra_passage_correlation() -> None:
    """Oracle: simulated passages whose documents share a variance component; correlation .4."""
    rng = np.random.default_rng(0)
    own, common = rng.normal(size=(3_000, 5)), rng.normal(size=(3_000, 1))
    values = (np.sqrt(0.6) * own + np.sqrt(0.4) * common).ravel()
    spread = measured_spread(values, Clusters(np.repeat(np.arange(3_000), 5)))
    assert spread.correlation == pytest.approx(0.4, abs=0.04)
    assert spread.design_effect == pytest.approx(1 + 4 * 0.4, rel=0.06)
    with pytest.raises(ValueError, match="no document differs"):
        measured_spread(np.zeros(20), None)


def scored(seed: int, n: int = 200) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [sample(i, {"idx": i}, {"acc": float(rng.random() < 0.6)}) for i in range(n)]


def test_a_plan_from_a_pilot(
    write_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for name, seed, more in (("base", 1, ""), ("sst2", 2, ",peft=adapters/sst2")):
        write_run(
            f"out/{name}", {"demo": scored(seed)}, model_args=f"pretrained=org/tiny{more}",
            total_evaluation_time_seconds="60.0", **{"n-samples": {"demo": {"original": 872, "effective": 200}}},
        )  # fmt: skip
    assert main(["plan", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "All 872 documents show" in text
    assert "from 200 documents" in text
    assert "minutes" in text
    assert len(text.splitlines()) <= 40
    write_run("out/other", {"demo": scored(3)}, model_args="pretrained=org/tiny,peft=adapters/other")
    assert main(["plan", str(tmp_path / "out")]) == 0
    assert "shared by 2 rows" in capsys.readouterr().out


def test_a_plan_from_assumed_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--documents", "872", "--discordant", "20", "--difference", "5"]) == 0
    fixed = need(assumed_spread(0.2), 0.05).fixed
    assert re.search(rf"5\.0\s+{fixed}\b", capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--documents", "872"], ["--discordant", "20"], ["RESULTS", "--documents", "5"], ["--documents", "1"],
     ["--documents", "872", "--discordant", "0"], ["--documents", "872", "--discordant", "200"],
     ["--documents", "872", "--discordant", "20", "--correlation", "0.2"], ["nowhere"],
     ["--documents", "872", "--discordant", "20", "--difference", "nan"]],
)  # fmt: skip
def test_what_cannot_be_planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["plan", *arguments])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
