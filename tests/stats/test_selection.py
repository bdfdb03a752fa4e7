"""The choice of a checkpoint: cases worked out by hand, and simulations of what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness_ext.stats.paired import mcnemar, paired_difference
from harness_ext.stats.selection import choose_checkpoint
from harness_ext.stats.verdicts import significant_direction

Floats = NDArray[np.float64]


def right(*counts: int, n: int = 100) -> Floats:
    """Checkpoints that have their first documents right: (m, n)."""
    return np.array([[1.0] * count + [0.0] * (n - count) for count in counts])


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        (right(50), 0, 0),
        (right(50, 50, 50), 0, 0),  # equal: the first
        (right(50, 53), 0, 1),  # McNemar of 3 against 0: p = .25
        (right(50, 60), 1, 1),  # 10 against 0: p = .002
        (right(50, 60, 60, 58), 1, 1),  # the earliest of the good ones
        (right(60, 50, 59), 0, 0),
        (
            right(0, 94, 100, 100, 100, 100, 100, 100),
            2,
            2,
        ),  # 6 against 0: p = .03, above .05 / 7, below it for the last
    ],
)
def test_the_earliest_that_is_not_worse(scores: Floats, kept: int, best: int) -> None:
    choice = choose_checkpoint(scores)
    assert (choice.kept, choice.best) == (kept, best)


def test_p_values_are_mcnemars_with_holms_correction() -> None:
    choice = choose_checkpoint(right(50, 60, 57))
    assert choice.p_values == pytest.approx([2 * mcnemar(10, 0), 1.0, mcnemar(3, 0)])


def test_a_metric_where_lower_is_better() -> None:
    losses = 1 - right(50, 60, 60)
    assert choose_checkpoint(losses, higher_is_better=False).kept == 1
    assert choose_checkpoint(losses).kept == 0


def test_clusters_count_as_one_document_each() -> None:
    scores = right(50, 60)
    assert choose_checkpoint(scores, np.arange(100)).kept == 1
    assert choose_checkpoint(scores, np.arange(100) // 10).kept == 0  # one passage differs


def test_no_table_is_refused() -> None:
    for scores in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="table of checkpoints"):
            choose_checkpoint(scores)


def curves(true: list[float], runs: int, n: int, *, graded: bool, agreement: float = 0.8) -> list[Floats]:
    """Scores of checkpoints (m, n) in simulated trainings: a document keeps its draw with the given probability."""
    draw = np.random.default_rng(7)
    made = []
    for _ in range(runs):
        shared, own = draw.random(n), draw.random((len(true), n))
        keeps = draw.random((len(true), n)) < agreement
        scores = (np.where(keeps, shared, own) < np.array(true)[:, None]).astype(float)
        made.append(np.clip(scores + draw.normal(0, 0.1, scores.shape), 0, 1) if graded else scores)
    return made


def is_worse(reference: Floats, scores: Floats) -> bool:
    pair = paired_difference(reference, scores)
    return significant_direction(pair, pair.p_value) < 0


@pytest.mark.parametrize("graded", [False, True], ids=["right or wrong", "graded"])
def test_equal_checkpoints_are_not_chased(graded: bool) -> None:
    """Eight checkpoints of the same quality: the first is kept, but for the error level of two families of tests."""
    made = curves([0.8] * 8, 60 if graded else 300, 200, graded=graded)
    kept = np.array([choose_checkpoint(scores).kept for scores in made])
    assert (kept == 0).mean() >= 0.93


@pytest.mark.parametrize("true", [[0.6, 0.7, 0.8, 0.85, 0.88], [0.6, 0.8, 0.8, 0.8, 0.8], [0.8, 0.82, 0.7, 0.6, 0.5]])
def test_what_is_kept_is_never_significantly_worse_than_the_last(true: list[float]) -> None:
    """On the documents of the choice by construction; on others no more often than by chance."""
    both = curves(true, 150, 400, graded=False)
    on_others = []
    for scores in both:
        chosen, others = scores[:, :200], scores[:, 200:]
        kept = choose_checkpoint(chosen).kept
        assert not is_worse(chosen[-1], chosen[kept])
        on_others.append(is_worse(others[-1], others[kept]))
    if true == [0.6, 0.7, 0.8, 0.85, 0.88]:  # a truly worse one may be kept, if the documents do not tell them apart
        assert np.mean(on_others) < 0.33
    else:
        assert np.mean(on_others) < 0.06


def test_a_real_gain_is_found() -> None:
    kept = [choose_checkpoint(scores).kept for scores in curves([0.6, 0.8, 0.8, 0.8], 100, 200, graded=False)]
    assert np.mean([place == 1 for place in kept]) > 0.9


def test_the_score_of_the_choice_is_too_high_and_on_other_documents_it_is_not() -> None:
    """The winner's curse, where something is chosen: each next checkpoint is really better."""
    true = [0.5, 0.65, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    chosen, again = [], []
    for scores in curves(true, 300, 160, graded=False, agreement=0.3):
        choice = choose_checkpoint(scores[:, :80])
        chosen.append(scores[choice.best, :80].mean() - true[choice.best])
        again.append(scores[choice.best, 80:].mean() - true[choice.best])
    assert np.mean(chosen) > 0.02
    assert abs(np.mean(again)) < 0.015
