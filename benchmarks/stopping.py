"""Simulations and replays of sequential evaluations: tables and plots of docs/stopping.md.

    python benchmarks/stopping.py simulate --store results/stopping.jsonl
    python benchmarks/stopping.py replay RESULTS --store results/replays.jsonl
    python benchmarks/stopping.py write --output docs/stopping.md

What the stores hold is not computed again, so an interrupted run goes on. `write` replaces the parts of the page
between its markers. Simulations take about an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness_ext.comparison.measure import Measurement, Settings, measure
from harness_ext.results.load import load_runs
from harness_ext.results.pairing import pair_samples
from harness_ext.stats.paired import paired_difference
from harness_ext.stats.power import mcnemar_power
from harness_ext.stats.sequential import Design, TaskDesign, look_sizes, order_units
from harness_ext.stats.verdicts import Hypothesis, decide

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
ORDERS = 200
RUNS = 10_000
SAME = {"undecided": ("undecided", "cannot decide")}  # outcomes that agree with a verdict of fixed size


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("simulate", "replay", "write"))
    parser.add_argument("results", nargs="*", type=Path, help="of replay: folders with samples of complete runs")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--runs", type=int, default=RUNS, help="simulated evaluations of each scenario")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "stopping.md")
    options = parser.parse_args()
    if options.step == "simulate":
        simulate_all(options.store or ROOT / "results" / "stopping.jsonl", options.runs)
    elif options.step == "replay":
        replay_all(options.results, options.store or ROOT / "results" / "replays.jsonl")
    else:
        write(options.output)


def stored(file: Path) -> dict[str, dict[str, Any]]:
    """The records of a store, by name."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def store(file: Path, record: Mapping[str, Any]) -> None:
    """Append a record."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


# -- simulations ---------------------------------------------------------------------------------------------------


def simulate_all(file: Path, runs: int) -> None:
    """Simulate the scenarios that the store does not hold."""
    from stopping import AT_MARGIN, FAMILIES, GAINS, NULLS, family_wise, simulate

    there = stored(file)
    for kind, scenarios in (("null", NULLS), ("gain", GAINS), ("margin", AT_MARGIN)):
        for scenario in scenarios:
            if scenario.name in there:
                continue
            rates = simulate(scenario, runs)
            store(file, {
                "name": scenario.name, "kind": kind, "runs": runs, "n": scenario.n, "truth": scenario.truth,
                "better or worse": rates.share("better", "worse"), "better": rates.share("better"),
                "equivalent": rates.share("equivalent"), "cannot decide": rates.share("cannot decide"),
                "undecided": rates.share("undecided"), "covered": float(np.mean(rates.covered)),
                "repeated": float(np.mean(rates.repeated)), "below": float(np.mean(rates.below)),
                "share": float(np.mean(rates.shares)),
            })  # fmt: skip
    for scenario in FAMILIES:
        if scenario.name not in there:
            experiments = runs if scenario.family < 20 else runs // 4
            store(file, {"name": scenario.name, "kind": "family", "runs": experiments,
                         "family-wise": family_wise(scenario, experiments)})  # fmt: skip


# -- replays -------------------------------------------------------------------------------------------------------


def replay_all(paths: Sequence[Path], file: Path) -> None:
    """Replay complete runs in random orders, and compare the verdict at the stop with that on all documents."""
    from stopping import followed

    runs, there = load_runs(*paths), stored(file)
    base = next(run for run in runs if run.adapter is None)
    settings = Settings()
    for run in runs:
        for task in sorted(base.tasks.keys() & run.tasks.keys()):
            name = f"{task} · {run.name}"
            if run is base or name in there:
                continue
            first = measure(base, task, settings)
            second = measure(run, task, settings, like=first)
            before, after, labels = documents(task, first, second)
            paired = paired_difference(before, after, labels)
            verdict = decide([Hypothesis(paired, first.margin(settings))])[0].verdict
            margin, n = first.margin(settings), len(before)
            outcomes, shares = [], []
            for seed in range(ORDERS):
                design = Design({"task": TaskDesign(n, "", margin=margin)}, family=1, seed=seed)
                order = order_units(n if labels is None else labels, seed=seed)
                units = None if labels is None else labels[order]
                sizes = look_sizes(n if units is None else units, design.looks)
                looks = followed((after - before)[order], units, design, sizes)
                outcomes.append(str(looks[-1].outcome))
                shares.append(looks[-1].fraction)
            counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
            store(file, {
                "name": name, "n": n, "difference": paired.difference, "verdict": verdict, "outcomes": counts,
                "share": float(np.mean(shares)), "longest": float(np.max(shares)),
                "agreement": sum(counts.get(outcome, 0) for outcome in SAME.get(verdict, (verdict,))) / ORDERS,
            })  # fmt: skip


def documents(task: str, first: Measurement, second: Measurement) -> tuple[Any, Any, Any]:
    """Scores of the documents that both have, and their passages."""
    assert first.samples is not None
    assert second.samples is not None
    pairing = pair_samples(task, ("base", "run"), first.samples, second.samples)
    return first.rows(pairing.before)[:, 0], second.rows(pairing.after)[:, 0], pairing.before.clusters


# -- the page ------------------------------------------------------------------------------------------------------


def write(page: Path) -> None:
    """Replace the parts of the page between its markers by tables of what the stores hold."""
    text = page.read_text(encoding="utf-8")
    simulated = list(stored(ROOT / "results" / "stopping.jsonl").values())
    replays = list(stored(ROOT / "results" / "replays.jsonl").values())
    for name, table in (("simulations", simulation_tables(simulated)), ("replays", replay_table(replays))):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{table}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")
    (page.parent / "stopping-boundaries.svg").write_text(boundary_plot(), encoding="utf-8")
    (page.parent / "stopping-documents.svg").write_text(share_plot(simulated), encoding="utf-8")


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; all columns but the first are aligned to the right."""
    rules = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rules, *rows)) + "\n"


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f}"


def simulation_tables(records: Sequence[Mapping[str, Any]]) -> str:
    """One table for each kind of scenario; all shares in per cent."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    null = table_of(
        ("no difference", "runs", "n", "better or worse", "equivalent", "covered", "estimate below", "documents"),
        [
            (r["name"], f"{r['runs']:,}", f"{r['n']:,}",
             *(percent(r[k]) for k in ("better or worse", "equivalent", "covered", "below", "share")))
            for r in by_kind.get("null", ())
        ],
    )  # fmt: skip
    gain = table_of(
        ("a gain", "runs", "n", "better", "fixed size", "covered", "estimate below", "documents"),
        [
            (r["name"], f"{r['runs']:,}", f"{r['n']:,}", percent(r["better"]), fixed_power(r),
             *(percent(r[k]) for k in ("covered", "below", "share")))
            for r in by_kind.get("gain", ())
        ],
    )  # fmt: skip
    margin = table_of(
        ("a difference of the margin", "runs", "n", "equivalent", "covered", "documents"),
        [
            (r["name"], f"{r['runs']:,}", f"{r['n']:,}", *(percent(r[k]) for k in ("equivalent", "covered", "share")))
            for r in by_kind.get("margin", ())
        ],
    )
    family = table_of(
        ("no difference in any row", "experiments", "any better or worse after Holm"),
        [(r["name"], f"{r['runs']:,}", percent(r["family-wise"])) for r in by_kind.get("family", ())],
    )
    kinds = {"null": null, "gain": gain, "margin": margin, "family": family}
    return "\n".join(table for kind, table in kinds.items() if kind in by_kind)


def fixed_power(record: Mapping[str, Any]) -> str:
    """Power of McNemar's test on all documents, where the scenario is one of 0/1 scores."""
    _, _, rest = record["name"].partition(", ")
    share = rest.partition(" %")[0]
    return percent(mcnemar_power(record["n"], int(share) / 100, record["truth"])) if share.isdigit() else "–"


def replay_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One row for each comparison."""
    rows = [
        (r["name"], f"{r['n']:,}", f"{100 * r['difference']:+.1f}", r["verdict"], percent(r["share"]),
         percent(r["agreement"]), ", ".join(f"{outcome} {count}" for outcome, count in r["outcomes"].items()))
        for r in records
    ]  # fmt: skip
    table = table_of(("task · run", "n", "difference", "on all", "documents", "agreement", "outcomes"), rows)
    decided = [r for r in records if r["verdict"] in ("better", "worse")]
    if decided:
        table += (
            f"\nMean over all rows: {percent(float(np.mean([r['share'] for r in records])))} % of the documents. Where "
            f"the verdict on all documents is better or worse: agreement "
            f"{percent(float(np.mean([r['agreement'] for r in decided])))} %.\n"
        )
    return table


# -- plots ---------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, EDGE = 640, 320, 48
COLOURS = ("#1f6feb", "#bf5af2", "#2da44e")


def boundary_plot() -> str:
    """Boundaries of |Z| by the share of the documents, for three spending functions."""
    from harness_ext.stats.sequential import LOOKS, Spending, boundaries

    choices = {
        "alpha t^1.5 (default)": Spending(),
        "O'Brien–Fleming type": Spending("obrien-fleming", None),
        "Pocock type": Spending("pocock", None),
    }
    lines = {
        name: list(zip(LOOKS, boundaries(LOOKS, 0.05, spending), strict=True)) for name, spending in choices.items()
    }
    lines = {name: [(t, min(z, 6.0)) for t, z in points] for name, points in lines.items()}
    return plot(lines, "share of the documents", "boundary of |Z|", top=6.0, guide=1.96)


def share_plot(records: Sequence[Mapping[str, Any]]) -> str:
    """Mean share of the documents until a verdict, as bars."""
    bars = [(r["name"], r["share"]) for r in records if r["kind"] in ("null", "gain") and r["n"] <= 1_000]
    height = 24 * len(bars) + 40
    parts = [_head(WIDTH, height)]
    for index, (name, share) in enumerate(bars):
        y = 20 + 24 * index
        parts.append(f'<text x="280" y="{y + 12}" text-anchor="end">{_escape(name)}</text>')
        parts.append(f'<rect x="290" y="{y}" width="{300 * share:.1f}" height="16" fill="{COLOURS[0]}"/>')
        parts.append(f'<text x="{296 + 300 * share:.1f}" y="{y + 12}">{100 * share:.0f} %</text>')
    return "\n".join([*parts, "</svg>", ""])


def plot(lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, *, top: float, guide: float) -> str:
    """Lines over shares from 0 to 1."""

    def place(t: float, z: float) -> str:
        return f"{EDGE + t * (WIDTH - 2 * EDGE):.1f},{HEIGHT - EDGE - z / top * (HEIGHT - 2 * EDGE):.1f}"

    parts = [_head(WIDTH, HEIGHT)]
    for z in range(int(top) + 1):
        x, y = place(0, z).split(",")
        parts.append(f'<text x="{EDGE - 8}" y="{float(y) + 4}" text-anchor="end">{z}</text>')
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - EDGE}" y2="{y}" stroke="#8884" />')
    (x0, y0), (x1, y1) = (place(t, guide).split(",") for t in (0, 1))
    parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#888" stroke-dasharray="4 4"/>')
    for index, (name, points) in enumerate(lines.items()):
        path = " ".join(place(t, z) for t, z in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[index]}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH - 230}" y="{24 + 18 * index}" fill="{COLOURS[index]}">{_escape(name)}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, _ = place(share, 0).split(",")
        parts.append(f'<text x="{x}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{100 * share:.0f} %</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{across}</text>')
    parts.append(f'<text x="12" y="20">{_escape(up)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _head(width: int, height: int) -> str:
    style = 'font-family="sans-serif" font-size="12" fill="#666"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


if __name__ == "__main__":
    main()
