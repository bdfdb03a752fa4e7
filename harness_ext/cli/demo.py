"""`harness-ext demo`: fetch, train, evaluate and compare, end to end."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness_ext.cli.compare import print_comparison
from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext demo`."""
    parser = command_parser(
        "demo", run, "Fetch a small model, evaluate it, train an adapter, evaluate that, "
        "compare the two, and write a report.",
        "  harness-ext demo",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="folder for adapter, results and report (default: demo/)"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the demo, print the comparison and name the report."""
    from harness_ext.demo import REPORT, run_demo

    print_comparison(run_demo(Path(options.output), say=lambda line: print(line, flush=True)))
    print(f"\n{Path(options.output) / REPORT}: open it in a browser: figures, findings, samples, provenance")
    print(f"next: harness-ext doctor {Path(options.output) / 'results'}    # why each score is what it is")
    return 0
