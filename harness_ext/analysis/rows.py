"""What a comparison says, as plain facts: one row for each run and task, in points unless its unit says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness_ext.analysis.paired import PairedDifference, Retention, Verdict
from harness_ext.analysis.statistics import Interval

POINTS = "points"
OWN_UNITS = {  # metrics that are no share of anything; 1 point of margin is .01 of these
    "log_loss": "nats",
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "perplexity",
    "word_perplexity": "perplexity",
    "perplexity": "perplexity",
}


@dataclass(frozen=True)
class Score:
    """What one run scored on one task."""

    value: float
    interval: Interval | None = None  # None when neither samples nor a standard error were logged
    method: str | None = None  # of the interval
    parsed: float | None = None  # share of outputs that could be read at all, in points


@dataclass(frozen=True)
class Floor:
    """What a run that has learnt nothing scores on a task, in points."""

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
    unit: str = POINTS
    higher_is_better: bool = True
    paired: PairedDifference | None = None  # None when not tested; `note` says why
    p_holm: float | None = None  # corrected over every tested row of the comparison
    verdict: Verdict | None = None
    needed_n: int | None = None  # documents that would decide, when undecided
    detectable: float | None = None  # smallest difference this n finds with 80 % power, when undecided
    rank: int | None = None  # 1 + runs of this task that are significantly better
    baseline_rank: int | None = None
    floor: Floor | None = None
    gain: Gain | None = None
    seeds: Seeds | None = None
    retention: Retention | None = None  # of what the adapter was not trained on
    allowed: tuple[str, ...] = ()  # fields of the protocol that differ because --allow said so
    is_sample: bool = False
    note: str | None = None

    @property
    def factor(self) -> float:
        """What turns the scores that tests are made on into this row's unit."""
        return 100.0 if self.unit == POINTS else 1.0

    @property
    def difference(self) -> float:
        """Of the scores, paired where tested."""
        return self.paired.difference if self.paired else self.score.value - self.baseline.value

    def margin(self, points: float) -> float:
        """The margin of equivalence in this row's unit."""
        return points if self.unit == POINTS else points / 100


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
