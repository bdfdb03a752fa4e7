"""A baseline's measurement and a contender's, on the documents that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness_ext.comparison.measure import Measurement, Settings
from harness_ext.results.comparability import check_protocol
from harness_ext.results.pairing import PairedSamples, pair_samples
from harness_ext.results.samples import SampleScores
from harness_ext.stats.units import Clusters, Floats


@dataclass(frozen=True)
class Pair:
    """One contender beside the baseline on one task: a run, or the runs of one recipe by seed."""

    name: str  # of the contender
    base: Measurement
    runs: Mapping[str, Measurement]  # seed -> measurement; key "" for a run that stands alone
    before: SampleScores | None  # the baseline's samples on the documents that all have
    afters: Sequence[SampleScores]  # of each run, document for document
    rows: NDArray[np.intp] | None  # (n,) of the baseline's samples
    n: int  # documents compared; as logged where there are no samples
    allowed: tuple[str, ...]  # fields of the protocol that differ because --allow said so
    left_out: Mapping[str, int]  # run -> documents that only it or the baseline has
    not_tested: str | None = None

    @property
    def first(self) -> Measurement:
        """The contender's only measurement, or that of its first seed."""
        return next(iter(self.runs.values()))

    @property
    def clusters(self) -> Clusters | None:
        """Units of evidence; None where every document is its own."""
        return None if self.before is None or self.before.clusters is None else Clusters(self.before.clusters)

    def without_samples(self) -> Pair:
        """The pair without its arrays, once everything is computed from them."""
        runs = {seed: replace(run, samples=None) for seed, run in self.runs.items()}
        base = replace(self.base, samples=None)
        return replace(self, base=base, runs=runs, before=None, afters=[], rows=None)

    def numbers(self) -> tuple[Floats, list[Floats]]:
        """Numbers of the baseline's documents and of each run's, (n, k), in the metric's unit."""
        assert self.before is not None
        after = [run.rows(samples) for run, samples in zip(self.runs.values(), self.afters, strict=True)]
        return self.base.rows(self.before), after


def pair(base: Measurement, name: str, runs: Mapping[str, Measurement], settings: Settings) -> Pair:
    """Put a contender beside the baseline.

    Args:
        base: the baseline's measurement.
        name: of the contender.
        runs: its measurements by seed.
        settings: of the comparison.

    Raises:
        ComparisonError: the protocols, prompts or documents differ.
    """
    task = base.result.task
    differing = {key: check_protocol(base.run, run.run, task, settings.allow) for key, run in runs.items()}
    allowed = [field for fields in differing.values() for field in fields]
    not_tested = next((each.not_tested for each in (base, *runs.values()) if each.samples is None), None)
    if base.samples is None or not_tested is not None:
        reason = not_tested or "no samples logged"
        n = next(iter(runs.values())).result.n
        return Pair(name, base, runs, None, [], None, n, tuple(dict.fromkeys(allowed)), {}, reason)
    joined: list[PairedSamples] = []
    for key, run in runs.items():
        assert run.samples is not None
        names = base.run.name, run.run.name
        found = pair_samples(task, names, base.samples, run.samples, allow=settings.allow, differing=differing[key])
        joined.append(found)
        allowed += found.allowed
    left_out = {run.run.name: each.left_out for run, each in zip(runs.values(), joined, strict=True) if each.left_out}
    before, afters, rows = _on_common_documents(joined, len(base.samples))
    return Pair(name, base, runs, before, afters, rows, len(before), tuple(dict.fromkeys(allowed)), left_out)


def _on_common_documents(
    joined: Sequence[PairedSamples], total: int
) -> tuple[SampleScores, list[SampleScores], NDArray[np.intp]]:
    """The documents that the baseline shares with all runs."""
    common = np.ones(total, dtype=bool)
    for each in joined:
        mask = np.zeros(total, dtype=bool)
        mask[each.rows] = True
        common &= mask
    afters = [each.after if common[each.rows].all() else each.after.take(common[each.rows]) for each in joined]
    first, kept = joined[0], common[joined[0].rows]
    before = first.before if kept.all() else first.before.take(kept)
    return before, afters, first.rows[kept]
