"""What is wrong, or may be, with a task or a number: one type, explained by one catalogue.

The documentation page `docs/findings.md` is generated from the catalogue, as ruff's rules are; `--explain ID` prints an
entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness_ext.catalogue import CATALOGUE, Rule
from harness_ext.errors import HarnessExtError, suggest

__all__ = ["CATALOGUE", "Finding", "Level", "Rule", "catalogue_page", "explain"]

Level = Literal["error", "warning", "note"]

# letter of the ids -> heading and introduction of their part of the page
PARTS = {
    "C": ("Tasks", "`harness-ext check` reports these before any model is loaded."),
    "R": ("Comparison", "`harness-ext compare` reports these beside its table."),
}


@dataclass(frozen=True)
class Finding:
    """One reason to distrust a task or a number."""

    id: str  # of the catalogue
    level: Level
    where: str  # task, run, or "file:line"
    text: str  # one sentence, with the numbers
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of a task's finding: its file and line
    next_step: str | None = None

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.level} {self.id} {self.text}"


def explain(id: str) -> str:
    """An entry of the catalogue, as text.

    Raises:
        HarnessExtError: there is no such entry.
    """
    key = id.strip().upper()
    rule = CATALOGUE.get(key)
    if rule is None:
        spans = " and ".join(f"{min(ids)} to {max(ids)}" for ids in map(_ids, PARTS))
        raise HarnessExtError(f"there is no finding {id!r}{suggest(key, CATALOGUE)}; ids are {spans}")
    return f"{key}  {rule.what}\n\n{rule.why}\n\nExample: {rule.example}\n\nWhat to do: {rule.remedy}"


def catalogue_page() -> str:
    """The documentation page of all findings, Markdown."""
    blocks = [
        "# Findings",
        "`harness-ext check --explain ID` and `harness-ext compare --explain ID` print an entry. An id keeps its "
        "meaning from release to release. This page is generated from `harness_ext/catalogue.py`.",
    ]
    for letter, (heading, introduction) in PARTS.items():
        blocks += [f"## {heading}", introduction]
        for id in _ids(letter):
            rule = CATALOGUE[id]
            blocks += [
                f"### {id}: {rule.what}",
                rule.why,
                f"```text\n{rule.example}\n```",
                f"**What to do:** {rule.remedy}",
            ]
    return "\n\n".join(blocks) + "\n"


def _ids(letter: str) -> list[str]:
    return sorted(id for id in CATALOGUE if id.startswith(letter))
