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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from harness_ext.errors import described
from harness_ext.models.adapters import kind_of
from harness_ext.models.attention import additive_mask, flex_mask, visible_ancestors
from harness_ext.models.prefix_tree import TreeBatch, iterate_packs

logger = logging.getLogger(__name__)

SUPPORT_TOLERANCE = 1e-3  # nats; float32 packs differ from plain passes by about 1e-5
LOW_PRECISION_TOLERANCE = 0.1  # nats, on average over tokens
PROBE_TOKENS, PROBE_LENGTH, MAX_PROBES = 256, 40, 32
PREDICTED, COMPARED = 8, 4  # tokens of each probe; probes that a plain pass repeats
LAYOUT_LENGTH = 16  # of the two probes that show whether positions and mask matter at all; they part within it
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
ADAPTERS_OF_A_ROW = {"ADAPTION_PROMPT", "POLY", "SHADOW", "XLORA"}
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

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask (1, 1, T, C + T): 0 where a token sees an ancestor or itself, the dtype's minimum elsewhere."""
        return additive_mask(visible_ancestors(self.ends, carried=self.carried), dtype)

    def target_logits(self, model: Any, cache: Cache | None = None) -> Tensor:
        """Logits (R, V) of every row that predicts something.

        Args:
            model: a causal language model.
            cache: holds the C tokens that the pack carries on; the T are added to it.
        """
        flex = _unwrapped(model).config._attn_implementation == "flex_attention"
        output = model(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            attention_mask=flex_mask(self.ends, self.carried) if flex else self.attention_mask(_dtype(model)),
            logits_to_keep=self.rows,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        logits: Tensor = output.logits[0]
        return logits if len(logits) == len(self.rows) else logits[self.rows]  # some models know no logits_to_keep

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


def tree_packs(sequences: Sequence[TokenPair], *, max_tokens: int, carry: bool = False) -> Iterator[TreePack]:
    """Lay out sequences as tree packs of at most `max_tokens` tokens, which may carry on from one another."""
    inputs = [[*context, *continuation[:-1]] for context, continuation in sequences]
    first_needed = [len(context) - 1 for context, _ in sequences] if carry else None
    for tree in iterate_packs(inputs, max_tokens=max_tokens, first_needed=first_needed):
        yield TreePack.of(tree, sequences)


@torch.no_grad()
def carried_logits(model: Any, packs: Iterable[TreePack]) -> Iterator[tuple[TreePack, Tensor]]:
    """Run packs that carry on from one another.

    Args:
        model: a causal language model that can take prefix trees.
        packs: all of them, in order.

    Yields:
        Each pack, on the model's device, with the logits (R, V) of its rows.
    """
    cache: Cache | None = None
    for pack, following in pairwise(chain(packs, [None])):
        assert pack is not None
        keeps = 0 if following is None else following.carried
        if keeps and cache is None:
            cache = Cache(layer_class_to_replicate=DynamicLayer)
        here = pack.to(model.device)
        logits = here.target_logits(model, cache)
        if cache is not None and keeps:
            for layer in cache.layers:
                path = here.last_path[:keeps].to(layer.keys.device)
                layer.keys, layer.values = layer.keys.index_select(2, path), layer.values.index_select(2, path)
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


@torch.no_grad()
def why_no_trees(
    model: Any, sequences: Sequence[TokenPair], *, longest: int | None = None, proven: bool = False
) -> str | None:
    """Say why a model cannot take prefix trees, or None when it can.

    Known exclusions come first. Then the model has to prove itself on small trees of its own tokens and of a few of the
    given sequences: it answers as in single passes, and it does look at position ids and mask.

    Args:
        model: a transformers language model, PEFT-wrapped or not, on its device.
        sequences: all that will be run.
        longest: tokens of the longest sequence there will be, new ones included: it decides about sliding windows.
            That of `sequences` when left out.
        proven: this model took trees before, of other sequences or with another adapter; made-up ones are left out.
    """
    longest = longest or max(len(context) + len(continuation) for context, continuation in sequences)
    if reason := _known_exclusion(model, longest):
        return reason
    was_training = model.training
    model.eval()
    try:
        probes = [] if proven else _made_up(model, longest)
        ignored = None if proven else _layout_ignored(model, probes)
        return ignored or _disagreement(model, probes, _neighbours(sequences))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"its forward pass refuses a tree ({described(error)})"
    finally:
        model.train(was_training)


def _known_exclusion(model: Any, longest: int) -> str | None:
    """What is known of an architecture beforehand, also where small trees would not show it."""
    config = model.config.get_text_config()
    layers = {str(kind) for kind in getattr(config, "layer_types", None) or ()}
    windows = {
        "sliding window": getattr(config, "sliding_window", None),
        "attention chunk": getattr(config, "attention_chunk_size", None),
        "range of fixed rotary frequencies": _fixed_rotary_range(config),
    }
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if any(word in config.model_type for word in RECURRENT):
        return f"{config.model_type} has recurrent layers"
    if others := sorted(layers - ATTENTION_LAYERS):
        return f"{config.model_type} has {' and '.join(others)} layers, which are not known to take a tree"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its positions are ALiBi biases on the order in memory"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "its local attention counts the order in memory"
    for name, size in windows.items():
        if size is not None and size < longest:
            return f"its {name} ({size} tokens) is shorter than a sequence ({longest})"
    return _excluded_adapter(model)


def _fixed_rotary_range(config: Any) -> int | None:
    """Tokens up to which a model has the same rotary frequencies, None where it has them at any length.

    Beyond, the longest sequence of a pass chooses the frequencies for all of its tokens.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    of_layers = [each for each in rope.values() if isinstance(each, Mapping)]
    ranges = []
    for each in of_layers or [rope]:
        if each.get("rope_type") == "longrope":
            ranges.append(each.get("original_max_position_embeddings") or config.max_position_embeddings)
        elif "dynamic" in str(each.get("rope_type")):
            ranges.append(config.max_position_embeddings)
    return min(ranges, default=None)


def _excluded_adapter(model: Any) -> str | None:
    """What is known of adapters beforehand."""
    for adapter in (getattr(model, "peft_config", None) or {}).values():
        if getattr(adapter, "is_prompt_learning", False):
            return "its adapter puts learned tokens before the prompt"
        if getattr(adapter, "alora_invocation_tokens", None):
            return "its adapter begins to work at invocation tokens (aLoRA)"
        if (kind := kind_of(adapter)) in ADAPTERS_OF_A_ROW:
            return f"its adapter ({kind}) looks at the whole row"
    return None


def _made_up(model: Any, longest: int) -> list[TokenPair]:
    """Sequences of arbitrary tokens that branch at two depths and differ in length; their last tokens are predicted.

    Enough of them that attention is cut into blocks.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    rows: list[list[int]] = []
    tokens = 0
    while tokens < PROBE_TOKENS and len(rows) < MAX_PROBES:
        number = len(rows)
        length = min(PROBE_LENGTH - 5 * (number % 4), longest)
        kept = min(longest, PROBE_LENGTH) // (2 + 2 * (number % 2)) if rows else 0
        rows.append(rows[0][:kept] if rows else [])
        rows[-1] += [(37 * index + 11 * number + 1) % vocabulary for index in range(kept, length)]
        tokens += length - kept
    predicted = [(row, max(1, len(row) // 2, len(row) - PREDICTED)) for row in rows if len(row) > 1]
    return [TokenPair(row[:start], row[start:]) for row, start in predicted]


def _neighbours(sequences: Sequence[TokenPair]) -> list[TokenPair]:
    """Two of the shorter sequences that stand side by side in a tree."""
    short = sorted(sequences, key=lambda pair: len(pair.context) + len(pair.continuation))[:64]
    return sorted(short)[:2]


def _layout_ignored(model: Any, probes: Sequence[TokenPair]) -> str | None:
    """Say whether a model answers the very same to other position ids or to a plain causal mask."""
    beginnings = [[*context, *continuation][:LAYOUT_LENGTH] for context, continuation in probes[:2]]
    (pack,) = tree_packs([TokenPair(tokens[:-1], tokens[-1:]) for tokens in beginnings], max_tokens=10**9)
    pack = pack.to(model.device)
    size = len(pack.ends)
    logits = pack.target_logits(model)
    if torch.equal(replace(pack, position_ids=pack.position_ids.flip(1)).target_logits(model), logits):
        return "it ignores position ids"
    if torch.equal(replace(pack, ends=torch.full_like(pack.ends, size)).target_logits(model), logits):
        return "it ignores an attention mask of its own for every token"
    return None


def _disagreement(model: Any, probes: Sequence[TokenPair], neighbours: Sequence[TokenPair]) -> str | None:
    """Hold trees over all sequences against a plain pass of the neighbours and some probes, here and there in them."""
    sequences = [*probes, *neighbours]
    (whole,) = tree_packs(sequences, max_tokens=10**9)
    # two packs, so that the second carries on; two neighbours alone would no longer share a mask
    max_tokens = 2 * whole.input_ids.numel() // 3 if probes else 10**9
    tree_of: dict[int, Tensor] = {}
    for pack, logits in carried_logits(model, tree_packs(sequences, max_tokens=max_tokens, carry=True)):
        tree_of |= zip(pack.sequences, torch.split(pack.chosen(logits), list(pack.counts)), strict=True)
    in_order = [number for number in tree_of if number < len(probes)]
    some_probes = {*in_order[:: max(1, len(in_order) // COMPARED)], *in_order[-1:]}
    plain_of: dict[int, Tensor] = {}
    for chosen in filter(None, (sorted(some_probes), range(len(probes), len(sequences)))):  # of like lengths
        padded = PaddedPack.of(chosen, sequences, pad_token_id=0).to(model.device)
        plain_of |= zip(chosen, torch.split(padded.target_logprobs(model), list(padded.counts)), strict=True)
    tree, plain = torch.cat([tree_of[number] for number in plain_of]), torch.cat(list(plain_of.values()))
    both_nan = tree.isnan() & plain.isnan()  # a broken model is broken either way: whoever uses the numbers says so
    differences = (tree - plain).abs().masked_fill(both_nan, 0.0)
    exact = _dtype(model) in (torch.float32, torch.float64)
    # In 16 bits a single token may round far off; a wrong layout shows in all of them.
    found, allowed = (differences.max(), SUPPORT_TOLERANCE) if exact else (differences.mean(), LOW_PRECISION_TOLERANCE)
    if found <= allowed:
        return None
    return f"a tree gives other log-probabilities than a plain pass (by {float(found):.2g} nats)"


def _dtype(model: Any) -> torch.dtype:
    """The dtype of the hidden states: that of the embedding."""
    dtype: torch.dtype = _unwrapped(model).get_input_embeddings().weight.dtype
    return dtype


def _unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel."""
    return getattr(model, "module", model)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
