"""A tiny model and LoRA adapters for it, made in a process of their own: the caller's has to run nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from victims import Child

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))


def make(work: Path, adapters: int) -> tuple[Path, list[Path]]:
    """Make what is not there yet; returns the base's folder and those of the adapters."""
    base, folders = work / "base", [work / "adapters" / f"adapter{number:03d}" for number in range(adapters)]
    if not (base.is_dir() and all(folder.is_dir() for folder in folders)):
        work.mkdir(parents=True, exist_ok=True)
        if Child(lambda: _make(base, folders), work / "make.log").wait():
            raise SystemExit((work / "make.log").read_text(encoding="utf-8"))
    return base, folders


def _make(base: Path, folders: list[Path]) -> int:
    from peft import LoraConfig, get_peft_model
    from tiny_model import save_tiny_model
    from transformers import AutoModelForCausalLM

    save_tiny_model(base)
    for number, folder in enumerate(folders):
        torch.manual_seed(number)
        config = LoraConfig(r=2 + 2 * (number % 3), target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
    return 0
