"""Base and shipped adapters on the full evaluation sets, as docs/results.md.

    HARNESS_EXT_DATA=DIR python benchmarks/results.py --output docs/results.md

Runs anywhere the documents are: a folder named by HARNESS_EXT_DATA, or the Hub. Takes minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness_ext.analysis.leaderboard import compare_runs
from harness_ext.analysis.results import Run, load_runs
from harness_ext.engine.evaluate import evaluate
from harness_ext.models.adapters import read_card
from harness_ext.models.sources import fetch_model

MODEL = "smollm2-135m-instruct"
PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Study:
    """One adapter on its tasks, and the metrics worth a table of their own."""

    title: str
    adapter: str
    tasks: tuple[str, ...]
    dev_set: int  # documents of the whole published dev set
    further_metrics: tuple[str, ...]


STUDIES = (
    Study("SST-2", "adapters/sst2", ("sst2_choice", "sst2_generate"), 872, ("macro_f1", "auroc", "parsed_rate")),
    Study(
        "SQuAD v2",
        "adapters/squad_v2",
        ("squad_v2_generate",),
        11_873,
        ("f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "abstain_precision", "abstain_recall", "abstain_f1"),
    ),
)


def main() -> None:
    """Evaluate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--results", type=Path, default=Path("results/shipped"), help="where the runs go")
    parser.add_argument("--model", default="hf-tree", help="lm-eval's model class")
    parser.add_argument("--limit", type=int, help="for trying this script out")
    parser.add_argument("--reuse", action="store_true", help="write the document from the runs that are there")
    options = parser.parse_args()
    base = str(fetch_model(MODEL))
    sections = []
    for study in STUDIES:
        folder = options.results / Path(study.adapter).name
        if not options.reuse:
            evaluate(
                base, tasks=study.tasks, adapters=[study.adapter], model=options.model, limit=options.limit,
                batch_size=16, output_path=str(folder), log_samples=True,
            )  # fmt: skip
        sections.append(section(study, load_runs(folder)))
    options.output.write_text("\n".join([heading(options.model), *sections]) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")


def heading(model: str) -> str:
    """Title, how it was made, on what."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"""# Results

The shipped adapters against their base, {MODEL} in float32, zero-shot, one protocol for both. Made by

```
HARNESS_EXT_DATA=DIR make results
```

Engine `{model}`; {platform.machine()}, Python {platform.python_version()}, {versions}.
"""


def section(study: Study, runs: Sequence[Run]) -> str:
    """One adapter: the comparison, the training in a sentence, further metrics."""
    card = read_card(study.adapter)
    assert card is not None, f"{study.adapter} has no card"
    sizes = {task: result.n for run in runs for task, result in run.tasks.items()}
    lines = [
        f"## {title_of(study, max(sizes.values()))}",
        "",
        f"`{study.adapter}`: {card.examples:,} training examples, epochs: {card.recipe['epochs']:g}, seed {card.seed}, "
        f"{card.trainable_parameters:,} trainable parameters, {card.seconds / 60:.0f} minutes on two cores. "
        f"Evaluated on {', '.join(f'{n:,} documents ({task})' for task, n in sizes.items())}.",
        "",
        compare_runs(runs).to_markdown(),
        "",
        *further(study, runs),
    ]
    return "\n".join(lines)


def title_of(study: Study, documents: int) -> str:
    """A part of a dev set is not to be quoted as the whole."""
    return study.title if documents == study.dev_set else f"{study.title} part ({documents:,})"


def further(study: Study, runs: Sequence[Run]) -> list[str]:
    """A table of the other metrics, as lm-eval aggregated them."""
    names = [run.name for run in runs]
    lines = ["| task | metric | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(names)]
    for task in study.tasks:
        for metric in study.further_metrics:
            if all(metric in run.tasks[task].metrics for run in runs):
                values = [run.tasks[task].metrics[metric] for run in runs]
                scale = 1 if run_scale(runs[0], task) == 100 else 100
                cells = [
                    f"{scale * v.value:.2f}" + (f" ± {scale * v.stderr:.2f}" if v.stderr is not None else "")
                    for v in values
                ]
                lines.append(f"| {task} | {metric} | " + " | ".join(cells) + " |")
    return [*lines, "", "Points, ± standard error where lm-eval gives one.", ""]


def run_scale(run: Run, task: str) -> int:
    """100 when the task reports points, 1 when it reports fractions."""
    return int(run.tasks[task].config.get("metadata", {}).get("metric_scale", 1))


if __name__ == "__main__":
    main()
