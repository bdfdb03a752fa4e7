"""Which models take prefix trees: known exclusions first, then proof on small trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor

from harness_ext.errors import described
from harness_ext.trees.packs import PaddedPack, TokenPair, carried_logits, tree_packs
from harness_ext.trees.run_model import hidden_dtype

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
    exact = hidden_dtype(model) in (torch.float32, torch.float64)
    # In 16 bits a single token may round far off; a wrong layout shows in all of them.
    found, allowed = (differences.max(), SUPPORT_TOLERANCE) if exact else (differences.mean(), LOW_PRECISION_TOLERANCE)
    if found <= allowed:
        return None
    return f"a tree gives other log-probabilities than a plain pass (by {float(found):.2g} nats)"


def kind_of(config: PeftConfig) -> str:
    """peft's name of an adapter's method: LORA, IA3, ..."""
    return str(getattr(config.peft_type, "value", config.peft_type))
