"""The difference that a size detects, and the size that decides: in closed form and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from harness_ext.stats.intervals import bonett_price
from harness_ext.stats.paired import PairedDifference, mcnemar, paired_difference
from harness_ext.stats.power import detectable_difference, needed_size
from harness_ext.stats.verdicts import Hypothesis, decide

MARGIN = 0.01


def right_or_wrong(n: int, gained: int, lost: int) -> PairedDifference:
    before, after = np.zeros(n), np.zeros(n)
    after[:gained] = 1
    before[gained : gained + lost] = 1
    return paired_difference(before, after)


def simulated_power(n: int, gained: float, lost: float) -> float:
    """Share of repetitions in which `n` documents show a gain, with these true shares."""
    cells = np.random.default_rng(0).multinomial(n, [gained, lost, 1 - gained - lost], 2_000)
    return float(
        np.mean(
            [
                mcnemar(up, down) < 0.05 and bonett_price(up, down, n).interval().low > 0
                for up, down, _ in cells.tolist()
            ]
        )
    )


# Oracle for n = 872, by the normal approximation: 2.1 / 3.0 / 4.2 points at 5 / 10 / 20 % discordant pairs,
# which the exact test needs a little more than; and simulation.
@pytest.mark.parametrize(("share", "points"), [(0.05, 2.1), (0.10, 3.0), (0.20, 4.2)])
def test_detectable_difference(share, points):
    discordant = round(872 * share / 2)
    difference = detectable_difference(right_or_wrong(872, discordant, discordant))
    assert 100 * difference == pytest.approx(points + 0.1, abs=0.15)
    shares = (2 * discordant / 872 + difference) / 2, (2 * discordant / 872 - difference) / 2
    assert simulated_power(872, *shares) == pytest.approx(0.8, abs=0.04)


# Oracle: simulation. With the n it reports, four of five repetitions detect the observed difference.
def test_needed_size_gives_80_percent_power():
    needed = needed_size(right_or_wrong(200, 22, 14), margin=MARGIN)  # 4 points, p = .24
    assert needed.of == "documents"
    assert 200 < needed.low <= needed.number <= needed.high
    assert simulated_power(needed.number, 0.11, 0.07) == pytest.approx(0.8, abs=0.04)


def test_equal_documents_are_equivalent_once_there_are_enough():
    words = {
        n: decide([Hypothesis(paired_difference(np.full(n, 0.5), np.full(n, 0.5)), MARGIN)])[0] for n in (276, 277)
    }
    assert (words[276].verdict, words[277].verdict) == ("undecided", "equivalent")  # 1.97 * sqrt(2) / (277 + 2) < .01
    needed = needed_size(paired_difference(np.full(10, 0.5), np.full(10, 0.5)), margin=MARGIN)
    assert needed.number >= 277  # ten equal documents do not show that the next ones will be equal


def test_passages_that_can_never_decide_are_not_promised_to():
    few = paired_difference([0.0] * 8, [0.9] * 7 + [0.8], [1, 1, 2, 2, 3, 3, 4, 4])
    assert detectable_difference(few) is None
    assert needed_size(few, margin=MARGIN).number >= 12  # six passages of two
