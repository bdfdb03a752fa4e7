"""The verdict on each difference, from all tests of a comparison together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness_ext.stats.intervals import ALPHA, holm
from harness_ext.stats.paired import PairedDifference
from harness_ext.stats.power import Needed, detectable_difference, needed_size
from harness_ext.stats.sequential.looks import FUTILE, Outcome
from harness_ext.stats.units import LEAST_UNITS

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Retention = Literal["kept", "lost", "open"]
Lacking = Literal["units", "p", "interval"]


@dataclass(frozen=True)
class Hypothesis:
    """A difference to decide on, with the margin of equivalence and the direction that is better."""

    paired: PairedDifference
    margin: float | None  # of equivalence, in the metric's unit; None: never equivalent
    higher_is_better: bool = True
    stopped: Stopped | None = None  # how a sequential evaluation ended, if the difference is from one


@dataclass(frozen=True)
class Stopped:
    """The end of a sequential evaluation, as far as a verdict depends on it."""

    outcome: Outcome
    equivalence_level: float  # error that its design had spent on equivalence until the stop


@dataclass(frozen=True)
class Decision:
    """The verdict on a difference, and the numbers behind it."""

    verdict: Verdict
    p_holm: float  # for no difference, Holm-corrected over the comparison
    p_equivalent: float | None  # for a difference as large as the margin, with a Holm correction of its own
    direction: int  # 1 or -1: a significant gain or loss, however small; else 0
    lacking: Lacking | None = None  # if undecided: the condition of better / worse that is not met
    needed: Needed | None = None  # if undecided: the size that would decide
    detectable: float | None = None  # if undecided: the smallest difference detected with 80 % power; None: none is


def decide(hypotheses: Sequence[Hypothesis]) -> list[Decision]:
    """Give every difference its corrected p-values, its verdict and, if undecided, the size that would decide it.

    better / worse: the interval, with one document added in each direction, excludes zero, and p < .05 after Holm's
    correction. equivalent: the interval, with one unit added in each direction, lies within +-margin, and the p-value
    for a difference as large as the margin is below .05 after a Holm correction of its own. Equivalence is checked
    first: a difference within the margin does not matter, even if it is significant (see `direction`). With fewer than
    six effective units the verdict is undecided.

    A sequential evaluation enters with its stage-wise p-value. One that stopped because the runs are equivalent, or
    because no verdict was in sight, has given up its test of a difference; only the one that stopped because they are
    equivalent can be `equivalent`.

    Args:
        hypotheses: all of the comparison; Holm's corrections cover them all.
    """
    corrected = holm([_p_value(hypothesis) for hypothesis in hypotheses])
    with_margin = [hypothesis for hypothesis in hypotheses if hypothesis.margin]
    equivalence = iter(holm([_equivalence_p(hypothesis) for hypothesis in with_margin]))
    levels = ALPHA / max(1, len(hypotheses)), ALPHA / max(1, len(with_margin))
    return [
        _decision(hypothesis, p, next(equivalence) if hypothesis.margin else None, levels)
        for hypothesis, p in zip(hypotheses, corrected, strict=True)
    ]


def _p_value(hypothesis: Hypothesis) -> float:
    stopped = hypothesis.stopped
    gave_up = stopped is not None and stopped.outcome in ("equivalent", FUTILE)
    return 1.0 if gave_up else hypothesis.paired.p_value


def _equivalence_p(hypothesis: Hypothesis) -> float:
    if (stopped := hypothesis.stopped) is None:
        return hypothesis.paired.equivalence_p(hypothesis.margin or 0.0)
    return stopped.equivalence_level if stopped.outcome == "equivalent" else 1.0


def _sequential_decision(
    hypothesis: Hypothesis, outcome: Outcome, p_holm: float, p_equivalent: float | None
) -> Decision:
    paired = hypothesis.paired
    if outcome == "equivalent" and p_equivalent is not None and p_equivalent < ALPHA:
        return Decision("equivalent", p_holm, p_equivalent, 0)
    enough = paired.effective_units >= LEAST_UNITS
    direction = paired.interval.side * (1 if hypothesis.higher_is_better else -1) if enough and p_holm < ALPHA else 0
    if direction:
        return Decision("better" if direction > 0 else "worse", p_holm, p_equivalent, direction)
    return Decision("undecided", p_holm, p_equivalent, 0, lacking=_lacking(paired, p_holm, enough=enough))


def _decision(
    hypothesis: Hypothesis, p_holm: float, p_equivalent: float | None, levels: tuple[float, float]
) -> Decision:
    paired, margin = hypothesis.paired, hypothesis.margin
    if hypothesis.stopped is not None:
        return _sequential_decision(hypothesis, hypothesis.stopped.outcome, p_holm, p_equivalent)
    enough = paired.effective_units >= LEAST_UNITS
    direction = significant_direction(paired, p_holm) * (1 if hypothesis.higher_is_better else -1)
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


def significant_direction(paired: PairedDifference, p_holm: float) -> int:
    """1 or -1 for a significant rise or fall, else 0.

    The interval, also with one document added in each direction, excludes zero, p < .05 after Holm's correction, and
    there are at least six effective units.
    """
    side = paired.interval.side if paired.interval.side == paired.decisive.interval().side else 0
    return side if paired.effective_units >= LEAST_UNITS and p_holm < ALPHA else 0


def _within(paired: PairedDifference, margin: float) -> bool:
    return paired.cautious.interval().within(margin)


def _lacking(paired: PairedDifference, p_holm: float, *, enough: bool) -> Lacking | None:
    """The unmet condition of better / worse, if the shown interval or the p-value alone suggests a difference."""
    if not enough:
        return "units"
    if p_holm < ALPHA:
        return "interval"
    return "p" if paired.interval.side else None


def retention(paired: PairedDifference, *, margin: float, higher_is_better: bool = True) -> Retention:
    """Non-inferiority: `kept` if the loss is at most `margin`, `lost` if it is larger, `open` if neither is certain.

    Like equivalence, `kept` is decided on the interval with one unit added in each direction.
    """
    if paired.effective_units < LEAST_UNITS:
        return "open"
    sign = 1 if higher_is_better else -1
    if paired.cautious.interval().scaled(sign).low > -margin:
        return "kept"
    return "lost" if paired.decisive.interval().scaled(sign).high < -margin else "open"
