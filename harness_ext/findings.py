"""What is wrong, or may be, with a number: one type, and one catalogue of all that can be found.

The documentation page `docs/findings.md` is generated from the catalogue, as ruff's rules are; `--explain ID` prints an
entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness_ext.errors import HarnessExtError, suggest

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One reason to distrust a number."""

    id: str  # of the catalogue
    level: Level
    where: str  # task, run, or file and line
    text: str  # one sentence, with the numbers
    numbers: Mapping[str, Any] = field(default_factory=dict)
    next_step: str | None = None

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.level} {self.id} {self.text}"


@dataclass(frozen=True)
class Rule:
    """An entry of the catalogue."""

    what: str
    why: str
    example: str
    remedy: str


def explain(id: str) -> str:
    """An entry of the catalogue, as text.

    Raises:
        HarnessExtError: there is no such entry.
    """
    rule = CATALOGUE.get(id.upper())
    if rule is None:
        raise HarnessExtError(f"there is no finding {id!r}{suggest(id, CATALOGUE)}; it has {', '.join(CATALOGUE)}")
    return f"{id.upper()}  {rule.what}\n\n{rule.why}\n\nExample: {rule.example}\n\nWhat to do: {rule.remedy}"


def catalogue_page() -> str:
    """The documentation page of all findings, Markdown."""
    parts = [
        "# Findings",
        "What `harness-ext compare` warns about. `harness-ext compare --explain ID` prints an entry. This page is "
        "generated from `harness_ext/findings.py`.",
    ]
    for id, rule in CATALOGUE.items():
        parts += [f"## {id}: {rule.what}", rule.why, f"Example: {rule.example}", f"What to do: {rule.remedy}"]
    return "\n\n".join(parts) + "\n"


CATALOGUE: Mapping[str, Rule] = {
    "R01": Rule(
        "Many outputs did not parse",
        "A score of unreadable outputs measures their format, not what the model knows. Below 95 % the score is mostly "
        "about form; a base model often looks useless for this reason alone.",
        "sst2_generate, base: only 83.7 % of the outputs parsed",
        "Compare `acc_parsed` too, or ask by forced choice (`sst2_choice`), which cannot fail to parse.",
    ),
    "R02": Rule(
        "A score below what a constant answer gets",
        "Always giving the most frequent answer, abstaining, or guessing needs no model. A score below it has a cause "
        "that is not lack of knowledge: wrong parsing, swapped labels, a prompt that the model does not follow.",
        "squad_v2_generate, sst2: exact 4.97 is worse than always abstaining (50.07)",
        "Look at logged samples; check the task with `harness-ext check`.",
    ),
    "R03": Rule(
        "A score that cannot be told from a constant answer",
        "The interval of the score reaches down to what a constant answer gets.",
        "sst2_choice, base: acc 51.3 cannot be told from always giving the most frequent answer (50.9)",
        "Evaluate more documents, or take the score for chance.",
    ),
    "R04": Rule(
        "An adapter of another base",
        "Its card names another base than the baseline, so the difference mixes base and adapter.",
        "mine: was trained on org/a, not on the baseline's org/b",
        "Evaluate the adapter's own base and compare with that.",
    ),
    "R05": Rule(
        "Protocols differ, as --allow accepted",
        "The difference may come from the protocol instead of the adapter.",
        "sst2_choice, mine: not the baseline's dtype, as --allow said",
        "Evaluate both runs alike.",
    ),
    "R06": Rule(
        "Documents that only one run has",
        "Runs are compared on the documents both have; a different --limit leaves the rest out.",
        "sst2: base and mine are compared on the 400 documents both have; 472 that only one has are left out",
        "Evaluate both with the same --limit.",
    ),
    "R07": Rule(
        "Few independent units",
        "Questions on one passage are not independent. With fewer than 40 effective units standard errors are shaky; "
        "fewer than 6 cannot decide anything (two-sided sign flips of five units never reach p < .05).",
        "squad: 12 passages carry as much evidence as 8.3 of equal size",
        "Evaluate more passages, not more questions on the same ones.",
    ),
    "R08": Rule(
        "A repeated column that is not declared",
        "Many documents share a long text, so they may not be independent; intervals are then too short.",
        "my_task: 'article' is shared by several documents",
        "Declare it: `metadata: cluster: article` in the task's YAML, or --cluster my_task=article.",
    ),
    "R09": Rule(
        "A row that is not tested",
        "Without a number for each document there is no paired test; the logged values stand alone.",
        "wikitext, base: word_perplexity is not tested (no samples logged)",
        "Evaluate with --log_samples, or compare another metric.",
    ),
    "R10": Rule(
        "Choices that tie",
        "Where the best choices have the same log-probability the first one wins, so accuracy counts how often the "
        "first choice is right.",
        "sst2_choice, base: the best choices have the same score in 80 % of the documents",
        "Check the tokenizer: `harness-ext check TASK --model MODEL`.",
    ),
    "R11": Rule(
        "Tasks that not all runs have",
        "What only one run was evaluated on cannot be compared.",
        "mine: not evaluated on sst2_generate",
        "Evaluate every run on the same tasks.",
    ),
    "R12": Rule(
        "A metric without a unit",
        "Nobody declared the metric's unit and margin. It can be better or worse, but nothing says which difference is "
        "too small to matter, so it is never equivalent.",
        "my_task: judge_score has no declared unit",
        "Declare it: `metadata: metrics: {judge_score: {unit: marks, range: [1, 5], margin: 0.1}}`, or --margin "
        "judge_score=0.1.",
    ),
    "R13": Rule(
        "Tasks without the metric",
        "--metric names a metric that these tasks do not log; they are left out.",
        "--metric f1: 16 tasks do not log it and are left out",
        "Compare them by their own metric, without --metric.",
    ),
    "R14": Rule(
        "Rows that were filtered out",
        "Holm's correction covers the rows of this comparison. Choosing rows after having seen the results makes the "
        "p-values too small.",
        "--tasks left out 9 of the 10 tasks that both runs have",
        "Choose tasks and runs before looking, or report the whole comparison.",
    ),
}
