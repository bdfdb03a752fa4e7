"""Declarations of metrics, from the table and from YAML; hooks and comparison compute the same values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from harness_ext.errors import MetricError
from harness_ext.metrics import declarations
from harness_ext.metrics.declarations import declared, load_statistics
from harness_ext.metrics.known import known_statistics
from harness_ext.metrics.statistic import POINTS, SHARE, Statistic


@pytest.mark.parametrize(
    ("metric", "siblings", "unit", "higher"),
    [
        ("acc", (), SHARE, True), ("acc_norm", (), SHARE, True), ("exact_match", (), SHARE, True),
        ("f1", (), SHARE, True), ("f1", ("exact",), POINTS, True), ("HasAns_f1", (), POINTS, True),
        ("bleu", (), POINTS, True), ("bleu_acc", (), SHARE, True), ("rouge1_max", (), POINTS, True),
        ("wer", (), SHARE, False), ("log_loss", (), "nats", False),
        ("HasAns_bits_per_byte", (), "bits per byte", False),
        ("word_perplexity", (), "perplexity", False), ("mcc", (), SHARE, True), ("pass@1", (), SHARE, True),
        ("judge_score", (), "", None),
    ],
)  # fmt: skip
def test_units(metric, siblings, unit, higher):
    declarations = declared(metric, siblings=siblings)
    assert {statistic.unit for statistic in declarations} == {unit}
    assert {statistic.higher_is_better for statistic in declarations} == {higher}


@pytest.mark.parametrize(
    ("metadata", "unit", "limits", "margin"),
    [
        ({}, "", (None, None), None),
        ({"metric_scale": 1}, SHARE, (0, 1), None),
        ({"metric_scale": 100}, POINTS, (0, 100), None),
        ({"metrics": {"mine": {"unit": "marks", "range": [1, 5], "margin": 0.1}}}, "marks", (1, 5), 0.1),
        ({"metrics": {"mine": {"unit": "share"}}}, SHARE, (0, 1), None),
        ({"metric_scale": 100, "metrics": {"mine": {"unit": "seconds"}}}, "seconds", (None, None), None),
    ],
)
def test_a_task_declares_its_metrics(metadata, unit, limits, margin):
    (statistic,) = declared("mine", metadata)
    assert (statistic.unit, statistic.limits, statistic.margin) == (unit, limits, margin)


def test_a_task_cannot_rescale_what_has_a_unit_of_its_own():
    (statistic,) = declared("log_loss", {"metric_scale": 100})
    assert statistic.unit == "nats"


# A task that declares 0-100 logs all its metrics on that scale, or only the averaged ones; both use one declaration.
@pytest.mark.parametrize(("metric", "scale"), [("macro_f1", 100), ("f1", 100), ("abstain_f1", 1)])
def test_a_computed_metric_may_be_logged_on_either_scale(metric, scale):
    units = {each.unit for each in declared(metric, {"metric_scale": scale}) if not each.is_mean}
    assert units == {SHARE, POINTS}


def test_points_become_shares():
    (statistic,) = declared("exact")
    assert statistic.in_shares() == Statistic("exact", SHARE, 0, 1, higher_is_better=True)
    bleu = known_statistics("bleu")[1]
    logged = [(["the cat sat on the mat today"], "the cat sat on a mat today")]
    assert bleu.in_shares()(logged) == pytest.approx(bleu(logged) / 100)


OWN = """
import numpy as np
from harness_ext.metrics.statistic import Statistic

ratio = Statistic("ratio", unit="words", low=0, margin=0.5, numbers=lambda pair: (pair[0], pair[1]),
                  score=lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))
"""


def test_one_file_declares_a_metric_for_lm_eval_and_for_compare(tmp_path, write_pair):
    file = tmp_path / "scoring.py"
    file.write_text(OWN)
    (ratio,) = load_statistics(file)
    rng = np.random.default_rng(0)
    sides = [[[int(w), 1] for w in rng.poisson(mean, 200)] for mean in (12, 8)]
    assert ratio([tuple(pair) for pair in sides[0]]) == pytest.approx(np.mean([w for w, _ in sides[0]]))

    from lm_eval_files import sample

    from harness_ext.leaderboard import compare_runs
    from harness_ext.results.load import load_runs

    samples = [[sample(i, {"idx": i}, {"ratio": pair}) for i, pair in enumerate(side)] for side in sides]
    logged = {
        name: {"metrics": {"demo": {"ratio,none": ratio(side)}}}
        for name, side in zip(("base", "sst2"), sides, strict=True)
    }
    runs = load_runs(write_pair("demo", *samples, **logged))
    (row,) = compare_runs(runs, statistics=[ratio]).rows
    assert (row.unit, row.margin) == ("words", 0.5)
    assert row.difference == pytest.approx(ratio(sides[1]) - ratio(sides[0]))
    (untested,) = compare_runs(runs).rows
    assert untested.verdict is None


@pytest.mark.parametrize(
    ("text", "message"), [("x = 1\n", "declares no Statistic"), ("x = 1 / 0\n", "ZeroDivisionError")]
)
def test_a_file_without_metrics(text, message, tmp_path):
    file = Path(tmp_path, "scoring.py")
    file.write_text(text)
    with pytest.raises(MetricError, match=message):
        load_statistics(file)


def test_perplexity_and_bits():
    (word,) = known_statistics("word_perplexity")
    assert word([(-10.0, 20), (-30.0, 40)]) == pytest.approx(math.exp(40 / 60))
    assert known_statistics("bits_per_byte")[1]([(-10.0, 20), (-30.0, 40)]) == pytest.approx(40 / 60 / math.log(2))
    assert known_statistics("perplexity")[0]([-1.0, -3.0]) == pytest.approx(math.exp(2))


def test_brier_score_is_lm_evals_sum():
    """Twice our `brier`, which is halved so that it lies on 0–1."""
    score = known_statistics("brier_score")[1]
    assert score([(0, [0.8, 0.2]), (1, [0.6, 0.4])]) == pytest.approx(np.mean([0.08, 0.72]))
    assert json.dumps(score.limits) == "[0, 2]"


def test_an_installed_package_brings_a_metric(monkeypatch):
    own = Statistic("kappa", SHARE, -1, 1, higher_is_better=True)

    class Point:
        name, value = "kappa", "a_package.metrics:kappa"

        def load(self):
            return own

    monkeypatch.setattr(
        declarations.importlib.metadata,
        "entry_points",
        lambda group: [Point()] if group == declarations.ENTRY_POINTS else [],
    )
    declarations._installed.cache_clear()
    try:
        assert declared("kappa") == (own,)
    finally:
        declarations._installed.cache_clear()
