"""The result of a comparison as plain data: one row per candidate and task, in the metric's unit (shares: 0–1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness_ext.findings import Finding
from harness_ext.metrics.statistic import SHARE
from harness_ext.stats.intervals import Interval
from harness_ext.stats.paired import PairedDifference
from harness_ext.stats.sequential.looks import Outcome
from harness_ext.stats.verdicts import Decision, Retention, Verdict


@dataclass(frozen=True)
class Score:
    """The score of one run on one task."""

    value: float
    interval: Interval | None = None  # None if neither samples nor a standard error were logged
    method: str | None = None  # name of the interval's method
    parsed: float | None = None  # share of outputs that parsed


@dataclass(frozen=True)
class Floor:
    """The score of a constant answer, or of guessing, on a task."""

    value: float
    kind: str  # majority, chance or abstain


@dataclass(frozen=True)
class Part:
    """The contribution of some documents to a difference of means; the parts of a gain add up to the difference."""

    difference: float
    interval: Interval
    n: int  # number of documents


@dataclass(frozen=True)
class Gain:
    """A difference decomposed by what changed in each output: its form, or only its content."""

    parts: Mapping[str, Part]  # parsing, stopping, abstaining, skill; parts without documents are left out
    skill_before: float | None  # the baseline's mean over documents on which both outputs have the same form
    skill_after: float | None  # the run's mean over the same documents


@dataclass(frozen=True)
class Seeds:
    """Scores of runs of one recipe that differ only in the seed."""

    values: Mapping[str, float]  # seed -> score
    mean: float
    sd: float  # standard deviation between seeds


@dataclass(frozen=True)
class Sequential:
    """How the sequential evaluation of a row ended."""

    documents: int  # asked when it stopped
    planned: int
    looks: int  # number of looks that were taken
    outcome: Outcome
    repeated: Interval  # repeated confidence interval, simultaneous over looks and over the rows of the design


@dataclass(frozen=True)
class Row:
    """One candidate (a run, or the seeds of one recipe) against the baseline on one task."""

    task: str
    run: str
    metric: str
    filter: str
    n: int  # number of documents that both runs have
    baseline: Score
    score: Score
    unit: str = SHARE
    scale: str = "linear"  # of the difference: "log" if it is a difference of logarithms
    higher_is_better: bool = True
    margin: float | None = None  # of equivalence
    paired: PairedDifference | None = None  # None if not tested; `note` says why
    decision: Decision | None = None
    rank: int | None = None  # 1 + number of runs that are significantly better on this task
    baseline_rank: int | None = None
    floor: Floor | None = None
    gain: Gain | None = None
    seeds: Seeds | None = None
    retention: Retention | None = None  # only on tasks that the adapter was not trained on
    allowed: tuple[str, ...] = ()  # fields of the protocol that differ and were accepted with --allow
    is_sample: bool = False
    is_group: bool = False
    note: str | None = None
    sequential: Sequential | None = None  # None: the number of documents was fixed

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the difference; None if not tested."""
        return self.decision.verdict if self.decision else None

    @property
    def difference(self) -> float:
        """Score minus baseline, over the paired documents if tested; of their logarithms if the scale is "log"."""
        return self.paired.difference if self.paired else self.score.value - self.baseline.value


@dataclass(frozen=True)
class Cost:
    """The cost of an adapter, from its card."""

    run: str
    trainable_parameters: int | None
    examples: int | None
    tokens: int | None  # supervised tokens
    seconds: float | None
    adapter_bytes: int | None
    task: str | None  # the task it was trained on
    gain: float | None  # on that task, if it was compared


@dataclass(frozen=True)
class Comparison:
    """Every candidate against one baseline, task by task."""

    baseline: str
    margin: float  # of shares
    rows: list[Row]
    findings: list[Finding]
    notes: list[str]  # how the numbers were computed, and what may not be concluded from them
    costs: list[Cost] = field(default_factory=list)
    sort: str | None = None  # order of the rows; None: rows by name, a board by mean rank
    runs: tuple[str, ...] = ()  # names of the runs that were compared with the baseline; seeds one by one

    @property
    def warnings(self) -> list[str]:
        """Texts of the warnings, without duplicates."""
        return list(dict.fromkeys(finding.text for finding in self.findings if finding.level == "warning"))

    @property
    def errors(self) -> list[str]:
        """Id, text and next step of the errors: scores that do not say what they seem to."""
        return [
            f"{finding.id} {finding.text}" + (f". Next: {finding.next_step}" if finding.next_step else "")
            for finding in self.findings
            if finding.level == "error"
        ]
