"""What stopping early saves, and what evaluation during training costs: whole commands, loading included."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import SHIPPED, timed
from lines import Line

ORDERS = (0, 1, 2)  # seeds of the order of the documents; a single order may be lucky or not
EVALUATIONS = 4
TASKS = ("sst2_choice", "sst2_generate", "squad_v2_generate")


def of_one_adapter(base: str, limit: int | None) -> list[Line]:
    """Base and one adapter on one task."""
    return [_line(base, SHIPPED[:1], TASKS[:1], limit)]


def of_two_adapters(base: str, limit: int | None) -> list[Line]:
    """Base and both shipped adapters on three tasks."""
    return [_line(base, SHIPPED, TASKS, limit)]


def of_training(base: str, steps: int) -> list[Line]:
    """A training with and without `--evaluate-every`."""
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = Path(folder) / "plain", Path(folder) / "watched"
        command = ["-m", "harness_ext.cli", "train", "sst2_choice", "--model", base, "--max-steps", str(steps)]
        command += ["--batch-size", "32", "--dtype", "float32", "--no-preflight"]
        without = timed([*command, "--output", str(plain)])
        every = max(1, steps // EVALUATIONS)
        with_it = timed([*command, "--output", str(watched), "--evaluate-every", str(every)])
    return [
        Line(
            f"training on `sst2_choice`, {steps} steps of 32, with `--evaluate-every {every}`",
            "without it, loading included",
            without,
            with_it,
            "not compared here; a test shows that evaluating changes no weight",
            minimum=0.9,
            aim=0.9,
            ratio_name="of the speed",
        )
    ]


def _line(base: str, adapters: Sequence[str], tasks: Sequence[str], limit: int | None) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        whole, early = Path(folder) / "whole", [Path(folder) / str(order) for order in ORDERS]
        command = _command(base, adapters, tasks)
        all_of_it = timed([*command, "--output_path", str(whole), *(("--limit", str(limit)) if limit else ())])
        most = ("--max-documents", str(limit)) if limit else ()
        seconds = [
            timed([*command, "--output_path", str(output), "--until-decided", *most, "--seed", str(order)])
            for order, output in zip(ORDERS, early, strict=True)
        ]
        of_all, of_each = _rows(whole), [_rows(output) for output in early]
    agreeing = sum(_agree(row, of_all[key]) for rows in of_each for key, row in rows.items())
    documents = sum(row["n"] for rows in of_each for row in rows.values())
    asked = sum(of_all[key]["n"] for rows in of_each for key in rows)
    goal = 4 if len(tasks) == 1 else 2.5
    count = "base and 1 adapter" if len(adapters) == 1 else f"base and {len(adapters)} adapters"
    return Line(
        f"`--until-decided`: {count}, {', '.join(f'`{task}`' for task in tasks)}",
        f"all documents; mean of {len(ORDERS)} orders, loading included",
        all_of_it,
        sum(seconds) / len(seconds),
        f"{agreeing} of {sum(map(len, of_each))} verdicts do not contradict that of all documents; "
        f"{100 * documents / asked:.0f} % of the documents",
        minimum=goal,
        aim=goal,
    )


def _command(base: str, adapters: Sequence[str], tasks: Sequence[str]) -> list[str]:
    command = ["-m", "harness_ext.cli", "eval", "--model_args", f"pretrained={base},dtype=float32", "--no-store"]
    return [*command, "--adapters", *adapters, "--tasks", ",".join(tasks), "--device", "cpu", "--log_samples"]


def _rows(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a comparison by task and run."""
    command = [sys.executable, "-m", "harness_ext.cli", "compare", str(output), "--format", "json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["rows"]
    return {(row["task"], row["run"]): row for row in rows if row["verdict"]}


def _agree(row: dict[str, Any], of_all: dict[str, Any]) -> bool:
    """Whether two verdicts do not exclude each other."""
    return row["verdict"] == of_all["verdict"] or not {row["verdict"], of_all["verdict"]} <= {
        "better",
        "worse",
        "equivalent",
    }
