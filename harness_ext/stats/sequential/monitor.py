"""Watch one row: after each look, decide whether it has a verdict, cannot get one, or goes on.

Independent documents with 0/1 scores get the exact sequential sign test. All other differences get a jackknife t
statistic over units with one document added in each direction, as in a comparison of fixed size, converted to the
normal statistic of the same tail probability (the significance level approach of Pocock, Biometrika 64, 1977).
Equivalence is decided by repeated confidence intervals (Jennison & Turnbull, JRSS B 51, 1989) with an error of their
own and with one unit added in each direction.

Futility is not binding: a row may go on past it, and the error rates hold either way. Its criterion is the predictive
probability of a verdict at the last look: conditional power, averaged over a flat prior for the true difference
(Spiegelhalter, Freedman & Blackburn, Controlled Clinical Trials 7, 1986). Conditional power under the current estimate
alone would give up too early where few documents have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from harness_ext.stats.intervals import ALPHA, Estimate, Interval, bonett_price, jackknife
from harness_ext.stats.sequential.boundaries import boundaries, next_boundary
from harness_ext.stats.sequential.design import Design
from harness_ext.stats.sequential.exact import sign_boundaries
from harness_ext.stats.sequential.looks import Final, Look, Outcome
from harness_ext.stats.sequential.stagewise import final_result, normal_error, upper_tail
from harness_ext.stats.units import LEAST_UNITS, Clusters, Floats, column, effective_number, real_clusters

_LARGEST_Z = 37.0


class Monitor:
    """One row of a sequential evaluation: a task, the base and an adapter.

    Args:
        design: of the evaluation.
        task: name of the task.
        looks: those already taken, where an evaluation goes on.

    Raises:
        ValueError: the design has no such task.
    """

    def __init__(self, design: Design, task: str, looks: Sequence[Look] = ()) -> None:
        if task not in design.tasks:
            raise ValueError(f"the design has no task {task!r}; it has {', '.join(design.tasks)}")
        self.design = design
        self.task = design.tasks[task]
        self.looks: list[Look] = list(looks)

    @property
    def outcome(self) -> Outcome | None:
        """How the row has ended; None while it is open."""
        return self.looks[-1].outcome if self.looks else None

    @property
    def level(self) -> float:
        """Two-sided error probability of this row."""
        return self.design.alpha / self.design.family

    def look(self, differences: ArrayLike, units: ArrayLike | None = None) -> Look:
        """Take the next look.

        Args:
            differences: (n,) the adapter's score minus the base's for each document so far, in the order asked and in
                the metric's unit; those of earlier looks come first.
            units: (n,) label of each document's unit, whole units only; None: every document is one.

        Returns:
            The look; its `outcome` is None if the row is still open.

        Raises:
            ValueError: there are no new documents, fewer units than the design requires, more documents than planned,
                or a difference is not a finite number.
        """
        delta = column(differences)
        clusters = real_clusters(units)
        counts = len(delta) if clusters is None else clusters.count
        self._check(delta, counts)
        fraction = len(delta) / self.task.documents
        is_exact = clusters is None and self.task.span == 1 and bool(np.isin(delta, (-1.0, 0.0, 1.0)).all())
        gained, lost = (int((delta == side).sum()) if is_exact else None for side in (1.0, -1.0))
        if gained is not None and lost is not None:
            decisive = cautious = bonett_price(gained, lost, len(delta))
            z, boundary = self._sign_test(fraction, gained, lost)
            limit = boundary
            effective = float(len(delta))
        else:
            span = self.task.span if self.task.span is not None else float(np.abs(delta).max())
            plain = jackknife(delta, clusters)
            decisive, cautious = (plain.with_pseudo_units(n, span) for n in (len(delta), counts))
            z, boundary, limit = self._t_test(
                fraction, plain, decisive, _skewness(delta, clusters), is_clustered=clusters is not None
            )
            effective = counts if clusters is None else effective_number(clusters.sizes)
        (variance, degrees), *_ = decisive.variances
        error = math.sqrt(variance)
        look = Look(
            documents=len(delta), units=counts, fraction=fraction, estimate=float(delta.mean()), centre=decisive.value,
            standard_error=error, degrees=degrees, z=z, boundary=boundary, limit=limit,
            interval=_repeated(float(delta.mean()), decisive, limit, self.task.span),
            z_equivalent=self._distance_to_margin(cautious),
            boundary_equivalent=self._boundary_equivalent(fraction),
            power=self._power(fraction, decisive, cautious), outcome=None, gained=gained, lost=lost,
        )  # fmt: skip
        self.looks.append(replace(look, outcome=self._outcome(look, effective)))
        return self.looks[-1]

    def final(self) -> Final:
        """The median-unbiased estimate, its interval and the p-value at the last look taken.

        Raises:
            ValueError: no look was taken.
        """
        return final_result(self.looks, spending=self.design.spending, alpha=self.level)

    # -- parts of a look ---------------------------------------------------------------------------------------------

    def _check(self, delta: Floats, units: int) -> None:
        least = max(self.design.least_units, 2)
        earlier = self.looks[-1].documents if self.looks else 0
        if not np.isfinite(delta).all():
            raise ValueError("a difference is not a finite number; such a document cannot be monitored")
        if not earlier < len(delta) <= self.task.documents:
            raise ValueError(
                f"a look needs more than {earlier} and at most {self.task.documents} documents, got {len(delta)}"
            )
        if units < least:
            raise ValueError(f"a look needs at least {least} independent documents or passages, got {units}")

    def _boundary_equivalent(self, fraction: float) -> float | None:
        if self.task.margin is None:
            return None
        return boundaries(self._fractions(fraction), self.level, self.design.spending_equivalence)[-1]

    def _fractions(self, fraction: float) -> list[float]:
        return [*(look.fraction for look in self.looks), fraction]

    def _t_test(
        self, fraction: float, plain: Estimate, decisive: Estimate, skewness: float, *, is_clustered: bool
    ) -> tuple[float, float, float]:
        """The statistic without the added documents, its boundary, and the boundary of the statistic with them.

        The added documents widen the boundary; the error that is therefore not spent is left for later looks.
        """
        allowed = self.design.spending.spent(fraction, self.level)
        limit = next_boundary(self._fractions(fraction), [look.counted for look in self.looks], allowed)
        if plain.standard_error == 0:
            return _as_normal(decisive, decisive.value), limit, limit
        shrunk = decisive.value / plain.value if plain.value else 1.0
        widened = limit * decisive.standard_error / (plain.standard_error * shrunk)
        z = _as_normal(plain, plain.value, skewness)
        if is_clustered:  # the skewness of a few dozen passages is too uncertain to raise the statistic
            z = min(z, _as_normal(plain, plain.value), key=abs)
        return z, widened, limit

    def _sign_test(self, fraction: float, gained: int, lost: int) -> tuple[float, float]:
        """McNemar's statistic and its exact boundary, on the scale of Z."""
        discordant = [(look.gained or 0) + (look.lost or 0) for look in self.looks] + [gained + lost]
        allowed = [self.design.spending.spent(t, self.level) for t in self._fractions(fraction)]
        limit = sign_boundaries(discordant, allowed)[-1]
        root = math.sqrt(gained + lost)
        return ((gained - lost) / root, limit / root) if root else (0.0, math.inf)

    def _distance_to_margin(self, cautious: Estimate) -> float | None:
        return None if self.task.margin is None else _as_normal(cautious, self.task.margin - abs(cautious.value))

    def _power(self, fraction: float, decisive: Estimate, cautious: Estimate) -> float:
        """Predictive probability that the last look is beyond a boundary."""
        if fraction >= 1:
            return 0.0
        planned = self._fractions(fraction)
        planned += [share for share in self.design.looks if share > fraction + 1e-9]
        spread = decisive.standard_error * math.sqrt(1 - fraction)  # of the final difference, given the present one
        error = decisive.standard_error * math.sqrt(fraction)  # of the final difference around the true one
        limit = boundaries(planned, self.level, self.design.spending)[-1] * error
        power = ndtr((-limit - decisive.value) / spread) + ndtr((decisive.value - limit) / spread)
        if self.task.margin is not None:
            limit = boundaries(planned, self.level, self.design.spending_equivalence)[-1]
            room = self.task.margin - limit * cautious.standard_error * math.sqrt(fraction)
            if room > 0:
                power += ndtr((room - cautious.value) / spread) - ndtr((-room - cautious.value) / spread)
        return min(1.0, float(power))

    def _outcome(self, look: Look, effective_units: float) -> Outcome | None:
        if effective_units >= LEAST_UNITS:
            if (
                look.z_equivalent is not None
                and look.boundary_equivalent is not None
                and look.z_equivalent >= look.boundary_equivalent
            ):
                return "equivalent"
            if abs(look.z) >= look.boundary and self._interval_excludes_zero(look):
                return "better" if (look.z > 0) == self.task.higher_is_better else "worse"
        if look.documents == self.task.documents:
            return "undecided"
        futile = self.design.futility is not None and look.power < self.design.futility
        return "cannot decide" if futile else None

    def _interval_excludes_zero(self, look: Look) -> bool:
        tail = upper_tail([*self.looks, look], 0.0, value=look.centre, error=normal_error(look))
        return min(tail, 1 - tail) < ALPHA / 2


def _skewness(delta: Floats, clusters: Clusters | None) -> float:
    """Skewness of the mean difference, from the units' residual sums; 0 if they are symmetric."""
    residuals = delta - delta.mean()
    sums = residuals if clusters is None else clusters.sums(residuals)
    squares = float((sums**2).sum())
    return float((sums**3).sum()) / squares**1.5 if squares > 0 else 0.0


def _as_normal(estimate: Estimate, distance: float, skewness: float = 0.0) -> float:
    """A distance in standard errors, as the normal statistic with the same tail probability.

    With a skewness, t is first transformed by Hall's monotone cubic ("On the removal of skewness by transformation",
    JRSS B 54, 1992): without it, a few large gains against many small losses would be called worse too often.
    """
    (variance, degrees), *_ = estimate.variances
    if variance == 0:
        return math.copysign(_LARGEST_Z, distance) if distance else 0.0
    steps = distance / math.sqrt(variance)
    steps += skewness / 3 * steps**2 + skewness**2 / 27 * steps**3 + skewness / 6
    if math.isinf(degrees):
        return steps
    tail = float(ndtri(stdtr(degrees, -abs(steps))))
    return math.copysign(min(-tail, _LARGEST_Z), steps)


def _repeated(value: float, estimate: Estimate, boundary: float, span: float | None) -> Interval:
    (variance, degrees), *_ = estimate.variances
    tail = float(ndtr(-boundary))
    steps = boundary if math.isinf(degrees) or tail == 0 else -float(stdtrit(degrees, tail))
    half = steps * math.sqrt(variance) if variance else 0.0
    limit = math.inf if span is None else span
    low, high = max(estimate.value - half, -limit), min(estimate.value + half, limit)
    return Interval(min(low, value), max(high, value))
