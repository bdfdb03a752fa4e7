"""Generation from prefix trees: prompts that share a passage share its prefill and its KV cache.

```
prompts ──> packs (prefix trees) ──prefill──> one KV cache of S slots, where a pack finds what it carries on
                                                │  rows: one for each prompt, each sees its own slots only
                                  decode step: (1, B) tokens of B unfinished rows, mask (1, 1, B, S + B)
                                                │  a finished row leaves at once; when half are gone, the cache is
                                                └─ compacted to the slots still seen, and the next pack is prefilled
```
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from harness_ext.engine.decoding import StopRule, TokenChoice
from harness_ext.models.attention import additive_mask, visible_ancestors
from harness_ext.models.prefix_tree import TreeBatch, build_packs


class Generated(NamedTuple):
    """What was generated for one prompt."""

    tokens: list[int]  # with the end token or stop string that ended it
    finish_reason: Literal["stop", "length"]


@dataclass
class _Row:
    prompt: int  # number of the prompt
    position: int  # of the token that comes next
    tokens: list[int] = field(default_factory=list)


class RoomyLayer(DynamicLayer):
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


class TreeDecoder:
    """Decodes prompts from prefix trees, with one KV cache for all unfinished rows."""

    def __init__(
        self,
        model: Any,
        *,
        choice: TokenChoice,
        rule: StopRule,
        cache_tokens: int,
        progress: Callable[[int], object] = int,
    ) -> None:
        self._model = model
        self._choose = choice
        self._rule = rule
        self._cache_tokens = cache_tokens
        self._progress = progress  # told of tokens as they are computed
        self._prompts: Sequence[Sequence[int]] = ()
        self._cache = Cache(layer_class_to_replicate=RoomyLayer)
        self._rows: list[_Row] = []
        self._visible = torch.zeros(0, 0, dtype=torch.bool, device=model.device)  # (B, S): which slots a row sees
        self._last_path = torch.zeros(0, dtype=torch.long, device=model.device)  # slots that the next pack carries on

    @torch.no_grad()
    def run(self, prompts: Sequence[Sequence[int]], *, prefill_tokens: int) -> Iterator[tuple[int, Generated]]:
        """Generate for all prompts, in the order in which they finish.

        Args:
            prompts: token ids, none empty.
            prefill_tokens: size of a prefill pack.

        Yields:
            The number of a prompt and what was generated for it.
        """
        self._prompts = prompts
        last_tokens = [len(prompt) - 1 for prompt in prompts]
        waiting = deque(build_packs(prompts, max_tokens=prefill_tokens, first_needed=last_tokens))
        peak = 0
        while waiting or self._rows:
            if waiting and len(self._rows) <= peak // 2:
                self._compact(waiting[0].carried)
                while waiting and (not self._rows or self._slots + len(waiting[0]) <= self._cache_tokens):
                    if not self._rows:  # also when all of the last pack finished with their first token
                        self._compact(waiting[0].carried)
                    yield from self._finish(self._prefill(waiting.popleft()))
                peak = len(self._rows)
            if self._rows:
                yield from self._finish(self._step())

    @property
    def _slots(self) -> int:
        return self._visible.shape[1]

    def _prefill(self, tree: TreeBatch) -> Tensor:
        """Run a tree; its prompts become rows. Returns the first token of each of them, after those of the old rows."""
        device, old = self._model.device, self._slots
        added = torch.arange(old, old + len(tree), device=device)
        slots = torch.cat([self._last_path[: tree.carried], added])  # (C + T,)
        mask = torch.zeros(len(tree), old + len(tree), dtype=torch.bool, device=device)
        mask[:, slots] = visible_ancestors(torch.tensor(tree.ends, device=device), carried=tree.carried)
        self._last_path = slots[tree.leaves[-1].path]
        leaves = torch.tensor([leaf.spans[-1][1] - 1 - tree.carried for leaf in tree.leaves], device=device)
        rows, row_of = torch.unique(leaves, return_inverse=True)
        new = slice(tree.carried, None)
        logits = self._forward([tree.tokens[new]], [tree.positions[new]], mask, keep=rows)[row_of]
        self._visible = torch.cat([_widened(self._visible, len(tree)), mask[leaves]])
        self._progress(sum(len(self._prompts[leaf.sequence]) for leaf in tree.leaves))
        self._rows += [
            _Row(leaf.sequence, tree.positions[new][end] + 1)
            for leaf, end in zip(tree.leaves, leaves.tolist(), strict=True)
        ]
        return logits

    def _step(self) -> Tensor:
        """Feed each row its newest token; returns the logits (B, V) of the next."""
        count = len(self._rows)
        itself = torch.eye(count, dtype=torch.bool, device=self._visible.device)
        self._visible = torch.cat([self._visible, itself], dim=1)
        tokens = [row.tokens[-1] for row in self._rows]
        positions = [row.position for row in self._rows]
        for row in self._rows:
            row.position += 1
        every = torch.arange(count, device=itself.device)
        return self._forward([tokens], [positions], self._visible, keep=every)

    def _forward(self, tokens: list[list[int]], positions: list[list[int]], visible: Tensor, *, keep: Tensor) -> Tensor:
        dtype = self._model.get_input_embeddings().weight.dtype
        output = self._model(
            input_ids=torch.tensor(tokens, device=visible.device),
            position_ids=torch.tensor(positions, device=visible.device),
            attention_mask=additive_mask(visible, dtype),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _finish(self, logits: Tensor) -> Iterator[tuple[int, Generated]]:
        """Append each new token to its row; rows that end with it leave. The logits are those of the last rows."""
        first = len(self._rows) - len(logits)
        rows = self._rows[first:]
        ids = ([*self._prompts[row.prompt], *row.tokens] for row in rows)
        tokens = self._choose(logits, [row.prompt for row in rows], ids)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.tokens.append(token)
        self._progress(len(rows))
        kept = list(range(first))
        for number, row in enumerate(self._rows[first:], start=first):
            if (reason := self._rule.reason(row.tokens)) is None:
                kept.append(number)
            else:
                self._progress(self._rule.max_new_tokens - len(row.tokens))
                yield row.prompt, Generated(row.tokens, reason)
        if len(kept) < len(self._rows):
            self._rows = [self._rows[number] for number in kept]
            self._visible = self._visible[kept]

    def _compact(self, carried: int) -> None:
        """Drop the slots that no row sees any more, but those of the tokens that the next pack carries on."""
        path = self._last_path[:carried]
        seen = self._visible.any(dim=0)
        seen[path] = True
        if bool(seen.all()):
            return
        self._visible = self._visible[:, seen]
        self._last_path = seen.cumsum(0)[path] - 1
        for layer in self._cache.layers:
            layer.keep(seen)


def _widened(visible: Tensor, by: int) -> Tensor:
    """Visibility (B, S) with `by` more slots that no row sees."""
    return torch.nn.functional.pad(visible, (0, by))
