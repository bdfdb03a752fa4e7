"""Turns a task's training documents into batches of packs.

```
documents ──render, encode──> Example ──group_by_prefix, shuffle──> batches of examples ──tree_packs──> packs
```
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness_ext.errors import TrainingError
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask
from harness_ext.protocol.render import PromptSettings, encode, render
from harness_ext.trees.layout import shared_prefix_length
from harness_ext.trees.packs import Pack, TokenPair, padded_packs, tree_packs

logger = logging.getLogger(__name__)

GROUP_MIN_SHARED = 32  # tokens beyond the prefix of all examples; so many indicate a shared passage


@dataclass(frozen=True)
class ExampleSet:
    """Training and held-out examples; each continuation ends in exactly one end token."""

    training: list[TokenPair]
    validation: list[TokenPair]
    data_sha256: str
    shortened: int  # contexts that were cut on the left
    documents: list[int]  # number in the split of each training example's document


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
    excluded: Collection[int] = (),
) -> ExampleSet:
    """Render and encode a training split, and hold out some of its documents.

    Args:
        task: renders the documents.
        docs: its training documents.
        settings: few-shot, chat template, system instruction.
        lm: provides tokenizer and chat template.
        limit: number of documents to train on, None for all.
        validation_size: number of documents to hold out, at most a tenth of all.
        max_length: maximum tokens per example; longer contexts are cut on the left, as in evaluation.
        seed: seed for drawing documents.
        excluded: numbers of documents that are used for something else.

    Raises:
        TrainingError: an answer is empty or would be cut off.
    """
    order = list(range(len(docs)))
    random.Random(seed).shuffle(order)
    order = [number for number in order if number not in excluded]
    held_out = min(validation_size, len(order) // 10)
    numbers = order[: held_out + (limit if limit is not None else len(order))]
    end = lm.tokenizer.eos_token_id
    if end is None:
        raise TrainingError(
            f"the base's tokenizer has no end token, so {task.task_name!r} cannot be trained on; set eos_token in its "
            "tokenizer_config.json"
        )
    pairs, shortened = [], 0
    drawn = docs.select(numbers) if hasattr(docs, "select") else [docs[number] for number in numbers]
    for number, rendered in zip(numbers, render(task, drawn, settings, lm), strict=True):
        context, continuation = encode(task, rendered, lm)
        while continuation[-1:] == [end]:  # added by the tokenizer or the chat template
            continuation.pop()
        if not rendered.continuation.strip() or not continuation:
            raise TrainingError(
                f"document {number} of {task.task_name!r} has an empty answer; drop it with process_docs"
            )
        room = max_length - len(continuation) - 1
        if room < 1:
            raise TrainingError(
                f"document {number} of {task.task_name!r}: its answer has {len(continuation)} tokens and an end token, "
                f"but max_length is {max_length}; raise --max-length"
            )
        shortened += len(context) > room
        pairs.append(TokenPair(context[-room:] or [lm.prefix_token_id], [*continuation, end]))
    if shortened:
        logger.warning("%d of %d contexts are longer than max_length and are cut on the left", shortened, len(pairs))
    if len(pairs) == held_out:
        raise TrainingError(f"task {task.task_name!r} has no training documents; check its training split")
    digest = hashlib.sha256(repr([(p.context, p.continuation) for p in pairs]).encode()).hexdigest()
    return ExampleSet(pairs[held_out:], pairs[:held_out], digest, shortened, numbers[held_out:])


def group_by_prefix(examples: Sequence[TokenPair], *, min_shared: int = GROUP_MIN_SHARED) -> list[list[int]]:
    """Positions of the examples, grouped by long shared prefixes; what all examples share does not count.

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
    """A batch sampler that shuffles groups in each epoch and cuts them into batches of equal size."""

    drop_last = False

    def __init__(self, groups: Sequence[Sequence[int]], *, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._groups = [list(group) for group in groups]
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch; the same epoch always has the same order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-sum(map(len, self._groups)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self._seed}/{self._epoch}")
        groups = [rng.sample(group, len(group)) for group in self._groups]
        rng.shuffle(groups)
        numbers = [number for group in groups for number in group]
        for start in range(0, len(numbers), self.batch_size):
            yield numbers[start : start + self.batch_size]


@dataclass(frozen=True)
class Collator:
    """Lays out a batch of examples as packs: prefix trees, or padded rows for models without tree support."""

    prefix_trees: bool
    max_tokens: int  # pack size
    pad_token_id: int

    def __call__(self, examples: Sequence[TokenPair]) -> dict[str, Any]:
        """Packs under `packs`, and all label tokens under `labels`, which Trainer counts."""
        if self.prefix_trees:
            packs: list[Pack] = list(tree_packs(examples, max_tokens=self.max_tokens))
        else:
            packs = list(padded_packs(examples, max_tokens=self.max_tokens, pad_token_id=self.pad_token_id))
        return {"packs": packs, "labels": torch.cat([pack.targets for pack in packs])}
