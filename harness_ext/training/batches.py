"""From a task's training documents to batches of packs.

```
documents ──render, encode──> Example ──group_by_prefix, shuffle──> batches of examples ──tree_packs──> packs
```
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness_ext.errors import TrainingError
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask
from harness_ext.protocol.render import PromptSettings, encode, render
from harness_ext.trees.layout import shared_prefix_length
from harness_ext.trees.packs import Pack, TokenPair, padded_packs, tree_packs

logger = logging.getLogger(__name__)

GROUP_MIN_SHARED = 32  # tokens beyond what all examples share: a passage, not a chance beginning


@dataclass(frozen=True)
class ExampleSet:
    """Training and held-out examples; each continuation ends in exactly one end token."""

    training: list[TokenPair]
    validation: list[TokenPair]
    data_sha256: str
    shortened: int  # contexts that lost their beginning


def build_examples(
    task: ConfigurableTask,
    docs: Any,
    settings: PromptSettings,
    lm: HFLM,
    *,
    limit: int | None,
    validation_size: int,
    max_length: int,
    seed: int,
) -> ExampleSet:
    """Render and encode a training split, and hold some of it out.

    Args:
        task: gives the rendering.
        docs: its training documents.
        settings: few-shot, chat template, system instruction.
        lm: gives tokenizer and chat template.
        limit: documents to train on, None for all.
        validation_size: documents to hold out; never more than a tenth of all.
        max_length: tokens of the longest example; contexts are cut on the left, as in evaluation.
        seed: of the draw.

    Raises:
        TrainingError: an answer is empty, or would be cut away.
    """
    order = list(range(len(docs)))
    random.Random(seed).shuffle(order)
    held_out = min(validation_size, len(order) // 10)
    chosen = order[: held_out + (limit if limit is not None else len(order))]
    end = lm.tokenizer.eos_token_id
    if end is None:
        raise TrainingError(f"the tokenizer of {task.task_name!r}'s base has no end token; set eos_token in its files")
    pairs, shortened = [], 0
    subset = docs.select(chosen) if hasattr(docs, "select") else [docs[n] for n in chosen]
    for number, rendered in zip(chosen, render(task, subset, settings, lm), strict=True):
        context, continuation = encode(task, rendered, lm)
        while continuation[-1:] == [end]:  # a tokenizer or a template that adds one of its own
            continuation.pop()
        if not rendered.continuation.strip() or not continuation:
            raise TrainingError(
                f"document {number} of {task.task_name!r} has an empty answer; drop it with process_docs"
            )
        room = max_length - len(continuation) - 1
        if room < 1:
            raise TrainingError(
                f"document {number} of {task.task_name!r}: its answer takes {len(continuation)} tokens and an end "
                f"token, max_length is {max_length}, so truncation would cut it away; raise --max-length"
            )
        shortened += len(context) > room
        pairs.append(TokenPair(context[-room:] or [lm.prefix_token_id], [*continuation, end]))
    if shortened:
        logger.warning("%d of %d contexts are longer than max_length and lose their beginning", shortened, len(pairs))
    if len(pairs) == held_out:
        raise TrainingError(f"task {task.task_name!r} has no training documents; check its training split")
    digest = hashlib.sha256(repr([(p.context, p.continuation) for p in pairs]).encode()).hexdigest()
    return ExampleSet(pairs[held_out:], pairs[:held_out], digest, shortened)


def group_by_prefix(examples: Sequence[TokenPair], *, min_shared: int = GROUP_MIN_SHARED) -> list[list[int]]:
    """Numbers of the examples in groups that share a long beginning beyond what all of them share.

    >>> passage = list(range(100, 140))
    >>> group_by_prefix([TokenPair([1, *passage, 7], [2]), TokenPair([1, 9], [2]), TokenPair([1, *passage, 8], [2])])
    [[1], [0, 2]]
    """
    order = sorted(range(len(examples)), key=lambda n: examples[n].context)
    if not order:
        return []
    common = shared_prefix_length(examples[order[0]].context, examples[order[-1]].context)
    groups = [[order[0]]]
    for before, number in itertools.pairwise(order):
        shared = shared_prefix_length(examples[before].context, examples[number].context)
        if shared - common >= min_shared:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


class GroupedBatches:
    """A batch sampler: groups in an order drawn anew each epoch, cut into batches of equal size."""

    drop_last = False

    def __init__(self, groups: Sequence[Sequence[int]], *, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._groups = [list(group) for group in groups]
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; the same epoch gives the same order again."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-sum(map(len, self._groups)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        draw = random.Random(f"{self._seed}/{self._epoch}")
        groups = [draw.sample(group, len(group)) for group in self._groups]
        draw.shuffle(groups)
        numbers = [number for group in groups for number in group]
        for start in range(0, len(numbers), self.batch_size):
            yield numbers[start : start + self.batch_size]


@dataclass(frozen=True)
class Collator:
    """Lays a batch of examples out as packs: prefix trees, or padded rows for models that cannot take trees."""

    prefix_trees: bool
    max_tokens: int
    pad_token_id: int

    def __call__(self, examples: Sequence[TokenPair]) -> dict[str, Any]:
        """Packs under `packs`; all label tokens under `labels`, which is what Trainer counts."""
        if self.prefix_trees:
            packs: list[Pack] = list(tree_packs(examples, max_tokens=self.max_tokens))
        else:
            packs = list(padded_packs(examples, max_tokens=self.max_tokens, pad_token_id=self.pad_token_id))
        return {"packs": packs, "labels": torch.cat([pack.targets for pack in packs])}
