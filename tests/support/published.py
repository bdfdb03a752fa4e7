"""A tiny adapter, its results, and a Hub to publish it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval_files import labelled
from safetensors.torch import save_file

from harness_ext.models.card import AdapterCard
from harness_ext.models.sources import files_sha256
from harness_ext.training.model_card import model_card

CARD = AdapterCard(
    base="org/tiny", base_revision=None, base_sha256="b" * 64, task="sst2_choice", fingerprint="f" * 64,
    fingerprint_fields={"version": "1.0"}, recipe={"lora_rank": 8}, data_sha256="d" * 64, sample_data=False,
    examples=24, tokens=48, trainable_parameters=64, seed=3, seconds=90.0, train_loss=0.25, validation_loss=0.3,
    versions={"peft": "0.21.2"},
)  # fmt: skip
CONFIG = {
    "peft_type": "LORA", "base_model_name_or_path": "org/tiny", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}  # fmt: skip
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
SST2 = {
    "dataset_kwargs": {"dataset": "sst2"}, "validation_split": "validation",
    "metadata": {"version": 1.0, "primary_metric": "acc"},
}  # fmt: skip


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """A writer of adapter folders, with or without our card."""

    def write(
        name: str = "sst2", *, card: AdapterCard | None = CARD, seed: int = 0, config: dict | None = None
    ) -> Path:
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        tensors = {f"{LAYER}.lora_A.weight": torch.randn(2, 4), f"{LAYER}.lora_B.weight": torch.randn(4, 2)}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
        if card is not None:
            (folder / "card.json").write_text(json.dumps(asdict(card)))
            (folder / "README.md").write_text(model_card(card, name), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def adapter(write_adapter: Callable[..., Path]) -> Path:
    return write_adapter()


@pytest.fixture
def write_results(write_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A writer of the results of a base and an adapter on tasks over SST-2; returns the folder of both."""

    def write(adapter: Path, tasks: tuple[str, ...] = ("sst2_choice",), *, before: int = 3, after: int = 10,
              name: str = "out", hashes: bool = True, **options: Any) -> Path:  # fmt: skip
        for variant, every in (("base", before), (adapter.name, after)):
            rows = labelled([float(number % every > 0) for number in range(200)])
            is_base = variant == "base"
            ours: dict[str, Any] = {
                "variant": variant, "base": "org/tiny", "adapter": None if is_base else str(adapter),
                "fingerprints": dict.fromkeys(tasks, "e" * 64), "sample_data": False,
            }  # fmt: skip
            if hashes and not is_base:
                files = ("adapter_model.safetensors", "adapter_config.json")
                ours["adapter_sha256"] = {file: files_sha256(adapter / file) for file in files}
            write_run(
                f"{name}/{variant}", dict.fromkeys(tasks, rows),
                model_args="pretrained=org/tiny,dtype=float32" + ("" if is_base else f",peft={adapter}"),
                configs=dict.fromkeys(tasks, SST2), ours=ours, **options,
            )  # fmt: skip
        return tmp_path / name

    return write
