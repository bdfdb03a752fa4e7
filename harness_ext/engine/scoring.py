"""Log-probabilities of continuations, many at a time: one forward pass for each pack of prefix trees."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness_ext.errors import ModelError
from harness_ext.trees.packs import TokenPair, TreePack, carried_logits, tree_packs

logger = logging.getLogger(__name__)

MIN_TOKENS = 64  # a pack is not halved below this
LOGITS_AT_ONCE = 2**24  # float32 numbers: 64 MiB


class ScoredContinuation(NamedTuple):
    """What lm-eval asks of a continuation."""

    logprob: float  # natural log, summed over the continuation's tokens
    is_greedy: bool  # every token is the argmax


@torch.no_grad()
def score_continuations(
    model: Any, pairs: Sequence[TokenPair], *, max_tokens: int, known: Collection[int] = ()
) -> Iterator[dict[int, ScoredContinuation]]:
    """Score continuations, in the order that suits the packs.

    A pack that does not fit into memory is halved, and the run goes on.

    Args:
        model: a causal language model that can take prefix trees, on its device.
        pairs: context and continuation ids; the continuation not empty, the two together not longer than the model.
        max_tokens: size of a pack.
        known: numbers of pairs that need no score: the others get the scores that they get when all are scored.

    Yields:
        The scores of a pack by the number of the pair, each once.

    Raises:
        ModelError: a logit is NaN, or not even a small pack fits into memory.
    """
    waiting, done = list(range(len(pairs))), set(known)
    while len(done) < len(pairs):
        try:
            known = {place for place, number in enumerate(waiting) if number in done}
            packs = tree_packs([pairs[n] for n in waiting], max_tokens=max_tokens, carry=True, known=known)
            for pack, logits in carried_logits(model, packs):
                try:
                    scores = score_rows(pack, logits)
                finally:
                    del logits  # before the next pass
                of_pack = {waiting[place]: score for place, score in zip(pack.sequences, scores, strict=True)}
                of_pack = {number: score for number, score in of_pack.items() if number not in done}
                done |= of_pack.keys()
                yield of_pack
        except NanLogits as error:
            raise NanLogits(waiting[error.sequence]) from None
        except (torch.OutOfMemoryError, MemoryError) as error:
            if max_tokens // 2 < MIN_TOKENS:
                raise ModelError(
                    f"a pack of {max_tokens} tokens does not fit into memory; use a smaller model"
                ) from error
            max_tokens //= 2
            logger.warning("out of memory: going on with packs of %d tokens", max_tokens)
        waiting = [n for n in waiting if n not in done]


def score_rows(pack: TreePack, logits: Tensor) -> list[ScoredContinuation]:
    """Score one pack's continuations from the logits (R, V) of its rows, in the order of `pack.sequences`."""
    normaliser, best = normaliser_and_argmax(logits)  # (R,), (R,)
    logprobs = logits[pack.row_of, pack.targets].float() - normaliser[pack.row_of]  # (N,)
    greedy = best[pack.row_of] == pack.targets  # (N,)
    counts = list(pack.counts)
    parts = torch.split(logprobs.cpu(), counts)
    for sequence, part in zip(pack.sequences, parts, strict=True):
        if bool(part.isnan().any()):
            raise NanLogits(sequence)
    hits = torch.split(greedy.cpu(), counts)
    return [ScoredContinuation(float(part.sum()), bool(hit.all())) for part, hit in zip(parts, hits, strict=True)]


def normaliser_and_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the softmax's denominator (R,) in float32, and the argmax (R,), of logits (R, V), a few rows at a time."""
    rows = max(1, LOGITS_AT_ONCE // logits.shape[1])
    parts = [(block.float().logsumexp(dim=-1), block.argmax(dim=-1)) for block in torch.split(logits, rows)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


class NanLogits(ModelError):
    """A model that answers NaN; carries which sequence of the pack did."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"the model's logits are NaN at sequence {sequence}; try another dtype")
        self.sequence = sequence
