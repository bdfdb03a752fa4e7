"""Findings: what is or may be wrong with a task or a number. The catalogue explains every id.

`docs/checks.md`, `docs/findings.md`, `docs/doctor.md` and `docs/parity.md` are generated from the catalogue
by `docs/generate.py`; `--explain ID` prints an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness_ext.catalogue import CATALOGUE, Rule
from harness_ext.errors import HarnessExtError, suggest
from harness_ext.names import visible

__all__ = ["CATALOGUE", "Finding", "Level", "Rule", "explain"]

Level = Literal["error", "warning", "note"]

LETTERS = "CRDP"  # first letters of ids: of `harness-ext check`, `compare` (R), `doctor` and `parity`


@dataclass(frozen=True)
class Finding:
    """One reason to distrust a task or a number."""

    id: str  # key of the catalogue
    level: Level
    where: str  # task, run, or "file:line"
    text: str  # one sentence, with the numbers
    # values in the text; of a task's finding, its file and line
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    next_step: str | None = None

    def __str__(self) -> str:
        """The finding in one line."""
        return visible(f"{self.where}: {self.level} {self.id} {self.text}")


def explain(id: str) -> str:
    """The catalogue's entry for an id, as text.

    Raises:
        HarnessExtError: the id is unknown.
    """
    key = id.strip().upper()
    rule = CATALOGUE.get(key)
    if rule is None:
        spans = ", ".join(f"{ids[0]} to {ids[-1]}" for ids in map(_ids, LETTERS))
        raise HarnessExtError(f"unknown finding {id!r}{suggest(key, CATALOGUE)}; ids are {spans}")
    return f"{key}  {rule.what}\n\n{rule.why}\n\nExample: {rule.example}\n\nWhat to do: {rule.remedy}"


def _ids(letter: str) -> list[str]:
    return sorted((id for id in CATALOGUE if id.startswith(letter)), key=lambda id: int(id[1:]))
