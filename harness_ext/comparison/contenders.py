"""Who is compared with the baseline: single runs, and runs of one recipe that differ only in their seed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness_ext.results.run import Run

_SEED_NAME = re.compile(r"(?P<stem>.+?)[-_]seed[-_]?(?P<seed>\d+)$")


@dataclass(frozen=True)
class Contender:
    """What is compared with the baseline: one run, or the runs of one recipe by seed."""

    name: str
    runs: Mapping[str, Run]  # seed -> run; one entry with key "" for a run that stands alone


def contenders(runs: Sequence[Run], *, group: bool = True) -> list[Contender]:
    """Runs that differ only in their seed together, others alone, in the order given.

    Cards decide where results carry them: the same base, task, data size and recipe, another seed. Without
    cards runs named NAME-seed0, NAME-seed1 … on one base belong together.

    Args:
        runs: without the baseline.
        group: False leaves every run alone.
    """
    found: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for place, run in enumerate(runs):
        family, seed = _family(run) if group else None, _seed(run)
        found[family if family and seed is not None else f"#{place}"].append((seed or "", run))
    return [made for members in found.values() for made in _made(members)]


def _made(members: Sequence[tuple[str, Run]]) -> list[Contender]:
    seeds = [seed for seed, _ in members]
    if len(members) == 1 or len(set(seeds)) < len(seeds):  # a seed that stands twice was evaluated twice
        return [Contender(run.name, {"": run}) for _, run in members]
    ordered = sorted(members, key=lambda member: int(member[0]))
    stems = {_stem(run.name) for _, run in ordered}
    return [Contender(min(stems, key=lambda stem: (len(stem), stem)), dict(ordered))]


def _family(run: Run) -> str | None:
    """What runs of one recipe have in common, as text; None for a run that belongs to none."""
    recipe = run.card.get("recipe")
    if isinstance(recipe, Mapping):
        facts = {name: value for name, value in recipe.items() if name not in ("seed", "model", "output", "report_to")}
        base = run.card.get("base_sha256") or run.card.get("base")
        return json.dumps([base, run.card.get("task"), facts], sort_keys=True, default=str)
    named = _SEED_NAME.match(run.name)
    return json.dumps([run.base, named["stem"]]) if named else None


def _seed(run: Run) -> str | None:
    seed = run.card.get("seed")
    if isinstance(seed, int):
        return str(seed)
    named = _SEED_NAME.match(run.name)
    return named["seed"] if named else None


def _stem(name: str) -> str:
    named = _SEED_NAME.match(name)
    return named["stem"] if named else name
