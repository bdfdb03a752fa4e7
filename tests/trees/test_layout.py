"""What every tree and every packing must satisfy, over random sequences that share much or nothing."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.trees.layout import TreeBatch, build_packs, packs_to_run, shared_prefix_length

# Three different tokens: prefixes are shared all the time, sequences contain each other and repeat.
few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)
many_tokens = st.lists(st.integers(0, 50_000), min_size=1, max_size=12)
grown = st.builds(lambda trunk, tails: [trunk + tail for tail in tails], few_tokens, st.lists(few_tokens, max_size=6))
sequence_lists = st.one_of(
    st.lists(few_tokens, min_size=1, max_size=30), st.lists(many_tokens, min_size=1, max_size=10), grown.filter(len)
)
budgets = st.integers(1, 60)


def content(pack: TreeBatch, sequences: list[list[int]]) -> tuple[object, ...]:
    """A pack without the numbers of its sequences, which depend on the input order."""
    leaves = tuple((tuple(sequences[leaf.sequence]), leaf.spans) for leaf in pack.leaves)
    return tuple(pack.tokens), tuple(pack.positions), tuple(pack.ends), leaves


def packs_of(sequences: list[list[int]], max_tokens: int, *, carry: bool) -> list[TreeBatch]:
    """Packs that stand alone, or that carry on from one another, the last token of each sequence being wanted."""
    needed = [len(sequence) - 1 for sequence in sequences]
    return build_packs(sequences, max_tokens=max_tokens, first_needed=needed if carry else None)


@given(sequence_lists, budgets, st.booleans())
def test_each_path_spells_its_sequence(sequences: list[list[int]], max_tokens: int, carry: bool) -> None:
    for pack in packs_of(sequences, max_tokens, carry=carry):
        for leaf in pack.leaves:
            assert [pack.tokens[index] for index in leaf.path] == sequences[leaf.sequence]
            assert [pack.positions[index] for index in leaf.path] == list(range(len(leaf.path)))


@given(sequence_lists, budgets, st.booleans())
def test_each_token_sees_exactly_its_own_prefix(sequences: list[list[int]], max_tokens: int, carry: bool) -> None:
    for pack in packs_of(sequences, max_tokens, carry=carry):
        root_path: dict[int, list[int]] = {}
        for leaf in pack.leaves:
            for depth, index in enumerate(leaf.path):
                assert root_path.setdefault(index, leaf.path[: depth + 1]) == leaf.path[: depth + 1]
        assert sorted(root_path) == list(range(len(pack.tokens)))  # no token is there for nothing
        for j, ancestors in root_path.items():
            assert [i for i in range(len(pack.tokens)) if i <= j < pack.ends[i]] == ancestors


@given(sequence_lists, budgets, st.booleans())
def test_each_shared_prefix_stands_once(sequences: list[list[int]], max_tokens: int, carry: bool) -> None:
    for pack in packs_of(sequences, max_tokens, carry=carry):
        held = [sequences[leaf.sequence] for leaf in pack.leaves]
        prefixes = {tuple(sequence[: end + 1]) for sequence in held for end in range(len(sequence))}
        assert len(pack.tokens) == len(prefixes)


@given(sequence_lists, budgets, st.integers(0, 12))
def test_a_pack_carries_on_what_the_one_before_has_and_nothing_that_is_wanted(
    sequences: list[list[int]], max_tokens: int, first_needed: int
) -> None:
    needed = [min(first_needed, len(sequence) - 1) for sequence in sequences]
    packs = build_packs(sequences, max_tokens=max_tokens, first_needed=needed)
    assert packs[0].carried == 0
    for before, pack in pairwise(packs):
        path = before.leaves[-1].path[: pack.carried]
        assert [before.tokens[index] for index in path] == pack.tokens[: pack.carried]
    for pack in packs:
        for leaf in pack.leaves:
            assert all(index >= pack.carried for index in leaf.path[needed[leaf.sequence] :])


@given(sequence_lists, budgets)
def test_no_token_is_computed_twice(sequences: list[list[int]], max_tokens: int) -> None:
    ended = [[*sequence, 90_000 + number] for number, sequence in enumerate(sequences)]  # none begins another
    prefixes = {tuple(sequence[: end + 1]) for sequence in ended for end in range(len(sequence))}
    assert sum(map(len, packs_of(ended, max_tokens, carry=True))) == len(prefixes)


@given(sequence_lists, budgets, st.booleans())
def test_packs_keep_to_their_budget_and_lose_nothing(sequences: list[list[int]], max_tokens: int, carry: bool) -> None:
    packs = packs_of(sequences, max_tokens, carry=carry)
    assert sorted(leaf.sequence for pack in packs for leaf in pack.leaves) == list(range(len(sequences)))
    for pack in packs:
        longest = max(len(sequences[leaf.sequence]) for leaf in pack.leaves)
        assert len(pack) <= max(max_tokens, longest)
        assert len(pack) + pack.carried == len(pack.tokens) == len(pack.positions) == len(pack.ends)


@given(sequence_lists, budgets, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    sequences: list[list[int]], max_tokens: int, draw: random.Random
) -> None:
    shuffled = list(sequences)
    draw.shuffle(shuffled)
    assert [content(pack, sequences) for pack in build_packs(sequences, max_tokens=max_tokens)] == [
        content(pack, shuffled) for pack in build_packs(shuffled, max_tokens=max_tokens)
    ]


@given(many_tokens, few_tokens)
@settings(max_examples=50)
def test_shared_prefix_length(one: list[int], other: list[int]) -> None:
    for left, right in ((one, other), (one, one + other), (one + other, [*one, -1, *other]), (one, [])):
        expected = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        assert shared_prefix_length(left, right) == (min(len(left), len(right)) if expected is None else expected)


def test_no_sequences_no_packs() -> None:
    assert build_packs([], max_tokens=8) == []


def test_an_empty_sequence_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        build_packs([[1], []], max_tokens=8)


@pytest.mark.slow
def test_a_hundred_thousand_sequences() -> None:
    """1,000 passages under one instruction, 100 questions on each: five million tokens, most of them shared."""
    draw = random.Random(0)
    instruction = [draw.randrange(50_000) for _ in range(10)]
    sequences = []
    for _ in range(1_000):
        passage = [draw.randrange(50_000) for _ in range(30)]
        sequences += [[*instruction, *passage, *(draw.randrange(50_000) for _ in range(10))] for _ in range(100)]
    packs = build_packs(sequences, max_tokens=4096)
    assert sum(len(pack.leaves) for pack in packs) == 100_000
    distinct = 10 + 1_000 * 30 + 100_000 * 10
    assert distinct <= sum(map(len, packs)) <= 1.02 * distinct  # only what a boundary between packs repeats
    carrying = sum(map(len, packs_of(sequences, 4096, carry=True)))
    assert 0.999 * distinct <= carrying <= distinct  # a few questions begin alike


def computed_in(packs: list[TreeBatch], runs: list[bool]) -> dict[int, list[tuple[int, int]]]:
    """Where each token of each sequence is computed, as pack and place, when some of the packs run."""
    places: dict[int, list[tuple[int, int]]] = {}
    last: list[tuple[int, int]] = []
    for number, pack in enumerate(packs):
        if runs[number]:
            assert len(last) >= pack.carried
            slots = last[: pack.carried] + [(number, place) for place in range(len(pack))]
            places |= {leaf.sequence: [slots[index] for index in leaf.path] for leaf in pack.leaves}
            last = places[pack.leaves[-1].sequence]
    return places


@settings(max_examples=300)
@given(sequence_lists, budgets, st.randoms(use_true_random=False))
def test_packs_without_known_sequences_are_left_out(
    sequences: list[list[int]], max_tokens: int, draw: random.Random
) -> None:
    """The others are computed from the same tokens of the same packs as when every pack runs."""
    packs = packs_of(sequences, max_tokens, carry=True)
    known = {number for number in range(len(sequences)) if draw.random() < 0.7}
    some = computed_in(packs, packs_to_run(packs, known))
    every = computed_in(packs, [True] * len(packs))
    assert {number: some[number] for number in every if number not in known} == {
        number: places for number, places in every.items() if number not in known
    }
    assert not any(packs_to_run(packs, range(len(sequences))))
