"""`harness-ext compare`: results, paired, tested, in six formats."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.cli.parser import CHECK_FAILED, add_explain, command_parser
from harness_ext.errors import HarnessExtError

if TYPE_CHECKING:
    from harness_ext.leaderboard import Leaderboard
    from harness_ext.render.tables import View

FORMATS = ("table", "markdown", "csv", "json", "latex", "html")


def parser() -> argparse.ArgumentParser:
    """What `harness-ext compare` takes."""
    from harness_ext.comparison.compare import ORDERS
    from harness_ext.comparison.gate import BARS
    from harness_ext.render.tables import VIEWS

    made = command_parser(
        "compare", run, "Compare runs with their baseline: paired by document, tested, put into one word.",
        "  harness-ext compare results/sst2\n  harness-ext compare results/* --format markdown --output comparison.md\n"
        "  harness-ext compare results/sst2 --fail-on worse    # exit code 1 when a verdict is worse",
    )  # fmt: skip
    made.add_argument(
        "results", nargs="*", metavar="RESULTS",
        help="folders or results files of lm-eval, logs of Inspect, outputs of EvalScope, or a CSV",
    )  # fmt: skip
    made.add_argument("--baseline", metavar="NAME", help="the run to compare with (default: the base of the adapters)")
    made.add_argument("--metric", metavar="NAME", help="metric to compare (default: each task's primary one)")
    made.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME", help="only these tasks; patterns like 'sst2_*' too"
    )
    made.add_argument(
        "--runs", nargs="+", default=[], metavar="NAME", help="only these runs beside the baseline; patterns too"
    )
    made.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="[METRIC=]VALUE",
        help="equivalent within so many points (default: 1); of one metric: in points where it is shown in points, "
        "else in its own unit; repeatable",
    )
    made.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="TASK=COLUMN",
        help="documents of TASK that share COLUMN (a passage, a premise) count as one unit; repeatable",
    )
    made.add_argument(
        "--allow", action="append", default=[], metavar="FIELD",
        help="compare although this field differs (dtype, num_fewshot, prompts, ...); marks the row; repeatable",
    )  # fmt: skip
    made.add_argument("--each-seed", action="store_true", help="a row for each seed of a recipe, not one for all")
    made.add_argument("--seed", type=_seed, default=0, help="of permutations and bootstraps (default: 0)")
    made.add_argument("--sort", choices=ORDERS, help="of runs (default: by name; a board by mean rank)")
    made.add_argument(
        "--view", choices=VIEWS, default="auto", help="rows: a line for each run and task; board: models against tasks"
    )
    made.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    made.add_argument(
        "--fail-on", choices=BARS, help="exit with 1 when a verdict is worse; is undecided or worse; is not better"
    )
    made.add_argument(
        "--statistics",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that declares metrics of your own (a task's scoring.py); repeatable",
    )
    made.add_argument("--output", metavar="FILE", help="write there instead of to the screen")
    add_explain(made)
    return made


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise ValueError(text)
    return seed


def run(options: argparse.Namespace) -> int:
    """Compare, and print or write the table; the gate decides the exit code."""
    from harness_ext.comparison.gate import why_it_fails
    from harness_ext.findings import explain
    from harness_ext.leaderboard import compare_runs
    from harness_ext.metrics.declarations import load_statistics
    from harness_ext.results.load import load_runs

    if options.explain:
        print(explain(options.explain))
        return 0
    if not options.results:
        raise HarnessExtError("compare needs RESULTS: folders or results files; see harness-ext compare --help")
    margin, margins = _margins(options.margin)
    comparison = compare_runs(
        load_runs(*options.results),
        baseline=options.baseline,
        metric=options.metric,
        margin=margin,
        margins=margins,
        statistics=[each for file in options.statistics for each in load_statistics(file)],
        clusters=_pairs("--cluster", options.cluster, "TASK=COLUMN"),
        seed=options.seed,
        allow=options.allow,
        tasks=options.tasks,
        only=options.runs,
        sort=options.sort,
        group_seeds=not options.each_seed,
    )
    if options.format == "table" and not options.output:
        print_comparison(comparison, options.view)
    else:
        _write_comparison(comparison, options)
    if options.fail_on and (reason := why_it_fails(comparison, options.fail_on)):
        print(f"harness-ext: {reason}", file=sys.stderr)
        return CHECK_FAILED
    return 0


def _pairs(flag: str, given: Sequence[str], form: str) -> dict[str, str]:
    """NAME=VALUE, repeated, as a mapping."""
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise HarnessExtError(f"{flag} {each!r} is not {form}; write it so")
        found[name] = value
    return found


def _margins(given: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The margin in points, and those of single metrics."""
    margin, margins = 1.0, {}
    for each in given:
        metric, _, value = each.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise HarnessExtError(f"--margin {each!r} is not VALUE or METRIC=VALUE; write it so") from None
        if metric:
            margins[metric] = number
        else:
            margin = number
    return margin, margins


def _write_comparison(comparison: Leaderboard, options: argparse.Namespace) -> None:
    forms: dict[str, Callable[[], str]] = {
        "markdown": lambda: comparison.to_markdown(options.view),
        "table": lambda: comparison.to_markdown(options.view),  # into a file: what reads well there
        "csv": comparison.to_csv,
        "json": lambda: json.dumps(comparison.to_json(), indent=2, ensure_ascii=False),
        "latex": lambda: comparison.to_latex(options.view),
        "html": lambda: comparison.to_html(options.view),
    }
    text = forms[options.format]().rstrip("\n")
    if not options.output:
        print(text)
        return
    try:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise HarnessExtError(
            f"{options.output} cannot be written ({error.strerror}); choose another --output"
        ) from error


def print_comparison(comparison: Leaderboard, view: View = "auto") -> None:
    """Show a comparison on the terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    for part in comparison.to_terminal(console.width, view):
        console.print(part)
