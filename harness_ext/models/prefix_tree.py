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
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """One pack: T tokens in depth-first order.

    Attributes:
        tokens: (T,) token ids.
        positions: (T,) depth of each token, the position id it would have in its own sequence.
        ends: (T,) end of each token's subtree; token j attends to i exactly when i <= j < ends[i].
        leaves: one for each sequence in the pack.
    """

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    leaves: list[Leaf]

    def __len__(self) -> int:
        return len(self.tokens)


def build_packs(sequences: Sequence[Tokens], *, max_tokens: int) -> list[TreeBatch]:
    """Lay out sequences as packs of at most `max_tokens` tokens; a longer sequence gets a pack of its own.

    Linear in the number of tokens, up to the sort.

    Args:
        sequences: token ids, none empty.
        max_tokens: size limit of a pack.

    >>> (pack,) = build_packs([[7, 8, 1], [7, 8, 2, 3], [7, 8, 2]], max_tokens=16)
    >>> pack.tokens, pack.positions, pack.ends
    ([7, 8, 1, 2, 3], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
    >>> [(leaf.sequence, leaf.path) for leaf in pack.leaves]
    [(0, [0, 1, 2]), (2, [0, 1, 3]), (1, [0, 1, 3, 4])]
    """
    return list(iterate_packs(sequences, max_tokens=max_tokens))


def iterate_packs(sequences: Sequence[Tokens], *, max_tokens: int) -> Iterator[TreeBatch]:
    """Like `build_packs`, one pack at a time."""
    keys = [tuple(sequence) for sequence in sequences]
    if not all(keys):
        raise ValueError(f"sequence {keys.index(())} is empty: a tree holds at least one token of each")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    shared = [0] + [shared_prefix_length(keys[a], keys[b]) for a, b in pairwise(order)]
    lengths = [len(keys[number]) for number in order]
    start = 0
    while start < len(order):
        stop = _pack_end(lengths, shared, start, max_tokens)
        builder = _PackBuilder()
        for place in range(start, stop):
            builder.add(order[place], keys[order[place]], shared[place] if place > start else 0)
        yield builder.finish()
        start = stop


def _pack_end(lengths: Sequence[int], shared: Sequence[int], start: int, max_tokens: int) -> int:
    """Where the pack that begins at `start` ends: full, but rather between two passages than within one.

    Of the places in the last half of a full pack, the cut goes where the sequences on both sides share least, since
    what they share will stand in both packs.

    >>> _pack_end([10, 12, 10, 12], [0, 8, 1, 8], 0, 26)  # two and two, not three and one
    2
    """
    total, best = lengths[start], None
    for place in range(start + 1, len(lengths)):
        cut_is_better = best is None or shared[place] <= shared[best]
        if total + lengths[place] - shared[place] > max_tokens:
            return place if best is None or cut_is_better else best
        if 2 * total >= max_tokens and cut_is_better:
            best = place
        total += lengths[place] - shared[place]
    return len(lengths)


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
    """Grows one pack from sequences in lexicographic order."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.ends: list[int] = []
        self.leaves: list[Leaf] = []
        self._spans: list[tuple[int, int]] = []  # of the last sequence, root to leaf

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
        return TreeBatch(self.tokens, self.positions, self.ends, self.leaves)
