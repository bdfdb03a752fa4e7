"""Units are declared, never inferred from values: a metric's scale decides what a difference means."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from lm_eval_files import labelled, sample

from harness_ext.errors import ComparisonError, MetricError
from harness_ext.leaderboard import compare_runs
from harness_ext.metrics.known import ABSTAIN_F1
from harness_ext.results.load import load_runs

RNG = np.random.default_rng(0)
WER = RNG.random(400) * 0.5
ABOVE = np.where(np.arange(400) == 7, 1.2, WER)


def lower(metric: str, folder) -> None:
    """Write into the results that lower is better, as lm-eval does."""
    for file in folder.rglob("results_*.json"):
        payload = json.loads(file.read_text())
        for task in payload["higher_is_better"]:
            payload["higher_is_better"][task][metric] = False
        file.write_text(json.dumps(payload))


@pytest.mark.parametrize(
    ("metric", "before", "after", "higher", "shown", "verdict"),
    [
        ("wer", WER, np.clip(WER + 0.15, 0, 1), False, "+15.0", "worse"),
        ("wer", ABOVE, ABOVE + 0.15, False, "+15.0", "worse"),
        ("mse", RNG.exponential(0.3, 400), RNG.exponential(0.5, 400), False, "+0.2", "worse"),
        ("judge_score", RNG.integers(3, 8, 400), RNG.integers(3, 8, 400) + 0.7, True, "+0.", "better"),
        ("reward", RNG.normal(-0.5, 0.3, 400), RNG.normal(-0.3, 0.3, 400), True, "+0.2", "better"),
        ("HasAns_bits_per_byte", RNG.gamma(4, 0.4, 400), RNG.gamma(4, 0.2, 400), False, "-0.", "better"),
    ],
    ids=["wer", "wer-above-one", "mse", "judge", "reward", "bits"],
)
def test_large_differences_are_not_equivalent(metric, before, after, higher, shown, verdict, write_pair):
    folder = write_pair("demo", *(labelled([float(v) for v in side], metric) for side in (before, after)))
    if not higher:
        lower(metric, folder)
    comparison = compare_runs(load_runs(folder))
    (row,) = comparison.rows
    assert row.verdict == verdict
    assert row.paired.difference == pytest.approx(float(np.mean(after) - np.mean(before)))
    assert f"{shown}" in comparison.to_markdown()


def test_a_metric_without_a_unit_is_never_equivalent_and_says_so(write_pair):
    samples = labelled([float(v) for v in RNG.integers(1, 6, 300)], "judge_score")
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples)))
    (row,) = comparison.rows
    assert (row.unit, row.margin, row.verdict) == ("", None, "undecided")
    assert [finding.id for finding in comparison.findings if finding.id == "R12"] == ["R12"]


@pytest.mark.parametrize("way", ["yaml", "flag"])
def test_a_declared_margin_makes_equivalence_possible(way, write_pair):
    marks = RNG.integers(1, 6, 3000).astype(float)
    declared = (
        {"unit": "marks", "range": [1, 5], "margin": 0.1} if way == "yaml" else {"unit": "marks", "range": [1, 5]}
    )
    both = {"configs": {"demo": {"metadata": {"metrics": {"judge_score": declared}}}}}
    after = np.clip(marks + RNG.choice([-0.02, 0.02], 3000), 1, 5)
    folder = write_pair(
        "demo", labelled(marks.tolist(), "judge_score"), labelled(after.tolist(), "judge_score"), both=both
    )
    margins = {} if way == "yaml" else {"judge_score": 0.1}
    (row,) = compare_runs(load_runs(folder), margins=margins).rows
    assert (row.unit, row.margin, row.verdict) == ("marks", 0.1, "equivalent")


def test_a_mistake_in_a_declaration_is_named(write_pair):
    both = {"configs": {"demo": {"metadata": {"metrics": {"acc": {"unti": "share"}}}}}}
    folder = write_pair("demo", labelled([0.0, 1.0] * 20), labelled([0.0, 1.0] * 20), both=both)
    with pytest.raises(MetricError, match=r"acc: .*'unti'; did you mean 'unit'"):
        compare_runs(load_runs(folder))


@pytest.mark.parametrize("margins", [{"acc": -1.0}, {"acc": float("nan")}])
def test_impossible_margins(margins, write_pair):
    runs = load_runs(write_pair("demo", labelled([0.0, 1.0] * 20), labelled([0.0, 1.0] * 20)))
    with pytest.raises(ComparisonError, match="--margin acc"):
        compare_runs(runs, margins=margins)


# `--margin acc=1` was read as 1 of 1: every difference was equivalent.
def test_a_margin_of_shares_is_in_points(write_pair):
    before, after = [0.0, 1.0] * 300, [0.0, 1.0] * 170 + [1.0] * 260
    runs = load_runs(write_pair("demo", labelled(before), labelled(after)))
    for margin in (1.0, 5.0):
        (row,) = compare_runs(runs, margins={"acc": margin}).rows
        assert (row.margin, row.verdict) == (margin / 100, "better")
    with pytest.raises(ComparisonError, match=r"acc, 100 points, .* --margin acc=VALUE"):
        compare_runs(runs, margins={"acc": 100})
    with pytest.raises(ComparisonError, match="no task has metric 'ac'; did you mean 'acc'"):
        compare_runs(runs, margins={"ac": 1})


# Its differences are of logarithms, so ranks by plain scores could contradict its verdicts.
def test_a_mean_on_the_log_scale_has_no_ranks(write_pair):
    declared = {"unit": "seconds", "scale": "log", "range": [0, None], "higher_is_better": False, "margin": 0.01}
    both = {"configs": {"demo": {"metadata": {"metrics": {"latency": declared}}}}}
    before = RNG.lognormal(0, 0.3, 400)
    samples = [labelled(values.tolist(), "latency") for values in (before, 0.8 * before)]
    folder = write_pair("demo", *samples, both=both)
    lower("latency", folder)
    (row,) = compare_runs(load_runs(folder)).rows
    assert (row.scale, row.verdict, row.rank) == ("log", "better", None)
    assert row.difference == pytest.approx(math.log(0.8))


# Our SQuAD tasks log abstention on 0-100; other tasks with `metric_scale: 100` may log what they compute on 0-1.
@pytest.mark.parametrize("factor", [1, 100])
def test_a_computed_metric_of_a_task_in_points(factor, write_pair):
    sides = [[(bool(RNG.random() < share), bool(has)) for has in RNG.integers(0, 2, 400)] for share in (0.9, 0.5)]
    for metric in ("abstain_f1", "f1"):
        gold = [[int(not has), int(away)] if metric == "f1" else [away, has] for side in sides for away, has in side]
        values = [ABSTAIN_F1(side) for side in sides]
        logged = {
            name: {"metrics": {"demo": {f"{metric},none": factor / 100 * value}}}
            for name, value in zip(("base", "sst2"), values, strict=True)
        }
        samples = [
            [sample(i, {"idx": i}, {metric: pair}) for i, pair in enumerate(side)] for side in (gold[:400], gold[400:])
        ]
        both = {"configs": {"demo": {"metadata": {"metric_scale": 100}}}}
        (row,) = compare_runs(load_runs(write_pair("demo", *samples, both=both, **logged))).rows
        assert row.verdict is not None
        assert 100 * row.difference == pytest.approx(values[1] - values[0])


def test_bleu_below_one_of_a_hundred_without_samples_is_shown_as_logged(write_pair):
    metrics = {side: {"metrics": {"demo": {"bleu,none": value}}, "log_samples": False}
               for side, value in (("base", 0.66), ("sst2", 0.82))}  # fmt: skip
    folder = write_pair("demo", labelled([0.0] * 10, "bleu"), labelled([0.0] * 10, "bleu"), **metrics)
    row = compare_runs(load_runs(folder)).to_json()["rows"][0]
    assert (row["baseline"]["value"], row["score"]["value"]) == pytest.approx((0.66, 0.82))


def bleu_samples(texts, golds, *, references_first):
    return [
        sample(i, {"idx": i}, {"bleu": [[gold], text] if references_first else [text, [gold]]})
        for i, (text, gold) in enumerate(zip(texts, golds, strict=True))
    ]


@pytest.mark.parametrize("references_first", [True, False])
def test_bleu_is_read_the_way_round_that_gives_the_logged_value(references_first, write_pair):
    sacrebleu = pytest.importorskip("sacrebleu")
    words = ["the", "cat", "sat", "on", "a", "mat", "while", "old", "dogs", "ran", "over", "the", "hill", "in", "rain"]
    rng = np.random.default_rng(3)
    golds = [" ".join(rng.choice(words, 12)) for _ in range(40)]

    def system(share: float) -> list[str]:
        cut = [gold.split()[: rng.integers(8, 13)] for gold in golds]
        return [" ".join(word if rng.random() < share else "thing" for word in words) for words in cut]

    sides = [system(0.7), system(0.9)]
    values = [sacrebleu.corpus_bleu(side, [golds]).score for side in sides]
    logged = {
        name: {"metrics": {"demo": {"bleu,none": value}}} for name, value in zip(("base", "sst2"), values, strict=True)
    }
    folder = write_pair(
        "demo", *(bleu_samples(side, golds, references_first=references_first) for side in sides), **logged
    )
    row = compare_runs(load_runs(folder)).to_json()["rows"][0]
    assert (row["baseline"]["value"], row["score"]["value"]) == pytest.approx(values)
    assert row["paired"]["difference"] == pytest.approx(values[1] - values[0])


def test_perplexities_are_compared_by_ratio(write_pair):
    lengths = RNG.integers(20, 90, 200)
    sides = [
        [[-float(x), int(n)] for x, n in zip(RNG.normal(per * lengths, 5), lengths, strict=True)] for per in (2.0, 1.8)
    ]
    value = [math.exp(sum(-a for a, _ in side) / sum(b for _, b in side)) for side in sides]
    logged = {
        name: {"metrics": {"demo": {"word_perplexity,none": v}}}
        for name, v in zip(("base", "sst2"), value, strict=True)
    }
    samples = [[sample(i, {"idx": i}, {"word_perplexity": pair}) for i, pair in enumerate(side)] for side in sides]
    folder = write_pair("demo", *samples, **logged)
    lower("word_perplexity", folder)
    comparison = compare_runs(load_runs(folder))
    (row,) = comparison.rows
    assert (row.scale, row.verdict) == ("log", "better")
    assert row.difference == pytest.approx(math.log(value[1] / value[0]))
    assert f"{100 * (value[1] / value[0] - 1):.1f}%" in comparison.to_markdown()


def test_what_describes_a_model_is_neither_better_nor_worse(write_pair):
    folder = write_pair("demo", labelled([0.7] * 60, "content_free_share"), labelled([0.5] * 60, "content_free_share"))
    (row,) = compare_runs(load_runs(folder)).rows
    assert row.verdict is None
    assert "describes" in row.note


@pytest.mark.parametrize("broken", [None, "x", float("nan"), float("inf")])
def test_one_broken_task_does_not_cost_the_others(broken, write_run, tmp_path):
    good, bad = labelled([0.0, 1.0] * 30), labelled([0.0, 1.0] * 30)
    bad[7]["acc"] = broken
    logged = {"metrics": {"bad": {"acc,none": 0.5 if broken is None else float("nan")}}}
    for name, adapter in (("base", ""), ("one", ",peft=one")):
        values = {
            "good": good,
            "bad": [{**row, "acc": row["acc"] if isinstance(row["acc"], float) else 0.0} for row in bad],
        }
        path = write_run(f"out/{name}", values, model_args=f"pretrained=org/tiny{adapter}", **logged)
        lines = "".join(json.dumps(row) + "\n" for row in bad)
        next(path.glob("samples_bad_*")).write_text(lines)
    comparison = compare_runs(load_runs(tmp_path / "out"))
    by_task = {row.task: row for row in comparison.rows}
    assert by_task["good"].verdict == "undecided"
    assert by_task["bad"].verdict is None
    assert by_task["bad"].note.startswith("line 8: acc is ")
    text = json.dumps(comparison.to_json())
    assert "NaN" not in text
    assert "Infinity" not in text


def test_tasks_without_the_metric_asked_for_are_named(write_run, tmp_path):
    for name, adapter in (("base", ""), ("one", ",peft=one")):
        tasks = {"x": labelled([0.0, 1.0] * 30, "f1"), "y": labelled([0.0, 1.0] * 30), "z": labelled([0.0, 1.0] * 30)}
        write_run(f"out/{name}", tasks, model_args=f"pretrained=org/tiny{adapter}")
    comparison = compare_runs(load_runs(tmp_path / "out"), metric="f1")
    assert [row.task for row in comparison.rows] == ["x"]
    (finding,) = [finding for finding in comparison.findings if finding.id == "R13"]
    assert finding.numbers["tasks"] == ["y", "z"]


@pytest.mark.parametrize("seeds", [False, True])
def test_percentages_under_a_name_of_shares_are_not_multiplied(seeds, write_run, tmp_path):
    """f1 on 0–100 without `exact` beside it, and a run that scored nothing: its zeros fit any scale."""
    values = {"base": np.zeros(300), "m-seed0": RNG.random(300) * 100, "m-seed1": RNG.random(300) * 100}
    for name in list(values)[: 3 if seeds else 2]:
        adapter = "" if name == "base" else f",peft={name}"
        tasks = {"demo": labelled(values[name].tolist(), "f1")}
        write_run(f"out/{name}", tasks, model_args=f"pretrained=org/tiny{adapter}")
    comparison = compare_runs(load_runs(tmp_path / "out"))
    (row,) = comparison.rows
    assert (row.unit, row.margin, row.verdict) == ("", None, "better")
    assert 30 < row.difference < 70
    (finding,) = [finding for finding in comparison.findings if finding.id == "R15"]
    assert finding.numbers == {"low": 0, "high": 1}


def test_a_declared_scale_of_100_is_points(write_pair):
    both = {"configs": {"demo": {"metadata": {"metric_scale": 100}}}}
    sides = [labelled((RNG.random(300) * 100).tolist(), "f1") for _ in range(2)]
    comparison = compare_runs(load_runs(write_pair("demo", *sides, both=both)))
    assert comparison.rows[0].unit == "share"
    assert not [finding for finding in comparison.findings if finding.id == "R15"]
