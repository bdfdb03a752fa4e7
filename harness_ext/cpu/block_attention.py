"""Attention over a tree in blocks: each block of queries meets only the keys that one of them sees.

```
            keys                       A dense mask costs T x T however little of it is visible. In depth-first order
          0 1 2 3 4 5 6 7 8            the visible keys of neighbouring queries are few: what lies on the path to the
queries 0 #                            first of them, and they themselves. So the queries are cut into blocks, and
        1 # #          <- block 1      each is an attention of its own over its few keys.
        2 # # #
        3 # # # #
        4 # # # # #    <- block 2: keys 0-6, no key of another branch
        5 # # #     #
        6 # # #     # #
        7 # # #         #
        8 # # #         # #   <- block 3: keys 0-2, 7, 8
```

The blocks ride on the dense mask that every transformers model passes through to its attention. A model that makes a
new tensor of the mask loses them, and attends by the dense mask: slower, and just as right.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "prefix_tree"
BLOCK_COST = 8192  # what one more block costs beside its dot products, counted in dot products; measured on a CPU
PIECES = 32  # a block is made of whole pieces, of which there are at most so many
RUNS = 32  # of neighbouring keys; up to here copying them run by run beats gathering
PLAIN = {"is_causal", "sliding_window", "position_ids", "use_cache"}  # settings that a full mask settles


class AttentionBlock(NamedTuple):
    """Some neighbouring queries and all the keys that any of them sees."""

    queries: int  # how many; the blocks follow one another
    keys: Tensor  # (K,) ascending indices
    runs: tuple[tuple[int, int], ...]  # the same as half-open ranges
    mask: Tensor  # (1, 1, queries, K) additive


def blocks_of(visible: Tensor, mask: Tensor) -> list[AttentionBlock]:
    """Cut a mask into blocks.

    Args:
        visible: (Q, K) bool; each query sees at least one key.
        mask: (1, 1, Q, K) additive, of the same visibility.
    """
    blocks = []
    for start, stop in _cuts(visible):
        keys = visible[start:stop].any(dim=0).nonzero()[:, 0]
        part = mask[:, :, start:stop].index_select(3, keys)
        blocks.append(AttentionBlock(stop - start, keys, _runs(keys.tolist()), part))
    return blocks


def _cuts(visible: Tensor) -> list[tuple[int, int]]:
    """The cheapest way to cut the queries into blocks, as half-open ranges.

    A block costs its queries times the keys that any of them sees, and `BLOCK_COST`. Shortest path over the places
    where a cut may be.
    """
    pieces = torch.split(visible, -(-len(visible) // PIECES))
    seen = torch.stack([piece.any(dim=0) for piece in pieces]).numpy()  # (pieces, K)
    ends = np.cumsum([len(piece) for piece in pieces])
    cheapest, cut_before = np.full(len(pieces) + 1, np.inf), np.zeros(len(pieces) + 1, dtype=int)
    cheapest[0] = 0.0
    for first in range(len(pieces)):
        keys = np.logical_or.accumulate(seen[first:]).sum(axis=1)  # of the blocks that begin here, ever longer
        queries = ends[first:] - (ends[first - 1] if first else 0)
        costs = cheapest[first] + queries * keys + BLOCK_COST
        better = np.flatnonzero(costs < cheapest[first + 1 :]) + first + 1
        cheapest[better], cut_before[better] = costs[better - first - 1], first
    cuts, piece = [], len(pieces)
    while piece:
        first = int(cut_before[piece])
        cuts.append((int(ends[first - 1]) if first else 0, int(ends[piece - 1])))
        piece = first
    return cuts[::-1]


def _runs(keys: list[int]) -> tuple[tuple[int, int], ...]:
    """Neighbouring keys as half-open ranges.

    >>> _runs([0, 1, 2, 7, 8])
    ((0, 3), (7, 9))
    """
    starts = [key for place, key in enumerate(keys) if place == 0 or keys[place - 1] != key - 1]
    stops = [key + 1 for place, key in enumerate(keys) if place + 1 == len(keys) or keys[place + 1] != key + 1]
    return tuple(zip(starts, stops, strict=True))


def use_blocks(model: Any) -> None:
    """Let a model that attends by SDPA on a CPU do so in blocks where a mask carries them; others stay as they are.

    Whatever has no such mask (training on padded batches, `generate`) is SDPA as before.
    """
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        getattr(model, "get_base_model", lambda: model)().set_attn_implementation(IMPLEMENTATION)


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention in the blocks of the mask, if it has any; else transformers' SDPA.

    Args:
        module: the attention layer.
        query: (1, heads, Q, D).
        key: (1, key heads, K, D).
        value: (1, key heads, K, D).
        attention_mask: from `additive_mask`, or any other.
        dropout: only without blocks.
        scaling: of the dot products.
        settings: what else a layer may want; anything a mask does not settle is left to SDPA.

    Returns:
        (1, Q, heads, D), and no weights.
    """
    blocks: list[AttentionBlock] | None = getattr(attention_mask, "blocks", None)
    special = {name for name, value_ in settings.items() if value_ is not None and value_ is not False} - PLAIN
    if blocks is None or dropout or special or len(query) != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
    grouped = query.shape[1] != key.shape[1]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            part, _chosen(key, block), _chosen(value, block), attn_mask=block.mask, scale=scaling, enable_gqa=grouped
        )
        for part, block in zip(torch.split(query, [block.queries for block in blocks], dim=2), blocks, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _chosen(states: Tensor, block: AttentionBlock) -> Tensor:
    """The block's keys of (1, heads, K, D)."""
    if len(block.runs) == 1:
        return states[:, :, slice(*block.runs[0])]
    if len(block.runs) <= RUNS:
        return torch.cat([states[:, :, start:stop] for start, stop in block.runs], dim=2)
    return states.index_select(2, block.keys)


AttentionInterface.register(IMPLEMENTATION, block_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
