"""The contents of a report as plain data; `render.report` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.comparison.rows import Comparison, Row, Score
from harness_ext.doctor.diagnosis import Diagnosis, Examination
from harness_ext.metrics.labels import CalibrationBin
from harness_ext.stats.sequential.record import Record


@dataclass(frozen=True)
class Confusion:
    """How often each class was predicted for each gold class."""

    run: str
    classes: tuple[str, ...]  # names, K
    counts: tuple[tuple[int, ...], ...]  # (K, K + 1): gold class by predicted class; the last column did not parse

    @property
    def has_unparsed(self) -> bool:
        """Whether an output did not parse."""
        return any(row[-1] for row in self.counts)


@dataclass(frozen=True)
class Reliability:
    """How often a run is right, by its confidence."""

    run: str
    bins: tuple[CalibrationBin, ...]
    error: float  # expected calibration error, 0-1; as logged where it was
    error_of_chance: float  # what a perfectly calibrated run is expected to have in these bins
    p_value: float  # for the hypothesis that the run is calibrated: chi-squared test over the bins


@dataclass(frozen=True)
class Distribution:
    """How many documents of each run fall into each bin."""

    title: str
    edges: tuple[float, ...]  # (B + 1,)
    counts: Mapping[str, tuple[int, ...]]  # run -> (B,)


@dataclass(frozen=True)
class KindOfDocument:
    """A logged metric of one kind of document: questions with an answer, or without one."""

    metric: str
    values: Mapping[str, float]  # run -> value, 0-1


@dataclass(frozen=True)
class CurvePoint:
    """One adapter, or one checkpoint, on a curve."""

    run: str
    x: float
    score: Score


@dataclass(frozen=True)
class Curve:
    """Scores of one training by step, or of one recipe by training examples."""

    title: str
    x: str  # what the axis counts
    metric: str
    unit: str
    points: tuple[CurvePoint, ...]
    baseline: float | None = None  # its score on the same documents; None if it was not scored on them
    chosen: CurvePoint | None = None  # the checkpoint that was kept, scored on documents that it was not chosen by
    note: str = ""  # what the documents are, and what was chosen


@dataclass(frozen=True)
class Course:
    """How one run came to its verdict in a sequential evaluation, look by look."""

    run: str
    unit: str  # of the differences
    record: Record  # with at least one look
    row: Row | None = None  # with the final estimate; None if the design does not cover a row of the comparison


@dataclass(frozen=True)
class TaskFigures:
    """What is shown of one task beside its rows."""

    task: str
    rows: Sequence[Row]
    available: int | None = None  # documents of the split, whether or not they were asked
    data: str = ""  # the documents' data set
    confusions: Sequence[Confusion] = ()
    reliabilities: Sequence[Reliability] = ()
    distributions: Sequence[Distribution] = ()
    kinds: Sequence[KindOfDocument] = ()
    curves: Sequence[Curve] = ()
    courses: Sequence[Course] = ()
    notes: Sequence[str] = ()  # what is missing, and why


@dataclass(frozen=True)
class SampleSet:
    """The samples of one task that are in the file."""

    task: str
    total: int  # documents that were logged
    size: int  # documents in the file
    content: Mapping[str, Any]  # as the page's script reads it


@dataclass(frozen=True)
class RunFacts:
    """Where the numbers of one run come from."""

    name: str
    what: str  # the model in one phrase
    facts: Mapping[str, str]  # by name, in the order of reading
    training: str | None  # the command


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    comparison: Comparison
    diagnoses: Sequence[Diagnosis]
    tasks: Sequence[TaskFigures]
    samples: Sequence[SampleSet]
    runs: Sequence[RunFacts]
    evaluations: Sequence[str]  # commands that evaluate all runs again
    repeat: str  # the command that compares what these write
    commands: Sequence[str]  # that compare the same files again
    missing: Sequence[str]  # what could not be shown, and why
    version: str  # of this package
    examinations: Sequence[Examination] = ()  # of adapters and trainings
