"""How the costs grow: with the length of what is shared, and with the number of documents."""

from __future__ import annotations

from typing import Any

from evaluation import agreement, run
from lines import Line

SHOTS = (0, 2, 5, 10)
SHARES = (4, 1)
BATCH_SIZE = 16


def of_prefix_length(base: str, limit: int) -> list[Line]:
    """A few documents after more and more examples that all of them share."""
    what = f"`sst2_choice`, {limit} documents after {{}} shared examples"
    return [point(base, "sst2_choice_5shot", what.format(shots), limit, num_fewshot=shots) for shots in SHOTS]


def of_documents(base: str, limit: int) -> list[Line]:
    """More and more documents of one task."""
    counts = [limit // share for share in SHARES]
    return [point(base, "squad_v2_generate", f"`squad_v2_generate`, {count} questions", count) for count in counts]


def point(base: str, task: str, what: str, limit: int, **settings: Any) -> Line:
    """One point of a curve, by `hf` and by `hf-tree`."""
    plain, tree = (run(base, task, model, limit, BATCH_SIZE, **settings) for model in ("hf", "hf-tree"))
    return Line(what, f"`hf`, batch {BATCH_SIZE}", plain.seconds, tree.seconds, agreement(plain, tree, task))
