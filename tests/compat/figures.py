# ruff: noqa: E402
"""What this environment makes of a few tasks: prompts, answers, scores and fingerprints, as JSON.

    python tests/compat/figures.py MODEL OUTPUT.json

MODEL is a folder; it is made when it is missing. Two environments that write the same file evaluate alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HARNESS_EXT_DATA"] = "sample"
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "support"), str(Path(__file__).resolve().parents[2])]

import torch
from tiny_model import save_tiny_model

from harness_ext.engine.evaluate import evaluate

TASKS = (
    "sst2_choice",
    "sst2_choice_5shot",
    "sst2_choice_calibrated",
    "sst2_generate",
    "sst2_prompts",
    "squad_v2_1shot",
    "squad_v2_abstain_prob",
    "squad_v2_generate",
    "squad_v2_gold_bits",
)
LIMIT = 12


def main(model: Path, output: Path) -> None:
    """Evaluate all tasks by both engines and write what came out."""
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if not (model / "config.json").is_file():
        save_tiny_model(model)
    numbers = {}
    for engine in ("hf", "hf-tree"):
        (evaluated,) = evaluate(
            str(model), tasks=TASKS, model=engine, model_args={"dtype": "float32"}, device="cpu", limit=LIMIT,
            log_samples=True, output_path=str(output.with_suffix("") / engine),
        )  # fmt: skip
        assert not evaluated.failures, evaluated.failures
        numbers[engine] = _of_interest(evaluated.results)
    output.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _of_interest(results: Any) -> dict[str, Any]:
    parts = {
        task: {
            "scores": {name: value for name, value in scores.items() if "," in name and not _is_nan(value)},
            "fingerprint": results["harness_ext"]["fingerprints"].get(task),
            "higher_is_better": results["higher_is_better"].get(task),
            "samples": [_sample(each) for each in results["samples"].get(task, ())],
        }
        for task, scores in results["results"].items()
    }
    return json.loads(json.dumps(parts, default=float))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _sample(sample: Any) -> dict[str, Any]:
    """A document's prompts, hashed, and its answers; the answers' order is that of the prompts."""
    prompts = json.dumps([list(request) for request in sample["arguments"]])
    return {
        "doc_id": sample["doc_id"],
        "doc": hashlib.sha256(json.dumps(sample["doc"], sort_keys=True).encode()).hexdigest()[:16],
        "prompts": hashlib.sha256(prompts.encode()).hexdigest()[:16],
        "answers": [list(each) for each in sample["resps"]],
        "scores": {name: sample[name] for name in sorted(sample["metrics"]) if not _is_nan(sample[name])},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
