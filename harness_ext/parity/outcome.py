"""What a check of parity finds, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness_ext.findings import Finding

Verdict = Literal["as evaluated", "as the base", "otherwise", "not told apart", "undecided"]


@dataclass(frozen=True)
class Document:
    """A document whose answer by the served model differs from the adapter's."""

    doc_id: int
    distance: float | None  # nats between the log-probabilities; None where there are none
    limit: float | None  # nats: what rounding may explain
    evaluated: str | tuple[float, ...]  # the adapter's answer: a text, or log-probabilities
    served: str | tuple[float, ...]


@dataclass(frozen=True)
class TaskParity:
    """What is served beside what was evaluated, on one task."""

    task: str
    verdict: Verdict
    compared: str  # log-probabilities, texts, or both
    documents: int = 0  # asked; 0: the engine showed beforehand that it answers as the base
    unit: str = "nats"  # of the three distances; share: of the documents that have another text
    to_adapter: float | None = None  # median distance of what is served from the adapter by peft; None: not finite
    to_base: float | None = None
    noise: float | None = None  # median distance of two askings of peft
    differing: Sequence[Document] = ()  # beyond the noise, the farthest first
    findings: Sequence[Finding] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Parity:
    """What is served beside what was evaluated, on all tasks."""

    adapter: str
    served: str  # in words
    tasks: Sequence[TaskParity]
    notes: Sequence[str] = ()

    @property
    def findings(self) -> list[Finding]:
        """Those of all tasks."""
        return [finding for each in self.tasks for finding in each.findings]

    @property
    def holds(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.level == "error" for finding in self.findings)

    def record(self) -> Mapping[str, Any]:
        """What a card keeps of it: nothing that names a place on this machine."""
        return {
            each.task: {
                "verdict": each.verdict,
                "documents": each.documents,
                "unit": each.unit,
                "to_adapter": each.to_adapter,
                "to_base": each.to_base,
                "noise": each.noise,
                "findings": [finding.id for finding in each.findings],
            }
            for each in self.tasks
        }
