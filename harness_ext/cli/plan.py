"""`harness-ext plan`: how many documents show which difference, before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness_ext.cli.parser import command_parser
from harness_ext.errors import HarnessExtError

if TYPE_CHECKING:
    from harness_ext.comparison.planning import Pilot
    from harness_ext.stats.sequential.planning import Spread

_DIFFERENCES = (1.0, 2.0, 3.0, 5.0, 10.0)


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext plan`."""
    parser = command_parser(
        "plan", run, "How many documents show which difference with 80 % power, how many of them --until-decided asks, "
        "and how long that takes: from a pilot's results or from assumed rates.",
        "  harness-ext plan results/pilot\n  harness-ext plan --documents 872 --discordant 20",
    )  # fmt: skip
    parser.add_argument("results", nargs="*", metavar="RESULTS", help="results of a pilot: a base and its adapters")
    parser.add_argument("--baseline", metavar="NAME", help="run to compare with (default: the one without an adapter)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="tasks of the pilot (default: all)")
    parser.add_argument(
        "--difference", type=_number(0), nargs="+", metavar="POINTS",
        help="differences to plan for, in points, or in the metric's own unit (default: 1 2 3 5 10)",
    )  # fmt: skip
    parser.add_argument("--rows", type=_whole(1), metavar="N", help="tasks times adapters that share the error of .05 "
                        "(default: those of the pilot, else 1)")  # fmt: skip
    parser.add_argument("--documents", type=_whole(2), metavar="N", help="documents of the data set, without a pilot")
    parser.add_argument(
        "--discordant", type=_number(0, 100), metavar="PERCENT", help="share of documents that change between right "
        "and wrong, without a pilot",
    )  # fmt: skip
    parser.add_argument("--passage-size", type=_number(0), metavar="N", help="documents of a passage (default: 1)")
    parser.add_argument(
        "--correlation", type=_number(-1, 1), metavar="R", help="correlation within a passage (default: 0)"
    )
    parser.add_argument("--seconds", type=_number(0), metavar="S", help="for one document, base and adapter together "
                        "(default: as measured by the pilot)")  # fmt: skip
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    assumed = ("documents", "discordant", "passage_size", "correlation")
    given = [f"--{name.replace('_', '-')}" for name in assumed if getattr(options, name) is not None]
    if options.results and given:
        raise HarnessExtError(f"{given[0]} is for a plan without results; leave out {given[0]} or the results")
    if not options.results and (options.documents is None or options.discordant is None):
        raise HarnessExtError(
            "plan needs RESULTS of a pilot, or --documents and --discordant; see harness-ext plan --help"
        )
    if not options.results and options.correlation and (options.passage_size or 1) <= 1:
        raise HarnessExtError("--correlation needs passages of several documents; add --passage-size N")
    return _plan_of_pilots(options) if options.results else _plan_of_rates(options)


def _plan_of_rates(options: argparse.Namespace) -> int:
    from harness_ext.metrics.statistic import SHARE
    from harness_ext.stats.sequential.planning import assumed_spread

    size = options.passage_size or 1.0
    spread = assumed_spread(options.discordant / 100, passage_size=size, correlation=options.correlation or 0.0)
    title = f"{options.documents:,} documents, {options.discordant:g} % discordant"
    _show(title, spread, options, unit=SHARE, documents=options.documents, rows=options.rows or 1, passages=size,
          margin=0.01, seconds=options.seconds)  # fmt: skip
    return 0


def _plan_of_pilots(options: argparse.Namespace) -> int:
    from harness_ext.comparison.planning import pilots_of
    from harness_ext.results.load import load_runs

    pilots, refused = pilots_of(load_runs(*options.results), baseline=options.baseline, tasks=options.tasks)
    rows = options.rows or len(pilots)
    if len(pilots) > 1 and not options.difference:
        _show_overview(pilots, options, rows)
    for pilot in pilots if len(pilots) == 1 or options.difference else ():
        _show(f"{pilot.task}, {pilot.run}: {pilot.metric}", pilot.spread, options, unit=pilot.unit,
              documents=pilot.documents, rows=rows, passages=pilot.passage_size,
              margin=pilot.margin, seconds=options.seconds or pilot.seconds)  # fmt: skip
    for line in refused:
        print(f"left out: {line}")
    return 0


def _show_overview(pilots: Sequence[Pilot], options: argparse.Namespace, rows: int) -> None:
    """Print a line for each task and run."""
    from rich.console import Console

    from harness_ext.render.plan import Overview, overview_grid
    from harness_ext.render.terminal import render_grid
    from harness_ext.stats.sequential.planning import detectable, expected_share

    plans = []
    for pilot in pilots:
        difference = detectable(pilot.spread, pilot.documents, rows=rows)
        share, null_share = (
            expected_share(pilot.spread, true, pilot.documents, rows=rows, margin=pilot.margin)
            for true in (difference, 0.0)
        )
        seconds = options.seconds or pilot.seconds
        plans.append(
            Overview(
                pilot.task, pilot.run, pilot.unit, pilot.spread, pilot.documents, difference, share, null_share, seconds
            )
        )
    console = Console(highlight=False)
    console.print(render_grid(overview_grid(plans), console.width))
    print(
        f"shows: difference that all n documents find with 80 % power; the error of .05 is shared by {rows} rows.\n"
        "asked: share of them that --until-decided asks on average if that is the difference; if null: if there is "
        "none. At worst it asks all.\n"
        "ICC: correlation within a passage. minutes: on average and at worst, at the speed of the pilot.\n"
        "A table for each row: --difference POINTS, or --tasks TASK."
    )


def _show(
    title: str, spread: Spread, options: argparse.Namespace, *, unit: str, documents: int, rows: int, passages: float,
    margin: float | None, seconds: float | None,
) -> None:  # fmt: skip
    """Print the table of one task and run, and what the documents at hand show."""
    from rich.console import Console

    from harness_ext.formatting import format_difference
    from harness_ext.metrics.statistic import SHARE
    from harness_ext.render.plan import plan_grid, spread_line
    from harness_ext.render.terminal import render_grid
    from harness_ext.stats.sequential.planning import detectable, expected_share, need

    factor = 0.01 if unit == SHARE else 1.0
    differences = [factor * points for points in options.difference or _DIFFERENCES]
    needs = [need(spread, difference, rows=rows, passages=passages) for difference in differences]
    console = Console(highlight=False)
    grid = plan_grid(title, needs, unit=unit, available=documents, seconds=seconds)
    console.print(render_grid(grid, console.width))
    least = format_difference(detectable(spread, documents, rows=rows), unit).lstrip("+")
    null = expected_share(spread, 0.0, documents, rows=rows, margin=margin)
    print(f"All {documents:,} documents show a difference of {least} with 80 % power; without any difference, "
          f"--until-decided asks {100 * null:.0f} % of them on average.")  # fmt: skip
    print(f"{spread_line(spread, unit).capitalize()}. Error of .05 shared by {rows} row{'s' if rows > 1 else ''}.\n")


def _number(low: float, high: float = float("inf")) -> Callable[[str], float]:
    """A number above `low` and at most `high`."""

    def number(text: str) -> float:
        value = float(text)
        if not low < value <= high or value == float("inf"):
            raise ValueError(text)
        return value

    return number


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError(text)
        return value

    return whole
