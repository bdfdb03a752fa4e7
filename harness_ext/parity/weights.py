"""Weights of what is served beside those of the base, and a base whose weights are rounded to four bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64  # weights that share a scale
NF4 = (  # the values of 4-bit NormalFloat (Dettmers et al., "QLoRA", 2023, appendix E)
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302, 0.2461123,
    0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
ROUNDED = {1: 0.01, 2: 0.15}  # relative difference by dimensions that rounding explains: vectors keep their precision


@torch.no_grad()
def differing_weight(served: nn.Module, adapted: nn.Module) -> str | None:
    """The first weight that the adapter leaves alone and that is another one in what is served; None if there is none.

    Args:
        served: a model in this process.
        adapted: the base with the adapter on it; weights of layers with an adapter have other names there.
    """
    inner: Any = adapted
    base = dict((inner.get_base_model() if hasattr(inner, "get_base_model") else inner).named_parameters())
    for name, weight in served.named_parameters():
        other = base.get(name)
        if other is None or weight.dim() not in ROUNDED or not weight.is_floating_point():
            continue
        if weight.shape != other.shape or _relative(weight, other) > ROUNDED[weight.dim()]:
            return name
    return None


def _relative(weight: Tensor, other: Tensor) -> float:
    one, two = weight.float(), other.to(weight.device).float()
    size = float(two.norm())
    return float((one - two).norm()) / size if size else float(one.norm() > 0)


@torch.no_grad()
def round_to_4_bits(model: nn.Module) -> None:
    """Round the weights of a model's linear layers as NF4 does; embedding, head and adapter stay as they are."""
    inner: Any = model
    head = inner.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name:
            module.weight.data = rounded(module.weight.data)


def rounded(weight: Tensor) -> Tensor:
    """A weight of any shape, each block of 64 at the nearest of 16 values times its largest."""
    flat = weight.flatten().float()
    padded = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)  # (blocks, 64)
    scale = padded.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    levels = torch.tensor(NF4, device=weight.device)
    edges = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize((padded / scale).contiguous(), edges)] * scale
    return nearest.flatten()[: len(flat)].view_as(weight).to(weight.dtype)
