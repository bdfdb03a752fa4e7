"""What the conditional model knows, and an adapter for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conditional import ConditionalLM
from peft import LoraConfig, get_peft_model
from planted.runner import World
from transformers import AutoModelForCausalLM

LORA_RANK = 4


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what the conditional model knows, and when."""

    def set_(
        condition: Callable[[str, float], float],
        answer: Callable[[Mapping[str, Any]], str],
        otherwise: Callable[[Mapping[str, Any]], str] = lambda _: "nothing of the kind",
    ) -> None:
        monkeypatch.setattr(ConditionalLM, "condition", staticmethod(condition), raising=False)
        monkeypatch.setattr(ConditionalLM, "answer", staticmethod(answer), raising=False)
        monkeypatch.setattr(ConditionalLM, "otherwise", staticmethod(otherwise), raising=False)

    return set_


@pytest.fixture(scope="session")
def adapter(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of rank 4 and scale 2 for the tiny model, with random weights."""
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    torch.manual_seed(1)
    config = LoraConfig(r=LORA_RANK, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world of the planted defects, with its trained base."""
    return World(tmp_path_factory.mktemp("world"))
