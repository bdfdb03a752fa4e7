"""The design of a sequential evaluation: fixed before the first answer and written into the results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness_ext.stats.intervals import ALPHA
from harness_ext.stats.sequential.boundaries import Spending
from harness_ext.stats.units import Clusters

LOOKS = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90, 1.0)  # shares of the documents
LEAST_UNITS = 30  # no look with fewer: cluster-robust errors and t tails are unreliable
FUTILITY = 0.03  # 10 % would cost 5 points of power at a gain of 5 points (872 documents, 25 % discordant)


@dataclass(frozen=True)
class TaskDesign:
    """What is fixed about one task.

    Raises:
        ValueError: a number is out of its range.
    """

    documents: int  # planned: at most so many are asked
    metric: str
    margin: float | None = None  # of equivalence, in the metric's unit (shares: 0.01); None: never equivalent
    higher_is_better: bool = True
    span: float | None = 1.0  # largest possible difference of one document; None: no limit, the largest observed
    cluster: str | None = None  # column that names the unit of evidence

    def __post_init__(self) -> None:
        _check_whole("documents", self.documents, least=2)
        for name in ("span", "margin"):
            if (number := getattr(self, name)) is not None:
                _check_number(name, number, low=0, high=math.inf)
        if not isinstance(self.higher_is_better, bool):
            raise ValueError(f"higher_is_better must be true or false, not {self.higher_is_better!r}")
        for name in ("metric", "cluster"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "cluster" and value is None):
                raise ValueError(f"{name} must be a name, not {value!r}")


@dataclass(frozen=True)
class Design:
    """A group-sequential design: order of the documents, looks, spending of the error, and what counts as decided.

    The error `alpha` is divided by `family`, the number of rows (Bonferroni), for better / worse and again for
    equivalence. A boundary that a row crosses therefore does not depend on what the other rows do; Holm's step-down
    correction is applied afterwards, to the stage-wise p-values of all rows of a comparison.

    Raises:
        ValueError: a field is out of its range.
    """

    tasks: Mapping[str, TaskDesign]
    family: int  # rows: task x adapter
    seed: int = 0  # of the order of the units
    looks: tuple[float, ...] = LOOKS  # shares of the planned documents; the last is 1
    spending: Spending = field(default_factory=Spending)
    alpha: float = ALPHA  # two-sided, shared by the family
    spending_equivalence: Spending = field(default_factory=Spending)
    futility: float | None = FUTILITY  # predictive probability of a verdict below which a row may stop; None: never
    least_units: int = LEAST_UNITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", MappingProxyType(dict(self.tasks)))
        object.__setattr__(self, "looks", tuple(self.looks))
        if not self.tasks or not all(isinstance(task, TaskDesign) for task in self.tasks.values()):
            raise ValueError("a design needs at least one task")
        _check_whole("family", self.family, least=1)
        _check_whole("seed", self.seed, least=0)
        _check_whole("least_units", self.least_units, least=2)
        _check_number("alpha", self.alpha, low=0, high=1)
        if self.futility is not None:
            _check_number("futility", self.futility, low=0, high=1)
        for look in self.looks:
            _check_number("looks", look, low=0, high=1 + 1e-12)
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[-1] != 1:
            raise ValueError(f"looks must be increasing shares of the documents and end with 1, not {self.looks}")

    def to_json(self) -> dict[str, Any]:
        """The design for a results file."""
        plain = {part.name: getattr(self, part.name) for part in fields(self)}
        return {
            **plain,
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
            "looks": list(self.looks),
            "spending": asdict(self.spending),
            "spending_equivalence": asdict(self.spending_equivalence),
        }

    @classmethod
    def from_json(cls, record: Any) -> Design:
        """The design that `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or out of its range.
        """
        values = _fields_of(cls, record, "design")
        if not isinstance(values["tasks"], Mapping):
            raise ValueError("tasks of a design must be an object")
        if not isinstance(values["looks"], (list, tuple)):
            raise ValueError("looks of a design must be a list")
        tasks = {str(name): TaskDesign(**_fields_of(TaskDesign, task, name)) for name, task in values["tasks"].items()}
        spending = {
            name: Spending(**_fields_of(Spending, values[name], name)) for name in ("spending", "spending_equivalence")
        }
        return cls(**{**values, "tasks": tasks, "looks": tuple(values["looks"]), **spending})

    @property
    def digest(self) -> str:
        """A hash of all fields: equal for all results of one evaluation."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Design) -> list[str]:
        """Names of the fields in which two designs differ, such as `looks` or `tasks.sst2_choice.margin`.

        >>> first = Design({"t": TaskDesign(100, "acc")}, family=1)
        >>> first.differences(Design({"t": TaskDesign(100, "acc", margin=0.01)}, family=2))
        ['family', 'tasks.t.margin']
        """
        first, second = _flat(self.to_json()), _flat(other.to_json())
        return sorted(name for name in first.keys() | second.keys() if first.get(name, ...) != second.get(name, ...))


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _fields_of(kind: type[Any], record: Any, name: str) -> dict[str, Any]:
    known = {part.name for part in fields(kind)}
    if not isinstance(record, Mapping) or record.keys() != known:
        raise ValueError(f"{name} must have the fields {', '.join(sorted(known))}")
    return dict(record)


def _check_number(name: str, value: Any, *, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise ValueError(f"{name} must be a number above {low:g} and below {high:g}, not {value!r}")


def _check_whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def order_units(units: ArrayLike | int, *, seed: int) -> NDArray[np.intp]:
    """The order in which documents are asked: units in random order, the documents of a unit one after the other.

    Args:
        units: (n,) label of each document's unit; or n, the number of independent documents.
        seed: of the order.

    Returns:
        (n,) indices of the documents.

    >>> order_units(["a", "b", "a", "c"], seed=3).tolist()
    [3, 1, 0, 2]
    """
    codes = np.arange(units) if isinstance(units, int) else Clusters(units).codes
    ranks = np.random.default_rng(seed).permutation(int(codes.max(initial=-1)) + 1)
    return np.argsort(ranks[codes], kind="stable")


def look_sizes(units: ArrayLike | int, looks: Sequence[float] = LOOKS, *, least_units: int = LEAST_UNITS) -> list[int]:
    """Numbers of documents at which looks are taken: whole units only, and `least_units` or more of them.

    Args:
        units: (n,) label of the unit of each document, in the order in which they are asked; or n.
        looks: shares of the documents, increasing, the last is 1.
        least_units: no look before so many units.

    Returns:
        Increasing numbers of documents; the last is n. Looks that fall on the same number are one.

    >>> look_sizes(200)[:4], look_sizes(["a", "a", "a", "b", "c"], (0.2, 0.7, 1.0), least_units=1)
    ([30, 40, 50, 60], [3, 4, 5])
    """
    if isinstance(units, int):
        ends = np.arange(1, units + 1)
    else:
        codes = Clusters(units).codes
        ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes))  # documents until the end of each unit
    total = int(ends[-1])
    first = ends[min(least_units, len(ends)) - 1]
    places = np.searchsorted(ends, [max(first, math.ceil(share * total - 1e-9)) for share in looks])
    return sorted({int(ends[place]) for place in places})
