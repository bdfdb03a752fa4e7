"""The functions that task YAMLs name: scores of one document, and their aggregations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_ext import hooks
from harness_ext.errors import MetricError

CHOICES = ["negative", "positive"]


def review(label: int) -> dict[str, Any]:
    return {"sentence": "…", "label": label, "choices": CHOICES}


def question(*answers: str) -> dict[str, Any]:
    return {"answers": {"text": list(answers)}}


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def columns(scores: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Values as lm-eval collects them: a metric's list contains only documents that have it."""
    collected = defaultdict(list)
    for each in scores:
        for name, value in each.items():
            collected[name].append(value)
    return collected


# -- forced choice -----------------------------------------------------------------------------------------------

# Worked out by hand: p(positive) = 1 / (1 + exp(lp0 - lp1)).
CHOICE_CASES = [
    # label, log-probabilities, acc, p(gold)
    (1, (-3.0, -1.0), 1.0, 1 / (1 + math.exp(-2))),
    (1, (-1.0, -3.0), 0.0, 1 / (1 + math.exp(2))),
    (0, (-1.0, -3.0), 1.0, 1 / (1 + math.exp(-2))),
    (0, (-2.0, -2.0), 1.0, 0.5),  # a tie goes to the first choice
    (1, (-2.0, -2.0), 0.0, 0.5),
    (0, (-1.0, -math.inf), 1.0, 1.0),
]


@pytest.mark.parametrize(("label", "logprobs", "acc", "p_gold"), CHOICE_CASES)
def test_score_choice(label: int, logprobs: tuple[float, float], acc: float, p_gold: float) -> None:
    scores = hooks.score_choice(review(label), [(logprob, False) for logprob in logprobs])
    predicted = label if acc else 1 - label
    assert scores["acc"] == acc
    assert scores["macro_f1"] == scores["mcc"] == (label, predicted)
    assert scores["brier"] == pytest.approx((1 - p_gold) ** 2)
    assert scores["log_loss"] == pytest.approx(-math.log(p_gold), abs=1e-12)
    assert scores["ece"] == (pytest.approx(max(p_gold, 1 - p_gold)), acc)
    assert scores["auroc"] == (label, logprobs[1] - logprobs[0])
    assert (scores["majority_baseline"], scores["top_class_share"]) == (label, predicted)


def test_score_choice_of_three_has_no_auroc() -> None:
    scores = hooks.score_choice({"label": 2, "choices": ["a", "b", "c"]}, [(-3.0, False), (-2.0, False), (-1.0, True)])
    assert scores["acc"] == 1.0
    assert "auroc" not in scores


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize(
    "score",
    [
        lambda doc: hooks.score_choice(doc, [(-1.0, False), (-2.0, False)]),
        lambda doc: hooks.score_label(doc, ["positive"]),
    ],
)
def test_a_label_outside_the_choices(score: Any, label: int) -> None:
    with pytest.raises(MetricError) as caught:
        score({**review(label), "sentence": "two\nlines"})
    assert f"label {label}, outside its 2 choices" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- generated label ---------------------------------------------------------------------------------------------

LABEL_CASES = [
    # label, output, acc, parsed
    (1, " positive", 1.0, True),
    (1, "Positive.", 1.0, True),
    (1, " negative", 0.0, True),
    (0, "**Negative**", 1.0, True),
    (0, "", 0.0, False),
    (0, "positively", 0.0, False),
    (1, "not positive", 0.0, False),
    (1, "negative or positive", 0.0, False),
]


@pytest.mark.parametrize(("label", "output", "acc", "parsed"), LABEL_CASES)
def test_score_label(label: int, output: str, acc: float, parsed: bool) -> None:
    scores = hooks.score_label(review(label), [output])
    assert (scores["acc"], scores["parsed_rate"]) == (acc, float(parsed))
    assert ("acc_parsed" in scores) == parsed
    if parsed:
        assert scores["acc_parsed"] == acc
    else:
        assert scores["macro_f1"] == (label, None)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([case[1] for case in LABEL_CASES])), min_size=1))
def test_acc_is_parsed_rate_times_acc_parsed(documents: list[tuple[int, str]]) -> None:
    collected = columns([hooks.score_label(review(label), [output]) for label, output in documents])
    acc_parsed = mean(collected["acc_parsed"]) if collected["acc_parsed"] else 0.0
    assert mean(collected["acc"]) == pytest.approx(mean(collected["parsed_rate"]) * acc_parsed)


# -- aggregations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "values", "expected"),
    [
        # Oracle for macro_f1, mcc, auroc: scikit-learn (f1_score zero_division=0, matthews_corrcoef, roc_auc_score).
        (hooks.macro_f1, [(0, 0), (0, 1), (1, 1), (1, 1)], (2 / 3 + 4 / 5) / 2),
        (hooks.macro_f1, [(0, None), (1, None)], 0.0),
        (hooks.macro_f1, [(1, 1), (1, 0)], 2 / 3),  # only the classes that occur
        (hooks.mcc, [(0, 0), (0, 1), (1, 1), (1, 1)], 0.5773502691896258),
        (hooks.mcc, [(0, 1), (1, 1)], 0.0),
        (hooks.mcc, [(0, 1), (1, 0)], -1.0),
        (hooks.auroc, [(0, -1.0), (0, 0.5), (1, 0.5), (1, 2.0)], 0.875),
        (hooks.auroc, [(0, 3.0), (1, -3.0)], 0.0),
        (hooks.ece, [(0.9, 1.0), (0.9, 0.0)], 0.4),
        (hooks.majority_baseline, [0, 1, 1], 2 / 3),
        (hooks.top_class_share, [1, 1, None, 0], 0.5),
        (hooks.top_class_share, [None, None], 0.0),
        (hooks.abstain_precision, [(True, False), (True, True), (False, False)], 50.0),
        (hooks.abstain_recall, [(True, False), (True, True), (False, False)], 50.0),
        (hooks.abstain_f1, [(True, False), (True, True), (False, False)], 50.0),
        (hooks.abstain_precision, [(False, False)], math.nan),
        (hooks.abstain_recall, [(True, True)], math.nan),
        (hooks.abstain_f1, [(False, True)], math.nan),
    ],
)
def test_aggregations(aggregate: Any, values: list[Any], expected: float) -> None:
    assert aggregate(values) == pytest.approx(expected, nan_ok=True)


# -- SQuAD v2 ----------------------------------------------------------------------------------------------------

# Oracle: SQuAD's official evaluate-v2.0 logic on the prediction with abstention words mapped to "", by hand.
SQUAD_CASES = [
    # answers, output, exact, f1, empty, mapped
    (("the cat",), " Cat.", 100.0, 100.0, 0.0, 0.0),
    (("cat sat", "cat"), "a cat", 100.0, 100.0, 0.0, 0.0),
    (("black cat sat",), "the cat cat", 0.0, 40.0, 0.0, 0.0),
    (("cat",), "unanswerable", 0.0, 0.0, 0.0, 100.0),
    (("cat",), "", 0.0, 0.0, 100.0, 0.0),
    ((), " Unanswerable.", 100.0, 100.0, 0.0, 100.0),
    ((), "no answer", 100.0, 100.0, 0.0, 100.0),
    ((), "  ", 100.0, 100.0, 100.0, 0.0),
    ((), "cat", 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("answers", "output", "exact", "f1", "empty", "mapped"), SQUAD_CASES)
def test_score_squad_v2(
    answers: tuple[str, ...], output: str, exact: float, f1: float, empty: float, mapped: float
) -> None:
    scores = hooks.score_squad_v2(question(*answers), [output])
    group, other = ("HasAns", "NoAns") if answers else ("NoAns", "HasAns")
    abstained = bool(empty or mapped)
    assert (scores["exact"], scores["f1"]) == (exact, pytest.approx(f1))
    assert (scores[f"{group}_exact"], scores[f"{group}_f1"]) == (exact, pytest.approx(f1))
    assert not [name for name in scores if name.startswith(other)]
    assert (scores["empty_rate"], scores["mapped_rate"]) == (empty, mapped)
    assert scores["abstain_baseline"] == (0.0 if answers else 100.0)
    assert scores["abstain_precision"] == scores["abstain_recall"] == scores["abstain_f1"] == (abstained, bool(answers))


@given(st.lists(st.sampled_from([case[:2] for case in SQUAD_CASES]), min_size=1))
def test_squad_totals_are_the_weighted_classes(documents: list[tuple[tuple[str, ...], str]]) -> None:
    collected = columns([hooks.score_squad_v2(question(*answers), [output]) for answers, output in documents])
    for metric in ("exact", "f1"):
        parts = [collected[f"{group}_{metric}"] for group in ("HasAns", "NoAns")]
        weighted = math.fsum(len(part) / len(documents) * mean(part) for part in parts if part)
        assert mean(collected[metric]) == pytest.approx(weighted)
    unanswerable = mean([100.0 * (not answers) for answers, _ in documents])
    assert mean(collected["abstain_baseline"]) == pytest.approx(unanswerable)
    # On an unanswerable question, abstaining is what exact match counts.
    if collected["NoAns_exact"]:
        assert hooks.abstain_recall(collected["abstain_recall"]) == pytest.approx(mean(collected["NoAns_exact"]))


def test_every_name_is_there() -> None:
    assert all(callable(getattr(hooks, name)) for name in hooks.__all__)


# -- calibrated, several prompts, answers in other shapes ----------------------------------------------------------


def test_score_choice_calibrated() -> None:
    own, free = [(-1.0, False), (-1.5, False)], [(-1.0, False), (-2.0, False)]
    scores = hooks.score_choice_calibrated(review(1), own + free * 3)
    # -1.5 - (-2.0) > -1.0 - (-1.0): without content the model prefers the first choice by one nat, here only by half.
    assert (scores["acc"], scores["acc_uncalibrated"]) == (1.0, 0.0)
    assert scores["auroc"] == (1, pytest.approx(0.5))
    assert scores["content_free_share"] == pytest.approx(1 / (1 + math.exp(-1)))


def test_score_prompts() -> None:
    right, wrong = [(-2.0, False), (-1.0, False)], [(-1.0, False), (-2.0, False)]
    scores = [hooks.score_prompts(review(1), rows) for rows in (right + wrong + right, right + wrong + wrong)]
    collected = columns(scores)
    assert collected["acc_mean"] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert collected["consistency"] == [0.0, 0.0]
    assert hooks.score_prompts(review(0), wrong * 3)["consistency"] == 1.0
    # Accuracies of the three prompts: 1, 0, 1/2.
    assert (
        hooks.minimum(collected["acc_min"]),
        hooks.median(collected["acc_median"]),
        hooks.maximum(collected["acc_max"]),
    ) == (
        0.0,
        0.5,
        1.0,
    )


@pytest.mark.parametrize(
    "doc",
    [
        {"answers": {"text": ["cat", "a dog"], "answer_start": [0, 1]}},
        {"answers": ["cat", "a dog"]},
        {"answer": ["dog"]},
        {"answer": "dog"},
        {"answer": {"value": "cat", "aliases": ["The Dog"], "normalized_aliases": ["dog"]}},
    ],
)
def test_answers_in_any_shape(doc: dict[str, Any]) -> None:
    assert hooks.score_answer(doc, [" the dog."])["exact"] == 100.0


def test_a_question_without_answer_is_named() -> None:
    with pytest.raises(MetricError, match="document 'q7' has no reference answer"):
        hooks.score_answer({"id": "q7", "answers": []}, ["cat"])


def test_best_threshold() -> None:
    rows = [(-1.0, 0.0, 100.0), (-5.0, 100.0, 0.0)]
    assert (hooks.best_threshold(rows), hooks.exact_tuned(rows)) == (-3.0, 100.0)


def test_an_answer_of_an_article_alone_has_no_overlap() -> None:
    scores = hooks.score_squad_v1({"answers": {"text": ["The"]}}, ["the"])
    assert scores == {"exact": 100.0, "f1": 0.0, "empty_rate": 0.0}


def test_overlaps_say_once_how_they_were_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="harness_ext")
    hooks.answers._say_once.cache_clear()
    for _ in range(2):
        scores = hooks.score_squad_v1({"answers": {"text": ["black cat"]}}, ["cat"])
        hooks.bleu([scores["bleu"]])
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in messages if message.startswith("ROUGE")] == ["ROUGE"]
    assert [message for message in messages if message.startswith("BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")]
    assert [
        message for message in messages if message.startswith("METEOR")
    ]  # how it was computed, or why it is missing
