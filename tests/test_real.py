"""The main job on the real model: fetch, evaluate, train, evaluate, and the same numbers from an unmodified lm-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.session import VariantResults
from harness_ext.leaderboard import compare_runs
from harness_ext.models.fetch import fetch_model
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.results.load import load_runs
from harness_ext.selection.train import train_adapter
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import TrainedAdapter

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"
TASKS = ("sst2_choice", "sst2_generate")
LIMIT = 48
PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _all_threads() -> None:
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture(scope="module")
def model() -> str:
    return str(fetch_model(MODEL, PROJECT / "models"))


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory) -> TrainedAdapter:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_EXT_DATA", "sample")
        output = tmp_path_factory.mktemp("adapters") / "sst2"
        return train_adapter(
            Recipe(task="sst2_choice", model=model, output=str(output), limit=304, save_dtype="bfloat16")
        )


@pytest.fixture(scope="module")
def evaluated(
    model: str, trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[VariantResults]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_EXT_DATA", "sample")
        folder = tmp_path_factory.mktemp("results")
        return folder, evaluate(
            model, tasks=TASKS, adapters=[trained.folder], limit=LIMIT, output_path=str(folder), log_samples=True
        )


def test_training_helps(evaluated: tuple[Path, list[VariantResults]], trained: TrainedAdapter) -> None:
    folder, (base, adapter) = evaluated
    before, after = base.results["results"], adapter.results["results"]
    assert after["sst2_choice"]["log_loss,none"] < before["sst2_choice"]["log_loss,none"]
    assert after["sst2_generate"]["parsed_rate,none"] == 1.0 > before["sst2_generate"]["parsed_rate,none"]
    assert trained.card.trainable_parameters == 2_442_240
    assert (trained.folder / "adapter_model.safetensors").stat().st_size < 5_000_000
    comparison = compare_runs(load_runs(folder)).to_markdown()
    assert "SAMPLE" in comparison
    assert "of the outputs parsed" in comparison  # the base's, in a warning


def test_a_stock_lm_eval_gives_the_same_accuracy(
    model: str, trained: TrainedAdapter, evaluated: tuple[Path, list[VariantResults]], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args",
        f"pretrained={model},peft={trained.folder},dtype=float32", "--tasks", "sst2_choice", "--include_path",
        str(tasks_path()), "--device", "cpu", "--limit", str(LIMIT), "--batch_size", "16",
        "--output_path", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "HARNESS_EXT_DATA": "sample"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.rglob("results_*.json")
    stock = json.loads(written.read_text())["results"]["sst2_choice"]
    ours = evaluated[1][1].results["results"]["sst2_choice"]
    assert stock["acc,none"] == ours["acc,none"]
    assert stock["log_loss,none"] == pytest.approx(ours["log_loss,none"], abs=1e-4)
