"""What a check found: facts about one task, each with an id that stays the same from release to release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Level = Literal["error", "warning", "note"]

# id -> what it is about; docs/tasks.md explains each
CATALOGUE: dict[str, str] = {
    "C01": "the YAML cannot be read",
    "C02": "the YAML is not a mapping",
    "C03": "a key stands twice",
    "C04": "unknown key",
    "C05": "an include is missing or goes round in a circle",
    "C06": "the task has no name, or one that another file has",
    "C07": "!function does not import",
    "C08": "a value of the wrong kind",
    "C09": "unknown metric",
    "C10": "a metric without aggregation",
    "C11": "unknown aggregation",
    "C12": "unknown or malformed filter",
    "C13": "unknown member of a group",
    "C14": "a file of documents is missing",
    "C15": "documents cannot be loaded",
    "C16": "missing split",
    "C17": "a template names a column that is not there",
    "C18": "a template does not render",
    "C19": "a template is a constant, or renders to nothing",
    "C20": "white space doubled or missing where prompt and answer join",
    "C21": "the gold answer is not among the choices",
    "C22": "choices that are empty or the same",
    "C23": "a stop string occurs in gold answers",
    "C24": "max_gen_toks is too small for gold answers",
    "C25": "labels that share a first token or are several tokens",
    "C26": "few-shot leak: a document is an example in its own prompt",
    "C27": "evaluated documents stand in the training split",
    "C28": "gold answers do not score full marks",
    "C29": "a wrong answer scores",
    "C30": "abstaining does not score what is declared",
    "C31": "scoring fails",
    "C32": "metrics listed and metrics scored differ",
    "C33": "the declared primary metric is not in metric_list",
    "C34": "the declared metric_scale does not fit",
    "C35": "all evaluated documents have the same answer",
    "C36": "the task cannot be trained on",
    "C37": "several gold answers with a metric that lm-eval makes binary",
    "C38": "documents out of reach: not verified",
    "C39": "the task cannot be built",
    "C40": "lm-eval will not find this file",
}


class Place(NamedTuple):
    """A line of a file."""

    file: Path
    line: int  # 1 for the first

    def __str__(self) -> str:
        try:
            shown = self.file.relative_to(Path.cwd())
        except ValueError:
            shown = self.file
        return f"{shown}:{self.line}"


@dataclass(frozen=True)
class Finding:
    """One thing wrong, or worth knowing, about a task."""

    id: str  # a key of CATALOGUE
    level: Level
    message: str  # one line: what, which, what next
    place: Place

    def __str__(self) -> str:
        return f"{self.place}: {self.level} {self.id} {self.message}"


@dataclass(frozen=True)
class Report:
    """All findings about one task."""

    name: str
    findings: tuple[Finding, ...]
    verified: str | None  # what was seen to be right; None when the check could not get that far

    @property
    def broken(self) -> bool:
        """Whether an error stands."""
        return any(finding.level == "error" for finding in self.findings)


def count(reports: Sequence[Report]) -> str:
    """Return one line of totals.

    >>> count([Report("sst2", (), "all of it")])
    '1 task: no errors, no warnings, no notes'
    """
    levels = [finding.level for report in reports for finding in report.findings]
    totals = [_plural(levels.count(level), level) for level in ("error", "warning", "note")]
    return f"{_plural(len(reports), 'task')}: {', '.join(totals)}"


def _plural(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
