"""`harness-ext demo`: the main job from end to end."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness_ext.cli.compare import print_comparison
from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """What `harness-ext demo` takes."""
    made = command_parser(
        "demo", run, "The main job from end to end: a real model, zero-shot, trained, compared.",
        "  harness-ext demo",
    )  # fmt: skip
    made.add_argument("--output", default="demo", metavar="DIR", help="where adapter and results go (default: demo/)")
    return made


def run(options: argparse.Namespace) -> int:
    """Run it, and print the comparison."""
    from harness_ext.demo import run_demo

    print_comparison(run_demo(Path(options.output), say=lambda line: print(line, flush=True)))
    return 0
