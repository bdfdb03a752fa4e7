"""`harness-ext export`: results in the format of Every Eval Ever."""

from __future__ import annotations

import argparse

from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext export`."""
    from harness_ext.publish.every_eval_ever import RELATIONSHIPS

    parser = command_parser(
        "export", run, "Write results, with their samples, in the format of Every Eval Ever, a shared collection of "
        "evaluations: one file for each task of each run, and one with its documents.",
        "  harness-ext export results/sst2 --output exported --organization 'My Lab'",
    )  # fmt: skip
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders or results files of lm-eval")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder; data/ is made in it")
    parser.add_argument("--organization", required=True, metavar="NAME", help="who evaluated")
    parser.add_argument(
        "--relationship", choices=RELATIONSHIPS, default="other", help="of the evaluator to the model's developer "
        "(default: other)",
    )  # fmt: skip
    parser.add_argument(
        "--collection", default="harness-ext", metavar="NAME", help="first folder below data/ (default: harness-ext)"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Write the files and name them."""
    from harness_ext.publish.every_eval_ever import Source, export
    from harness_ext.results.load import load_runs

    source = Source(options.organization, options.relationship)
    for done in export(load_runs(*options.results), options.output, source, collection=options.collection):
        samples = f", {done.rows:,} lines of samples" if done.samples else ", no samples"
        print(f"{done.file}: {done.run}, {done.task}{samples}")
    return 0
