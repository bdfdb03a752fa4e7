"""`harness-ext compare`: compare results with a baseline, in seven formats."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness_ext.atomic import write_text
from harness_ext.cli.parser import CHECK_FAILED, add_explain, command_parser, margins_of, seed
from harness_ext.errors import HarnessExtError

if TYPE_CHECKING:
    from harness_ext.comparison.choices import View
    from harness_ext.leaderboard import Leaderboard
    from harness_ext.results.run import Run

logger = logging.getLogger(__name__)

FORMATS = ("table", "markdown", "csv", "json", "latex", "html", "svg")


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext compare`."""
    from harness_ext.comparison.choices import BARS, ORDERS, VIEWS

    parser = command_parser(
        "compare", run, "Compare runs with their baseline, document by document: intervals, tests and a verdict.",
        "  harness-ext compare results/sst2\n  harness-ext compare results/* --format markdown --output comparison.md\n"
        "  harness-ext compare results/sst2 --fail-on worse    # exit code 1 if a verdict is worse",
    )  # fmt: skip
    add_comparison(parser)
    parser.add_argument("--sort", choices=ORDERS, help="order of runs (default: by name; in a board, by mean rank)")
    parser.add_argument(
        "--view",
        choices=VIEWS,
        default="auto",
        help="rows: one per run and task; board: models against tasks (default: what suits the number of rows)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")
    parser.add_argument(
        "--fail-on", choices=BARS, help="exit with code 1 if a verdict is worse; is undecided or worse; is not better"
    )
    parser.add_argument("--output", metavar="FILE", help="write to this file instead of the terminal")
    add_explain(parser)
    return parser


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add RESULTS and the flags that say what is compared, and how."""
    parser.add_argument(
        "results", nargs="*", metavar="RESULTS",
        help="folders or results files of lm-eval, logs of Inspect, outputs of EvalScope, or a CSV",
    )  # fmt: skip
    parser.add_argument("--baseline", metavar="NAME", help="run to compare with (default: the base of the adapters)")
    parser.add_argument("--metric", metavar="NAME", help="metric to compare (default: the primary metric of each task)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="compare only these tasks: names or patterns like 'sst2_*'",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="NAME",
        help="compare only these runs with the baseline: names or patterns",
    )
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="[METRIC=]VALUE",
        help="differences of up to VALUE points are equivalent (default: 1); with METRIC=, for that metric only, in "
        "points if it is shown in points, else in its own unit; repeatable",
    )
    parser.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="TASK=COLUMN",
        help="documents of TASK with the same COLUMN (a passage, a premise) count as one unit; repeatable",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FIELD",
        help="compare even if this field differs (dtype, num_fewshot, prompts, ...), and mark the row; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--each-seed", action="store_true", help="one row per seed, instead of one for all seeds of a recipe"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of permutations and bootstraps (default: 0)")
    parser.add_argument(
        "--statistics",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that declares your own metrics (a task's scoring.py); repeatable",
    )


def comparison_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `compare_runs` that the flags of `add_comparison` give."""
    from harness_ext.metrics.declarations import load_statistics

    margin, margins = margins_of(options.margin)
    return {
        "baseline": options.baseline,
        "metric": options.metric,
        "margin": margin,
        "margins": margins,
        "statistics": [statistic for file in options.statistics for statistic in load_statistics(file)],
        "clusters": _pairs("--cluster", options.cluster, "TASK=COLUMN"),
        "seed": options.seed,
        "allow": options.allow,
        "tasks": options.tasks,
        "only": options.runs,
        "group_seeds": not options.each_seed,
    }


def run(options: argparse.Namespace) -> int:
    """Compare and print or write the result; --fail-on decides the exit code."""
    from harness_ext.comparison.gate import why_it_fails
    from harness_ext.leaderboard import compare_runs
    from harness_ext.results.load import load_results

    if not options.results:
        raise HarnessExtError("compare needs RESULTS, folders or results files; see harness-ext compare --help")
    loaded = load_results(*options.results)
    comparison = compare_runs(
        loaded.runs, unreadable=loaded.unreadable, sort=options.sort, **comparison_options(options)
    )
    comparison = with_errors(comparison, loaded.runs)
    if options.format == "table" and not options.output:
        print_comparison(comparison, options.view)
    else:
        _write_comparison(comparison, options)
    if options.fail_on and (reason := why_it_fails(comparison, options.fail_on)):
        print(f"harness-ext: {reason}", file=sys.stderr)
        return CHECK_FAILED
    return 0


def with_errors(comparison: Leaderboard, runs: Sequence[Run]) -> Leaderboard:
    """With what the doctor finds in the outputs of the compared runs: errors only, without loading a task."""
    from harness_ext.doctor.diagnose import find_errors

    compared = [run for run in runs if run.name in (comparison.baseline, *comparison.runs)]
    tasks = sorted({row.task for row in comparison.rows})
    try:
        errors = find_errors(compared, baseline=comparison.baseline, tasks=tasks)
    except HarnessExtError as error:  # the comparison stands without it
        logger.debug("the outputs were not examined: %s", error)
        return comparison
    return replace(comparison, findings=[*errors, *comparison.findings])


def _pairs(flag: str, given: Sequence[str], form: str) -> dict[str, str]:
    """The NAME=VALUE arguments of a repeatable flag, as a mapping."""
    pairs = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not (name and equals and value):
            raise HarnessExtError(f"{flag} {argument!r} must have the form {form}")
        pairs[name] = value
    return pairs


def _write_comparison(comparison: Leaderboard, options: argparse.Namespace) -> None:
    writers: dict[str, Callable[[], str]] = {
        "markdown": lambda: comparison.to_markdown(options.view),
        "table": lambda: comparison.to_markdown(options.view),  # --output: a file is better served by Markdown
        "csv": comparison.to_csv,
        "json": lambda: json.dumps(comparison.to_json(), indent=2, ensure_ascii=False),
        "latex": lambda: comparison.to_latex(options.view),
        "html": lambda: comparison.to_html(options.view),
        "svg": lambda: _svg(comparison),
    }
    text = writers[options.format]().rstrip("\n")
    if not options.output:
        print(text)
        return
    write_text(options.output, text + "\n")


def _svg(comparison: Leaderboard) -> str:
    text = comparison.to_svg()
    if not text:
        raise HarnessExtError("no row was tested, so there are no differences to draw; evaluate with --log_samples")
    return text


def print_comparison(comparison: Leaderboard, view: View = "auto") -> None:
    """Print a comparison to the terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    for part in comparison.to_terminal(console.width, view):
        console.print(part)
