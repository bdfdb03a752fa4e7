"""The founding experiment: plant the mistakes, evaluate, let the doctor name them, write docs/founding-experiment.md.

    HARNESS_EXT_DATA=DIR make founding

What is there already is not computed again, so an interrupted run goes on. About an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from page import CASES, Case, write_page
from trainers import batches

from adapters import MODEL, TRAININGS, train_all, training_pairs
from harness_ext.doctor.diagnose import diagnose
from harness_ext.doctor.preflight.batches import examine_batches
from harness_ext.doctor.replay.replay import diagnose_by_replay
from harness_ext.engine.evaluate import evaluate
from harness_ext.models.fetch import fetch_model
from harness_ext.results.load import load_runs

TASKS = Path(__file__).parent / "tasks"
DOCUMENTS = 300
CHECKED = 64  # examples whose batches are examined


def main() -> None:
    """Train, evaluate, diagnose, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/founding"), help="where adapters and runs go")
    parser.add_argument("--output", type=Path, default=Path("docs/founding-experiment.md"))
    options = parser.parse_args()
    base = str(fetch_model(MODEL))
    train_all(options.results / "adapters")
    every = [options.results / "adapters" / name for name in TRAININGS]
    for task, adapters in (
        ("founding_sst2", []), ("founding_squad", every), ("founding_squad_raw", every[:1])
    ):  # fmt: skip
        evaluate_once(base, task, adapters, options.results / task)
    for case in CASES:
        diagnose_once(case, options.results)
    for name in TRAININGS:
        examine_once(base, name, options.results)
    write_page(options.results, options.output)


def evaluate_once(base: str, task: str, adapters: Sequence[Path], output: Path) -> None:
    """Evaluate the base and adapters on a task, unless their results are there."""
    if output.is_dir():
        return
    print(f"evaluating {task}", flush=True)
    unfinished = output.with_name(f".{output.name}")
    evaluate(
        base, tasks=[task], adapters=adapters, include_path=str(TASKS), limit=DOCUMENTS, log_samples=True,
        model_args={"dtype": "float32"}, output_path=str(unfinished),
    )  # fmt: skip
    unfinished.rename(output)


def diagnose_once(case: Case, results: Path) -> None:
    """What the doctor says of one run, by asking it again where it has an adapter."""
    file = results / "diagnoses" / f"{case.name}.json"
    if file.is_file():
        return
    print(f"diagnosing {case.name}", flush=True)
    runs = [run for run in load_runs(results / case.task) if run.name in ("base", case.run)]
    started = time.monotonic()
    examine = diagnose_by_replay if case.replays else diagnose
    diagnoses = examine(runs, include_path=[TASKS])
    (diagnosis,) = [each for each in diagnoses if each.run == case.run]
    write_json(file, {**asdict(diagnosis), "seconds": time.monotonic() - started})


def examine_once(base: str, name: str, results: Path) -> None:
    """What the batches of a training show before its first step."""
    file = results / "batches" / f"{name}.json"
    if file.is_file():
        return
    print(f"examining the batches of {name}", flush=True)
    started = time.monotonic()
    found = examine_batches(
        batches(TRAININGS[name], base, training_pairs()[:CHECKED], results / "batches"),
        str(TASKS / "founding_squad.yaml"),
        MODEL,
    )
    write_json(file, {**asdict(found), "seconds": time.monotonic() - started})


def write_json(file: Path, content: Any) -> None:
    """Write a file in one piece."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str), encoding="utf-8")
    unfinished.rename(file)


if __name__ == "__main__":
    main()
