"""`hf-tree` against `hf`: the same numbers, the same text, whatever the order and the pack size.

Oracle throughout: lm-eval's own HFLM on the same weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from versions import request

from harness_ext.engine.answer_hook import RequestKey
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.scoring import score_continuations
from harness_ext.errors import ModelError
from harness_ext.trees.packs import TokenPair, TreePack

PASSAGE = "The ferry at Harrowmere was built by Osric Pell, who charged one penny for a person and three for a horse. "
REVIEW = "Decide whether the review is negative or positive.\n\nReview: {}\nSentiment:"
REVIEWS = ["a warm, funny film", "never dull", "a warm, funny mess that fails", "not without charm, but dull", "dull"]


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring, prefill and decode steps are cut into blocks at this size, too."""
    monkeypatch.setattr("harness_ext.cpu.block_attention.BLOCK_COST", 16)


def requests_of(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [request(kind, args, n) for n, args in enumerate(arguments)]


SCORING = {
    "choices of several tokens": [(REVIEW.format(r), c) for r in REVIEWS for c in (" negative", " positive")],
    "choices that are prefixes of each other": [("Topic:", c) for c in (" sport", " sports", " sports news")],
    "empty contexts": [("", c) for c in ("positive", " positive", "a longer continuation")],
    "a context with trailing spaces": [("The answer is   ", "yes"), ("The answer is   ", "no")],
    "the same request twice": [("The same", " request")] * 2,
    "contexts longer than the model": [("word " * 3000, " end"), ("word " * 2500 + "other", " end")],
    "a shared passage": [(PASSAGE + q, a) for q in ("Who built it?", "Who paid?") for a in (" Pell", " a horse")],
    "a context with a begin token": [("<s>Already begun", " here")],
}


@pytest.mark.parametrize("case", SCORING)
def test_loglikelihood_agrees_with_hf(tree_lm: TreeLM, plain_lm: HFLM, case: str) -> None:
    requests = requests_of("loglikelihood", SCORING[case])
    ours, theirs = (
        tree_lm.loglikelihood(requests, disable_tqdm=True),
        plain_lm.loglikelihood(requests, disable_tqdm=True),
    )
    assert set(tree_lm._reasons.values()) == {None}  # the tree path was taken
    for mine, oracle in zip(ours, theirs, strict=True):
        assert mine[0] == pytest.approx(oracle[0], abs=1e-4)
        assert mine[1] == oracle[1]


def test_loglikelihood_does_not_depend_on_order_or_pack_size(tree_lm: TreeLM) -> None:
    arguments = [args for case, each in SCORING.items() if "longer" not in case for args in each]
    before = tree_lm.loglikelihood(requests_of("loglikelihood", arguments), disable_tqdm=True)
    order = random.Random(0).sample(range(len(arguments)), len(arguments))
    tree_lm.pack_tokens = 1000
    after = tree_lm.loglikelihood(requests_of("loglikelihood", [arguments[n] for n in order]), disable_tqdm=True)
    for place, number in enumerate(order):
        assert after[place][0] == pytest.approx(before[number][0], abs=1e-4)


FEW_SHOT = "".join(f"{REVIEW.format(f'review number {n}')} {('negative', 'positive')[n % 2]}\n\n" for n in range(30))


def test_examples_longer_than_a_pack_are_computed_once(
    tree_lm: TreeLM, plain_lm: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FEW_SHOT.replace("number", "no")  # another task's, in the same call
    arguments = [(start + REVIEW.format(r), c) for start in (FEW_SHOT, other) for r in REVIEWS for c in (" a", " b")]
    arguments += SCORING["choices of several tokens"]
    requests = requests_of("loglikelihood", arguments)
    pairs = [TokenPair(*tree_lm._encode_pair(*each)) for each in arguments]
    assert tree_lm.takes_trees(pairs)
    computed = []
    whole = TreePack.target_logits

    def counted(pack: TreePack, *given: Any) -> Any:
        computed.append(pack.input_ids.numel())
        return whole(pack, *given)

    monkeypatch.setattr(TreePack, "target_logits", counted)
    tree_lm.pack_tokens = 100
    ours = tree_lm.loglikelihood(requests, disable_tqdm=True)
    theirs = plain_lm.loglikelihood(requests, disable_tqdm=True)
    assert [a[0] for a in ours] == pytest.approx([b[0] for b in theirs], abs=1e-4)
    inputs = [[*context, *continuation[:-1]] for context, continuation in pairs]
    distinct = {tuple(ids[: end + 1]) for ids in inputs for end in range(len(ids))}
    assert len(computed) > 4
    assert len(distinct) <= sum(computed) <= len(distinct) + len(computed)  # two choices after one context may be cut


@pytest.mark.parametrize("cache_tokens", [64, 700, 4000])
@pytest.mark.parametrize("max_gen_toks", [1, 6])
def test_generation_carries_on_from_pack_to_pack(
    tree_lm: TreeLM, plain_lm: HFLM, cache_tokens: int, max_gen_toks: int
) -> None:
    """The texts of `hf`. This model's rows end together; for others see test_generation.py."""
    tree_lm.cache_tokens, tree_lm.pack_tokens = cache_tokens, 60
    settings = {"until": ["e"], "max_gen_toks": max_gen_toks}
    prompts = [FEW_SHOT[:700] + prompt for prompt in PROMPTS]
    requests = requests_of("generate_until", [(prompt, dict(settings)) for prompt in prompts])
    ours = tree_lm.generate_until(requests, disable_tqdm=True)
    assert ours == [plain_lm.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert all(reason is None for reason in tree_lm._reasons.values())


def test_loglikelihood_rolling_agrees_with_hf(tree_lm: TreeLM, plain_lm: HFLM) -> None:
    requests = requests_of("loglikelihood_rolling", [(PASSAGE,), (PASSAGE * 40,), ("short",)])
    ours, plain = (np.array(lm.loglikelihood_rolling(requests, disable_tqdm=True)) for lm in (tree_lm, plain_lm))
    assert ours == pytest.approx(plain, abs=1e-2, rel=1e-5)


QUESTIONS = [f"{PASSAGE}Question: {q}\nAnswer:" for q in ("Who built it?", "What did a horse pay?", "When?", "Who?")]
PROMPTS = [*QUESTIONS, *map(REVIEW.format, REVIEWS), QUESTIONS[0], "x", PASSAGE]


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        {"until": ["e", "\n\n"], "max_gen_toks": 20},  # a stop string that comes soon
        {"until": [], "max_gen_toks": 5, "temperature": 0.0},
        {"until": "ing the", "max_gen_toks": 30},  # straddles tokens
    ],
)
@pytest.mark.parametrize("cache_tokens", [64, 4000])  # waiting rows take the places of finished ones; all at once
def test_greedy_generation_is_that_of_hf(
    tree_lm: TreeLM, plain_lm: HFLM, settings: dict[str, Any], cache_tokens: int
) -> None:
    tree_lm.cache_tokens = cache_tokens
    requests = requests_of("generate_until", [(prompt, dict(settings)) for prompt in PROMPTS])
    ours = tree_lm.generate_until(requests, disable_tqdm=True)
    # one at a time, so that no padding and no other row has a say
    theirs = [plain_lm.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert ours == theirs
    assert all(reason is None for reason in tree_lm._reasons.values())


def test_generation_records(tree_lm: TreeLM) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    requests = requests_of("generate_until", [(prompt, settings) for prompt in PROMPTS])
    tree_lm.generate_until(requests, disable_tqdm=True)
    for number, prompt in enumerate(PROMPTS):
        (record,) = tree_lm.generation_records[RequestKey("t", number, 0)]
        assert record.input_tokens == len(tree_lm.tok_encode(prompt))
        assert 1 <= record.output_tokens <= 4
        assert record.finish_reason == "length" or record.output_tokens <= 4
        assert record.finish_reason in ("stop", "length")


def test_sampling_with_one_candidate_is_greedy_and_seeds_decide(tree_lm: TreeLM) -> None:
    def generate(**settings: Any) -> list[str]:
        torch.manual_seed(0)
        arguments = [(prompt, {"until": [], "max_gen_toks": 6, **settings}) for prompt in PROMPTS]
        return tree_lm.generate_until(requests_of("generate_until", arguments), disable_tqdm=True)

    greedy = generate(do_sample=False)
    assert generate(do_sample=True, temperature=0.7, top_k=1) == greedy
    warm = generate(do_sample=True, temperature=2.0)
    assert warm != greedy
    assert generate(do_sample=True, temperature=2.0) == warm


def test_unusual_settings_go_the_way_of_hf(tree_lm: TreeLM, plain_lm: HFLM, caplog: pytest.LogCaptureFixture) -> None:
    arguments = [(QUESTIONS[0], {"until": ["\n"], "max_gen_toks": 6, "do_sample": False, "num_beams": 2})]
    ours = tree_lm.generate_until(requests_of("generate_until", arguments), disable_tqdm=True)
    assert ours == plain_lm.generate_until(requests_of("generate_until", arguments), disable_tqdm=True)
    assert "prefix trees are disabled for generation with beam_search" in caplog.text


def test_a_model_that_takes_no_trees_answers_as_hf(
    tree_lm: TreeLM, plain_lm: HFLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("harness_ext.engine.hf_tree.why_no_trees", lambda *_, **__: "it is a test")
    scoring = requests_of("loglikelihood", SCORING["a shared passage"])
    assert tree_lm.loglikelihood(scoring, disable_tqdm=True) == plain_lm.loglikelihood(scoring, disable_tqdm=True)
    tree_lm.loglikelihood(scoring, disable_tqdm=True)
    assert caplog.text.count("it is a test") == 1


def test_out_of_memory_halves_the_packs(
    tree_lm: TreeLM, plain_lm: HFLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = requests_of("loglikelihood", SCORING["choices of several tokens"] + SCORING["a shared passage"])
    assert tree_lm.takes_trees([TokenPair([1, 2], [3]), TokenPair([1, 2, 4], [3])])
    whole = TreePack.target_logits

    def small_memory(pack: TreePack, *given: Any) -> Any:
        if pack.input_ids.numel() > 100:
            raise torch.OutOfMemoryError("test")
        return whole(pack, *given)

    monkeypatch.setattr(TreePack, "target_logits", small_memory)
    tree_lm.pack_tokens = 400
    ours, theirs = (
        tree_lm.loglikelihood(requests, disable_tqdm=True),
        plain_lm.loglikelihood(requests, disable_tqdm=True),
    )
    assert [a[0] for a in ours] == pytest.approx([b[0] for b in theirs], abs=1e-4)
    assert "going on with packs of" in caplog.text


def test_a_tree_that_is_refused_half_way_is_scored_as_by_hf(
    tree_lm: TreeLM, plain_lm: HFLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*arguments: Any, **settings: Any) -> Any:
        yield next(iter(score_continuations(*arguments, **settings)))
        raise RuntimeError("The size of tensor a (70) must match the size of tensor b (83)")

    monkeypatch.setattr("harness_ext.engine.hf_tree.score_continuations", refused)
    requests = requests_of("loglikelihood", [(f"the {word} is", " red") for word in ("house", "river", "old mill")])
    ours = tree_lm.loglikelihood(requests, disable_tqdm=True)
    assert ours == plain_lm.loglikelihood(requests, disable_tqdm=True)
    assert "prefix trees are disabled for scoring" in caplog.text


def test_nan_logits_name_the_document(tree_lm: TreeLM) -> None:
    assert tree_lm.takes_trees([tree_lm._cut(((""), [1, 2], [3])), tree_lm._cut(((""), [1, 2, 4], [3]))])  # type: ignore[arg-type]
    with torch.no_grad():
        tree_lm.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"NaN for 'The last words of a prompt'") as raised:
        tree_lm.loglikelihood(requests_of("loglikelihood", [("The last words of a prompt", " yes")]), disable_tqdm=True)
    assert "\n" not in str(raised.value)


def test_a_continuation_without_tokens_is_refused(tree_lm: TreeLM) -> None:
    with pytest.raises(ModelError, match="has no tokens"):
        tree_lm.loglikelihood(requests_of("loglikelihood", [("A context", "")]), disable_tqdm=True)


def test_an_adapter_is_put_on_as_hf_does(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tiny_lm: HFLM
) -> None:
    adapter = make_adapter("direct")
    ours = TreeLM(str(tiny_model_folder), peft=str(adapter), device="cpu", dtype="float32")
    theirs = HFLM(str(tiny_model_folder), peft=str(adapter), device="cpu", dtype="float32")
    requests = requests_of("loglikelihood", SCORING["choices of several tokens"])
    mine, oracle = ours.loglikelihood(requests, disable_tqdm=True), theirs.loglikelihood(requests, disable_tqdm=True)
    assert [a[0] for a in mine] == pytest.approx([b[0] for b in oracle], abs=1e-4)
    base = tiny_lm.loglikelihood(requests, disable_tqdm=True)
    assert [a[0] for a in mine] != pytest.approx([b[0] for b in base], abs=1e-3)
    assert ours.model.get_input_embeddings().weight.shape == tiny_lm.model.get_input_embeddings().weight.shape
