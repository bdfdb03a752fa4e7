"""The entries of a tournament: recipes that differ in some fields, from recipe files, a search space, and seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness_ext.errors import InputError, RecipeError, suggest
from harness_ext.names import visible
from harness_ext.reading.yaml_input import read_yaml
from harness_ext.training.recipe import Recipe, flag, recipe_from

MOST = 64  # entries of a tournament
SEEDS = "seeds"  # key of a space: the number of seeds of each combination
ALIKE = ("task", "include_path", "model", "revision", "output", "evaluation_documents", "report_to")
UNUSED = ("evaluate_every", "patience", "evaluation_cost")  # a tournament scores its entries itself
LONGEST_VALUE = 40  # characters of a value in a name


@dataclass(frozen=True)
class Entry:
    """A training that takes part."""

    name: str  # what sets it apart, without a path of this machine
    recipe: Recipe


@dataclass(frozen=True)
class Space:
    """A small search space: every combination of the values is an entry."""

    values: Mapping[str, Sequence[Any]]  # recipe field -> values to try
    seeds: int | None = None

    def combinations(self) -> list[dict[str, Any]]:
        """All combinations; the last field changes fastest.

        >>> Space({"lora_rank": [8, 16]}).combinations()
        [{'lora_rank': 8}, {'lora_rank': 16}]
        """
        return [dict(zip(self.values, values, strict=True)) for values in itertools.product(*self.values.values())]


def read_space(path: str | Path) -> Space:
    """Read a search space: a YAML mapping of recipe fields to lists of values, and `seeds`.

    Raises:
        RecipeError: there is no such file, or a key or a value is not understood.
    """
    try:
        content = read_yaml(path)
    except InputError as error:
        raise RecipeError(f"search space {error}; correct the file or its path") from error
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise RecipeError(
            f"search space {path} must be a mapping of recipe fields to lists of values, such as "
            "learning_rate: [1e-4, 3e-4]"
        )
    known = [field.name for field in fields(Recipe)]
    seeds = content.pop(SEEDS, None)
    for name, values in content.items():
        if name not in known:
            raise RecipeError(
                f"{path}: unknown {name!r}{suggest(name, [*known, SEEDS])}; `harness-ext tune --help` lists all fields"
            )
        if name in ALIKE or name in UNUSED:
            raise RecipeError(f"{path}: {name!r} cannot be searched, {_why_alike(name)}; remove it")
        if not isinstance(values, list) or not values:
            raise RecipeError(f"{path}: {name} must be a list of values, got {values!r:.80}; write [{values!s:.40}]")
    if seeds is not None and (type(seeds) is not int or seeds < 1):
        raise RecipeError(f"{path}: seeds must be a positive whole number, got {seeds!r:.80}; correct it")
    if seeds is not None and "seed" in content:
        raise RecipeError(f"{path}: give either seed, a list, or seeds, a number; remove one of them")
    return Space(content, seeds)


def make_entries(
    recipes: Sequence[tuple[str, Mapping[str, Any]]], *, space: Space | None = None, seeds: int | None = None
) -> list[Entry]:
    """Every recipe with every combination of the space and every seed.

    Args:
        recipes: where the values of each come from, for messages and names, and the values.
        space: the search space, or None.
        seeds: number of consecutive seeds of each, from the recipe's own; None: that of the space, else one.

    Raises:
        RecipeError: a recipe is not valid, or the recipes make no tournament.
    """
    space = space or Space({})
    if seeds is not None and (space.seeds is not None or "seed" in space.values):
        raise RecipeError("--seeds and the seeds of the search space exclude each other; give one of them")
    seeds = seeds if seeds is not None else space.seeds or 1
    if seeds < 1:
        raise RecipeError(f"--seeds must be positive, got {seeds}")
    _require_few(len(recipes) * len(space.combinations()) * seeds)
    made = [
        (source, replace(recipe, seed=recipe.seed + number))
        for source, values in recipes
        for combination in space.combinations()
        for recipe in [recipe_from({**values, **combination}, source=source)]
        for number in range(seeds)
    ]
    files = [Path(source).stem for source, _ in recipes]
    named_by_file = len(set(files)) == len(files) > 1
    names = _names([Path(source).stem if named_by_file else "" for source, _ in made], [recipe for _, recipe in made])
    return [Entry(name, recipe) for name, (_, recipe) in zip(names, made, strict=True)]


def check_entries(entries: Sequence[Entry]) -> None:
    """Make sure that entries make a tournament.

    Raises:
        RecipeError: there are too few or too many, two are the same, or they differ in what has to be alike.
    """
    if len(entries) < 2:
        raise RecipeError(
            "a tournament needs two entries or more, and this is one; add a recipe, a value of the search space or "
            "--seeds, or use `harness-ext train`"
        )
    _require_few(len(entries))
    first = entries[0]
    for number, entry in enumerate(entries):
        for name in ALIKE:
            one, other = getattr(first.recipe, name), getattr(entry.recipe, name)
            if one != other:
                raise RecipeError(
                    f"the entries of a tournament differ in {name} ({one!r:.60} and {other!r:.60}), "
                    f"{_why_alike(name)}; give {flag(name)}"
                )
        if entry.recipe.evaluate_every is not None:
            raise RecipeError(f"--evaluate-every is set, {_why_alike('evaluate_every')}; leave it out")
        for before in entries[:number]:
            if before.recipe == entry.recipe:
                raise RecipeError(f"{before.name!r} is twice in the tournament; leave one out, or change its seed")


def _require_few(count: int) -> None:
    if count > MOST:
        raise RecipeError(f"{count:,} entries are too many for a tournament; give at most {MOST}")


def _why_alike(name: str) -> str:
    if name in UNUSED:
        return "and a tournament scores its entries itself, after each rung"
    return "but all are trained on one base and scored on the same documents, and one adapter is written"


def _names(files: Sequence[str], recipes: Sequence[Recipe]) -> list[str]:
    """What sets each recipe apart: its file, if several were given, and the fields that differ within the file."""
    names = []
    for file, recipe in zip(files, recipes, strict=True):
        siblings = [asdict(other) for name, other in zip(files, recipes, strict=True) if name == file]
        values = asdict(recipe)
        differing = [name for name in values if any(other[name] != values[name] for other in siblings)]
        parts = [f"{name}={_text(values[name])}" for name in differing]
        names.append(" ".join([file, *parts] if file else parts) or recipe.task_name)
    return names


def _text(value: Any) -> str:
    """A value in a name."""
    if isinstance(value, float):
        return f"{value:g}"
    text = "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
    return visible(text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…")
