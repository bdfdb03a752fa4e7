"""Simulations of tournaments: tables of docs/tuning.md.

    python benchmarks/tournament.py simulate
    python benchmarks/tournament.py write

What the store holds is not computed again, so an interrupted run goes on. `write` replaces the part of the page between
its markers. 1,000 tournaments of each scenario take about five minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from stopping import percent, store, stored, table_of

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
RUNS = 1_000
ENTRIES = (2, 4, 8, 16)
DOCUMENTS = (200, 400, 800, 1_200)


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("simulate", "write"))
    parser.add_argument("--store", type=Path, default=ROOT / "results" / "tournaments.jsonl")
    parser.add_argument("--runs", type=int, default=RUNS, help="simulated tournaments of each scenario")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "tuning.md")
    options = parser.parse_args()
    if options.step == "simulate":
        simulate_all(options.store, options.runs)
    else:
        write(options.output, list(stored(options.store).values()))


# -- simulations ---------------------------------------------------------------------------------------------------


def simulate_all(file: Path, runs: int) -> None:
    """Simulate the scenarios that the store does not hold."""
    from tournaments import Scenario, all_trained, constant, growing, simulate

    there = stored(file)
    grid = [Scenario(m, n, gap_at) for m in (8, 4, 2, 16) for n in DOCUMENTS for gap_at in (constant, growing)]
    others = [Scenario(8, 800, gap=gap) for gap in (0.02, 0.05)]
    others += [Scenario(8, 800, between_entries=correlation) for correlation in (0.6, 0.94)]
    others += [Scenario(8, 800, accuracy=0.6)]
    for scenario in (*grid, *others):
        if scenario.name in there:
            continue
        rates = simulate(scenario, runs)
        store(file, {
            "name": scenario.name, "kind": "grid" if scenario in grid else "other", "runs": runs,
            **{name: value for name, value in asdict(scenario).items() if name != "gap_at"},
            "gap_at": scenario.gap_at.__name__, "right": float(np.mean(rates.right)),
            "all_trained": all_trained(scenario, runs), "cost": float(np.mean(rates.cost)),
            "discordant": float(np.mean(rates.discordant)),
        })  # fmt: skip


# -- the page ------------------------------------------------------------------------------------------------------


def write(page: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replace the part of the page between its markers by tables of what the store holds."""
    begin, end = "<!-- simulations -->", "<!-- end of simulations -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    tables = "\n".join([*map(grid_table, ("constant", "growing"), (records, records)), other_table(records)])
    page.write_text(f"{head}{begin}\n\n{tables}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


TITLES = {"constant": "the whole gap at every rung", "growing": "a gap that grows"}


def grid_table(gap_at: str, records: Sequence[Mapping[str, Any]]) -> str:
    """How often the right entry wins, by the number of entries and documents."""
    cells = {
        (r["entries"], r["documents"]): r for r in records if r["kind"] == "grid" and r["gap_at"] == gap_at
    }  # fmt: skip
    rows = [
        (f"{entries} entries", percent(cells[entries, DOCUMENTS[-1]]["cost"]),
         *(percent(cells[entries, documents]["right"]) for documents in DOCUMENTS))
        for entries in ENTRIES
    ]  # fmt: skip
    rows.append(
        ("8 entries, all trained to the end", "100.0",
         *(percent(cells[8, documents]["all_trained"]) for documents in DOCUMENTS))
    )  # fmt: skip
    return table_of((TITLES[gap_at], "training", *(f"{documents:,} documents" for documents in DOCUMENTS)), rows)


def other_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Other gaps, accuracies and correlations."""
    base = next(r for r in records if (r["entries"], r["documents"], r["gap_at"]) == (8, 800, "constant"))
    rows = [
        (f"gap of {100 * r['gap']:g} points", f"{100 * r['accuracy']:g}", percent(r["discordant"]), percent(r["right"]))
        for r in (base, *(r for r in records if r["kind"] == "other"))
    ]
    return table_of(("8 entries, 800 documents", "accuracy", "discordant documents", "right winner"), rows)


if __name__ == "__main__":
    main()
