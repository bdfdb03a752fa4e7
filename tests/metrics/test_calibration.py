"""Contextual calibration and the abstention threshold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_ext.errors import MetricError
from harness_ext.metrics.calibration import Abstention, best_threshold, calibrate, content_free_prior
from harness_ext.metrics.labels import softmax

logprob = st.floats(-30, 0)
rows_of = st.lists(st.tuples(logprob, st.sampled_from([0.0, 50.0, 100.0]), st.sampled_from([0.0, 100.0])), min_size=1)


# Oracle: Zhao et al. (2021), equation 1, by hand: q = W p with W = diag(1 / p_content_free).
def test_calibrate_by_hand() -> None:
    prior = [0.8, 0.2]
    p = [0.7, 0.3]
    expected = [0.7 / 0.8, 0.3 / 0.2]
    calibrated = softmax(calibrate([math.log(x) for x in p], [[math.log(x) for x in prior]]))
    assert calibrated == pytest.approx([x / sum(expected) for x in expected])


def test_the_prior_is_a_mean_of_probabilities() -> None:
    assert content_free_prior([[math.log(0.9), math.log(0.1)], [math.log(0.5), math.log(0.5)]]) == pytest.approx(
        [0.7, 0.3]
    )


@given(st.lists(logprob, min_size=2, max_size=4), st.floats(-5, 5))
def test_an_input_that_says_nothing_is_calibrated_to_even_odds(scores: list[float], shift: float) -> None:
    even = softmax(calibrate([score + shift for score in scores], [scores]))
    assert even == pytest.approx([1 / len(scores)] * len(scores))


def test_a_choice_that_is_never_said_unasked() -> None:
    assert all(map(math.isfinite, calibrate([-1.0, -2.0], [[0.0, -math.inf]])))


@pytest.mark.parametrize(
    ("logprobs", "free", "message"),
    [
        ([-1.0, -2.0], [], "at least one content-free input"),
        ([-1.0, -2.0], [[-1.0, -2.0], [-1.0]], r"got \[2, 1\] log-probabilities"),
        ([-1.0, -2.0], [[-1.0, -2.0, -3.0]], "2 choices, but 3"),
    ],
)
def test_what_cannot_be_calibrated(logprobs: list[float], free: list[list[float]], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        calibrate(logprobs, free)


def score(rows: list[tuple[float, float, float]], threshold: float) -> float:
    return sum(row[2] if row[0] > threshold else row[1] for row in rows) / len(rows)


# Oracle: try every threshold that gives a different result.
@given(rows_of)
def test_no_threshold_is_better(rows: list[tuple[float, float, float]]) -> None:
    threshold = best_threshold(rows)
    assert threshold.score == pytest.approx(score(rows, threshold.logprob))
    tried = [-math.inf, *(row[0] for row in rows)]
    assert threshold.score == pytest.approx(max(score(rows, each) for each in tried))


@given(rows_of, st.randoms())
def test_the_order_of_documents_does_not_matter(rows: list[tuple[float, float, float]], random: object) -> None:
    other = list(rows)
    random.shuffle(other)  # type: ignore[attr-defined]
    assert best_threshold(rows) == best_threshold(other)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(-1.0, 100.0, 0.0), (-2.0, 100.0, 0.0)], -1.0),  # never abstain
        ([(-1.0, 0.0, 100.0), (-2.0, 0.0, 100.0)], -3.0),  # always
        ([(-1.0, 0.0, 100.0), (-1.0, 0.0, 100.0), (-5.0, 100.0, 0.0)], -3.0),
        ([(-1.0, 0.0, 0.0), (-2.0, 0.0, 0.0)], -1.0),  # no difference: do not abstain
        ([(-1.0, 100.0, 0.0), (-1.0, 0.0, 100.0)], -1.0),  # a tie cannot be split
    ],
)
def test_thresholds_by_hand(rows: list[tuple[float, float, float]], expected: float) -> None:
    assert best_threshold([Abstention(*row) for row in rows]).logprob == expected


def test_no_documents() -> None:
    with pytest.raises(MetricError, match="at least one document of the training split"):
        best_threshold([])
