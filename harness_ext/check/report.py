"""The report on one task: its findings, and what was verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness_ext.findings import Finding
from harness_ext.names import clean_name


@dataclass(frozen=True)
class Report:
    """All findings about one task."""

    name: str
    findings: tuple[Finding, ...]
    verified: str | None  # what was verified, in words; None if the task has an error or could not be checked

    def __post_init__(self) -> None:
        """Make the name visible."""
        object.__setattr__(self, "name", clean_name(self.name))

    @property
    def broken(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.level == "error" for finding in self.findings)


def count(reports: Sequence[Report]) -> str:
    """A summary line.

    >>> count([Report("sst2", (), "all of it")])
    '1 task: no errors, no warnings, no notes'
    """
    levels = [finding.level for report in reports for finding in report.findings]
    totals = [_plural(levels.count(level), level) for level in ("error", "warning", "note")]
    return f"{_plural(len(reports), 'task')}: {', '.join(totals)}"


def _plural(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
