"""Faults of exporting an adapter: another scale, layers of other names, weights of few bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harness_ext.models.adapters import CONFIG_FILE, WEIGHTS_FILE


def with_settings(**settings: Any) -> Callable[[Path], None]:
    """Change an adapter's configuration."""

    def change(folder: Path) -> None:
        file = folder / CONFIG_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return change


def with_names(old: str, new: str) -> Callable[[Path], None]:
    """Name an adapter's layers as another library does."""

    def change(folder: Path) -> None:
        weights = {name.replace(old, new): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    return change


@torch.no_grad()
def to_integers_of_4_bits(model: nn.Module) -> None:
    """Round linear layers to 16 evenly spaced values for each 32 weights, as GGUF's Q4_0 does."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            blocks = module.weight.view(-1, 32)
            scale = blocks.abs().amax(dim=1, keepdim=True) / 7
            module.weight.copy_((blocks / scale).round().clamp(-8, 7).mul(scale).view_as(module.weight))
