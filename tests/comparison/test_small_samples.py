"""Few documents, few passages, many tests: no verdict without evidence, and the missing condition is reported."""

from __future__ import annotations

import numpy as np
import pytest
from lm_eval_files import labelled, sample

from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs

RNG = np.random.default_rng(1)
LONG = "a long text that is shared. " * 5


def on_passages(values, per_passage, metric="acc", column="context"):
    return [
        sample(i, {"idx": i, column: f"passage {i // per_passage}: {LONG}"}, {metric: value}, target=i % 2)
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("n", [2, 5])
def test_five_documents_decide_nothing(n, write_pair):
    comparison = compare_runs(load_runs(write_pair("demo", labelled([0.0] * n), labelled([1.0] * n))))
    (row,) = comparison.rows
    assert (row.verdict, row.decision.lacking) == ("undecided", "units")
    assert "R07" in [finding.id for finding in comparison.findings]
    assert "too few units" in comparison.to_markdown()


def test_two_graded_documents_are_not_equivalent(write_pair):
    folder = write_pair("demo", labelled([0.5, 0.4], "f1"), labelled([0.501, 0.402], "f1"))
    assert compare_runs(load_runs(folder)).rows[0].verdict == "undecided"


def test_eight_passages_of_which_none_differs_are_not_equivalent(write_pair):
    samples = on_passages([0.0, 1.0] * 160, 40)
    (row,) = compare_runs(load_runs(write_pair("demo", samples, samples))).rows
    assert (row.verdict, row.paired.units) == ("undecided", 8)
    assert row.paired.interval.high > 0.01


def test_two_passages_and_three_seeds(write_run, tmp_path):
    """A regression test: this raised an OverflowError."""
    for name in ("base", "m-seed0", "m-seed1", "m-seed2"):
        samples = on_passages((RNG.random(20) < 0.5).astype(float).tolist(), 10)
        adapter = "" if name == "base" else f",peft={name}"
        write_run(f"out/{name}", {"demo": samples}, model_args=f"pretrained=org/tiny{adapter}")
    (row,) = compare_runs(load_runs(tmp_path / "out")).rows
    assert (row.verdict, row.decision.lacking) == ("undecided", "units")


def test_two_documents_all_gained_by_three_seeds(write_run, tmp_path):
    for name in ("base", "m-seed0", "m-seed1", "m-seed2"):
        adapter = "" if name == "base" else f",peft={name}"
        values = [0.0, 0.0] if name == "base" else [1.0, 1.0]
        write_run(f"out/{name}", {"demo": labelled(values)}, model_args=f"pretrained=org/tiny{adapter}")
    (row,) = compare_runs(load_runs(tmp_path / "out")).rows
    assert row.verdict == "undecided"
    assert row.paired.p_value > 0


def test_a_rank_says_nothing_that_the_verdict_does_not(write_run, tmp_path):
    """Seeds 73.6, 66.9 and 70.6 against 67.3: undecided, and so of equal rank."""
    n = 872
    shares = {"base": 0.673, "m-seed0": 0.736, "m-seed1": 0.669, "m-seed2": 0.706}
    for name, share in shares.items():
        values = (np.random.default_rng(5).random(n) < share).astype(float).tolist()
        adapter = "" if name == "base" else f",peft={name}"
        write_run(f"out/{name}", {"demo": labelled(values)}, model_args=f"pretrained=org/tiny{adapter}")
    (row,) = compare_runs(load_runs(tmp_path / "out")).rows
    assert row.verdict == "undecided"
    assert (row.rank, row.baseline_rank) == (1, 1)
    assert row.decision.needed.of == "seeds"
    assert "needs seeds≈" in compare_runs(load_runs(tmp_path / "out")).to_markdown()


def test_a_passage_with_most_questions_leaves_few_effective_ones(write_pair):
    codes = np.repeat(np.arange(40), [260] + [10] * 39)
    sides = [
        [sample(i, {"idx": i, "context": f"passage {c}"}, {"acc": float(v)}, target=i % 2)
         for i, (c, v) in enumerate(zip(codes, RNG.random(len(codes)) < share, strict=True))]
        for share in (0.5, 0.7)
    ]  # fmt: skip
    comparison = compare_runs(load_runs(write_pair("demo", *sides)))
    (row,) = comparison.rows
    assert row.paired.effective_units == pytest.approx(650**2 / (260**2 + 39 * 100))
    assert row.verdict == "undecided"
    (finding,) = [finding for finding in comparison.findings if finding.id == "R07"]
    assert finding.numbers["effective"] == pytest.approx(row.paired.effective_units)


def test_hundreds_of_clear_gains_are_found(write_run, tmp_path):
    """Holm over 510 graded tests of +50 points each; p-values are not bounded by the number of draws."""
    base = {f"t{task:02d}": (RNG.random(40) * 0.3).tolist() for task in range(51)}
    for name in ("base", *(f"a{number}" for number in range(10))):
        gain = 0.0 if name == "base" else 0.5
        tasks = {
            task: labelled([v + gain + 0.01 * float(RNG.random()) for v in values], "f1")
            for task, values in base.items()
        }
        adapter = "" if name == "base" else f",peft={name}"
        write_run(f"out/{name}", tasks, model_args=f"pretrained=org/tiny{adapter}")
    comparison = compare_runs(load_runs(tmp_path / "out"))
    assert {row.verdict for row in comparison.rows} == {"better"}
    assert len(comparison.rows) == 510


def test_rows_that_were_filtered_out_are_named(write_run, tmp_path):
    for name, adapter in (("base", ""), ("one", ",peft=one"), ("two", ",peft=two")):
        tasks = {task: labelled((RNG.random(50) < 0.5).astype(float).tolist()) for task in ("x", "y")}
        write_run(f"out/{name}", tasks, model_args=f"pretrained=org/tiny{adapter}")
    comparison = compare_runs(load_runs(tmp_path / "out"), tasks=["x"], only=["one"])
    (finding,) = [finding for finding in comparison.findings if finding.id == "R14"]
    assert sorted(finding.numbers["rows"]) == ["one on y", "two on x", "two on y"]
    assert finding.text in comparison.notes


def test_a_certain_small_loss_is_equivalent_and_its_sign_is_shown(write_pair):
    before = np.full(20_000, 0.6)
    after = before - 0.004 + RNG.normal(0, 0.01, 20_000)
    comparison = compare_runs(
        load_runs(write_pair("demo", labelled(before.tolist(), "f1"), labelled(after.tolist(), "f1")))
    )
    (row,) = comparison.rows
    assert (row.verdict, row.decision.direction) == ("equivalent", -1)
    assert "small loss" in comparison.to_markdown()


@pytest.mark.parametrize(
    ("task", "column"), [("drop", "passage"), ("boolq", "passage"), ("race", "article"), ("mnli", "premise")]
)
def test_known_tasks_have_their_unit_of_evidence(task, column, write_pair):
    sides = [on_passages((RNG.random(120) < 0.5).astype(float).tolist(), 5, column=column) for _ in range(2)]
    (row,) = compare_runs(load_runs(write_pair(task, *sides))).rows
    assert row.paired.units == 24


@pytest.mark.parametrize("way", ["yaml", "flag", "nothing"])
def test_any_column_can_be_declared(way, write_pair):
    both = {"configs": {"mine": {"metadata": {"cluster": "story"}}}} if way == "yaml" else {}
    sides = [on_passages((RNG.random(120) < 0.5).astype(float).tolist(), 5, column="story") for _ in range(2)]
    clusters = {"mi*": "story"} if way == "flag" else {}
    comparison = compare_runs(load_runs(write_pair("mine", *sides, both=both)), clusters=clusters)
    (row,) = comparison.rows
    assert row.paired.units == (120 if way == "nothing" else 24)
    findings = [finding for finding in comparison.findings if finding.id == "R08"]
    assert [finding.numbers["column"] for finding in findings] == (["story"] if way == "nothing" else [])


def test_a_right_choice_that_always_stands_first_is_no_floor(write_pair):
    sides = [
        [sample(i, {"idx": i}, {"acc": float(v)}, target=0) for i, v in enumerate(RNG.random(300) < p)]
        for p in (0.8, 0.85)
    ]
    comparison = compare_runs(load_runs(write_pair("blimp_anaphor", *sides)))
    assert comparison.rows[0].floor is None
    assert not comparison.warnings


def test_positions_are_no_labels(write_pair):
    """HellaSwag, MMLU: the gold label is a place among the document's own choices; guessing is the floor."""

    def multiple_choice(i: int, value: float) -> dict:
        row = sample(i, {"idx": i}, {"acc": value}, target=i % 7 % 4)
        row["arguments"] = {f"gen_args_{k}": {"arg_0": "p", "arg_1": f" choice {k}"} for k in range(4)}
        row["resps"] = [[[-1.0 - k, False]] for k in range(4)]
        return row

    both = {"configs": {"demo": {"output_type": "multiple_choice", "doc_to_choice": "{{endings}}"}}}
    sides = [[multiple_choice(i, float(v)) for i, v in enumerate(RNG.random(300) < p)] for p in (0.5, 0.6)]
    (row,) = compare_runs(load_runs(write_pair("demo", *sides, both=both))).rows
    assert (row.floor.kind, row.floor.value) == ("chance", 0.25)
