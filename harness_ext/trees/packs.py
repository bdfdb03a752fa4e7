"""One forward pass over a packed prefix tree gives exactly what separate passes would.

```
TreeBatch ──> input_ids (1, T), position_ids (1, T), mask (1, 1, T, T) ──> unmodified model ──> logits at R chosen rows
```

A token attends to its ancestors, its position id is its depth: for the model every sequence looks as if it stood alone.
The language-model head is applied at the chosen rows only (`logits_to_keep`), never at all T positions. Where a pack
carries on from the one before, a KV cache holds the C tokens it carries, and the mask is (1, 1, T, C + T).

`TreePack` is that pass for the sequences of one pack, `PaddedPack` the plain one for models that cannot take trees;
both answer the same question, and tests hold one against the other.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, compress, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from harness_ext.trees.attention import visible_ancestors
from harness_ext.trees.layout import TreeBatch, iterate_packs, packs_to_run
from harness_ext.trees.run_model import TreeCache, run_model

logger = logging.getLogger(__name__)


class TokenPair(NamedTuple):
    """Token ids of a context and the continuation whose tokens are predicted."""

    context: list[int]
    continuation: list[int]


P = TypeVar("P", "TreePack", "PaddedPack")


def _moved(pack: P, device: torch.device | str, **how: Any) -> P:
    values = {field.name: getattr(pack, field.name) for field in fields(pack)}
    moved: dict[str, Any] = {k: v.to(device, **how) for k, v in values.items() if isinstance(v, Tensor)}
    return replace(pack, **moved)


@dataclass(frozen=True)
class TreePack:
    """A pack of T tokens, after C that it carries on, in which N tokens are predicted from R distinct places.

    Each sequence is held without its last token, which nothing follows.
    """

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T) depth in the tree
    ends: Tensor  # (C + T,) where each token's subtree ends
    last_path: Tensor  # (L,) indices of the last sequence's tokens among the C + T, from which the next pack carries on
    rows: Tensor  # (R,) distinct indices among the T, ascending
    row_of: Tensor  # (N,) number of the row that predicts each token
    targets: Tensor  # (N,) the predicted token ids
    sequences: tuple[int, ...]  # numbers of the sequences, in the order of their tokens in `targets`
    counts: tuple[int, ...]  # predicted tokens of each of them; sums to N
    carried: int = 0  # C

    @classmethod
    def of(cls, tree: TreeBatch, sequences: Sequence[TokenPair]) -> TreePack:
        """Lay out a tree over `context + continuation[:-1]` of each sequence."""
        places, targets, counts = [], [], []
        for leaf in tree.leaves:
            continuation = sequences[leaf.sequence].continuation
            places.extend(leaf.path[-len(continuation) :])
            targets.extend(continuation)
            counts.append(len(continuation))
        rows, row_of = torch.unique(torch.tensor(places), return_inverse=True)
        return cls(
            input_ids=torch.tensor([tree.tokens[tree.carried :]]),
            position_ids=torch.tensor([tree.positions[tree.carried :]]),
            ends=torch.tensor(tree.ends),
            last_path=torch.tensor(tree.leaves[-1].path),
            rows=rows - tree.carried,
            row_of=row_of,
            targets=torch.tensor(targets),
            sequences=tuple(leaf.sequence for leaf in tree.leaves),
            counts=tuple(counts),
            carried=tree.carried,
        )

    def to(self, device: torch.device | str, **how: Any) -> TreePack:
        """The same pack on another device."""
        return _moved(self, device, **how)

    def target_logits(self, model: Any, cache: TreeCache | None = None) -> Tensor:
        """Logits (R, V) of every row that predicts something.

        Args:
            model: a causal language model.
            cache: holds the C tokens that the pack carries on; the T are added to it.
        """
        visible = (
            visible_ancestors(self.ends, carried=self.carried)
            if cache is None
            else cache.append(self.ends, self.last_path, carried=self.carried)
        )
        return run_model(model, self.input_ids, self.position_ids, visible, keep=self.rows, cache=cache)

    def target_logprobs(self, model: Any) -> Tensor:
        """Log-probability (N,) of each predicted token, in at least float32; of a pack that carries nothing on."""
        return self.chosen(self.target_logits(model))

    def chosen(self, logits: Tensor) -> Tensor:
        """Log-probability (N,) of each predicted token from the logits (R, V)."""
        return torch.log_softmax(_at_least_float32(logits), dim=-1)[self.row_of, self.targets]


@dataclass(frozen=True)
class PaddedPack:
    """B sequences padded on the right to a common length L: the plain pass, for any causal model."""

    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L)
    row_of: Tensor  # (N,) sequence of each predicted token
    column_of: Tensor  # (N,) position that predicts it
    targets: Tensor  # (N,)
    sequences: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Sequence[int], sequences: Sequence[TokenPair], *, pad_token_id: int) -> PaddedPack:
        """Pad the sequences with these numbers."""
        rows = [sequences[number] for number in numbers]
        inputs = [torch.tensor([*row.context, *row.continuation[:-1]]) for row in rows]
        counts = tuple(len(row.continuation) for row in rows)
        lengths = torch.tensor([len(ids) for ids in inputs])
        row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
        columns = [range(len(ids) - count, len(ids)) for ids, count in zip(inputs, counts, strict=True)]
        input_ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=pad_token_id)
        return cls(
            input_ids=input_ids,
            attention_mask=(torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            row_of=row_of,
            column_of=torch.tensor([column for each in columns for column in each]),
            targets=torch.tensor([token for row in rows for token in row.continuation]),
            sequences=tuple(numbers),
            counts=counts,
        )

    def to(self, device: torch.device | str, **how: Any) -> PaddedPack:
        """The same pack on another device."""
        return _moved(self, device, **how)

    def target_logprobs(self, model: Any) -> Tensor:
        """Log-probability (N,) of each predicted token, in at least float32."""
        logits = model(input_ids=self.input_ids, attention_mask=self.attention_mask, use_cache=False).logits
        logprobs = torch.log_softmax(_at_least_float32(logits[self.row_of, self.column_of]), dim=-1)  # (N, V)
        return logprobs.gather(1, self.targets[:, None])[:, 0]


Pack = TreePack | PaddedPack


def tree_packs(
    sequences: Sequence[TokenPair], *, max_tokens: int, carry: bool = False, known: Collection[int] = ()
) -> Iterator[TreePack]:
    """Lay out sequences as tree packs of at most `max_tokens` tokens, which may carry on from one another.

    Args:
        sequences: contexts and continuations.
        max_tokens: limit of what a pack computes.
        carry: whether a pack may carry on from the one before.
        known: numbers of sequences whose outputs are not wanted. Packs of these alone are left out unless others carry
            on from them: the rest gives the same outputs, to the bit, as all packs do.
    """
    trees: Iterable[TreeBatch] = layout(sequences, max_tokens=max_tokens, carry=carry)
    if known:
        every = list(trees)
        trees = compress(every, packs_to_run(every, known))
    for tree in trees:
        yield TreePack.of(tree, sequences)


def layout(sequences: Sequence[TokenPair], *, max_tokens: int, carry: bool = False) -> Iterator[TreeBatch]:
    """Where `tree_packs` lays out sequences, without tensors."""
    inputs = [[*context, *continuation[:-1]] for context, continuation in sequences]
    first_needed = [len(context) - 1 for context, _ in sequences] if carry else None
    return iterate_packs(inputs, max_tokens=max_tokens, first_needed=first_needed)


@torch.no_grad()
def carried_logits(model: Any, packs: Iterable[TreePack]) -> Iterator[tuple[TreePack, Tensor]]:
    """Run packs that carry on from one another.

    Args:
        model: a causal language model that can take prefix trees.
        packs: all of them, in order.

    Yields:
        Each pack, on the model's device, with the logits (R, V) of its rows.
    """
    cache: TreeCache | None = None
    for pack, following in pairwise(chain(packs, [None])):
        assert pack is not None
        keeps = 0 if following is None else following.carried
        if keeps and cache is None:
            cache = TreeCache(model.device)
        here = pack.to(model.device)
        logits = here.target_logits(model, cache)
        if cache is not None and keeps:
            cache.keep(keeps)
        else:
            cache = None
        yield here, logits
        del logits  # before the next pass


def padded_packs(sequences: Sequence[TokenPair], *, max_tokens: int, pad_token_id: int) -> Iterator[PaddedPack]:
    """Lay out sequences, longest first, as padded batches of at most `max_tokens` tokens."""
    lengths = [len(context) + len(continuation) - 1 for context, continuation in sequences]
    batch: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda n: -lengths[n]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield PaddedPack.of(batch, sequences, pad_token_id=pad_token_id)
            batch = []
        batch.append(number)
    if batch:
        yield PaddedPack.of(batch, sequences, pad_token_id=pad_token_id)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
