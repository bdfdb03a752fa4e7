"""What is seen at a look, and what is reported when a test has stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from harness_ext.stats.intervals import Interval

Outcome = Literal["better", "worse", "equivalent", "cannot decide", "undecided"]
FUTILE: Outcome = "cannot decide"
_SMALL_WIDENING = 1.05
OUTCOMES: tuple[str, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Look:
    """One look at one row; differences and errors are in the metric's unit.

    Z-values of t tests are those of a normal distribution with the same tail probability.
    """

    documents: int
    units: int  # passages where clustered, else documents
    fraction: float  # information fraction: share of the planned documents
    estimate: float  # mean difference of the documents so far
    centre: float  # the estimate with one document added in each direction; intervals are built around it
    standard_error: float  # of `centre`
    degrees: float  # of freedom; inf: normal
    z: float  # statistic of the test of no difference
    boundary: float  # of |z| for better and worse; inf: none can be reached at this look
    limit: float  # the boundary before it was widened by the added documents
    interval: Interval  # repeated confidence interval, simultaneous over looks and rows
    z_equivalent: float | None  # distance to the nearer margin, in standard errors; None without a margin
    boundary_equivalent: float | None
    power: float  # predictive probability of a verdict at the last look
    outcome: Outcome | None  # None: still open
    gained: int | None = None  # documents that became right; None unless 0/1 scores of independent documents
    lost: int | None = None

    @property
    def widening(self) -> float:
        """How many times wider the boundary is than without the added documents; 1 for the exact test."""
        return self.boundary / self.limit if 0 < self.limit < math.inf and self.boundary < math.inf else 1.0

    @property
    def counted(self) -> float:
        """The boundary that counts for the error spent: small widenings are not given back."""
        return self.boundary if self.widening > _SMALL_WIDENING or math.isinf(self.boundary) else self.limit

    def to_json(self) -> dict[str, Any]:
        """The look for a results file; infinite numbers are None."""
        record = asdict(self)
        for name in ("degrees", "boundary", "limit"):
            record[name] = None if math.isinf(record[name]) else record[name]
        return record

    @classmethod
    def from_json(cls, record: Any) -> Look:
        """The look that `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        if not isinstance(record, Mapping) or record.keys() != {field.name for field in fields(cls)}:
            raise ValueError("a look must have the fields " + ", ".join(field.name for field in fields(cls)))
        values = dict(record)
        interval = values["interval"]
        if not isinstance(interval, Mapping) or interval.keys() != {"low", "high"}:
            raise ValueError("the interval of a look must have a low and a high end")
        values["interval"] = Interval(*(_number("interval", interval[end]) for end in ("low", "high")))
        for name in ("degrees", "boundary", "limit"):
            values[name] = math.inf if values[name] is None else values[name]
        for name in ("fraction", "estimate", "centre", "standard_error", "degrees", "z", "boundary", "limit", "power"):
            values[name] = _number(name, values[name])
        for name in ("z_equivalent", "boundary_equivalent"):
            values[name] = None if values[name] is None else _number(name, values[name])
        for name in ("documents", "units", "gained", "lost"):
            optional = name in ("gained", "lost")
            if not (optional and values[name] is None) and not _is_count(values[name]):
                raise ValueError(f"{name} of a look must be a whole number, not {values[name]!r}")
        if values["outcome"] is not None and values["outcome"] not in OUTCOMES:
            raise ValueError(f"the outcome of a look must be one of {', '.join(OUTCOMES)}, not {values['outcome']!r}")
        if not 0 < values["fraction"] <= 1 or min(values["standard_error"], values["boundary"], values["limit"]) < 0:
            raise ValueError("a look must have a fraction in (0, 1]; errors and boundaries must not be negative")
        if values["degrees"] <= 0:
            raise ValueError("the degrees of freedom of a look must be positive")
        if (values["gained"] is None) != (values["lost"] is None):
            raise ValueError("a look must count both the documents gained and those lost, or neither")
        if (values["gained"] or 0) + (values["lost"] or 0) > values["documents"]:
            raise ValueError("a look must not count more documents gained and lost than it has")
        return cls(**values)


def _number(name: str, value: Any) -> float:
    may_be_infinite = name in ("degrees", "boundary", "limit", "interval", "boundary_equivalent")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{name} of a look must be a number, not {value!r}")
    if math.isinf(number := float(value)) and not may_be_infinite:
        raise ValueError(f"{name} of a look must be finite")
    return number


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class Final:
    """The result of a row that has stopped, by the stage-wise ordering of its outcomes.

    One result is more extreme than another if it stopped at an earlier look, or at the same look with the larger
    statistic (Fairbanks & Madsen, Biometrika 69, 1982; Tsiatis, Rosner & Mehta, Biometrics 40, 1984).
    """

    estimate: float  # median-unbiased
    interval: Interval  # 95 %, by the stage-wise ordering; after futility the repeated confidence interval
    p_value: float  # of no difference, two-sided
    repeated: Interval  # repeated confidence interval at the stopping look, simultaneous over looks and rows
