"""Pair the measurements of the baseline and of a candidate on the documents that both have."""

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
    """The baseline and one candidate (a run, or the runs of one recipe by seed) on one task."""

    name: str  # of the candidate
    base: Measurement
    runs: Mapping[str, Measurement]  # seed -> measurement; a single run has the key ""
    before: SampleScores | None  # the baseline's samples of the documents that all runs have
    afters: Sequence[SampleScores]  # each run's samples, in the same order
    rows: NDArray[np.intp] | None  # (n,) indices into all of the baseline's samples
    n: int  # number of documents compared; as logged if there are no samples
    allowed: tuple[str, ...]  # fields of the protocol that differ and were accepted with --allow
    left_out: Mapping[str, int]  # run -> number of documents that only it or only the baseline has
    not_tested: str | None = None  # the reason, if there are no samples

    @property
    def first(self) -> Measurement:
        """The candidate's measurement; that of the first seed if there are several."""
        return next(iter(self.runs.values()))

    @property
    def clusters(self) -> Clusters | None:
        """Units of evidence; None if every document is a unit of its own."""
        return None if self.before is None or self.before.clusters is None else Clusters(self.before.clusters)

    def without_samples(self) -> Pair:
        """The same pair without its arrays, to free their memory."""
        runs = {seed: replace(run, samples=None) for seed, run in self.runs.items()}
        base = replace(self.base, samples=None)
        return replace(self, base=base, runs=runs, before=None, afters=[], rows=None)

    def numbers(self) -> tuple[Floats, list[Floats]]:
        """The documents' numbers, (n, k), of the baseline and of each run, in the metric's unit."""
        assert self.before is not None
        after = [run.rows(samples) for run, samples in zip(self.runs.values(), self.afters, strict=True)]
        return self.base.rows(self.before), after


def pair(base: Measurement, name: str, runs: Mapping[str, Measurement], settings: Settings) -> Pair:
    """Pair a candidate with the baseline.

    Args:
        base: the baseline's measurement.
        name: of the candidate.
        runs: the candidate's measurements by seed.
        settings: options of the comparison.

    Raises:
        ComparisonError: protocols, prompts or documents differ.
    """
    task = base.result.task
    differing = {key: check_protocol(base.run, run.run, task, settings.allow) for key, run in runs.items()}
    allowed = [field for fields in differing.values() for field in fields]
    not_tested = next((run.not_tested for run in (base, *runs.values()) if run.samples is None), None)
    if base.samples is None or not_tested is not None:
        reason = not_tested or "no samples logged"
        n = next(iter(runs.values())).result.n
        return Pair(name, base, runs, None, [], None, n, tuple(dict.fromkeys(allowed)), {}, reason)
    pairings: list[PairedSamples] = []
    left_out: dict[str, int] = {}
    for key, run in runs.items():
        assert run.samples is not None
        names = base.run.name, run.run.name
        pairing = pair_samples(task, names, base.samples, run.samples, allow=settings.allow, differing=differing[key])
        pairings.append(pairing)
        allowed += pairing.allowed
        if pairing.left_out:
            left_out[run.run.name] = pairing.left_out
    before, afters, rows = _on_common_documents(pairings, len(base.samples))
    return Pair(name, base, runs, before, afters, rows, len(before), tuple(dict.fromkeys(allowed)), left_out)


def _on_common_documents(
    pairings: Sequence[PairedSamples], total: int
) -> tuple[SampleScores, list[SampleScores], NDArray[np.intp]]:
    """Samples of the baseline and of each run on the documents that all have, and their indices in the baseline."""
    common = np.ones(total, dtype=bool)
    for pairing in pairings:
        mask = np.zeros(total, dtype=bool)
        mask[pairing.rows] = True
        common &= mask
    masks = [common[pairing.rows] for pairing in pairings]
    afters = [
        pairing.after if mask.all() else pairing.after.take(mask) for pairing, mask in zip(pairings, masks, strict=True)
    ]
    first, mask = pairings[0], masks[0]
    before = first.before if mask.all() else first.before.take(mask)
    return before, afters, first.rows[mask]
