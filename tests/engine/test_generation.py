"""Decoding from trees against decoding one prompt at a time, by a model whose answers depend on the whole prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from harness_ext.cpu.block_attention import use_blocks
from harness_ext.engine.decoding import StopRule, TokenChoice
from harness_ext.engine.generation import TreeDecoder

VOCABULARY = 23


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    use_blocks(made)
    return made


@torch.no_grad()
def one_at_a_time(model: Any, prompt: list[int], rule: StopRule) -> list[int]:
    """Greedy decoding without a cache."""
    tokens: list[int] = []
    while not tokens or rule.reason(tokens) is None:
        tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("case", range(30))
def test_rows_leave_and_packs_carry_on(model: Any, case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts over one to three beginnings longer than a pack; rows leave at any time, and the cache is compacted."""
    monkeypatch.setattr("harness_ext.cpu.block_attention.BLOCK_COST", 64)
    draw = random.Random(case)
    beginnings = [draw.choices(range(VOCABULARY), k=draw.randrange(1, 60)) for _ in range(draw.randrange(1, 4))]
    prompts = [
        draw.choice(beginnings)[: draw.randrange(1, 80)] + draw.choices(range(VOCABULARY), k=draw.randrange(12))
        for _ in range(draw.randrange(8, 30))
    ]
    ends = frozenset(draw.sample(range(VOCABULARY), draw.choice([2, 5, 10])))
    rule = StopRule(ends, (), draw.randrange(2, 8), lambda _: "")
    cache_tokens, prefill_tokens = draw.choice([5, 30, 80, 500]), draw.choice([5, 20, 50])
    choice = TokenChoice([LogitsProcessorList()], do_sample=False)
    told: list[int] = []
    decoder = TreeDecoder(model, choice=choice, rule=rule, cache_tokens=cache_tokens, progress=told.append)
    found = dict(decoder.run(prompts, prefill_tokens=prefill_tokens))
    assert sum(told) == sum(len(prompt) + rule.max_new_tokens for prompt in prompts)  # progress ends at its total
    assert [found[number].tokens for number in range(len(prompts))] == [
        one_at_a_time(model, prompt, rule) for prompt in prompts
    ]
