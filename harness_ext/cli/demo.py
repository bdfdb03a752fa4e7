"""`harness-ext demo`: fetch, train, evaluate and compare, end to end."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness_ext.cli.compare import print_comparison
from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext demo`."""
    parser = command_parser(
        "demo", run, "Fetch a small model, evaluate it, train an adapter, evaluate that, and compare the two.",
        "  harness-ext demo",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="folder for adapter and results (default: demo/)"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the demo and print the comparison."""
    from harness_ext.demo import run_demo

    print_comparison(run_demo(Path(options.output), say=lambda line: print(line, flush=True)))
    print(f"\nnext: harness-ext doctor {Path(options.output) / 'results'}    # why each score is what it is")
    return 0
