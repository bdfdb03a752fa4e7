"""One word for each difference, from the tests of the whole comparison at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness_ext.stats.intervals import ALPHA, holm
from harness_ext.stats.paired import PairedDifference
from harness_ext.stats.power import Needed, detectable_difference, needed_size
from harness_ext.stats.units import LEAST_UNITS

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Retention = Literal["kept", "lost", "open"]
Lacking = Literal["units", "p", "interval"]


@dataclass(frozen=True)
class Hypothesis:
    """A difference to be decided on, and what of it would be good and what would not matter."""

    paired: PairedDifference
    margin: float | None  # of equivalence, in the metric's unit; None: never equivalent
    higher_is_better: bool = True


@dataclass(frozen=True)
class Decision:
    """What is said of a difference, and why."""

    verdict: Verdict
    p_holm: float  # of no difference, corrected over the comparison
    p_equivalent: float | None  # of a difference as large as the margin, corrected likewise
    direction: int  # 1 or -1 where a gain or a loss is certain, however small; else 0
    lacking: Lacking | None = None  # what `better` or `worse` lack where the other condition holds
    needed: Needed | None = None  # of an undecided row
    detectable: float | None = None  # of an undecided row; None: no difference can be found


def decide(hypotheses: Sequence[Hypothesis]) -> list[Decision]:
    """Give every difference its corrected p-values, its verdict and, where undecided, what would decide it.

    better / worse: the interval with one more document each way lies off zero, and p < .05 after Holm's correction.
    equivalent: the interval with one more unit each way lies within +-margin, and the p-value of a difference as large
    as the margin is below .05 after Holm's correction of its own. It comes first: such a difference does not matter,
    also where it is certain (`direction` tells). Fewer than six effective units: undecided.

    Args:
        hypotheses: of the whole comparison; Holm's corrections are over all of them.
    """
    corrected = holm([each.paired.p_value for each in hypotheses])
    with_margin = [each for each in hypotheses if each.margin]
    equivalent = iter(holm([each.paired.equivalence_p(each.margin or 0.0) for each in with_margin]))
    levels = ALPHA / max(1, len(hypotheses)), ALPHA / max(1, len(with_margin))
    return [
        _decided(each, p, next(equivalent) if each.margin else None, levels)
        for each, p in zip(hypotheses, corrected, strict=True)
    ]


def _decided(
    hypothesis: Hypothesis, p_holm: float, p_equivalent: float | None, levels: tuple[float, float]
) -> Decision:
    paired, margin = hypothesis.paired, hypothesis.margin
    sign = 1 if hypothesis.higher_is_better else -1
    enough = paired.effective_units >= LEAST_UNITS
    side = sign * paired.interval.side if paired.interval.side == paired.decisive.interval().side else 0
    direction = side if enough and p_holm < ALPHA else 0
    if enough and margin and p_equivalent is not None and p_equivalent < ALPHA and _within(paired, margin):
        return Decision("equivalent", p_holm, p_equivalent, direction)
    if direction:
        return Decision("better" if direction > 0 else "worse", p_holm, p_equivalent, direction)
    return Decision(
        "undecided",
        p_holm,
        p_equivalent,
        0,
        lacking=_lacking(paired, p_holm, enough=enough),
        needed=needed_size(paired, margin=margin, alpha=levels[0], alpha_equivalence=levels[1]) if enough else None,
        detectable=detectable_difference(paired, alpha=levels[0]),
    )


def _within(paired: PairedDifference, margin: float) -> bool:
    return paired.cautious.interval().within(margin)


def _lacking(paired: PairedDifference, p_holm: float, *, enough: bool) -> Lacking | None:
    """Which condition of better / worse is missing, where the shown interval or the p-value alone would say so."""
    if not enough:
        return "units"
    if p_holm < ALPHA:
        return "interval"
    return "p" if paired.interval.side else None


def retention(paired: PairedDifference, *, margin: float, higher_is_better: bool = True) -> Retention:
    """Non-inferiority: `kept` when at most `margin` can be missing, `lost` when more than that surely is.

    `kept` has to hold with one more unit each way, as equivalence has.
    """
    if paired.effective_units < LEAST_UNITS:
        return "open"
    sign = 1 if higher_is_better else -1
    if paired.cautious.interval().scaled(sign).low > -margin:
        return "kept"
    return "lost" if paired.decisive.interval().scaled(sign).high < -margin else "open"
