"""Batches of any trainer, read back: which tokens are read, which are learned, and of which document they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from planted import world
from planted.runner import World
from planted.trainers import LOOP, Training, loop_batches

from harness_ext.doctor.preflight.batches import documents_in, examine_batches, rows_of
from harness_ext.doctor.replay.search import noise_floor
from harness_ext.errors import TrainingError
from harness_ext.trees.packs import TokenPair

PAD, EOS = 2, 1
IGNORED = -100


def batch(ids: list[list[int]], labels: list[list[int]], mask: list[list[int]] | None = None) -> dict[str, Any]:
    masks = {} if mask is None else {"attention_mask": torch.tensor(mask)}
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), **masks}


# Rows worked out by hand: (ids, labels, mask, what is read, what is learned)
@pytest.mark.parametrize(
    ("ids", "labels", "mask", "context", "supervised"),
    [
        ([0, 5, 6, 7, 1], [IGNORED, IGNORED, IGNORED, 7, 1], None, [0, 5, 6], [7, 1]),
        ([0, 5, 7, 1, 2, 2], [IGNORED, IGNORED, 7, 1, IGNORED, IGNORED], [1, 1, 1, 1, 0, 0], [0, 5], [7, 1]),
        ([0, 5, 7, 1, 2, 2], [IGNORED, IGNORED, 7, 1, IGNORED, IGNORED], None, [0, 5], [7, 1]),
        ([2, 2, 0, 5, 7, 1], [IGNORED] * 4 + [7, 1], None, [0, 5], [7, 1]),  # padded on the left
        ([0, 5, 7, 1], [0, 5, 7, 1], None, [0], [5, 7, 1]),  # the first token is never predicted
        ([0, 5, 7, 1, 1], [IGNORED, IGNORED, 7, IGNORED, IGNORED], [1, 1, 1, 1, 0], [0, 5], [7]),  # end token masked
        ([0, 5, 6], [IGNORED] * 3, None, [0, 5, 6], []),
    ],
)
def test_rows(
    ids: list[int], labels: list[int], mask: list[int] | None, context: list[int], supervised: list[int]
) -> None:
    (row,) = rows_of([batch([ids], [labels], None if mask is None else [mask])], PAD)
    assert (list(row.context), list(row.continuation)) == (context, supervised)


def test_rows_without_a_document_are_named(place: World) -> None:
    with place.data():
        (first, *_) = loop_batches(Training(), place.base)
        strange = batch([[0, 9, 10, 11]], [[IGNORED, IGNORED, 10, 11]])
        examination = examine_batches([first, strange], "sst2_generate", str(place.base))
        assert not examination.errors
        assert examination.notes[-1].startswith("1 of 17 rows contain no document")
        with pytest.raises(TrainingError, match="none of 1 rows contains a document"):
            examine_batches([strange], "sst2_generate", str(place.base))


def test_ends_of_chat_turns_are_no_prompt(place: World) -> None:
    """What follows an answer is neither a prompt (D9) nor a missing end (D7) where the task stops at it."""
    with place.data():
        batches = loop_batches(Training(words=("negative\n", "positive\n"), ends=False, documents=32), place.base)
        examination = examine_batches(batches, "sst2_generate", str(place.base))
    assert not {"D7", "D9"} & {finding.id for finding in examination.findings}, examination.findings


def test_sound_batches(place: World) -> None:
    with place.data():
        for form, chat in ((world.plain, False), (world.chatml, True)):
            from harness_ext.protocol.render import PromptSettings

            settings = PromptSettings(apply_chat_template=chat)
            batches = loop_batches(Training(form=form, documents=64), place.base)
            examination = examine_batches(batches, "sst2_generate", str(place.base), settings=settings)
            assert not examination.findings, (LOOP, form, examination.findings)


def test_noise_floor() -> None:
    """By hand: four of 100 documents change, twice up and twice down: nothing in the mean, sqrt(4) / 100 otherwise."""
    flips = np.r_[1.0, 1.0, -1.0, -1.0, np.zeros(96)]
    assert flips.mean() == 0
    assert noise_floor(flips) == pytest.approx(0.02)
    assert noise_floor(np.r_[np.ones(10), np.zeros(90)]) == pytest.approx(0.1)
    assert noise_floor(np.r_[np.nan, np.zeros(9)]) == 0.0
    assert noise_floor(np.array([np.nan])) == 0.0


def test_a_short_question_about_the_passage_of_another() -> None:
    """Of documents that share a passage, it is the one whose question stands in the row, however short it is."""
    passage = "A computer network that began operation in 1981 and played a role."
    docs = [
        {"context": passage, "question": "What is it?"},
        {"context": passage, "question": "When did the network begin operation?"},
        {"context": "Another passage about something else.", "question": "What is it?"},
    ]
    lm = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "".join(map(chr, ids))))
    rows = [TokenPair([*map(ord, f"Passage: {doc['context']}\nQuestion: {doc['question']}")], []) for doc in docs]
    assert documents_in(rows, docs, lm) == [0, 1, 2]
    assert documents_in([TokenPair([*map(ord, f"Passage: {passage}\nQuestion: And why?")], [])], docs, lm) == [None]
