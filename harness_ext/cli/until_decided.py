"""`harness-ext eval --until-decided`: its flags, and its screen."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness_ext.cli.parser import margins_of
from harness_ext.errors import HarnessExtError

if TYPE_CHECKING:
    from harness_ext.engine.sequential import Row, UntilDecided

MOST_LOOKS = 100
FLAGS = ("until_decided", "margin", "looks", "max_documents")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("stopping early")
    group.add_argument(
        "--until-decided", action="store_true", help="ask base and adapters block by block, and stop as soon as each "
        "adapter is better, worse or equivalent, or cannot be decided; see docs/stopping.md",
    )  # fmt: skip
    group.add_argument(
        "--margin", action="append", default=[], metavar="[METRIC=]VALUE", help="with --until-decided: differences of "
        "up to this many points count as equivalent (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--looks", nargs="+", metavar="SHARE", help="with --until-decided: shares of the documents after which to "
        "look, such as 0.1 0.3 1, or a number of evenly spaced looks",
    )  # fmt: skip
    group.add_argument(
        "--max-documents", type=int, metavar="N", help="with --until-decided: ask at most N documents of each task",
    )  # fmt: skip


def rule_of(options: argparse.Namespace) -> UntilDecided | None:
    """How to decide; None without --until-decided.

    Raises:
        HarnessExtError: a flag needs --until-decided, contradicts it, or has a value that cannot be.
    """
    if not options.until_decided:
        for name in FLAGS[1:]:
            if getattr(options, name):
                raise HarnessExtError(f"--{name.replace('_', '-')} needs --until-decided; add it, or leave both out")
        return None
    if options.from_store:
        raise HarnessExtError("--until-decided asks the model, and --from-store does not; leave out one of them")
    if options.max_documents is not None and options.max_documents < 1:
        raise HarnessExtError(f"--max-documents must be at least 1, got {options.max_documents}")
    from harness_ext.engine.sequential import UntilDecided

    margin, margins = margins_of(options.margin)
    rule = UntilDecided(margin=margin, margins=margins, max_documents=options.max_documents)
    return rule if options.looks is None else replace(rule, looks=_looks(options.looks))


def _looks(given: Sequence[str]) -> tuple[float, ...]:
    """Shares, from shares or from a number of looks."""
    try:
        numbers = [float(text) for text in given]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] >= 1 and numbers[0] == int(numbers[0]) and numbers[0] <= MOST_LOOKS:
        count = int(numbers[0])
        return tuple((number + 1) / count for number in range(count))
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] <= 0 or numbers[-1] != 1:
        raise HarnessExtError(
            f"--looks {' '.join(given)}: give increasing shares that end with 1, such as 0.1 0.3 1, or a number of "
            f"looks from 1 to {MOST_LOOKS}"
        )
    return tuple(numbers)


@contextlib.contextmanager
def screen() -> Iterator[Callable[[Sequence[Row]], None]]:
    """Shows the rows after each look: a live table on a terminal, else a line for each row that was looked at."""
    from rich.console import Console
    from rich.live import Live

    from harness_ext.render.looks import LookRow, look_lines, looks_table

    def shown(rows: Sequence[Row]) -> list[LookRow]:
        return [
            LookRow(row.task, row.adapter, row.planned, row.look, row.monitor.task.margin, row.unit, row.failure)
            for row in rows
        ]

    if sys.stdout.isatty():
        with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda rows: live.update(looks_table(shown(rows), live.console.width), refresh=True)
        return
    looks = 0
    before: dict[tuple[str, str], object] = {}

    def print_lines(rows: Sequence[Row]) -> None:
        nonlocal looks
        looks += 1
        new = [row for row in rows if before.get((row.task, row.adapter)) != (row.asked, row.failure)]
        before.update({(row.task, row.adapter): (row.asked, row.failure) for row in rows})
        print("\n".join(look_lines(shown(new), looks)), flush=True)

    yield print_lines
