"""Numbers as text: points with a decimal, own units with three, signs, p-values, planned sizes."""

from __future__ import annotations

from harness_ext.analysis.rows import POINTS
from harness_ext.analysis.statistics import Interval


def format_score(value: float, unit: str = POINTS) -> str:
    """A score: one decimal of a point, three of anything else.

    >>> format_score(92.087), format_score(0.21809, "nats")
    ('92.1', '0.218')
    """
    return f"{value:.{_decimals(unit)}f}"


def format_difference(value: float, unit: str = POINTS) -> str:
    """A difference with its sign, except for what rounds to zero.

    >>> format_difference(1.25), format_difference(-0.04), format_difference(-0.04, "nats")
    ('+1.2', '0.0', '-0.040')
    """
    shown = f"{value:+.{_decimals(unit)}f}"
    return shown if float(shown) else shown[1:]


def format_interval(interval: Interval, unit: str = POINTS, *, signed: bool = False) -> str:
    """Both ends in brackets.

    >>> format_interval(Interval(-0.5, 12.0), signed=True)
    '[-0.5, +12.0]'
    """
    form = format_difference if signed else format_score
    return f"[{form(interval.low, unit)}, {form(interval.high, unit)}]"


def _decimals(unit: str) -> int:
    return 1 if unit == POINTS else 3


def format_n(n: int) -> str:
    """Two digits of a planned number of documents, which is all it is worth.

    >>> format_n(3187), format_n(52), format_n(30_000_000)
    ('3,200', '52', 'over 1,000,000')
    """
    if n > 1_000_000:
        return "over 1,000,000"
    digits = len(str(n)) - 2
    return f"{round(n, -digits) if digits > 0 else n:,}"


def format_p(p: float) -> str:
    """Format a p-value; below .0001 only that is said.

    >>> format_p(0.00001), format_p(0.03127), format_p(1.0)
    ('<.0001', '.0313', '1')
    """
    if p < 0.0001:
        return "<.0001"
    return "1" if p >= 0.99995 else f"{p:.4f}".lstrip("0")


def format_count(count: float | None) -> str:
    """A number of parameters, tokens or bytes, short; a dash where unknown.

    >>> format_count(2_442_240), format_count(872), format_count(None)
    ('2.44M', '872', '–')
    """
    if count is None:
        return "–"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{count:,.0f}"
