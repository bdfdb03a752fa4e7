"""`harness-ext tune`: a tournament of trainings; `train` with several recipes uses it, too."""

from __future__ import annotations

import argparse

from harness_ext.cli.parser import command_parser
from harness_ext.cli.trainings import DOCUMENTS, add_training_flags, recipe_values, run_tournament


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext tune`."""
    parser = command_parser(
        "tune", run, "Train several recipes in a tournament and keep the best: after each rung the better half goes "
        "on, and the winner is scored again on untouched documents. Eight entries take a quarter of eight trainings.",
        "  harness-ext tune sst2_choice --model smollm2-135m-instruct --space space.yaml --output adapters/best\n"
        "  harness-ext tune --recipe A.yaml B.yaml --seeds 3 --output adapters/best\n\n"
        "  # space.yaml\n  learning_rate: [1e-4, 3e-4, 1e-3]\n  lora_rank: [8, 16]\n  seeds: 2",
    )  # fmt: skip
    parser.add_argument(
        "--space", metavar="FILE", help="YAML file of recipe fields with lists of values; every combination is an entry"
    )
    parser.add_argument(
        "--first-rung", type=float, metavar="SHARE", help="share of each training at which the first rung ends; it "
        "doubles from rung to rung (default: 1/12)",
    )  # fmt: skip
    add_training_flags(
        parser,
        recipe="YAML files with any of the fields below; several are entries of their own; flags override them",
        seeds="enter every recipe with N consecutive seeds",
        resume="continue a tournament that was interrupted",
        overwrite="replace an existing adapter or the state of an earlier tournament",
        defaults={"evaluation_documents": DOCUMENTS},
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Play the tournament, then print the command that evaluates the winner."""
    return run_tournament(options, recipe_values(options), space=options.space, first_rung=options.first_rung)
