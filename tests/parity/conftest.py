"""An adapter for the tiny model, and exports of it: sound ones, and ones in which a fault is planted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK, ALPHA = 4, 8


@pytest.fixture(scope="session")
def adapter(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of rank 4 and scale 2 for the tiny model, with random weights."""
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    torch.manual_seed(1)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def export(tiny_model_folder: Path, adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """Merge the adapter into its base and save it, with one thing gone wrong."""

    def make(
        *,
        base: Path = tiny_model_folder,
        dtype: torch.dtype = torch.float32,
        change_base: Callable[[nn.Module], None] = lambda _: None,
        change_adapter: Callable[[Path], None] = lambda _: None,
        change_tokenizer: Callable[[Any], None] = lambda _: None,
    ) -> Path:
        given = Path(shutil.copytree(adapter, tmp_path / "given"))
        change_adapter(given)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        change_base(model)
        merged: Any = PeftModel.from_pretrained(model, str(given))
        folder = tmp_path / "export"
        merged.merge_and_unload().save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
        change_tokenizer(tokenizer)
        tokenizer.save_pretrained(folder)
        return folder

    return make
