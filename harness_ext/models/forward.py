"""One forward pass over a packed prefix tree gives exactly what separate passes would.

```
TreeBatch ──> input_ids (1, T), position_ids (1, T), mask (1, 1, T, T) ──> unmodified model ──> logits at R chosen rows
```

A token attends to its ancestors, its position id is its depth: for the model every sequence looks as if it stood alone.
The language-model head is applied at the chosen rows only (`logits_to_keep`), never at all T positions.

`TreePack` is that pass for the sequences of one pack, `PaddedPack` the plain one for models that cannot take trees; both
answer the same question, and tests hold one against the other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from harness_ext.models.prefix_tree import TreeBatch, iterate_packs

logger = logging.getLogger(__name__)

SUPPORT_TOLERANCE = 1e-3  # nats; float32 packs differ from single passes by about 1e-5
RECURRENT = (
    "mamba",
    "rwkv",
    "jamba",
    "zamba",
    "bamba",
    "recurrent",
    "lfm",
    "xlstm",
    "hybrid",
    "nemotron_h",
    "falcon_h1",
)


class TokenPair(NamedTuple):
    """Token ids of a context and the continuation whose tokens are predicted."""

    context: list[int]
    continuation: list[int]


P = TypeVar("P", "TreePack", "PaddedPack")


def _moved(pack: P, device: torch.device | str, **how: Any) -> P:
    tensors = {f.name: getattr(pack, f.name) for f in fields(pack)}
    return replace(pack, **{k: v.to(device, **how) for k, v in tensors.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class TreePack:
    """A pack of T tokens in which N tokens are predicted from R distinct places.

    Each sequence is held without its last token, which nothing follows.
    """

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T) depth in the tree
    ends: Tensor  # (T,) where each token's subtree ends
    rows: Tensor  # (R,) distinct indices of the pack, ascending
    row_of: Tensor  # (N,) number of the row that predicts each token
    targets: Tensor  # (N,) the predicted token ids
    sequences: tuple[int, ...]  # numbers of the sequences, in the order of their tokens in `targets`
    counts: tuple[int, ...]  # predicted tokens of each of them; sums to N

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
            input_ids=torch.tensor([tree.tokens]),
            position_ids=torch.tensor([tree.positions]),
            ends=torch.tensor(tree.ends),
            rows=rows,
            row_of=row_of,
            targets=torch.tensor(targets),
            sequences=tuple(leaf.sequence for leaf in tree.leaves),
            counts=tuple(counts),
        )

    def to(self, device: torch.device | str, **how: Any) -> TreePack:
        """The same pack on another device."""
        return _moved(self, device, **how)

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask (1, 1, T, T): 0 where a token sees an ancestor or itself, the dtype's minimum elsewhere."""
        index = torch.arange(len(self.ends), device=self.ends.device)
        visible = (index[None, :] <= index[:, None]) & (index[:, None] < self.ends[None, :])  # (query, key)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]

    def target_logits(self, model: Any) -> Tensor:
        """Logits (R, V) of every row that predicts something."""
        output = model(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            attention_mask=self.attention_mask(_dtype(model)),
            logits_to_keep=self.rows,
            use_cache=False,
        )
        logits: Tensor = output.logits[0]
        return logits

    def target_logprobs(self, model: Any) -> Tensor:
        """Log-probability (N,) of each predicted token, in at least float32."""
        logprobs = torch.log_softmax(_at_least_float32(self.target_logits(model)), dim=-1)  # (R, V)
        return logprobs[self.row_of, self.targets]


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


def tree_packs(sequences: Sequence[TokenPair], *, max_tokens: int) -> Iterator[TreePack]:
    """Lay out sequences as tree packs of at most `max_tokens` tokens."""
    inputs = [[*context, *continuation[:-1]] for context, continuation in sequences]
    for tree in iterate_packs(inputs, max_tokens=max_tokens):
        yield TreePack.of(tree, sequences)


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


@torch.no_grad()
def why_no_trees(model: Any, sequences: Sequence[TokenPair]) -> str | None:
    """Say why a model cannot take prefix trees, or None when it can.

    Known exclusions come first; then a tree over the given sequences is held against one plain pass for each.

    Args:
        model: a transformers causal language model, PEFT-wrapped or not, on its device.
        sequences: a few real ones, two at least that share a prefix.
    """
    config = model.config.get_text_config()
    longest = max(len(context) + len(continuation) for context, continuation in sequences)
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if any(word in config.model_type for word in RECURRENT):
        return f"{config.model_type} has recurrent layers"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its positions are ALiBi biases on the order in memory"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        return f"its sliding window ({window} tokens) is shorter than a sequence ({longest})"
    if any(getattr(p, "is_prompt_learning", False) for p in getattr(model, "peft_config", {}).values()):
        return "its adapter puts learned tokens before the prompt"
    try:
        difference = _tree_difference(model, sequences)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"its forward pass refuses a tree ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    tolerance = SUPPORT_TOLERANCE if _dtype(model) in (torch.float32, torch.float64) else 0.25
    if not difference <= tolerance:
        return f"a tree gives other log-probabilities than single passes (by {difference:.2g} nats)"
    return None


def _tree_difference(model: Any, sequences: Sequence[TokenPair]) -> float:
    """Largest difference in log-probability between a tree and single passes."""
    was_training = model.training
    model.eval()
    try:
        (pack,) = tree_packs(sequences, max_tokens=10**9)
        tree = pack.to(model.device).target_logprobs(model)
        singles = [PaddedPack.of([n], sequences, pad_token_id=0).to(model.device) for n in pack.sequences]
        return float((tree - torch.cat([single.target_logprobs(model) for single in singles])).abs().max())
    finally:
        model.train(was_training)


def _dtype(model: Any) -> torch.dtype:
    """The dtype of the hidden states: that of the embedding."""
    unwrapped = getattr(model, "module", model)
    dtype: torch.dtype = unwrapped.get_input_embeddings().weight.dtype
    return dtype


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
