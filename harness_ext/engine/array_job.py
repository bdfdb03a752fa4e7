"""One shard of an evaluation, as a job of an array computes it: it asks some requests, and a store keeps the answers.

```
base              adapter A         adapter B         variants in a row, cut into n shards of the same length
├─────┬─────┬─────┼─────┬─────┬─────┼─────┬────...    within a variant: cut between passages, by length of prompts
  1/9   2/9   3/9   4/9   5/9   6/9   7/9
```

A shard scores nothing and writes no results. When all are done, `--from-store` scores the answers as one run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from harness_ext.engine.array_shard import Interval
from harness_ext.engine.asking import Answering
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.isolation import answered_by
from harness_ext.engine.sharding import lengths, passages
from harness_ext.protocol.lm_eval_api import LM, Instance

MOST_PACKS = 4  # that passages without a border between packs keep together
UNASKED: Mapping[str, Any] = {"loglikelihood": (0.0, False), "loglikelihood_rolling": 0.0, "generate_until": ""}


@dataclass
class Tally:
    """Requests of one variant."""

    asked: int = 0  # by this shard, those that the store had already among them
    every: int = 0


def part_of(
    requests: Sequence[Instance], interval: Interval, packs: Sequence[Sequence[int]] | None = None
) -> list[int]:
    """Which of the requests lie in an interval: whole passages, by the length of their prompts.

    The intervals of all shards give each request once, whatever the store has.

    Args:
        requests: all of one kind.
        interval: of this shard.
        packs: the requests that a model computes together. Where possible, they are not divided.

    Returns:
        Places of the requests, ascending.
    """
    costs, groups = lengths(requests), passages(requests)
    if packs is not None:
        groups = _along_packs(groups, packs)
    total, done = sum(costs), 0
    places: list[int] = []
    for group in groups:
        cost = sum(costs[place] for place in group)
        if Fraction(2 * done + cost, 2 * total) in interval:  # its middle
            places += group
        done += cost
    return sorted(places)


def _along_packs(groups: Sequence[list[int]], packs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups in the order of the packs, those that share a pack together, unless these become too many packs."""
    pack_of = {place: number for number, pack in enumerate(packs) for place in pack}
    turn = {place: number for number, place in enumerate(place for pack in packs for place in pack)}
    runs: list[list[list[int]]] = []
    first = last = -1
    for group in sorted(groups, key=lambda group: min(turn[place] for place in group)):
        begin, end = (choose(pack_of[place] for place in group) for choose in (min, max))
        if runs and begin <= last:
            runs[-1].append(group)
        else:
            runs.append([group])
            first = begin
        last = max(last, end)
        if last - first >= MOST_PACKS:
            runs[-1:] = [[each] for each in runs[-1]]
            first = last
    return [[place for group in run for place in group] for run in runs]


@contextlib.contextmanager
def asking_part(lm: LM, answering: Answering, interval: Interval, *, processes: int) -> Iterator[Tally]:
    """Let a model answer the requests in an interval in the block; the others get answers that mean nothing.

    Args:
        lm: the model.
        answering: lets it answer from a store.
        interval: of this shard.
        processes: how many of them the model's requests are divided among.
    """
    tally = Tally()
    in_packs = isinstance(lm, TreeLM) and lm.backend == "causal" and processes == 1

    def ask(kind: str, compute: Any, requests: Sequence[Instance], **options: Any) -> list[Any]:
        tally.every += len(requests)
        if kind == "loglikelihood" and in_packs:  # all are laid out, so that scores are those of one run, to the bit

            def wanted(tokens: Sequence[Any]) -> list[int]:
                places = part_of(requests, interval, lm.packs_of(tokens))
                tally.asked += len(places)
                return places

            with answering.only(wanted):
                return list(compute(requests, **options))
        places = part_of(requests, interval)
        tally.asked += len(places)
        answers = [UNASKED[kind]] * len(requests)
        given = compute([requests[place] for place in places], **options) if places else []
        for place, answer in zip(places, given, strict=True):
            answers[place] = answer
        return answers

    with answered_by(lm, {kind: partial(ask, kind, getattr(lm, kind)) for kind in UNASKED}):
        yield tally
