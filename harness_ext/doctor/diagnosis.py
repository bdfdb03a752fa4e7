"""The result of an examination as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness_ext.findings import Finding


@dataclass(frozen=True)
class Decomposition:
    """Factors of one score, as shares; None where nothing about them was logged.

    `score` = `parsed_rate` x `score_parsed`; for SQuAD v2 `score` is the mean of `has_answer` and `no_answer`, weighted
    by their documents.
    """

    score: float
    parsed_rate: float | None = None
    score_parsed: float | None = None
    has_answer: float | None = None
    no_answer: float | None = None
    share_no_answer: float | None = None
    at_token_limit: float | None = None
    empty: float | None = None

    def known(self) -> Mapping[str, float]:
        """The factors that were logged."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Diagnosis:
    """What is known about one score."""

    task: str
    run: str
    metric: str
    n: int  # documents with logged outputs
    decomposition: Decomposition | None  # None if no samples were logged
    findings: Sequence[Finding]  # errors first; within a level, proved ones first
    notes: Sequence[str]  # what could not be examined, and why

    @property
    def has_errors(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.level == "error" for finding in self.findings)


@dataclass(frozen=True)
class MarkedExample:
    """A training example as text: what is read, and what is learned."""

    document: int  # number in the training split
    context: str
    supervised: str  # the tokens that the loss is computed on, end token included


@dataclass(frozen=True)
class Examination:
    """What is known about an adapter, or about training on a task, before anything is evaluated."""

    subject: str
    facts: Mapping[str, str]  # by name, in the order of reading
    findings: Sequence[Finding]  # errors first
    notes: Sequence[str]  # what could not be examined, and why
    examples: Sequence[MarkedExample] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # numbers in full

    @property
    def errors(self) -> list[Finding]:
        """The findings that are errors."""
        return [finding for finding in self.findings if finding.level == "error"]
