"""Label metrics against scikit-learn and scipy; the label parser against a hand-written table."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.special
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.errors import MetricError
from harness_ext.metrics.known import MACRO_F1, MCC
from harness_ext.metrics.labels import (
    brier,
    expected_calibration_error,
    log_loss,
    majority_baseline,
    parse_label,
    softmax,
)

reproducibly = settings(derandomize=True, database=None, deadline=None, max_examples=200)


# --- scores of labels ---


# Oracle: the counts of the SST-2 dev set, 444 of 872 positive.
def test_one_predicted_class_on_sst2_is_the_baseline() -> None:
    golds = [1] * 444 + [0] * 428
    pairs = [(gold, 1) for gold in golds]
    assert majority_baseline(golds) == pytest.approx(0.5092, abs=5e-5)
    assert MACRO_F1(pairs) == pytest.approx(0.3374, abs=5e-5)
    assert MCC(pairs) == 0.0


# --- scores of probabilities ---


# Oracle: scikit-learn; for more than two classes, half the sum of the one-vs-rest Brier scores.
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_probability_scores_agree_with_sklearn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    golds = [*range(classes), *rng.integers(classes, size=60).tolist()]
    logprobs = rng.normal(scale=3, size=(len(golds), classes))
    logprobs[0, 0] = -math.inf  # a gold of probability 0: log loss must be clipped
    probabilities = [softmax(row) for row in logprobs.tolist()]
    np.testing.assert_allclose(probabilities, scipy.special.softmax(logprobs, axis=1), rtol=1e-12)

    columns = np.asarray(probabilities).T
    one_against_rest = [
        oracle.brier_score_loss([gold == label for gold in golds], column) for label, column in enumerate(columns)
    ]
    assert brier(golds, probabilities) == pytest.approx(sum(one_against_rest) / 2)
    assert log_loss(golds, probabilities) == pytest.approx(oracle.log_loss(golds, probabilities))
    if classes == 2:
        assert brier(golds, probabilities) == pytest.approx(oracle.brier_score_loss(golds, columns[1]))


# Oracle: sort, cut into equal parts with numpy.array_split, average the gaps by mass.
@pytest.mark.parametrize(("size", "bins"), [(150, 15), (872, 4), (7, 7), (12, 1)])
def test_calibration_error_agrees_with_array_split(size: int, bins: int) -> None:
    rng = np.random.default_rng(size)
    confidences = rng.permutation(np.linspace(0.5, 1, size))
    correct = rng.random(size) < 0.8
    parts = np.array_split(np.argsort(confidences), bins)
    expected = sum(len(part) / size * abs(correct[part].mean() - confidences[part].mean()) for part in parts)
    ours = expected_calibration_error(confidences.tolist(), correct.tolist(), bins=bins)
    assert ours == pytest.approx(expected)


@reproducibly
@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=40),
    seed=st.integers(0, 99),
)
def test_calibration_error_does_not_depend_on_row_order(rows: list[tuple[float, bool]], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    first, second = (
        expected_calibration_error([p for p, _ in table], [right for _, right in table]) for table in (rows, shuffled)
    )
    assert 0 <= first <= 1
    assert first == pytest.approx(second)


def test_calibration_error_of_equal_confidences_is_one_gap() -> None:
    assert expected_calibration_error([0.9] * 10, [True] * 6 + [False] * 4) == pytest.approx(0.3)


# --- invalid input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: majority_baseline([]), "0 golds"),
        (lambda: brier([0, 1], [[0.5, 0.5], [0.5, 0.6]]), "document 1 has .* sum to 1"),
        (lambda: brier([0], [[math.nan, 1.0]]), "sum to 1"),
        (lambda: brier([0], [[]]), "sum to 1"),
        (lambda: log_loss([-1], [[0.5, 0.5]]), "gold -1"),
        (lambda: expected_calibration_error([1.5], [True]), "probabilities from 0 to 1"),
        (lambda: expected_calibration_error([0.5], [True], bins=0), "at least one bin"),
        (lambda: softmax([-math.inf, -math.inf]), "cannot normalise"),
        (lambda: softmax([1.0, math.nan]), "cannot normalise"),
        (lambda: parse_label("yes", []), "different words"),
        (lambda: parse_label("yes", ["Yes", "yes "]), "different words"),
        (lambda: parse_label("yes", "yes"), "different words"),
    ],
)
def test_what_cannot_be_scored_is_refused(call: object, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        call()  # type: ignore[operator]


# --- labels in generated text ---

SENTIMENT = ["negative", "positive"]
NEWS = ["sports", "sports news", "Sci/Tech", "world"]
NLI = ["entailment", "not_entailment"]
RUSSIAN = ["отрицательный", "положительный"]
HINDI = ["नकारात्मक", "सकारात्मक"]


# Oracle: by hand, one block per rule of the docstring.
@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("positive", SENTIMENT, 1),
        (" POSITIVE\n\nReview: negative", SENTIMENT, 1),  # run-on text after the first line
        ("Sentiment: positive", SENTIMENT, 1),
        ("The review is negative.", SENTIMENT, 0),
        ("positive positive positive", SENTIMENT, 1),
        # 1: opening marks
        ("**Positive**", SENTIMENT, 1),
        ('"positive".', SENTIMENT, 1),
        ("“_Positive_”", SENTIMENT, 1),
        ("- `negative`", SENTIMENT, 0),
        ("```\nnegative\n```", SENTIMENT, 0),
        ("Label:\npositive", SENTIMENT, None),  # no label on the first line
        # 2: whole words
        ("positively negative", SENTIMENT, 0),
        ("positively", SENTIMENT, None),
        ("non-positive", SENTIMENT, None),
        ("the world's end", NEWS, None),
        ("'world'", NEWS, 3),
        ("3.5 stars", ["3", "4"], None),
        ("3.", ["3", "4"], 0),
        ("13", ["1", "3"], None),
        # 3: overlapping choices
        ("Sports  news", NEWS, 1),
        ("sports newspaper", NEWS, 0),
        ("sci/tech", NEWS, 2),
        ("not_entailment", NLI, 1),
        ("not positive", ["positive", "not positive"], 1),
        # 4: no mention
        ("", SENTIMENT, None),
        (" \n ", SENTIMENT, None),
        ("I cannot tell", SENTIMENT, None),
        # 5: two choices
        ("Positive, I see nothing negative here", SENTIMENT, 1),
        ("Positive. Negative parts are few.", SENTIMENT, 1),
        ("positive or negative", SENTIMENT, None),
        ("**Positive** / **Negative**", SENTIMENT, None),
        ("Is it positive or negative?", SENTIMENT, None),
        ("Both negative and positive", SENTIMENT, None),
        ("It is positive. Few parts are negative.", SENTIMENT, None),
        # 6: negation
        ("not positive", SENTIMENT, None),
        ("It isn’t a very positive review", SENTIMENT, None),
        ("Never negative", SENTIMENT, None),
        ("I am not sure, but: positive", SENTIMENT, 1),  # another clause
        ("No, it is not.", ["no", "yes"], 0),
        # any language
        ("Ответ: Положительный.", RUSSIAN, 1),
        ("положительными", RUSSIAN, None),
        ("सकारात्मक।", HINDI, 1),
        ("सकारात्मकता", HINDI, None),
        ("सका", ["सक"], None),  # a combining vowel sign continues the word
        ("情感：正面。", ["负面", "正面"], 1),
        ("Ne\u0301gatif", ["négatif", "positif"], 0),  # decomposed accent
        ("STRASSE", ["Straße"], 0),
        ("👍 great", ["👎", "👍"], 1),
    ],
)
def test_parse_label(text: str, choices: list[str], expected: int | None) -> None:
    assert parse_label(text, choices) == expected


@reproducibly
@given(
    choices=st.sampled_from([SENTIMENT, NEWS, NLI, RUSSIAN, HINDI]),
    index=st.integers(0, 1),
    wrapper=st.sampled_from(["{}", "**{}**", '"{}".', "Answer: {}", "({})", " {}\n{}", "> _{}_ !", "{}\r\nnot {}"]),
    case=st.sampled_from([str, str.upper, str.title]),
)
def test_a_declared_choice_is_read_in_any_wrapping(choices: list[str], index: int, wrapper: str, case: type) -> None:
    assert parse_label(wrapper.replace("{}", case(choices[index])), choices) == index


@reproducibly
@given(
    text=st.text() | st.lists(st.sampled_from(["positive", "negative", "not", "or", " ", "\n", "*", "-"])).map("".join)
)
def test_any_text_is_a_choice_or_unparsed(text: str) -> None:
    assert parse_label(text, SENTIMENT) in (None, 0, 1)
