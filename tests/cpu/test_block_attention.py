"""Attention in blocks against one dense attention: the same numbers and gradients, from fewer dot products."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness_ext.cpu.block_attention import IMPLEMENTATION, _cuts, block_attention, use_blocks
from harness_ext.trees.attention import additive_mask
from harness_ext.trees.packs import TokenPair, carried_logits, tree_packs

LAYER = torch.nn.Module()


def tree_visibility(branches: int, *, root: int = 20, leaf: int = 12) -> Tensor:
    """A root and leaves below it, each a causal chain: (T, T) bool."""
    size = root + branches * leaf
    visible = torch.ones(size, size, dtype=torch.bool).tril()
    for start in range(root, size, leaf):
        visible[start : start + leaf, root:start] = False
    return visible


def random_visibility(queries: int, keys: int, seed: int) -> Tensor:
    """Any pattern in which each query sees itself, the last keys being the queries."""
    draw = torch.Generator().manual_seed(seed)
    visible = torch.rand(queries, keys, generator=draw) < 0.2
    visible[torch.arange(queries), keys - queries + torch.arange(queries)] = True
    return visible


def states(queries: int, keys: int, *, heads: int = 6, key_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    query, key, value = (torch.randn(1, *shape, 8, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key, value


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention written out; (1, Q, heads, D)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = (query @ key.transpose(2, 3) / 8**0.5 + mask).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("cost", [0, 64, 10**9])
@pytest.mark.parametrize(
    "visible",
    [tree_visibility(5), random_visibility(40, 90, 1), random_visibility(1, 30, 2), random_visibility(33, 33, 3)],
    ids=["tree", "cache", "one query", "anything"],
)
@pytest.mark.parametrize("key_heads", [2, 6])
def test_blocks_give_what_dense_attention_gives(
    visible: Tensor, cost: int, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness_ext.cpu.block_attention.BLOCK_COST", cost)
    mask = additive_mask(visible, torch.float64)
    inputs = states(*visible.shape, key_heads=key_heads)
    expected = plain(*inputs, mask)
    found, weights = block_attention(LAYER, *inputs, mask, scaling=8**-0.5, is_causal=None, sliding_window=7)
    assert weights is None
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_blocks_save_dot_products() -> None:
    visible = tree_visibility(60)
    blocks = additive_mask(visible, torch.float32).blocks  # type: ignore[attr-defined]
    assert sum(block.queries for block in blocks) == len(visible)
    assert sum(block.queries * len(block.keys) for block in blocks) < visible.numel() / 4


@pytest.mark.parametrize("seed", range(5))
def test_the_cuts_are_the_cheapest(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: every way there is."""
    monkeypatch.setattr("harness_ext.cpu.block_attention.BLOCK_COST", 20)
    visible = random_visibility(9, 12, seed) & tree_visibility(2, root=3, leaf=3)[:, [0, 0, 0, *range(9)]]
    visible[:, 0] = True

    def cost(cuts: list[tuple[int, int]]) -> int:
        return sum((stop - start) * int(visible[start:stop].any(0).sum()) + 20 for start, stop in cuts)

    ways = []
    for chosen in range(2**8):
        places = [0, *(place for place in range(1, 9) if chosen >> (place - 1) & 1), 9]
        ways.append(cost(list(itertools.pairwise(places))))
    assert cost(_cuts(visible)) == min(ways)


def test_what_blocks_do_not_know_is_left_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softcap, sinks and the like change the numbers; SDPA itself refuses or handles them."""
    visible = tree_visibility(5)
    inputs = states(*visible.shape)
    mask = additive_mask(visible, torch.float64)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "harness_ext.cpu.block_attention.sdpa_attention_forward", lambda *_, **settings: seen.append(settings)
    )
    block_attention(LAYER, *inputs, mask, softcap=30.0)
    block_attention(LAYER, *inputs, mask, dropout=0.1)
    block_attention(LAYER, *inputs, mask.clone())  # the blocks are gone
    block_attention(LAYER, *inputs, None)
    assert len(seen) == 4
    assert seen[0]["softcap"] == 30.0
    assert seen[1]["dropout"] == 0.1


def tiny(implementation: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=implementation,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_a_model_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded batches and `generate` do not notice; a tree goes through the blocks."""
    dense, blocked = tiny("sdpa"), tiny("sdpa")
    use_blocks(blocked)
    assert blocked.config._attn_implementation == IMPLEMENTATION
    ids = torch.tensor([random.Random(0).choices(range(50), k=20)] * 2)
    padding = torch.ones_like(ids)
    padding[1, 15:] = 0
    assert torch.equal(dense(ids, attention_mask=padding).logits, blocked(ids, attention_mask=padding).logits)
    greedy = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones(1, 20, dtype=torch.long)}
    assert torch.equal(dense.generate(ids[:1], **greedy), blocked.generate(ids[:1], **greedy))
    monkeypatch.setattr("harness_ext.cpu.block_attention.BLOCK_COST", 16)
    visible = tree_visibility(5, root=5, leaf=3)
    mask = additive_mask(visible, torch.float32)
    assert len(mask.blocks) > 1  # type: ignore[attr-defined]
    calls = []
    counted = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or counted(*a, **k)
    )
    torch.testing.assert_close(
        blocked(ids[:1], attention_mask=mask).logits, dense(ids[:1], attention_mask=mask).logits, atol=1e-5, rtol=0
    )
    assert len(calls) == 2 * len(mask.blocks) + 2  # type: ignore[attr-defined]


def test_a_model_that_does_not_use_sdpa_stays_as_it_is() -> None:
    model = tiny("eager")
    use_blocks(model)
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def test_flex_attention_sees_the_same() -> None:
    """Not compiled, as on any machine; on a GPU the same mask becomes a kernel."""
    pairs = [TokenPair([1, 2, 3, *range(10, 10 + n)], [4, 5]) for n in (3, 8, 5)]
    (pack,) = tree_packs(pairs, max_tokens=1000)
    with torch.compiler.set_stance("force_eager"):
        found = pack.target_logprobs(tiny("flex_attention"))
    torch.testing.assert_close(found, pack.target_logprobs(tiny("sdpa")), atol=1e-5, rtol=0)


@torch.no_grad()
def test_flex_attention_sees_what_a_pack_carries_on() -> None:
    shared = list(range(3, 40))
    packs = list(tree_packs([TokenPair([*shared, 40 + n], [2]) for n in range(6)], max_tokens=40, carry=True))
    assert packs[-1].carried == len(shared)
    with torch.compiler.set_stance("force_eager"):
        found = [logits for _, logits in carried_logits(tiny("flex_attention"), packs)]
    for mine, (_, logits) in zip(found, carried_logits(tiny("sdpa"), packs), strict=True):
        torch.testing.assert_close(mine, logits, atol=1e-5, rtol=0)
