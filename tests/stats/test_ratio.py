"""Wald's test of a share: errors as stated, and few documents where it is sure."""

from __future__ import annotations

import numpy as np
import pytest

from harness_ext.stats.sequential import ShareTest

TEST = ShareTest()
BLOCK, MOST, EXPERIMENTS = 10, 500, 2000


def decided(share: float, rng: np.random.Generator) -> tuple[str | None, int]:
    """The share that is accepted when a document is of the kind with this probability, and after how many."""
    counts = np.cumsum(rng.random(MOST) < share)
    for total in range(BLOCK, MOST + 1, BLOCK):
        if (answer := TEST.decide(int(counts[total - 1]), total)) is not None:
            return answer, total
    return None, MOST


@pytest.mark.parametrize(("share", "right"), [(TEST.low, "low"), (TEST.high, "high"), (0.01, "low"), (0.9, "high")])
def test_the_other_share_is_rarely_accepted(share: float, right: str) -> None:
    rng = np.random.default_rng(0)
    answers = [decided(share, rng) for _ in range(EXPERIMENTS)]
    wrong = sum(answer != right for answer, _ in answers)
    assert wrong <= EXPERIMENTS * TEST.error + 3 * (EXPERIMENTS * TEST.error) ** 0.5
    assert np.mean([total for _, total in answers]) < 25


# Oracle: the thresholds +-log(99) on sums of log(8) and log(0.6 / 0.95), by hand.
@pytest.mark.parametrize(
    ("count", "total", "expected"), [(0, 9, None), (0, 10, "low"), (3, 10, None), (4, 10, "high"), (2, 2, None)]
)
def test_thresholds(count: int, total: int, expected: str | None) -> None:
    assert TEST.decide(count, total) == expected


@pytest.mark.parametrize("wrong", [{"low": 0.5}, {"high": 1.0}, {"error": 0.5}, {"low": 0.0}])
def test_what_is_no_test_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need 0 < low < high < 1"):
        ShareTest(**wrong)
