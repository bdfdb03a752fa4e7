"""Trains a recipe with several seeds, since a single adapter does not show how much a method varies.

NAME becomes NAME-seed0, NAME-seed1 …; `harness-ext compare` puts the runs of such adapters into one row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from harness_ext.errors import RecipeError, TrainingError
from harness_ext.models.card import CARD_FILE, read_card
from harness_ext.training.checkpoints import last_checkpoint
from harness_ext.training.recipe import Recipe, recorded
from harness_ext.training.trainer import TrainedAdapter, TrainingStart
from harness_ext.training.workspace import FREE_TO_CHANGE, has_checkpoint, workspace_of


def seed_recipes(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipe with `count` consecutive seeds, starting from its own; each has its own output folder.

    Raises:
        RecipeError: `count` is not positive.

    >>> recipe = Recipe(task="sst2_choice", model="tiny", output="adapters/mine/")
    >>> [(recipe.seed, recipe.output) for recipe in seed_recipes(recipe, 2)]
    [(0, 'adapters/mine-seed0'), (1, 'adapters/mine-seed1')]
    """
    if count < 1:
        raise RecipeError(f"--seeds must be positive, got {count}; use at least three to judge a method")
    seeds = range(recipe.seed, recipe.seed + count)
    return [replace(recipe, seed=seed, output=f"{recipe.output.rstrip('/')}-seed{seed}") for seed in seeds]


def train_seeds(
    recipe: Recipe,
    count: int,
    *,
    train: Callable[..., TrainedAdapter],
    resume: bool = False,
    overwrite: bool = False,
    inspect: Callable[[TrainingStart], None] | None = None,
) -> Iterator[TrainedAdapter]:
    """Train one adapter per seed, and yield it as soon as it is written.

    Args:
        recipe: its seed is the first one.
        count: number of seeds.
        train: trains one adapter, as `harness_ext.train_adapter` does.
        resume: keep finished adapters, continue the interrupted one, and train the others.
        overwrite: replace existing adapters.
        inspect: called before the first step of the first seed that is trained; see `train_adapter`.

    Raises:
        HarnessExtError: training fails, or a folder is in use (raised before the first seed is trained).
    """
    recipes = seed_recipes(recipe, count)
    if not (resume or overwrite):
        for seed_recipe in recipes:
            _check_free(seed_recipe)
    for seed_recipe in recipes:
        if resume and (trained := _trained(seed_recipe)):
            yield trained
            continue
        goes_on = resume and has_checkpoint(workspace_of(seed_recipe.output))
        yield train(seed_recipe, resume=goes_on, overwrite=overwrite, inspect=inspect)
        inspect = None


def _check_free(recipe: Recipe) -> None:
    """Raise now, rather than after hours of training, if the folder of a later seed is in use."""
    output = Path(recipe.output).expanduser()
    used = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if used or last_checkpoint(workspace_of(recipe.output)) is not None:
        raise TrainingError(
            f"{recipe.output} is in use by an earlier run; continue it with --resume, replace it with --overwrite, "
            "or choose another --output"
        )


def _trained(recipe: Recipe) -> TrainedAdapter | None:
    """The adapter of this recipe if it has been trained already."""
    folder = Path(recipe.output).expanduser()
    if not (folder / CARD_FILE).is_file() or (card := read_card(folder)) is None:
        return None
    values = json.loads(json.dumps(recipe.for_card()))
    differing = [  # an unset value was chosen in training
        name
        for name, value in values.items()
        if name not in FREE_TO_CHANGE and value is not None and recorded(card.recipe, name) != value
    ]
    if differing:
        raise TrainingError(
            f"{recipe.output} contains an adapter that was trained with a different {', '.join(differing)}; "
            "replace it with --overwrite, or choose another --output"
        )
    return TrainedAdapter(folder, card)
