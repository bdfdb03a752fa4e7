"""Adapters for the tiny model, and both model classes over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from harness_ext.engine.hf_tree import TreeLM


@pytest.fixture
def tree_lm(tiny_model_folder: Path) -> TreeLM:
    """Our model class; small packs and a small cache, so that every document set takes several."""
    return TreeLM(str(tiny_model_folder), device="cpu", dtype="float32", batch_size=8, pack_tokens=96, cache_tokens=200)


@pytest.fixture
def plain_lm(tiny_lm: HFLM) -> HFLM:
    return tiny_lm


@pytest.fixture(scope="session")
def make_adapter(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a LoRA adapter for the tiny model, with random weights unless `zero`."""

    def make(name: str, *, seed: int = 1, zero: bool = False, **lora: Any) -> Path:
        folder = tmp_path_factory.mktemp("adapters") / name
        torch.manual_seed(seed)
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name and not zero:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        return folder

    return make
