"""Shared by `train` and `tune`: flags, the preflight, tournaments, and what is printed."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.cli.parser import add_include_path, add_no_code
from harness_ext.cli.trust import task_code

if TYPE_CHECKING:
    from harness_ext.training.recipe import Recipe
    from harness_ext.training.trainer import TrainedAdapter, TrainingStart

DOCUMENTS = 1_200  # that a tournament is scored on, unless a recipe says otherwise; see docs/tuning.md


def add_training_flags(
    parser: argparse.ArgumentParser,
    *,
    recipe: str,
    seeds: str,
    resume: str,
    overwrite: str,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add the task, the fields of recipes, and what else belongs to a training.

    Args:
        parser: of the command.
        recipe: help text, as the next three.
        seeds: see above.
        resume: see above.
        overwrite: see above.
        defaults: of fields that differ from those of a recipe.
    """
    from harness_ext.training.recipe import Recipe, flag

    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="any lm-eval task with a training split, or a YAML file"
    )
    parser.add_argument("--recipe", metavar="FILE", nargs="+", action="extend", default=[], help=recipe)
    parser.add_argument("--seeds", type=int, metavar="N", help=seeds)
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
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
        value = (defaults or {}).get(field.name, field.default)
        default = "" if value in (dataclasses.MISSING, None) else f" (default: {_as_yaml(value)})"
        text = field.metadata["help"].replace("%", "%%") + default
        if field.type == "bool":
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(*names, metavar="X", help=text)


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_values(options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """The values of each recipe file, or of the flags alone, and where they come from; flags take precedence."""
    from harness_ext.training.recipe import Recipe, from_text, read_recipe

    if options.task is None and len(options.recipe) > 1 and not options.recipe[-1].endswith((".yaml", ".yml")):
        options.task = options.recipe.pop()  # `--recipe FILE TASK`: argparse takes both for files
    flags = {}
    for field in dataclasses.fields(Recipe):
        given = getattr(options, field.name)
        if given not in (None, []):  # repeatable flags start as an empty list
            flags[field.name] = from_text(field.name, given) if isinstance(given, str) else given
    if not options.recipe:
        return [("train", flags)]
    return [(file, {**read_recipe(file), **flags}) for file in options.recipe]


def run_tournament(
    options: argparse.Namespace,
    recipes: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    space: str | None = None,
    first_rung: float | None = None,
) -> int:
    """Play a tournament.

    Args:
        options: flags that `train` and `tune` share.
        recipes: where the values of each come from, and the values.
        space: file of a search space.
        first_rung: share of the training.
    """
    from harness_ext.tuning.entries import check_entries, make_entries, read_space

    several = [(source, {"evaluation_documents": DOCUMENTS, **values}) for source, values in recipes]
    entries = make_entries(several, space=None if space is None else read_space(space), seeds=options.seeds)
    check_entries(entries)
    recipe = entries[0].recipe
    with task_code([recipe.task], recipe.include_paths, no_code=options.no_code):
        from harness_ext.tuning.tournament import tune

        trained = tune(
            entries, first_rung=first_rung, resume=options.resume, overwrite=options.overwrite, report=print_progress,
            inspect=functools.partial(preflight, force=options.force) if options.preflight else None,
        )  # fmt: skip
        print_trained(trained)
        print_next([trained], recipe)
    return 0


def print_next(adapters: Sequence[TrainedAdapter], recipe: Recipe) -> None:
    """Print the command that evaluates adapters."""
    if int(os.environ.get("RANK", "0")):
        return
    if adapters[0].card.sample_data:
        print("Trained on the small bundled sample, to try things out; its scores are not a benchmark.")
    folders, results = " ".join(str(trained.folder) for trained in adapters), Path(recipe.output.rstrip("/")).name
    included = "".join(f" --include_path {folder}" for folder in recipe.include_paths) + _prompt_flags(recipe)
    print(f"next: harness-ext eval --model_args pretrained={recipe.model} --adapters {folders} "
          f"--tasks {recipe.task}{included} --output_path results/{results} --log_samples")  # fmt: skip


def _prompt_flags(recipe: Recipe) -> str:
    """The flags with which `eval` asks the prompts that were trained on."""
    flags = "" if recipe.num_fewshot is None else f" --num_fewshot {recipe.num_fewshot}"
    flags += " --apply_chat_template" if recipe.apply_chat_template else ""
    if recipe.fewshot_as_multiturn is not None:
        flags += f" --fewshot_as_multiturn {str(recipe.fewshot_as_multiturn).lower()}"
    if recipe.system_instruction is not None:
        flags += f" --system_instruction {shlex.quote(recipe.system_instruction)}"
    return flags


def preflight(start: TrainingStart, *, force: bool) -> None:
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


def print_progress(line: str) -> None:
    """Print a line without breaking the progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)


def print_trained(trained: TrainedAdapter) -> None:
    """Print what was trained."""
    card = trained.card
    if int(os.environ.get("RANK", "0")):
        return
    held_out = "" if card.validation_loss is None else f", held-out loss {card.validation_loss:.4f}"
    print(f"{trained.folder}: {card.examples:,} examples, {card.seconds / 60:.1f} minutes, "
          f"loss {card.train_loss:.4f}{held_out}", flush=True)  # fmt: skip
