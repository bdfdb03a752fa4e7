"""`harness-ext report`: everything that is known about results, in one HTML file."""

from __future__ import annotations

import argparse

from harness_ext.cli.compare import add_comparison, comparison_options
from harness_ext.cli.parser import add_include_path, command_parser, given_flags
from harness_ext.errors import HarnessExtError


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext report`."""
    parser = command_parser(
        "report", run, "Write one HTML file that opens without a network: the verdict, scores and differences, what "
        "the doctor finds, figures of each task, the samples side by side, and where all of it comes from.",
        "  harness-ext report results/sst2\n  harness-ext report results/* --baseline base --output report.html\n"
        "  harness-ext doctor results/sst2 --replay --format json > doctor.json\n"
        "  harness-ext report results/sst2 --doctor doctor.json",
    )  # fmt: skip
    add_comparison(parser)
    add_include_path(parser)
    parser.add_argument(
        "--doctor", nargs="+", default=[], metavar="FILE", help="show what `harness-ext doctor --format json` wrote "
        "into these files, such as proofs of --replay",
    )  # fmt: skip
    parser.add_argument("--output", default="report.html", metavar="FILE", help="file to write (default: report.html)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Write the report and name it."""
    from harness_ext.atomic import check_writable
    from harness_ext.render.verdict import sentence
    from harness_ext.report import write_report
    from harness_ext.results.load import load_results

    if not options.results:
        raise HarnessExtError("report needs RESULTS, folders or results files; see harness-ext report --help")
    check_writable(options.output)  # before minutes of work
    loaded = load_results(*options.results)
    comparison = write_report(
        loaded.runs,
        options.output,
        results=options.results,
        flags=given_flags(parser(), options, without=("output", "verbosity", "include_path", "doctor")),
        include_path=options.include_path,
        doctor=options.doctor,
        unreadable=loaded.unreadable,
        **comparison_options(options),
    )
    print(sentence(comparison))
    print(f"{options.output}: open it in a browser")
    return 0
