"""The same recipe under several seeds: one adapter says nothing about a method, three begin to.

NAME becomes NAME-seed0, NAME-seed1 …; `harness-ext compare` puts runs of such adapters into one row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from harness_ext.errors import RecipeError, TrainingError
from harness_ext.models.card import CARD_FILE, read_card
from harness_ext.training.recipe import Recipe, with_values
from harness_ext.training.trainer import TrainedAdapter, train_adapter
from harness_ext.training.workspace import FREE_TO_CHANGE, last_checkpoint


def seed_recipes(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipe under `count` seeds from its own on, each with its own output folder.

    Raises:
        RecipeError: no seed at all.

    >>> recipe = Recipe(task="sst2_choice", model="tiny", output="adapters/mine/")
    >>> [(each.seed, each.output) for each in seed_recipes(recipe, 2)]
    [(0, 'adapters/mine-seed0'), (1, 'adapters/mine-seed1')]
    """
    if count < 1:
        raise RecipeError(f"--seeds must be positive, got {count}; three or more say something about the method")
    seeds = range(recipe.seed, recipe.seed + count)
    return [with_values(recipe, seed=seed, output=f"{recipe.output.rstrip('/')}-seed{seed}") for seed in seeds]


def train_seeds(
    recipe: Recipe,
    count: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    train: Callable[..., TrainedAdapter] = train_adapter,
) -> Iterator[TrainedAdapter]:
    """Train one adapter for each seed; yields each as soon as it is written.

    Args:
        recipe: its seed is the first.
        count: how many seeds.
        resume: seeds that are done are left as they are, the interrupted one goes on, the others start.
        overwrite: replace adapters that are there.
        train: what trains one.

    Raises:
        HarnessExtError: one line on what is wrong; before the first seed when a folder is taken.
    """
    recipes = seed_recipes(recipe, count)
    if not (resume or overwrite):
        for each in recipes:
            _check_free(each)
    for each in recipes:
        if resume and (done := _done(each)):
            yield done
            continue
        goes_on = resume and last_checkpoint(_workspace(each)) is not None
        yield train(each, resume=goes_on, overwrite=overwrite)


def _workspace(recipe: Recipe) -> Path:
    output = Path(recipe.output).expanduser().absolute()
    return output.with_name(f".{output.name}.training")


def _check_free(recipe: Recipe) -> None:
    """Hours of training are not to end at the third seed's folder."""
    output = Path(recipe.output).expanduser()
    taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if taken or last_checkpoint(_workspace(recipe)) is not None:
        raise TrainingError(
            f"{recipe.output} is taken by an earlier run; go on with --resume, replace it with --overwrite, "
            "or choose another --output"
        )


def _done(recipe: Recipe) -> TrainedAdapter | None:
    """The adapter of a seed that is trained already, by this very recipe."""
    folder = Path(recipe.output).expanduser()
    if not (folder / CARD_FILE).is_file() or (card := read_card(folder)) is None:
        return None
    wanted = json.loads(json.dumps(recipe.for_card()))
    differing = [  # what is unset is chosen while training
        name
        for name, value in wanted.items()
        if name not in FREE_TO_CHANGE and value is not None and card.recipe.get(name) != value
    ]
    if differing:
        raise TrainingError(
            f"{recipe.output} holds an adapter of another recipe (other {', '.join(differing)}); "
            "replace it with --overwrite, or choose another --output"
        )
    return TrainedAdapter(folder, card)
