"""Runs that differ only in their seed: grouped by card or by name, in one row, with notes on what they show."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lm_eval_files import labelled

from harness_ext.comparison.candidates import candidates_of
from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs


def coin(share: float, seed: int, n: int = 400) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


@pytest.fixture
def write_seeds(write_run, tmp_path):
    """A base, and an adapter trained with several seeds; identified by cards or by names only."""

    def write(names: list[str], *, cards: list[dict] | None = None, shares: tuple[float, ...] = (0.80, 0.82, 0.81)):
        write_run("out/base", {"demo": labelled(coin(0.6, 0))}, model_args="pretrained=org/tiny")
        for place, name in enumerate(names):
            ours = {"variant": name, "base": "org/tiny", "adapter": f"adapters/{name}"}
            ours |= {"card": cards[place]} if cards else {}
            samples = labelled(coin(shares[place % 3], place + 1))
            write_run(f"out/{name}", {"demo": samples}, model_args=f"pretrained=org/tiny,peft={name}", ours=ours)
        return load_runs(tmp_path / "out")

    return write


def card(seed: int, **recipe: object) -> dict:
    return {"base": "org/tiny", "task": "demo", "seed": seed, "recipe": {"epochs": 1, "seed": seed, **recipe}}


def test_names_make_one_row_of_three_seeds(write_seeds):
    comparison = compare_runs(write_seeds(["mine-seed0", "mine-seed1", "mine-seed2"]))
    (row,) = comparison.rows
    assert (row.run, list(row.seeds.values)) == ("mine", ["0", "1", "2"])
    assert row.score.value == row.seeds.mean == pytest.approx(np.mean(list(row.seeds.values.values())))
    assert row.seeds.sd == pytest.approx(np.std(list(row.seeds.values.values()), ddof=1))
    assert "two-level" in row.paired.method
    assert row.verdict == "better"
    text = comparison.to_markdown()
    assert "mine · 3 seeds" in text
    assert "±" in text
    assert "nothing about the method" not in text


def test_two_seeds_speak_of_these_adapters_only(write_seeds):
    comparison = compare_runs(write_seeds(["mine-seed0", "mine-seed1"]))
    (row,) = comparison.rows
    assert "two-level" not in row.paired.method
    (note,) = [note for note in comparison.notes if "three seeds (2)" in note]
    assert "nothing about the method" in note.replace("\n", " ")


def test_cards_decide_where_there_are_cards(write_seeds):
    names = ["one", "two-seed1", "three-seed1", "four"]
    cards = [card(0), card(1), card(2, epochs=2), card(3)]
    rows = compare_runs(write_seeds(names, cards=cards)).rows
    assert [(row.run, list(row.seeds.values) if row.seeds else None) for row in rows] == [
        ("one", ["0", "1", "3"]),
        ("three-seed1", None),
    ]


def test_each_seed_can_have_its_own_row(write_seeds):
    runs = write_seeds(["mine-seed0", "mine-seed1", "mine-seed2"])
    assert len(compare_runs(runs, group_seeds=False).rows) == 3


def test_a_seed_that_stands_twice_is_not_averaged(write_seeds):
    runs = write_seeds(["mine", "again"], cards=[card(0), card(0)])
    assert len(candidates_of([run for run in runs if run.adapter])) == 2


def test_costs_stand_beside_the_gain_of_each_seed(write_seeds):
    facts = {"trainable_parameters": 2_442_240, "tokens": 48_000, "seconds": 90.0, "examples": 100}
    cards = [{**card(seed), **facts} for seed in range(3)]
    comparison = compare_runs(write_seeds(["mine-seed0", "mine-seed1", "mine-seed2"], cards=cards))
    (row,) = comparison.rows
    gains = [cost.gain for cost in comparison.costs]
    assert gains == pytest.approx([value - row.baseline.value for value in row.seeds.values.values()])
    assert [cost["gain"] for cost in comparison.to_json()["costs"]] == pytest.approx([100 * gain for gain in gains])
    assert "| mine-seed0 · demo | 2.44M | 100 | 48k | 1.5 |" in comparison.to_markdown()


def test_what_was_not_trained_on_is_kept_or_lost(write_seeds):
    away = {**card(0), "task": "elsewhere"}
    comparison = compare_runs(write_seeds(["mine"], cards=[away], shares=(0.3,)))
    assert comparison.rows[0].retention == "lost"
    assert "| elsewhere" not in comparison.to_markdown()
    assert "| lost |" in comparison.to_markdown()
    assert compare_runs(write_seeds(["mine"], cards=[card(0)])).rows[0].retention is None
