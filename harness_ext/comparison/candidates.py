"""The candidates that are compared with the baseline: single runs, and runs of one recipe grouped over seeds."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness_ext.results.run import Run

_SEED_NAME = re.compile(r"(?P<stem>.+?)[-_]seed[-_]?(?P<seed>\d+)$")


@dataclass(frozen=True)
class Candidate:
    """What is compared with the baseline: one run, or the runs of one recipe by seed."""

    name: str
    runs: Mapping[str, Run]  # seed -> run; a single run has the key ""


def candidates_of(runs: Sequence[Run], *, group_seeds: bool = True) -> list[Candidate]:
    """Group runs that differ only in their seed; every other run is a candidate of its own. Keeps the order.

    If results carry adapter cards, runs with the same base, task, data size and recipe belong together. Without cards,
    runs named NAME-seed0, NAME-seed1 … on the same base do.

    Args:
        runs: all runs but the baseline.
        group_seeds: False makes every run a candidate of its own.
    """
    families: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for index, run in enumerate(runs):
        family, seed = _family(run) if group_seeds else None, _seed(run)
        families[family if family and seed is not None else f"#{index}"].append((seed or "", run))
    return [candidate for members in families.values() for candidate in _grouped(members)]


def _grouped(members: Sequence[tuple[str, Run]]) -> list[Candidate]:
    """One candidate for the (seed, run) pairs of a family; one per run if a seed occurs twice (evaluated twice)."""
    seeds = [seed for seed, _ in members]
    if len(members) == 1 or len(set(seeds)) < len(seeds):
        return [Candidate(run.name, {"": run}) for _, run in members]
    by_seed = sorted(members, key=lambda member: int(member[0]))
    stems = {_stem(run.name) for _, run in by_seed}
    return [Candidate(min(stems, key=lambda stem: (len(stem), stem)), dict(by_seed))]


def _family(run: Run) -> str | None:
    """What runs of one recipe have in common, as text; None if the run does not belong to a recipe."""
    recipe = run.card.get("recipe")
    if isinstance(recipe, Mapping):
        facts = {name: value for name, value in recipe.items() if name not in ("seed", "model", "output", "report_to")}
        base = run.card.get("base_sha256") or run.card.get("base")
        return json.dumps([base, run.card.get("task"), facts], sort_keys=True, default=str)
    match = _SEED_NAME.match(run.name)
    return json.dumps([run.base, match["stem"]]) if match else None


def _seed(run: Run) -> str | None:
    seed = run.card.get("seed")
    if isinstance(seed, int):
        return str(seed)
    match = _SEED_NAME.match(run.name)
    return match["seed"] if match else None


def _stem(name: str) -> str:
    match = _SEED_NAME.match(name)
    return match["stem"] if match else name
