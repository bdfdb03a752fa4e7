"""Which tokens of a tree see each other, as a mask that the model takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from harness_ext.cpu.block_attention import blocks_of


def visible_ancestors(ends: Tensor, *, carried: int = 0) -> Tensor:
    """Which tokens (T, C + T) each of the last T tokens of a tree sees: its ancestors and itself.

    Args:
        ends: (C + T,) where each token's subtree ends.
        carried: C, tokens that ask nothing themselves.
    """
    index = torch.arange(len(ends), device=ends.device)
    queries = index[carried:, None]
    return (index <= queries) & (queries < ends)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (1, 1, Q, K), 0 where visible and the dtype's minimum elsewhere, with its blocks on it.

    Args:
        visible: (Q, K) bool; each query sees at least one key.
        dtype: of the hidden states.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask = mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
    if visible.device.type == "cpu":
        mask.blocks = blocks_of(visible, mask)  # type: ignore[attr-defined]
    return mask


def flex_mask(visible: Tensor) -> BlockMask:
    """The same for PyTorch's flex-attention, which makes a kernel of it: for GPUs.

    Args:
        visible: (Q, K) bool.
    """

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible[query, key]

    queries, keys = visible.shape
    return create_block_mask(sees, 1, None, queries, keys, device=str(visible.device))
