"""From documents to batches: no document is lost or leaked, and there is exactly one end token."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM

from harness_ext.errors import TrainingError
from harness_ext.protocol.render import PromptSettings, encode, render, training_docs
from harness_ext.protocol.tasks import load_task
from harness_ext.training.batches import Collator, ExampleSet, GroupedBatches, build_examples, group_by_prefix
from harness_ext.trees.packs import PaddedPack, TokenPair, TreePack

TASKS = ("sst2_choice", "sst2_generate", "squad_v2_generate")
group_lists = st.lists(st.integers(1, 9), max_size=12).map(
    lambda sizes: [list(range(sum(sizes[:n]), sum(sizes[: n + 1]))) for n in range(len(sizes))]
)


def examples(lm: HFLM, task: str = "sst2_choice", *, docs: Any = None, **values: Any) -> ExampleSet:
    loaded = load_task(task)
    known: dict[str, Any] = {"limit": 40, "validation_size": 10, "max_length": 2048, "seed": 0}
    settings = values.pop("settings", PromptSettings())
    return build_examples(
        loaded, training_docs(loaded) if docs is None else docs, settings, lm, **{**known, **values}
    )  # fmt: skip


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_the_evaluated_prompt_its_answer_and_one_end_token(tiny_lm: HFLM, task: str) -> None:
    made = examples(tiny_lm, task, limit=None, validation_size=0)
    end = tiny_lm.tokenizer.eos_token_id
    loaded = load_task(task)
    rendered = render(loaded, training_docs(loaded), PromptSettings(), tiny_lm)
    expected = {(tuple(c), tuple(a)) for c, a in (encode(loaded, each, tiny_lm) for each in rendered)}
    encoded = {(tuple(context), tuple(continuation[:-1])) for context, continuation in made.training}
    assert encoded == expected
    for context, continuation in made.training:
        assert continuation[-1] == end
        assert (*context, *continuation).count(end) == 1
        assert len(continuation) >= 2


@pytest.mark.parametrize("task", TASKS)
def test_what_is_held_out_comes_from_training_and_is_not_trained_on(tiny_lm: HFLM, task: str) -> None:
    loaded = load_task(task)

    def prompts(docs: Any) -> set[tuple[int, ...]]:
        return {
            tuple(encode(loaded, each, tiny_lm).context) for each in render(loaded, docs, PromptSettings(), tiny_lm)
        }

    made = examples(tiny_lm, task, limit=None, validation_size=15)
    training = {tuple(context) for context, _ in made.training}
    held_out = {tuple(context) for context, _ in made.validation}
    assert len(made.validation) == min(15, len(training_docs(loaded)) // 10)
    assert held_out
    assert not held_out & training
    assert held_out | training == prompts(training_docs(loaded))
    assert not (held_out | training) & prompts(loaded.validation_docs())  # the evaluated split


def test_the_limit_and_the_seed(tiny_lm: HFLM) -> None:
    one, again, other = (examples(tiny_lm, seed=seed) for seed in (0, 0, 1))
    assert (len(one.training), len(one.validation)) == (40, 10)
    assert one == again
    assert one.training != other.training
    more = examples(tiny_lm, limit=60)
    assert more.validation == one.validation
    assert more.training[:40] == one.training  # a larger limit only adds
    assert examples(tiny_lm, limit=5, validation_size=10_000).validation  # at most a tenth


def test_the_data_hash_follows_the_data(tiny_lm: HFLM) -> None:
    docs = list(training_docs(load_task("sst2_choice")))
    hashes = [
        examples(tiny_lm, docs=docs).data_sha256,
        examples(tiny_lm, docs=[{**docs[0], "label": 1 - docs[0]["label"]}, *docs[1:]], limit=None).data_sha256,
        examples(tiny_lm, docs=docs, limit=None).data_sha256,
        examples(tiny_lm, docs=docs, limit=41).data_sha256,
        examples(tiny_lm, docs=docs, settings=PromptSettings(num_fewshot=1)).data_sha256,
        examples(tiny_lm, docs=docs, settings=PromptSettings(apply_chat_template=True)).data_sha256,
    ]
    assert len(set(hashes)) == len(hashes)
    assert examples(tiny_lm, docs=docs).data_sha256 == hashes[0]


def test_long_contexts_lose_their_beginning_never_the_answer(tiny_lm: HFLM, caplog: pytest.LogCaptureFixture) -> None:
    whole = examples(tiny_lm, "squad_v2_generate")
    with caplog.at_level(logging.WARNING, logger="harness_ext"):
        short = examples(tiny_lm, "squad_v2_generate", max_length=60)
    assert short.shortened == 50
    assert "50 of 50 contexts are longer than max_length" in caplog.text
    for (context, continuation), (long_context, same) in zip(short.training, whole.training, strict=True):
        assert continuation == same
        assert len(context) + len(continuation) == 60
        assert context == long_context[-len(context) :]


def test_an_answer_that_would_be_cut_away(tiny_lm: HFLM) -> None:
    longest = max(len(continuation) for _, continuation in examples(tiny_lm, limit=None).training)
    assert examples(tiny_lm, limit=None, max_length=longest + 1)  # one token of context is left
    with pytest.raises(TrainingError, match=r"document \d+ of 'sst2_choice': its answer has .* raise --max-length"):
        examples(tiny_lm, limit=None, max_length=longest)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_answer_names_its_document(tiny_lm: HFLM, text: str) -> None:
    docs = list(training_docs(load_task("sst2_generate")))[:3]
    docs[1] = {**docs[1], "choices": [text, text]}
    with pytest.raises(TrainingError, match="document 1 of 'sst2_generate' has an empty answer"):
        examples(tiny_lm, "sst2_generate", docs=docs)


def test_no_documents(tiny_lm: HFLM) -> None:
    with pytest.raises(TrainingError, match="has no training documents"):
        examples(tiny_lm, docs=[])


def test_an_end_token_of_the_template_is_not_doubled(tiny_lm: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    end = tiny_lm.tokenizer.eos_token_id
    expected = examples(tiny_lm)
    monkeypatch.setattr(
        "harness_ext.training.batches.encode",
        lambda task, rendered, lm: (lambda pair: pair._replace(continuation=[*pair.continuation, end]))(
            encode(task, rendered, lm)
        ),
    )
    assert examples(tiny_lm) == expected


def test_a_prompt_without_tokens_gets_the_prefix_token(tiny_lm: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty prompt and a tokenizer without a BOS token: some token must predict the first one."""
    monkeypatch.setattr(
        "harness_ext.training.batches.encode",
        lambda task, rendered, lm: encode(task, rendered, lm)._replace(context=[]),
    )
    assert {tuple(context) for context, _ in examples(tiny_lm).training} == {(tiny_lm.prefix_token_id,)}


# -- batches ---------------------------------------------------------------------------------------------------------


def test_questions_on_one_passage_form_a_group() -> None:
    draw = random.Random(0)
    instruction = [draw.randrange(100) for _ in range(50)]  # shared by all, so it forms no group
    passages = [[draw.randrange(100) for _ in range(40)] for _ in range(3)]
    pairs = [TokenPair([*instruction, *passages[n % 3], 100 + n], [1]) for n in range(12)]
    pairs += [TokenPair([*instruction, draw.randrange(100)], [1]) for _ in range(3)]
    draw.shuffle(pairs)
    groups = group_by_prefix(pairs)
    assert sorted(number for group in groups for number in group) == list(range(15))
    assert sorted(map(len, groups)) == [1, 1, 1, 4, 4, 4]
    for group in groups:
        assert len({tuple(pairs[number].context[:90]) for number in group}) == 1


def test_groups_of_nothing_and_of_the_same() -> None:
    assert group_by_prefix([]) == []
    assert [len(group) for group in group_by_prefix([TokenPair([1, 2], [3])] * 3)] == [1, 1, 1]


@given(group_lists, st.integers(1, 8), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_holds_each_example_once(groups: list[list[int]], size: int, seed: int, epoch: int) -> None:
    batches = GroupedBatches(groups, batch_size=size, seed=seed)
    batches.set_epoch(epoch)
    drawn = list(batches)
    assert sorted(number for batch in drawn for number in batch) == [n for group in groups for n in group]
    assert len(drawn) == len(batches)
    assert all(len(batch) == size for batch in drawn[:-1])
    assert list(batches) == drawn  # same epoch, same order
    order = [number for batch in drawn for number in batch]
    for group in groups:  # groups stay together
        first = min(order.index(number) for number in group)
        assert sorted(order[first : first + len(group)]) == group


def test_epochs_and_seeds_differ() -> None:
    groups = [[n] for n in range(50)]
    orders = set()
    for seed in range(3):
        batches = GroupedBatches(groups, batch_size=50, seed=seed)
        for epoch in range(3):
            batches.set_epoch(epoch)
            orders.add(tuple(next(iter(batches))))
    assert len(orders) == 9


@pytest.mark.parametrize(("trees", "kind"), [(True, TreePack), (False, PaddedPack)])
def test_a_collated_batch_holds_each_label_once(tiny_lm: HFLM, trees: bool, kind: type) -> None:
    pairs = examples(tiny_lm, "squad_v2_generate").training[:16]
    batch = Collator(trees, max_tokens=500, pad_token_id=2)(pairs)
    assert len(batch["packs"]) > 1
    assert {type(pack) for pack in batch["packs"]} == {kind}
    expected = sorted(token for _, continuation in pairs for token in continuation)
    assert sorted(batch["labels"].tolist()) == expected
    assert torch.equal(batch["labels"], torch.cat([pack.targets for pack in batch["packs"]]))
    assert sorted(number for pack in batch["packs"] for number in pack.sequences) == list(range(16))
