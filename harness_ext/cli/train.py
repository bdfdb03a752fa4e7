"""`harness-ext train`: train a LoRA adapter, or one per seed."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

from harness_ext.cli.parser import command_parser
from harness_ext.cli.trainings import (
    add_training_flags,
    preflight,
    print_next,
    print_progress,
    print_trained,
    recipe_values,
    run_tournament,
)
from harness_ext.cli.trust import task_code

if TYPE_CHECKING:
    from harness_ext.training.recipe import Recipe


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext train`."""
    parser = command_parser(
        "train", run, "Train a LoRA adapter on a task, with exactly the prompts that the task is evaluated with.",
        "  harness-ext train sst2_choice --model smollm2-135m-instruct --output adapters/mine --limit 2000\n"
        "  harness-ext train --recipe adapters/sst2.yaml --output adapters/sst2 --seeds 3    # sst2-seed0 to -seed2\n"
        "  harness-ext train --recipe A.yaml B.yaml --seeds 3 --output adapters/best         # a tournament, see tune",
    )  # fmt: skip
    add_training_flags(
        parser,
        recipe="YAML file with any of the fields below; flags override it; of several, the best training is kept, see "
        "harness-ext tune",
        seeds="train N adapters that differ only in the seed: OUTPUT-seed0, OUTPUT-seed1, ...; with several recipes: "
        "enter each with N seeds",
        resume="continue an interrupted run from its last checkpoint",
        overwrite="replace an existing adapter or existing checkpoints",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Train, then print the adapters and the command that evaluates them."""
    from harness_ext.training.recipe import recipe_from

    recipes = recipe_values(options)
    if len(recipes) > 1:
        return run_tournament(options, recipes)
    source, values = recipes[0]
    recipe = recipe_from(values, source=source)
    with task_code([recipe.task], recipe.include_paths, no_code=options.no_code):
        return _train(recipe, options)


def _train(recipe: Recipe, options: argparse.Namespace) -> int:
    from harness_ext.selection.train import train_adapter
    from harness_ext.training.seeds import train_seeds

    train = functools.partial(train_adapter, on_evaluation=print_progress)
    inspect = functools.partial(preflight, force=options.force) if options.preflight else None
    flags = {"resume": options.resume, "overwrite": options.overwrite, "inspect": inspect}
    if options.seeds is None:
        adapters = [train(recipe, **flags)]
        print_trained(adapters[0])
    else:
        adapters = []
        for trained in train_seeds(recipe, options.seeds, train=train, **flags):
            adapters.append(trained)
            print_trained(trained)
    print_next(adapters, recipe)
    return 0
