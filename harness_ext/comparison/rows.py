"""What a comparison says, as plain facts: one row for each contender and task, in the metric's unit (shares: 0–1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness_ext.findings import Finding
from harness_ext.metrics.statistic import SHARE
from harness_ext.stats.intervals import Interval
from harness_ext.stats.paired import PairedDifference
from harness_ext.stats.verdicts import Decision, Retention, Verdict


@dataclass(frozen=True)
class Score:
    """What one run scored on one task."""

    value: float
    interval: Interval | None = None  # None when neither samples nor a standard error were logged
    method: str | None = None  # of the interval
    parsed: float | None = None  # share of outputs that could be read at all


@dataclass(frozen=True)
class Floor:
    """What a run that has learnt nothing scores on a task."""

    value: float
    kind: str  # majority, chance or abstain


@dataclass(frozen=True)
class Part:
    """What some of the documents contribute to a difference of means."""

    difference: float  # the parts of a gain add up to the whole difference
    interval: Interval
    n: int  # documents


@dataclass(frozen=True)
class Gain:
    """A difference taken apart by what changed on each document: its form, or only what it says."""

    parts: Mapping[str, Part]  # parsing, stopping, abstaining, skill; only those with documents
    skill_before: float | None  # the baseline's mean where both runs' outputs have one form
    skill_after: float | None


@dataclass(frozen=True)
class Seeds:
    """Runs of one recipe that differ in nothing but the seed."""

    values: Mapping[str, float]  # seed -> score
    mean: float
    sd: float  # between seeds


@dataclass(frozen=True)
class Row:
    """One run, or the seeds of one recipe, against the baseline on one task."""

    task: str
    run: str
    metric: str
    filter: str
    n: int  # documents that both runs have
    baseline: Score
    score: Score
    unit: str = SHARE
    scale: str = "linear"  # of the difference: "log" when it is one of logarithms
    higher_is_better: bool = True
    margin: float | None = None  # of equivalence
    paired: PairedDifference | None = None  # None when not tested; `note` says why
    decision: Decision | None = None
    rank: int | None = None  # 1 + runs of this task that are significantly better
    baseline_rank: int | None = None
    floor: Floor | None = None
    gain: Gain | None = None
    seeds: Seeds | None = None
    retention: Retention | None = None  # of what the adapter was not trained on
    allowed: tuple[str, ...] = ()  # fields of the protocol that differ because --allow said so
    is_sample: bool = False
    is_group: bool = False
    note: str | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The word for the difference; None when not tested."""
        return self.decision.verdict if self.decision else None

    @property
    def difference(self) -> float:
        """Of the scores, paired where tested; of their logarithms on a log scale."""
        return self.paired.difference if self.paired else self.score.value - self.baseline.value


@dataclass(frozen=True)
class Cost:
    """What an adapter took to make, as its card says."""

    run: str
    trainable_parameters: int | None
    examples: int | None
    tokens: int | None  # supervised
    seconds: float | None
    adapter_bytes: int | None
    task: str | None  # that it was trained on
    gain: float | None  # on that task, where it was compared


@dataclass(frozen=True)
class Comparison:
    """Every run against one baseline, task by task: data only."""

    baseline: str
    margin: float  # of shares
    rows: list[Row]
    findings: list[Finding]
    notes: list[str]  # which method made which number, and what may not be concluded
    costs: list[Cost] = field(default_factory=list)
    sort: str | None = None  # as asked for; None: by name, and a board by mean rank

    @property
    def warnings(self) -> list[str]:
        """What must be said beside the table, one sentence each."""
        return list(dict.fromkeys(f.text for f in self.findings if f.level != "note"))
