"""The demo: fetch a model, evaluate it, train an adapter, evaluate that, compare. Takes minutes on two CPU cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness_ext.engine.evaluate import evaluate
from harness_ext.leaderboard import Leaderboard
from harness_ext.models.fetch import fetch_model
from harness_ext.protocol import documents
from harness_ext.report import write_report
from harness_ext.results.load import load_runs
from harness_ext.selection.train import train_adapter
from harness_ext.training.recipe import Recipe

MODEL = "smollm2-135m-instruct"
TASKS = ("sst2_choice", "sst2_generate")
REPORT = "report.html"
TRAINING_EXAMPLES = 1280
SAMPLE_RECIPE = {"epochs": 2.0, "batch_size": 8}  # the sample has few examples: more and smaller steps


def run_demo(output: Path, *, say: Callable[[str], None]) -> Leaderboard:
    """Train an SST-2 adapter for a small model, evaluate base and adapter, compare them and write a report.

    Args:
        output: folder for adapter, results and report; those of an earlier demo are replaced.
        say: called with a line of progress at each stage.
    """
    say(f"1/5  fetching the model {MODEL}")
    model = str(fetch_model(MODEL, progress=say))
    if not documents.is_available("sst2"):
        os.environ[documents.DATA_VARIABLE] = documents.SAMPLE
        say(f"     SST-2 is not available ({documents.DATA_VARIABLE} is not set, and the Hub cannot be reached):")
        say("     using the small bundled sample instead, which is not a benchmark")
    adapter, results = output / "adapters" / "sst2", output / "results"
    evaluation: dict[str, Any] = {"tasks": TASKS, "output_path": str(results), "log_samples": True}
    say(f"2/5  evaluating the base, zero-shot, on {' and '.join(TASKS)}")
    evaluate(model, **evaluation)
    say(f"3/5  training the adapter {adapter}")
    is_sample = os.environ.get(documents.DATA_VARIABLE) == documents.SAMPLE
    settings: dict[str, Any] = SAMPLE_RECIPE if is_sample else {"limit": TRAINING_EXAMPLES}
    recipe = Recipe(task=TASKS[0], model=model, output=str(adapter), **settings)
    card = train_adapter(recipe, overwrite=True).card
    say(f"     {card.examples:,} examples in {card.seconds / 60:.1f} minutes, loss {card.train_loss:.3f}")
    say("4/5  evaluating the adapter on the same tasks")
    evaluate(model, model_args={"peft": str(adapter)}, **evaluation)
    say(f"5/5  comparing: harness-ext report {results} --output {output / REPORT}")
    return write_report(load_runs(str(results)), output / REPORT, results=[str(results)])
