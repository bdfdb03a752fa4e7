"""`harness-ext train`: a LoRA adapter, or one for each of several seeds."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.cli.parser import add_include_path, command_parser

if TYPE_CHECKING:
    from harness_ext.training.trainer import TrainedAdapter


def parser() -> argparse.ArgumentParser:
    """What `harness-ext train` takes."""
    from harness_ext.training.recipe import Recipe, flag

    made = command_parser(
        "train", run, "Train a LoRA adapter on a task, prompted exactly as the task is evaluated.",
        "  harness-ext train sst2_choice --model smollm2-135m-instruct --output adapters/mine --limit 2000\n"
        "  harness-ext train --recipe adapters/sst2.yaml --output adapters/sst2 --seeds 3    # sst2-seed0 to -seed2",
    )  # fmt: skip
    made.add_argument("task", nargs="?", metavar="TASK", help="any lm-eval task with a training split, or a YAML file")
    made.add_argument("--recipe", metavar="FILE", help="YAML with any of the fields below; flags win over it")
    made.add_argument(
        "--seeds", type=int, metavar="N", help="train N adapters, OUTPUT-seed0 ..., that differ only in the seed"
    )
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint of an interrupted run")
    made.add_argument("--overwrite", action="store_true", help="replace the adapter or the checkpoints that are there")
    for field in dataclasses.fields(Recipe):
        if field.name == "task":
            continue
        if field.name == "include_path":
            add_include_path(made)
            continue
        names = [flag(field.name)] + (["--rank"] if field.name == "lora_rank" else [])
        default = "" if field.default in (dataclasses.MISSING, None) else f" (default: {_as_yaml(field.default)})"
        text = field.metadata["help"].replace("%", "%%") + default
        if field.type == "bool":
            made.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            made.add_argument(*names, metavar="X", help=text)
    return made


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(options: argparse.Namespace) -> int:
    """Train, print what was made and the command that evaluates it."""
    from harness_ext.training.recipe import Recipe, from_text, read_recipe, recipe_from
    from harness_ext.training.seeds import train_seeds
    from harness_ext.training.trainer import train_adapter

    values = read_recipe(options.recipe) if options.recipe else {}
    for field in dataclasses.fields(Recipe):
        given = getattr(options, field.name)
        if given not in (None, []):  # repeatable flags start as an empty list
            values[field.name] = from_text(field.name, given) if isinstance(given, str) else given
    recipe = recipe_from(values, source=options.recipe or "train")
    how = {"resume": options.resume, "overwrite": options.overwrite}
    if options.seeds is None:
        made = [train_adapter(recipe, **how)]
        _say_trained(made[0])
    else:
        made = []
        for trained in train_seeds(recipe, options.seeds, **how):
            made.append(trained)
            _say_trained(trained)
    if int(os.environ.get("RANK", "0")):
        return 0
    if made[0].card.sample_data:
        print("Trained on the bundled sample: for trying things out, its scores are no benchmark.")
    folders, results = " ".join(str(trained.folder) for trained in made), Path(recipe.output.rstrip("/")).name
    included = "".join(f" --include_path {folder}" for folder in recipe.include_paths)
    print(f"next: harness-ext eval --model_args pretrained={recipe.model} --adapters {folders} "
          f"--tasks {recipe.task}{included} --output_path results/{results} --log_samples")  # fmt: skip
    return 0


def _say_trained(trained: TrainedAdapter) -> None:
    card = trained.card
    if int(os.environ.get("RANK", "0")):
        return
    held_out = "" if card.validation_loss is None else f", held-out loss {card.validation_loss:.4f}"
    print(f"{trained.folder}: {card.examples:,} examples, {card.seconds / 60:.1f} minutes, "
          f"loss {card.train_loss:.4f}{held_out}", flush=True)  # fmt: skip
