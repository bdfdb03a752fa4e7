"""Base, shipped adapters and two seeds of a small one over five tasks, full evaluation sets, as docs/results.md.

    HARNESS_EXT_DATA=DIR python benchmarks/results.py --output docs/results.md

Runs anywhere the documents are: a folder named by HARNESS_EXT_DATA, or the Hub. What `--results` already holds is not
evaluated again, so an interrupted run goes on. About an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness_ext.engine.evaluate import evaluate
from harness_ext.errors import HarnessExtError
from harness_ext.leaderboard import compare_runs
from harness_ext.models.card import read_card
from harness_ext.models.fetch import fetch_model
from harness_ext.results.load import load_runs
from harness_ext.results.run import Run
from harness_ext.training.recipe import read_recipe, recipe_from
from harness_ext.training.seeds import train_seeds

MODEL = "smollm2-135m-instruct"
PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft")
SHIPPED = ("adapters/sst2", "adapters/squad_v2")
SMALL = "adapters/sst2_small.yaml"
SEEDS = 2
TASKS = ("sst2_choice", "sst2_choice_5shot", "sst2_choice_calibrated", "sst2_generate", "squad_v2_generate")
FURTHER = {
    "sst2_choice": ("macro_f1", "auroc", "brier"),
    "sst2_generate": ("macro_f1", "parsed_rate"),
    "squad_v2_generate": (
        "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "abstain_precision", "abstain_recall", "abstain_f1",
        "rougeL", "bleu",
    ),
}  # fmt: skip
SQUAD_V2_DEV = 11_873  # documents of the whole dev set


def main() -> None:
    """Train the small seeds, evaluate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--results", type=Path, default=Path("results/shipped"), help="where the runs go")
    parser.add_argument("--model", default="hf-tree", help="lm-eval's model class")
    parser.add_argument("--limit", type=int, help="for trying this script out; wants --results of its own")
    options = parser.parse_args()
    base = str(fetch_model(MODEL))
    adapters = [*SHIPPED, *small_seeds(options.results)]
    for adapter in (None, *adapters):
        missing = [task for task in TASKS if not is_there(options.results, adapter, task)]
        if missing:
            model_args: dict[str, Any] = {"dtype": "float32", **({"peft": adapter} if adapter else {})}
            if options.model == "hf-tree":
                model_args["merge"] = True
            evaluate(
                base, tasks=missing, model=options.model, limit=options.limit, batch_size=16, log_samples=True,
                model_args=model_args, output_path=str(options.results),
            )  # fmt: skip
    runs = load_runs(options.results)
    parts = [heading(options.model), training(adapters), compare_runs(runs).to_markdown(), *further(runs)]
    options.output.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")


def small_seeds(results: Path) -> list[str]:
    """The small adapter under each seed, trained unless it is there."""
    values = {**read_recipe(SMALL), "output": str(results / "adapters" / "sst2_small")}
    return [str(made.folder) for made in train_seeds(recipe_from(values, source=SMALL), SEEDS, resume=True)]


def is_there(results: Path, adapter: str | None, task: str) -> bool:
    """Whether a run of this variant on this task is among the results."""
    try:
        runs = load_runs(results)
    except HarnessExtError:  # none yet
        return False
    wanted = None if adapter is None else Path(adapter).name
    return wanted in [run.adapter and Path(run.adapter).name for run in runs if task in run.tasks]


def heading(model: str) -> str:
    """Title, how it was made, on what."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"""# Results

{MODEL} in float32 and adapters on it, zero-shot but where the task says otherwise, one protocol for all. Made by

```
HARNESS_EXT_DATA=DIR make results
```

Engine `{model}`; {platform.machine()}, Python {platform.python_version()}, {versions}. How to read the table:
[comparison.md](comparison.md).
"""


def training(adapters: Sequence[str]) -> str:
    """What each adapter was trained on."""
    lines = ["| adapter | task | examples | epochs | seed | minutes on two cores |", "|---|---|---:|---:|---:|---:|"]
    for adapter in adapters:
        card = read_card(adapter)
        assert card is not None, f"{adapter} has no card"
        lines.append(
            f"| `{Path(adapter).name}` | {card.task} | {card.examples:,} | {card.recipe['epochs']:g} | {card.seed} "
            f"| {card.seconds / 60:.0f} |"
        )
    return "\n".join([*lines, ""])


def further(runs: Sequence[Run]) -> list[str]:
    """Tables of the other metrics, as lm-eval aggregated them."""
    lines = ["## Further metrics", ""]
    for task, metrics in FURTHER.items():
        having = [run for run in runs if task in run.tasks]
        documents = having[0].tasks[task].n
        part = " part" if task.startswith("squad_v2") and documents < SQUAD_V2_DEV else ""
        lines += [f"`{task}`{part}, {documents:,} documents:", ""]
        lines += ["| metric | " + " | ".join(run.name for run in having) + " |", "|---|" + "---:|" * len(having)]
        for metric in metrics:
            cells = [cell(run, task, metric) for run in having]
            lines.append(f"| {metric} | " + " | ".join(cells) + " |")
        lines.append("")
    return [*lines, "Points, ± standard error where lm-eval gives one.", ""]


def cell(run: Run, task: str, metric: str) -> str:
    """A metric in points."""
    value = run.tasks[task].metrics.get(metric)
    if value is None:
        return "–"
    scale = 1 if run.tasks[task].config.get("metadata", {}).get("metric_scale", 1) == 100 else 100
    error = "" if value.stderr is None else f" ± {scale * value.stderr:.2f}"
    return f"{scale * value.value:.2f}{error}"


if __name__ == "__main__":
    main()
