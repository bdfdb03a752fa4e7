"""Figures of a task: confusion, reliability, distributions; and what is shown of a calibrated model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lm_eval_files import sample

from harness_ext.metrics.labels import (
    calibration_bins,
    calibration_error_of_chance,
    calibration_p,
    expected_calibration_error,
)
from harness_ext.reporting.measures import Measures, distributions, kinds_of_document
from harness_ext.reporting.samples import budgets, shared_lines, shortened
from harness_ext.results.outputs import iter_outputs
from harness_ext.results.run import MetricValue, TaskResult


def measured(samples: list[dict], config: dict[str, Any], **metrics: float) -> Measures:
    values = {name: MetricValue(name, "none", value) for name, value in metrics.items()}
    result = TaskResult("t", None, 0, values, None, len(samples), None, config)
    measures = Measures("run", result)
    result = TaskResult(
        "t", None, 0, values, None, len(samples), __file__, config, read_samples=lambda _: iter(samples)
    )
    for output in iter_outputs(result, "none"):
        measures.add(output, float(output.logged["acc"]))
    return measures


def choice(number: int, logprobs: list[float], gold: int, **scores: Any) -> dict:
    """A forced choice as stock lm-eval logs it: the reference is the number of a choice."""
    right = float(int(np.argmax(logprobs)) == gold)
    one = sample(number, {"idx": number}, {"acc": right, **scores}, target=gold)
    words = {f"gen_args_{k}": {"arg_0": "Q:", "arg_1": f" {word}"} for k, word in enumerate(("no", "yes", "maybe"))}
    return {**one, "arguments": words, "resps": [[[str(value), "False"]] for value in logprobs]}


CHOICE = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes", "maybe"]}


def test_stock_choices_give_all_figures() -> None:
    rows = [([-1.0, -2.0, -9.0], 0), ([-1.0, -2.0, -9.0], 1), ([-5.0, -1.0, -9.0], 1), ([-5.0, -4.0, -1.0], 2)]
    measures = measured([choice(n, logprobs, gold) for n, (logprobs, gold) in enumerate(rows)], CHOICE)
    matrix = measures.confusion()
    assert matrix is not None
    assert matrix.classes == ("no", "yes", "maybe")
    assert matrix.counts == ((1, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0))
    assert not matrix.has_unparsed
    diagram = measures.reliability()
    assert diagram is not None
    assert sum(each.n for each in diagram.bins) == 4
    (right,) = distributions([measures], "acc")
    assert sum(right.counts["run"]) == 4
    assert len(right.edges) == len(right.counts["run"]) + 1


def test_the_logged_ece_is_shown() -> None:
    rows = [choice(n, [-1.0, -2.0, -9.0], 0, ece=[0.7, 1.0]) for n in range(4)]
    diagram = measured(rows, CHOICE, ece=0.123).reliability()
    assert diagram is not None
    assert diagram.error == 0.123
    assert [each.confidence for each in diagram.bins] == pytest.approx([0.7])


def test_outputs_that_do_not_parse_have_a_column() -> None:
    pairs = [(0, 0), (1, None), (1, 1)]
    samples = [sample(n, {"choices": ["no", "yes"]}, {"acc": 0.0, "macro_f1": list(p)}) for n, p in enumerate(pairs)]
    matrix = measured(samples, {}).confusion()
    assert matrix is not None
    assert matrix.counts == ((1, 0, 0), (0, 1, 1))
    assert matrix.has_unparsed


@pytest.mark.parametrize("pair", [[0, 40], [-1, 0], "ab", [True, False], [None, 1], [0]])
def test_strange_labels_have_no_matrix(pair: Any) -> None:
    samples = [sample(n, {"choices": ["no", "yes"]}, {"acc": 0.0, "macro_f1": pair}) for n in range(3)]
    assert measured(samples, {}).confusion() is None


def test_graded_scores_and_kinds_of_documents() -> None:
    samples = [sample(n, {}, {"acc": value}) for n, value in enumerate((0.0, 40.0, 100.0, 100.0))]
    measures = measured(samples, {"metadata": {"metric_scale": 100}}, HasAns_f1=40.0, NoAns_f1=100.0, exact=50.0)
    (scores,) = distributions([measures], "f1")
    assert (scores.counts["run"][0], scores.counts["run"][8], scores.counts["run"][-1]) == (1, 1, 2)
    kinds = {each.metric: each.values["run"] for each in kinds_of_document([measures])}
    assert kinds == pytest.approx({"HasAns_f1": 0.4, "NoAns_f1": 1.0})
    assert distributions([measured([sample(0, {}, {"acc": 1.0})], {})], "acc") == []


# Oracle: simulation of calibrated models.
def test_what_a_calibrated_model_has_by_chance() -> None:
    draw = np.random.default_rng(0)
    errors, chances, p_values = [], [], []
    for _ in range(400):
        confidences = draw.uniform(0.5, 1.0, 300)
        correct = (draw.uniform(size=300) < confidences).astype(float)
        bins = calibration_bins(confidences, correct)
        errors.append(expected_calibration_error(confidences, correct))
        chances.append(calibration_error_of_chance(bins))
        p_values.append(calibration_p(bins))
    assert np.mean(chances) == pytest.approx(np.mean(errors), rel=0.03)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_an_overconfident_model_is_told() -> None:
    draw = np.random.default_rng(0)
    correct = (draw.uniform(size=300) < 0.6).astype(float)
    assert calibration_p(calibration_bins([0.9] * 300, correct)) < 1e-6
    assert calibration_p(calibration_bins([1.0] * 3, [1.0] * 3)) == 1.0
    assert calibration_p(calibration_bins([1.0] * 3, [1.0, 1.0, 0.0])) == 0.0


def test_budgets_and_texts() -> None:
    assert [each.documents for each in budgets([])] == []
    assert sum(each.documents for each in budgets([30_000] * 7)) <= 20_000
    assert shared_lines(["only"]) == ""
    assert shared_lines(["A\nB\nx", "A\nB\ny", "A\nB\n"]) == "A\nB\n"
    assert shared_lines(["same", "same"]) == ""
    text = shortened("a" * 15_000 + "b" * 85_000 + "c" * 5_000)
    assert text.startswith("a" * 15_000 + "\n[… 85,000 of 105,000 ")
    assert text.endswith("c" * 5_000)
