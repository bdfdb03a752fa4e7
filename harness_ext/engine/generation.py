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

from harness_ext.engine.decoding import StopRule, TokenChoice
from harness_ext.trees.layout import TreeBatch, build_packs
from harness_ext.trees.packs import TokenPair, TreePack
from harness_ext.trees.run_model import TreeCache, run_model

TO_COME = [0]  # a prompt is followed by one token that nobody knows yet


class Generated(NamedTuple):
    """What was generated for one prompt."""

    tokens: list[int]  # with the end token or stop string that ended it
    finish_reason: Literal["stop", "length"]


@dataclass
class _Row:
    prompt: int  # number of the prompt
    position: int  # of the token that comes next
    tokens: list[int] = field(default_factory=list)


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
        self._sequences: Sequence[TokenPair] = ()
        self._cache = TreeCache(model.device)
        self._rows: list[_Row] = []
        self._visible = torch.zeros(0, 0, dtype=torch.bool, device=model.device)  # (B, S): which slots a row sees

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
        self._sequences = [TokenPair(list(prompt), TO_COME) for prompt in prompts]
        last_tokens = [len(prompt) - 1 for prompt in prompts]
        waiting = deque(build_packs(prompts, max_tokens=prefill_tokens, first_needed=last_tokens))
        peak = 0
        while waiting or self._rows:
            if waiting and len(self._rows) <= peak // 2:
                self._compact(waiting[0].carried)
                while waiting and (not self._rows or self._cache.slots + len(waiting[0]) <= self._cache_tokens):
                    if not self._rows:  # also when all of the last pack finished with their first token
                        self._compact(waiting[0].carried)
                    yield from self._finish(self._prefill(waiting.popleft()))
                peak = len(self._rows)
            if self._rows:
                yield from self._finish(self._step())

    def _prefill(self, tree: TreeBatch) -> Tensor:
        """Run a tree; its prompts become rows. Returns the logits (B, V) of the first token of each new row."""
        pack = TreePack.of(tree, self._sequences).to(self._visible.device)
        visible = self._cache.append(pack.ends, pack.last_path, carried=pack.carried)
        logits = run_model(self._model, pack.input_ids, pack.position_ids, visible, keep=pack.rows, cache=self._cache)
        last_tokens = pack.rows[pack.row_of]  # of each prompt
        before = torch.nn.functional.pad(self._visible, (0, len(visible)))  # older rows see none of the new slots
        self._visible = torch.cat([before, visible[last_tokens]])
        self._progress(sum(len(self._prompts[prompt]) for prompt in pack.sequences))
        positions = pack.position_ids[0, last_tokens] + 1
        self._rows += [
            _Row(prompt, position) for prompt, position in zip(pack.sequences, positions.tolist(), strict=True)
        ]
        return logits[pack.row_of]

    def _step(self) -> Tensor:
        """Feed each row its newest token; returns the logits (B, V) of the next."""
        self._visible = self._cache.append_to_rows(self._visible)
        device = self._visible.device
        tokens = torch.tensor([[row.tokens[-1] for row in self._rows]], device=device)
        positions = torch.tensor([[row.position for row in self._rows]], device=device)
        for row in self._rows:
            row.position += 1
        every = torch.arange(len(self._rows), device=device)
        return run_model(self._model, tokens, positions, self._visible, keep=every, cache=self._cache)

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
        kept = self._cache.keep(carried, self._visible.any(dim=0))
        self._visible = self._visible[:, kept]
