"""Numbers as text: scores, differences, intervals, p-values and sample sizes."""

from __future__ import annotations

import math

from harness_ext.metrics.statistic import SHARE
from harness_ext.stats.intervals import Interval


def in_display_unit(value: float, unit: str = SHARE) -> float:
    """A value in the unit in which it is displayed: shares as points, 0–100; others unchanged."""
    return 100 * value if unit == SHARE else value


def format_score(value: float, unit: str = SHARE) -> str:
    """A score: with one decimal in points, three in other units.

    >>> format_score(0.92087), format_score(0.21809, "nats")
    ('92.1', '0.218')
    """
    return f"{in_display_unit(value, unit):.{_decimals(unit)}f}" if math.isfinite(value) else "–"


def format_difference(value: float, unit: str = SHARE, scale: str = "linear") -> str:
    """A difference with its sign, unless it rounds to zero; a difference of logarithms as a change in per cent.

    >>> format_difference(0.0125), format_difference(-0.0004), format_difference(-0.04, "nats")
    ('+1.2', '0.0', '-0.040')
    >>> format_difference(-0.1, "perplexity", "log")
    '-9.5%'
    """
    if not math.isfinite(value):
        return "–"
    if scale == "log":
        text = f"{100 * math.expm1(min(value, 700.0)):+.1f}"
        return f"{text if float(text) else text[1:]}%"
    text = f"{in_display_unit(value, unit):+.{_decimals(unit)}f}"
    return text if float(text) else text[1:]


def format_interval(interval: Interval, unit: str = SHARE) -> str:
    """Both ends in brackets.

    >>> format_interval(Interval(0.779, 0.831))
    '[77.9, 83.1]'
    """
    return f"[{format_score(interval.low, unit)}, {format_score(interval.high, unit)}]"


def format_difference_interval(interval: Interval, unit: str = SHARE, scale: str = "linear") -> str:
    """Both ends with their signs, in brackets.

    >>> format_difference_interval(Interval(-0.005, 0.12))
    '[-0.5, +12.0]'
    """
    return f"[{format_difference(interval.low, unit, scale)}, {format_difference(interval.high, unit, scale)}]"


def _decimals(unit: str) -> int:
    return 1 if unit == SHARE else 3


def format_n(n: int) -> str:
    """A sample size, rounded to two significant digits.

    >>> format_n(3187), format_n(52), format_n(30_000_000)
    ('3,200', '52', 'over 1,000,000')
    """
    if n > 1_000_000:
        return "over 1,000,000"
    digits = len(str(n)) - 2
    return f"{round(n, -digits) if digits > 0 else n:,}"


def format_p(p: float) -> str:
    """A p-value with four decimals; `<.0001` if it is smaller.

    >>> format_p(0.00001), format_p(0.03127), format_p(1.0)
    ('<.0001', '.0313', '1')
    """
    if p < 0.0001:
        return "<.0001"
    return "1" if p >= 0.99995 else f"{p:.4f}".lstrip("0")


def format_count(count: float | None) -> str:
    """A number of parameters or tokens in short form; a dash if unknown.

    >>> format_count(2_442_240), format_count(872), format_count(None)
    ('2.44M', '872', '–')
    """
    if count is None:
        return "–"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{count:,.0f}"
