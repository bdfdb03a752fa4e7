"""One pass of an unmodified model over tokens that each see what they are told to see.

Scoring, generation and training all run the model here. `TreeCache` is the KV cache in which a pack finds the tokens
that it carries on from the pack before, and in which the rows of a generation find their prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from harness_ext.trees.attention import additive_mask, flex_mask, visible_ancestors


def run_model(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    visible: Tensor,
    *,
    keep: Tensor,
    cache: TreeCache | None = None,
) -> Tensor:
    """Logits (R, V) of chosen tokens.

    Args:
        model: a causal language model, wrapped or not.
        input_ids: (1, T).
        position_ids: (1, T).
        visible: (T, S + T) bool: which of the S slots of the cache and of the T tokens each token sees.
        keep: (R,) the chosen ones among the T; the language-model head is applied to these only.
        cache: of S slots; the T tokens are added to it.
    """
    flex = unwrapped(model).config._attn_implementation == "flex_attention"
    logits: Tensor = model(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=flex_mask(visible) if flex else additive_mask(visible, hidden_dtype(model)),
        logits_to_keep=keep,
        past_key_values=None if cache is None else cache.states,
        use_cache=cache is not None,
    ).logits[0]
    return logits if len(logits) == len(keep) else logits[keep]  # some models ignore logits_to_keep


class TreeCache:
    """A KV cache of S slots, in the order in which their tokens were computed."""

    def __init__(self, device: torch.device | str) -> None:
        self.states = Cache(layer_class_to_replicate=GrowingLayer)
        self.slots = 0  # S
        self._path = torch.zeros(0, dtype=torch.long, device=device)  # slots of the last sequence's tokens

    def append(self, ends: Tensor, last_path: Tensor, *, carried: int) -> Tensor:
        """Reserve slots for the T tokens of a tree that follow the C that it carries on.

        Args:
            ends: (C + T,) where each token's subtree ends.
            last_path: (L,) indices of the last sequence's tokens among the C + T.
            carried: C.

        Returns:
            (T, S + T): which slots each of the tokens sees.
        """
        new = len(ends) - carried
        added = torch.arange(self.slots, self.slots + new, device=ends.device)
        slots = torch.cat([self._path[:carried], added])
        visible = torch.zeros(new, self.slots + new, dtype=torch.bool, device=ends.device)
        visible[:, slots] = visible_ancestors(ends, carried=carried)
        self._path = slots[last_path]
        self.slots += new
        return visible

    def append_to_rows(self, visible: Tensor) -> Tensor:
        """Reserve one more slot for each of B rows.

        Args:
            visible: (B, S) which slots each row sees.

        Returns:
            (B, S + B): each row sees its new slot, too.
        """
        self.slots += len(visible)
        itself = torch.eye(len(visible), dtype=torch.bool, device=visible.device)
        return torch.cat([visible, itself], dim=1)

    def keep(self, carried: int, seen: Tensor | None = None) -> Tensor:
        """Drop the slots that nobody needs any more.

        Args:
            carried: tokens of the last sequence, from its beginning, that the next tree carries on.
            seen: (S,) other slots that are needed.

        Returns:
            (S,) which slots were kept.
        """
        path = self._path[:carried]
        kept = torch.zeros(self.slots, dtype=torch.bool, device=path.device) if seen is None else seen.clone()
        kept[path] = True
        if not bool(kept.all()):
            self._path = kept.cumsum(0)[path] - 1
            self.slots = int(kept.sum())
            for layer in self.states.layers:
                layer.keep(kept.to(layer.keys.device))
        return kept


class GrowingLayer(DynamicLayer):
    """A layer of a KV cache that grows in place: `DynamicLayer` copies all it has at every step."""

    _rooms: list[Tensor]  # of keys and values, (1, heads, at least S, D)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append states (1, heads, new, D); returns all there are."""
        added = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [states[:, :, :0] for states in added]
        old = self.get_seq_length()
        new = old + key_states.shape[2]
        for number, states in enumerate(added):
            room = self._rooms[number]
            if new > room.shape[2]:
                heads, size = states.shape[1], states.shape[3]
                room = torch.cat([room[:, :, :old], room.new_empty(1, heads, 2 * new - old, size)], dim=2)
            room[:, :, old:new] = states
            self._rooms[number] = room
        self.keys, self.values = (room[:, :, :new] for room in self._rooms)
        return self.keys, self.values

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these, (S,) bool."""
        self.keys, self.values = self.keys[:, :, slots], self.values[:, :, slots]
        self._rooms = [self.keys, self.values]


def hidden_dtype(model: Any) -> torch.dtype:
    """The dtype of the hidden states: that of the embedding."""
    dtype: torch.dtype = unwrapped(model).get_input_embeddings().weight.dtype
    return dtype


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel."""
    return getattr(model, "module", model)
