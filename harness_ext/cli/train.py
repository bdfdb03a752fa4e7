"""`harness-ext train`: train a LoRA adapter, or one per seed."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.cli.parser import add_include_path, add_no_code, command_parser
from harness_ext.cli.trust import task_code

if TYPE_CHECKING:
    from harness_ext.training.recipe import Recipe
    from harness_ext.training.trainer import TrainedAdapter, TrainingStart


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext train`."""
    from harness_ext.training.recipe import Recipe, flag

    parser = command_parser(
        "train", run, "Train a LoRA adapter on a task, with exactly the prompts that the task is evaluated with.",
        "  harness-ext train sst2_choice --model smollm2-135m-instruct --output adapters/mine --limit 2000\n"
        "  harness-ext train --recipe adapters/sst2.yaml --output adapters/sst2 --seeds 3    # sst2-seed0 to -seed2",
    )  # fmt: skip
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="any lm-eval task with a training split, or a YAML file"
    )
    parser.add_argument("--recipe", metavar="FILE", help="YAML file with any of the fields below; flags override it")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="train N adapters that differ only in the seed: OUTPUT-seed0, OUTPUT-seed1, ...",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing adapter or existing checkpoints")
    parser.add_argument(
        "--preflight", action=argparse.BooleanOptionalAction, default=True, help="before the first step, examine the "
        "training examples, learn 8 of them by heart and let the evaluator score them; takes some seconds "
        "(default: true)",
    )  # fmt: skip
    add_no_code(parser)
    parser.add_argument("--force", action="store_true", help="train although the preflight found an error")
    for field in dataclasses.fields(Recipe):
        if field.name == "task":
            continue
        if field.name == "include_path":
            add_include_path(parser)
            continue
        names = [flag(field.name)] + (["--rank"] if field.name == "lora_rank" else [])
        default = "" if field.default in (dataclasses.MISSING, None) else f" (default: {_as_yaml(field.default)})"
        text = field.metadata["help"].replace("%", "%%") + default
        if field.type == "bool":
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(*names, metavar="X", help=text)
    return parser


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(options: argparse.Namespace) -> int:
    """Train, then print the adapters and the command that evaluates them."""
    from harness_ext.training.recipe import Recipe, from_text, read_recipe, recipe_from

    values = read_recipe(options.recipe) if options.recipe else {}
    for field in dataclasses.fields(Recipe):
        given = getattr(options, field.name)
        if given not in (None, []):  # repeatable flags start as an empty list
            values[field.name] = from_text(field.name, given) if isinstance(given, str) else given
    recipe = recipe_from(values, source=options.recipe or "train")
    with task_code([recipe.task], recipe.include_paths, no_code=options.no_code):
        return _train(recipe, options)


def _train(recipe: Recipe, options: argparse.Namespace) -> int:
    from harness_ext.selection.train import train_adapter
    from harness_ext.training.seeds import train_seeds

    train = functools.partial(train_adapter, on_evaluation=_print_evaluation)
    inspect = functools.partial(_preflight, force=options.force) if options.preflight else None
    flags = {"resume": options.resume, "overwrite": options.overwrite, "inspect": inspect}
    if options.seeds is None:
        adapters = [train(recipe, **flags)]
        _print_trained(adapters[0])
    else:
        adapters = []
        for trained in train_seeds(recipe, options.seeds, train=train, **flags):
            adapters.append(trained)
            _print_trained(trained)
    if int(os.environ.get("RANK", "0")):
        return 0
    if adapters[0].card.sample_data:
        print("Trained on the small bundled sample, to try things out; its scores are not a benchmark.")
    folders, results = " ".join(str(trained.folder) for trained in adapters), Path(recipe.output.rstrip("/")).name
    included = "".join(f" --include_path {folder}" for folder in recipe.include_paths) + _prompt_flags(recipe)
    print(f"next: harness-ext eval --model_args pretrained={recipe.model} --adapters {folders} "
          f"--tasks {recipe.task}{included} --output_path results/{results} --log_samples")  # fmt: skip
    return 0


def _prompt_flags(recipe: Recipe) -> str:
    """The flags with which `eval` asks the prompts that were trained on."""
    flags = "" if recipe.num_fewshot is None else f" --num_fewshot {recipe.num_fewshot}"
    flags += " --apply_chat_template" if recipe.apply_chat_template else ""
    if recipe.fewshot_as_multiturn is not None:
        flags += f" --fewshot_as_multiturn {str(recipe.fewshot_as_multiturn).lower()}"
    if recipe.system_instruction is not None:
        flags += f" --system_instruction {shlex.quote(recipe.system_instruction)}"
    return flags


def _preflight(start: TrainingStart, *, force: bool) -> None:
    """Examine a training run before its first step; an error stops it."""
    from harness_ext.doctor.preflight.run import examine_training
    from harness_ext.errors import TrainingError

    examination = examine_training(start)
    lines = [
        f"{finding.level} {finding.id} {finding.text}"
        for finding in examination.findings
        if finding.level != "note" and (force or finding.level != "error")
    ]
    lines += [*examination.notes, examination.facts.get("trial", "")]
    if not int(os.environ.get("RANK", "0")):
        print("\n".join(f"preflight: {line}" for line in lines if line), flush=True)
    if examination.errors and not force:
        first, more = examination.errors[0], len(examination.errors) - 1
        raise TrainingError(
            f"{first.id} {first.text}{f' (and {more} more errors)' if more else ''}; {first.next_step}, see "
            f"`harness-ext doctor --explain {first.id}`, or train all the same with --force"
        )


def _print_evaluation(line: str) -> None:
    """Print a line without breaking the progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)


def _print_trained(trained: TrainedAdapter) -> None:
    card = trained.card
    if int(os.environ.get("RANK", "0")):
        return
    held_out = "" if card.validation_loss is None else f", held-out loss {card.validation_loss:.4f}"
    print(f"{trained.folder}: {card.examples:,} examples, {card.seconds / 60:.1f} minutes, "
          f"loss {card.train_loss:.4f}{held_out}", flush=True)  # fmt: skip
