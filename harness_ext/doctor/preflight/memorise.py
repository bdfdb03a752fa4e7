"""Learn a few examples by heart in seconds, on a copy of a model that shares its weights.

Only the last layers are trained. The layers below see the same tokens in every step, so they are run once and their
output is kept: a step then costs a fraction of a pass through the whole model.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from harness_ext.training.batches import Collator
from harness_ext.trees.packs import Pack, TokenPair

LAYERS = 2  # that are trained, counted from the last
RATES = (5e-3, 1e-2, 3e-2)  # tried one after the other
STEPS = 24  # with each
SURE = 0.8  # probability that each token has to reach; above one half it is what greedy decoding takes
PACK_TOKENS = 4096


@dataclass(frozen=True)
class Memory:
    """How well examples were learned by heart."""

    steps: int
    seconds: float
    probability: float  # of the least probable supervised token

    @property
    def is_learned(self) -> bool:
        """Whether greedy decoding gives every supervised token."""
        return self.probability > 0.5


def memorise(model: Any, pairs: Sequence[TokenPair], *, trees: bool, pad_token_id: int, seconds: float) -> Memory:
    """Train a PEFT model on examples until it knows them by heart.

    Args:
        model: a LoRA on a copy of a base; it is changed.
        pairs: context and supervised tokens.
        trees: whether the model takes prefix trees.
        pad_token_id: for padded batches.
        seconds: after which it stops, learned or not.
    """
    started = time.monotonic()
    packs = _packs(model, pairs, trees=trees, pad_token_id=pad_token_id)
    blocks = _blocks(model)
    parameters = _trainable(model, blocks[-LAYERS:] or [model])
    optimizer = torch.optim.AdamW(parameters, lr=RATES[0], weight_decay=0.0)
    model.eval()  # without dropout
    lowest = -math.inf
    with _run_once(blocks[:-LAYERS]) as chosen:
        for step in range(STEPS * len(RATES)):
            optimizer.param_groups[0]["lr"] = RATES[step // STEPS]
            lowest = _step(model, packs, optimizer, chosen)
            if lowest > math.log(SURE) or time.monotonic() - started > seconds:
                break
    model.requires_grad_(False)
    return Memory(step + 1, time.monotonic() - started, math.exp(lowest))


@torch.no_grad()
def recall(model: Any, pairs: Sequence[TokenPair], *, trees: bool, pad_token_id: int) -> float:
    """Probability of the least probable supervised token, by whole passes; nothing is taken from what was kept."""
    packs = _packs(model, pairs, trees=trees, pad_token_id=pad_token_id)
    return math.exp(min(float(pack.target_logprobs(model).min()) for pack in packs))


def _packs(model: Any, pairs: Sequence[TokenPair], *, trees: bool, pad_token_id: int) -> list[Pack]:
    collate = Collator(trees, max_tokens=PACK_TOKENS, pad_token_id=pad_token_id)
    return [pack.to(model.device) for pack in collate(pairs)["packs"]]


def _trainable(model: Any, blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Let only the LoRA matrices of these layers be trained."""
    model.requires_grad_(False)
    named = (pair for block in blocks for pair in block.named_parameters())
    parameters = [parameter for name, parameter in named if "lora_" in name]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _step(model: Any, packs: Sequence[Pack], optimizer: torch.optim.Optimizer, chosen: list[int]) -> float:
    """One step over all packs; returns the lowest log-probability of a supervised token before it."""
    count = sum(len(pack.targets) for pack in packs)
    lowest = 0.0
    for number, pack in enumerate(packs):
        chosen[0] = number
        logprobs = pack.target_logprobs(model)
        (-logprobs.sum() / count).backward()  # type: ignore[no-untyped-call]
        lowest = min(lowest, float(logprobs.detach().min()))
    if lowest <= math.log(SURE):
        optimizer.step()
    optimizer.zero_grad()
    return lowest


def _blocks(model: Any) -> list[nn.Module]:
    """The decoder layers in their order; empty where they cannot be told."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers)
    return list(next(lists, []))


@contextlib.contextmanager
def _run_once(blocks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Let frozen layers run once for each pack; after that each of them returns the output of the last one.

    Yields:
        A list whose only item is the number of the pack that runs.
    """
    chosen, kept = [0], dict[int, Any]()

    def replace(block: nn.Module, *, is_last: bool) -> None:
        forward = block.forward

        def once(*args: Any, **options: Any) -> Any:
            if chosen[0] in kept:
                return kept[chosen[0]]
            output = forward(*args, **options)
            if is_last:
                kept[chosen[0]] = output
            return output

        block.forward = once

    for number, block in enumerate(blocks):
        replace(block, is_last=number == len(blocks) - 1)
    try:
        yield chosen
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


@contextlib.contextmanager
def kept_random_state(seed: int) -> Iterator[None]:
    """Seed all generators, and leave them as they were: what is drawn afterwards is drawn as without this."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda) if cuda else None
        torch.mps.set_rng_state(mps) if mps is not None else None
