"""How the costs grow: with the length of what is shared, and with the number of documents."""

from __future__ import annotations

from evaluation import agreement, run, seconds
from lines import Line

SHOTS = (0, 1, 3, 5, 10)
SHARES = (8, 4, 2, 1)


def of_prefix_length(base: str, limit: int) -> list[Line]:
    """A few documents after more and more examples that all of them share."""
    lines = []
    for shots in SHOTS:
        sides = [run(base, "sst2_choice_5shot", model, limit, 16, num_fewshot=shots) for model in ("hf", "hf-tree")]
        plain, tree = sides
        lines.append(
            Line(
                f"`sst2_choice`, {limit} documents after {shots} shared examples",
                "`hf`, batch 16",
                seconds(plain),
                seconds(tree),
                agreement(plain, tree, "sst2_choice_5shot"),
            )
        )
    return lines


def of_documents(base: str, limit: int) -> list[Line]:
    """More and more documents of one task."""
    lines = []
    for documents in (limit // share for share in SHARES):
        plain, tree = (run(base, "squad_v2_generate", model, documents, 16) for model in ("hf", "hf-tree"))
        lines.append(
            Line(
                f"`squad_v2_generate`, {documents} questions",
                "`hf`, batch 16",
                seconds(plain),
                seconds(tree),
                agreement(plain, tree, "squad_v2_generate"),
            )
        )
    return lines
