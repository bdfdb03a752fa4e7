"""`harness-ext card`: the README.md of an adapter, with the results of its evaluation."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from harness_ext.cli.compare import with_errors
from harness_ext.cli.parser import command_parser
from harness_ext.errors import CardError

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext card`."""
    parser = command_parser(
        "card", run, "Write the README.md of an adapter, with its results: metadata for the Hub, the comparison with "
        "the base, the protocol, and how to repeat it. Only marked regions are replaced; your own text stays.",
        "  harness-ext card adapters/sst2 results/sst2\n"
        "  harness-ext card adapters/sst2 results/sst2 --name hub:me/sst2-lora",
    )  # fmt: skip
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter")
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="results of base and adapter, as for `harness-ext compare`"
    )
    parser.add_argument("--baseline", metavar="NAME", help="run to compare with (default: the base)")
    parser.add_argument(
        "--name", metavar="hub:USER/NAME", help="Hub id by which the commands in the card call the adapter (default: "
        "its folder)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace regions that were edited by hand; a copy is kept"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Write the card and name it."""
    from harness_ext.publish.card import results_of, write_card
    from harness_ext.publish.hub import hub_id
    from harness_ext.results.load import load_results

    loaded = load_results(*options.results)
    if loaded.unreadable:
        raise CardError(f"no card is written from results that are not whole: {loaded.unreadable[0]}")
    results = results_of(options.adapter, loaded.runs, baseline=options.baseline)
    for warning in results.warnings:
        logger.warning("%s", warning)
    results = replace(results, comparison=with_errors(results.comparison, loaded.runs))
    path = write_card(results, name=hub_id(options.name) if options.name else None, overwrite=options.overwrite)
    count = len(results.rows)
    print(f"{path}: {count} result{'s' if count != 1 else ''} against {results.comparison.baseline}")
    return 0
