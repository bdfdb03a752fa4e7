"""Proof that a base model is what it was before an adapter was put on it, and that an adapter changes its answers.

```
base ──BaseProof.of──> checksums of every parameter and buffer, answers to prompts of the tasks
     ──check─────────> the same, to the bit, after each adapter
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from harness_ext.errors import AdapterError

CHECKED_WIDTH = 1024  # words of a row, in checksums


@dataclass(frozen=True)
class BaseProof:
    """What a base was before adapters came: checksums of its weights, and its answers to prompts of the task."""

    model: Any
    checksums: Mapping[str, int]
    probes: Sequence[Sequence[int]]
    answers: Sequence[Tensor]  # last logits (V,) of each probe

    @classmethod
    def of(cls, model: Any, probes: Sequence[Sequence[int]] = ()) -> BaseProof:
        """Remember a base as it is now.

        Args:
            model: the base, on its device.
            probes: token ids of a few prompts.
        """
        answers = last_logits(model, probes)
        return cls(model, checksums(model), probes, answers)

    def check(self, adapter: str) -> None:
        """Make sure that nothing of the base has changed.

        Args:
            adapter: the one that was on it, for the message.

        Raises:
            AdapterError: a parameter, a buffer or an answer differs in a single bit.
        """
        answers = last_logits(self.model, self.probes)
        now = checksums(self.model)
        changed = [name for name in self.checksums.keys() | now.keys() if self.checksums.get(name) != now.get(name)]
        if not changed and not all(map(_equal_with_nan, answers, self.answers)):
            changed = ["its answers"]
        if changed:
            raise AdapterError(
                f"{adapter} changed the base it was put on ({len(changed)} tensors, {min(changed)} first); "
                "evaluate this adapter in a run of its own"
            )

    def is_answered_alike(self, model: Any) -> bool:
        """Whether a model gives exactly the base's answers to all probes; answers that are no numbers tell nothing."""
        if not self.probes or any(bool(answer.isnan().any()) for answer in self.answers):
            return False
        answers = last_logits(model, self.probes)
        return all(map(_equal_where_both_have_tokens, answers, self.answers))


def _equal_with_nan(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _equal_where_both_have_tokens(one: Tensor, other: Tensor) -> bool:
    """Whether logits agree: to the bit, or up to rounding where the vocabulary was resized."""
    if one.shape == other.shape:
        return torch.equal(one, other)
    common = min(len(one), len(other))
    return torch.allclose(one[:common], other[:common], rtol=0, atol=1e-5)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; one that has several names comes under each."""
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


@torch.no_grad()
def checksums(model: nn.Module) -> dict[str, int]:
    """Checksum of the bits of each parameter and buffer, in their order, computed where it lies."""
    sums = {name: _checksum(tensor) for name, tensor in named_tensors(model) if tensor.device.type != "meta"}
    return {name: int(value) for name, value in sums.items()}


def _checksum(tensor: Tensor) -> Tensor:
    """Sums of a table of 64-bit words along both sides, weighted by their places.

    A changed word adds to one row and one column: an odd and an even weight, so the two can never cancel out.
    """
    bits = tensor.detach().contiguous().flatten().view(torch.uint8)
    if bits.storage_offset() % 8:
        bits = bits.clone()
    words = bits[: bits.numel() // 8 * 8].view(torch.int64)
    whole = words.numel() // CHECKED_WIDTH * CHECKED_WIDTH
    table = words[:whole].view(-1, CHECKED_WIDTH)
    columns = table.sum(dim=0)
    rows = torch.cat([table.sum(dim=1), words[whole:], bits[words.numel() * 8 :].to(torch.int64)])
    places = torch.arange(max(len(rows), CHECKED_WIDTH), device=bits.device)
    return (rows * (2 * places[: len(rows)] + 1)).sum() + (columns * 2 * places[:CHECKED_WIDTH]).sum()


@torch.no_grad()
def last_logits(model: Any, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits (V,) after each prompt, one plain pass each."""
    settle(model)
    answers = [_logits_after(model, ids) for ids in probes]
    settle(model)
    return answers


@torch.no_grad()
def settle(model: Any) -> None:
    """Let a model forget the lengths it has seen, so that it answers as if just loaded.

    Dynamic and long rotary embeddings choose their frequencies by the longest sequence, and keep them until a short one
    comes. Here comes one of a single token.
    """
    _logits_after(model, [0])


def _logits_after(model: Any, ids: Sequence[int]) -> Tensor:
    tokens = torch.tensor([list(ids)], device=model.device)
    decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    logits: Tensor = model(input_ids=tokens, **decoder).logits[0, -1]
    return logits
