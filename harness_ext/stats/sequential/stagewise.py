"""Estimates after stopping, by the stage-wise ordering of outcomes.

The tail probability of an outcome is that of stopping earlier above the upper boundary, or at the same look with a
statistic at least as large. As a function of the true difference it gives the p-value (at 0), the median-unbiased
estimate (where it is one half) and an exact confidence interval (where it is .025 and .975); see Jennison & Turnbull,
2000, ch. 8. Only looks up to the stop enter, so that it holds whatever looks were planned after it.

Futility and equivalence do not take part in the ordering: they are not binding for the test of no difference, and a
row that stops for them counts as one whose last look this was. Rows that stop for futility are those whose estimate
happens to be near zero, so that this interval would be too short; they get the repeated confidence interval instead,
which holds whatever the reason to stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from harness_ext.stats.intervals import ALPHA, Interval
from harness_ext.stats.sequential.boundaries import NEVER, Path, Spending, boundaries
from harness_ext.stats.sequential.exact import sign_p_value
from harness_ext.stats.sequential.looks import FUTILE, Final, Look

_WIDEST = 60.0  # standard errors within which the ends of an interval are searched


def final_result(looks: Sequence[Look], *, spending: Spending, alpha: float) -> Final:
    """The median-unbiased estimate, the 95 % interval and the p-value of a row, from its looks.

    Args:
        looks: of the row, in order; it stopped at the last one.
        spending: of the design.
        alpha: two-sided error of the row: that of the design divided by its family.

    Raises:
        ValueError: there is no look.
    """
    if not looks:
        raise ValueError("a row without a look has no result")
    last = looks[-1]
    error = normal_error(last)
    estimate = _solve(looks, last.estimate, error, 0.5)
    interval = repeated_interval(looks, spending) if last.outcome == FUTILE else _stagewise_interval(looks, error)
    interval = Interval(min(interval.low, estimate), max(interval.high, estimate))
    return Final(estimate, interval, stagewise_p(looks, spending=spending, alpha=alpha), last.interval)


def _stagewise_interval(looks: Sequence[Look], error: float) -> Interval:
    return Interval(*(_solve(looks, looks[-1].centre, error, tail) for tail in (ALPHA / 2, 1 - ALPHA / 2)))


def repeated_interval(looks: Sequence[Look], spending: Spending) -> Interval:
    """The 95 % repeated confidence interval of one row at its last look (Jennison & Turnbull, JRSS B 51, 1989).

    It holds whatever made the row stop, and so also where futility did.
    """
    last = looks[-1]
    limit = boundaries([look.fraction for look in looks], ALPHA, spending)[-1]
    steps = limit if math.isinf(last.degrees) else -float(stdtrit(last.degrees, ndtr(-limit)))
    return Interval(last.centre - steps * last.standard_error, last.centre + steps * last.standard_error)


def stagewise_p(looks: Sequence[Look], *, spending: Spending, alpha: float) -> float:
    """Two-sided stage-wise p-value of no difference; exact for 0/1 scores of independent documents."""
    last = looks[-1]
    if last.gained is not None and last.lost is not None and all(look.gained is not None for look in looks):
        discordant = [(look.gained or 0) + (look.lost or 0) for look in looks]
        allowed = [spending.spent(look.fraction, alpha) for look in looks]
        return sign_p_value(discordant, allowed, last.gained - last.lost)
    path, earlier = Path(), 0.0
    for look in looks[:-1]:
        earlier += sum(path.exits(look.fraction, min(look.counted, NEVER)))
        path = path.going_on(look.fraction, min(look.counted, NEVER))
    return min(1.0, earlier + sum(path.exits(last.fraction, abs(last.z) / last.widening)))


def upper_tail(looks: Sequence[Look], difference: float, *, value: float, error: float) -> float:
    """Probability of an outcome at least as high as the observed one, for a true difference.

    Args:
        looks: of the row; it stopped at the last one.
        difference: the true one.
        value: the observed difference.
        error: its standard error, for a normal distribution.
    """
    last = looks[-1]
    drift = difference / (error * math.sqrt(last.fraction))
    path, tail = Path(), 0.0
    for look in looks[:-1]:
        limit = min(look.counted, NEVER)
        tail += path.above(look.fraction, limit, drift)
        path = path.going_on(look.fraction, limit, drift)
    return tail + path.above(last.fraction, value / error, drift)


def normal_error(look: Look) -> float:
    """The standard error, without the added documents, of a normal distribution with the 95 % interval of the look's t.

    The exact test has no such documents; its error is Bonett and Price's.
    """
    error = look.standard_error / look.widening
    if math.isinf(look.degrees):
        return error
    return float(error * stdtrit(look.degrees, 1 - ALPHA / 2) / ndtri(1 - ALPHA / 2))


def _solve(looks: Sequence[Look], value: float, error: float, tail: float) -> float:
    """The true difference under which the observed outcome has this upper tail probability."""
    if error == 0:
        return value

    def excess(steps: float) -> float:
        return upper_tail(looks, value + steps * error, value=value, error=error) - tail

    low, high = -2.0, 2.0
    while excess(low) > 0 and low > -_WIDEST:
        low *= 2
    while excess(high) < 0 and high < _WIDEST:
        high *= 2
    if excess(low) >= 0 or excess(high) <= 0:
        return value + (low if excess(low) >= 0 else high) * error
    return value + float(brentq(excess, low, high, xtol=1e-5)) * error
