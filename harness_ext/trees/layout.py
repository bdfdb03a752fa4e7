"""Sequences that share a prefix, laid out so that each shared prefix stands once. Pure Python, no tensors.

Three prompts over one passage, as a tree and as one packed sequence:

```
passage ─┬─ Who …? ── Marie Curie          index     0 1 2 │ 3 4 │ 5 6 │ 7 8
         ├─ When …? ── 1903                token     p a s │ W h │ W n │ W r
         └─ Where …? ── Paris              position  0 1 2 │ 3 4 │ 3 4 │ 3 4     depth in the tree
                                           end       9 9 9 │ 5 5 │ 7 7 │ 9 9     where its subtree ends
```

Nodes stand in depth-first order, so the descendants of index `i` are exactly `i <= j < end[i]`: that one number a token
is the whole attention mask. Packs are filled with sequences in lexicographic order, where neighbours share most.

What two packs share need not be computed twice either: a pack can carry on from the one before, whose keys and values
are kept along the path that both have in common.

```
pack 1   instruction ─┬─ passage A ─── ...      pack 2   (instruction ── passage B) ─── When …? ── 1903
                      └─ passage B ─── Who …?             └ carried: the last path of pack 1, as far as it is shared
```
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

PACK_TOKENS = 1024  # default pack size: tokens per forward pass

Tokens = Sequence[int]


@dataclass(frozen=True)
class Leaf:
    """Where one sequence lies in its pack."""

    sequence: int  # its number in the list the tree was made of
    spans: tuple[tuple[int, int], ...]  # half-open index ranges in the pack, root to leaf

    @property
    def path(self) -> list[int]:
        """Index in the pack of each of the sequence's tokens, in order."""
        return [index for start, stop in self.spans for index in range(start, stop)]


@dataclass(frozen=True)
class TreeBatch:
    """One pack in depth-first order: C tokens that are carried on from the pack before, and T more.

    Attributes:
        tokens: (C + T,) token ids.
        positions: (C + T,) depth of each token, the position id it would have in its own sequence.
        ends: (C + T,) end of each token's subtree; token j attends to i exactly when i <= j < ends[i].
        leaves: one for each sequence in the pack.
        carried: C; these tokens are also the first C of the last leaf's path in the pack before.
    """

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    leaves: list[Leaf]
    carried: int = 0

    def __len__(self) -> int:
        """T, the tokens that this pack computes."""
        return len(self.tokens) - self.carried


def build_packs(
    sequences: Sequence[Tokens], *, max_tokens: int, first_needed: Sequence[int] | None = None
) -> list[TreeBatch]:
    """Lay out sequences as packs of at most `max_tokens` tokens; a longer sequence gets a pack of its own.

    Linear in the number of tokens, up to the sort.

    Args:
        sequences: token ids, none empty.
        max_tokens: limit of what a pack computes.
        first_needed: where in each sequence the first token stands whose output is wanted. If given, packs carry on
            from one another, so that of all the tokens before these none is computed twice.

    >>> (pack,) = build_packs([[7, 8, 1], [7, 8, 2, 3], [7, 8, 2]], max_tokens=16)
    >>> pack.tokens, pack.positions, pack.ends
    ([7, 8, 1, 2, 3], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
    >>> [(leaf.sequence, leaf.path) for leaf in pack.leaves]
    [(0, [0, 1, 2]), (2, [0, 1, 3]), (1, [0, 1, 3, 4])]
    """
    return list(iterate_packs(sequences, max_tokens=max_tokens, first_needed=first_needed))


def iterate_packs(
    sequences: Sequence[Tokens], *, max_tokens: int, first_needed: Sequence[int] | None = None
) -> Iterator[TreeBatch]:
    """Like `build_packs`, one pack at a time."""
    keys = [tuple(sequence) for sequence in sequences]
    if not all(keys):
        raise ValueError(f"sequence {keys.index(())} is empty: a tree holds at least one token of each")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    shared = [0] + [shared_prefix_length(keys[a], keys[b]) for a, b in pairwise(order)]
    lengths = [len(keys[number]) for number in order]
    needed = [0] * len(order) if first_needed is None else [first_needed[number] for number in order]
    start = 0
    while start < len(order):
        stop, carried = _next_pack(lengths, shared, needed, start, max_tokens)
        builder = _PackBuilder(keys[order[start]][:carried])
        for place in range(start, stop):
            builder.add(order[place], keys[order[place]], shared[place] if place > start else carried)
        yield builder.finish()
        start = stop


def packs_to_run(trees: Sequence[TreeBatch], known: Collection[int]) -> list[bool]:
    """Which packs have to run so that all sequences but the known ones give what they give when every pack runs.

    A pack needs those in which the tokens that it carries on were computed. In the order of the packs, each pack that
    runs finds what it carries on the last path of the one that ran before it.

    Args:
        trees: packs that may carry on from one another, in order.
        known: numbers of sequences whose outputs are not wanted.

    >>> trees = build_packs([[1, 2, n, n] for n in range(6)], max_tokens=6, first_needed=[3] * 6)
    >>> [(len(tree), tree.carried) for tree in trees]
    [(6, 0), (6, 2), (2, 2)]
    >>> packs_to_run(trees, known={0, 1, 2, 3, 4})  # 1 and 2 are from the first pack
    [True, False, True]
    """
    runs = [any(leaf.sequence not in known for leaf in tree.leaves) for tree in trees]
    needed = _sources(trees)
    for number in reversed(range(len(trees))):  # what a pack needs stands before it
        if runs[number]:
            for source in needed[number]:
                runs[source] = True
    return runs


def _sources(trees: Sequence[TreeBatch]) -> list[list[int]]:
    """For each pack the packs in which the tokens that it carries on were computed."""
    path: list[tuple[int, int]] = []  # packs that computed a part of the last path, and where in it their part begins
    needed = []
    for number, tree in enumerate(trees):
        path = [(source, start) for source, start in path if start < tree.carried]
        needed.append([source for source, _ in path])
        old = sum(max(0, min(stop, tree.carried) - start) for start, stop in tree.leaves[-1].spans)
        path = [*((source, start) for source, start in path if start < old), (number, old)]
    return needed


def _next_pack(
    lengths: Sequence[int], shared: Sequence[int], needed: Sequence[int], start: int, max_tokens: int
) -> tuple[int, int]:
    """Where the pack that begins at `start` ends, and how many tokens it carries on from the one before.

    It is full, but cut rather between two passages than within one: of the places in the last half of a full pack,
    where least stands in both packs. That is what the sequences on both sides share, but for what is carried on.

    >>> _next_pack([10, 12, 10, 12], [0, 8, 1, 8], [0, 0, 0, 0], 0, 26)  # two and two, not three and one
    (2, 0)
    >>> _next_pack([10, 12, 10, 12], [0, 8, 1, 8], [9, 9, 9, 9], 0, 26)  # what they share is carried on anyway
    (3, 0)
    >>> _next_pack([10, 12, 10, 12], [0, 8, 1, 8], [9, 9, 9, 9], 3, 26)
    (4, 8)
    """
    carried = common = min(shared[start], needed[start])
    tokens, best, least = lengths[start], None, 0
    for place in range(start + 1, len(lengths)):
        twice = shared[place] - min(shared[place], needed[place])
        cut_is_better = best is None or twice <= least
        common = min(common, shared[place])  # what this sequence has of the tokens that may be carried on
        more, less_carried = tokens + lengths[place] - shared[place], carried
        if needed[place] < common:
            less_carried = min(carried, needed[place])
        if more - less_carried > max_tokens:
            return (place, carried) if best is None or cut_is_better else best
        if 2 * (tokens - carried) >= max_tokens and cut_is_better:
            best, least = (place, carried), twice
        tokens, carried = more, less_carried
    return len(lengths), carried


def shared_prefix_length(one: Tokens, other: Tokens) -> int:
    """Number of leading tokens that two sequences share.

    >>> shared_prefix_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit  # one[:low] is shared, one[:high] is not; slices compare at C speed
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class _PackBuilder:
    """Grows one pack from sequences in lexicographic order, onto the tokens it carries on."""

    def __init__(self, carried: Tokens) -> None:
        self.carried = len(carried)
        self.tokens = list(carried)
        self.positions = list(range(self.carried))
        self.ends = [0] * self.carried
        self.leaves: list[Leaf] = []
        self._spans = [(0, self.carried)] if carried else []  # of the last sequence, root to leaf

    def add(self, number: int, key: tuple[int, ...], shared: int) -> None:
        """Append a sequence that begins with the first `shared` tokens of the one before."""
        self._close_below(shared)
        start = len(self.tokens)
        if shared < len(key):
            self.tokens.extend(key[shared:])
            self.positions.extend(range(shared, len(key)))
            self.ends.extend([0] * (len(key) - shared))
            self._spans.append((start, len(self.tokens)))
        self.leaves.append(Leaf(number, tuple(self._spans)))

    def _close_below(self, depth: int) -> None:
        """Keep the first `depth` tokens of the last path open; the subtrees of the others end here."""
        end, kept, room = len(self.tokens), [], depth
        for start, stop in self._spans:
            cut = min(stop, start + room)
            room -= cut - start
            if cut > start:
                kept.append((start, cut))
            for index in range(cut, stop):
                self.ends[index] = end
        self._spans = kept

    def finish(self) -> TreeBatch:
        self._close_below(0)
        return TreeBatch(self.tokens, self.positions, self.ends, self.leaves, self.carried)
