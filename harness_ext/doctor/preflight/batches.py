"""The collated batches of any trainer, read back and held against what the evaluator asks.

```
batches (input_ids, labels) ──> rows ──> the training document that each row contains ──> as with our own examples
```
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness_ext.doctor.diagnosis import Examination
from harness_ext.doctor.logged.leaks import QUESTIONS, identifying_text
from harness_ext.doctor.preflight.examples import TrainingCase, case_of, padding_token
from harness_ext.doctor.preflight.memorise import kept_random_state
from harness_ext.doctor.preflight.overfit import choose
from harness_ext.doctor.preflight.run import DOCUMENTS, examine_case, recipe_for
from harness_ext.errors import TrainingError
from harness_ext.protocol.lm_eval_api import HFLM
from harness_ext.protocol.render import PromptSettings
from harness_ext.training.trainer import start_training
from harness_ext.trees.packs import TokenPair

IGNORED = -100  # label of a token without loss, in transformers


def examine_batches(
    batches: Iterable[Mapping[str, Any]],
    task: str,
    model: str,
    *,
    include_path: Sequence[str] = (),
    settings: PromptSettings | None = None,
    limit: int = DOCUMENTS,
) -> Examination:
    """Examine what another trainer trains on: TRL's `SFTTrainer`, transformers' `Trainer`, or a loop of one's own.

    Each row is held against what the evaluator asks about the same document, and a few rows are learned by heart.

    Args:
        batches: collated batches with `input_ids` and `labels`, (B, T), such as `trainer.get_train_dataloader()`; rows
            with one example each, not packed.
        task: name, or path of a YAML file, of the task on which the adapter will be evaluated.
        model: Hub id, local folder or packaged model.
        include_path: folders of further tasks.
        settings: few-shot, chat template, system instruction of the evaluation.
        limit: rows that are looked at.

    Raises:
        TrainingError: no row contains a document of the task's training split.
        HarnessExtError: the task or the model cannot be loaded, or the task cannot be trained on.
    """
    recipe = recipe_for(task, model, include_path=include_path, settings=settings)
    start = start_training(recipe)
    with kept_random_state(recipe.seed):
        rows = list(itertools.islice(rows_of(batches, padding_token(start.lm)), limit))
        numbers = documents_in(rows, start.docs, start.lm)
        known = [(number, row) for number, row in zip(numbers, rows, strict=True) if number is not None]
        if not known:
            raise TrainingError(
                f"none of {len(rows)} rows contains a document of the training split of {start.task.task_name!r}; name "
                "the task that is trained"
            )
        case = case_of(
            start.task, start.docs, recipe.prompt, start.lm,
            numbers=[number for number, _ in known], pairs=[row for _, row in known], max_length=start.lm.max_length,
        )  # fmt: skip
        examination = examine_case(case, _small(case), recipe)
    if len(known) == len(rows):
        return examination
    note = f"{len(rows) - len(known)} of {len(rows)} rows contain no document of the training split, and are left out"
    return replace(examination, notes=[*examination.notes, note])


def rows_of(batches: Iterable[Mapping[str, Any]], padding: int) -> Iterator[TokenPair]:
    """What each row of the batches reads first, and the tokens that its loss is computed on.

    The first token of a row is never predicted, so it has no loss, whatever its label.
    """
    for batch in batches:
        mask = batch.get("attention_mask")
        for number, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
            kept = _kept(ids, labels, None if mask is None else mask[number].tolist(), padding)
            tokens, targets = [ids[n] for n in kept], [labels[n] for n in kept]
            supervised = [n for n, target in enumerate(targets) if target != IGNORED and n > 0]
            end = supervised[0] if supervised else len(tokens)
            yield TokenPair(tokens[:end], [targets[n] for n in supervised])


def _kept(ids: Sequence[int], labels: Sequence[int], mask: Sequence[int] | None, padding: int) -> list[int]:
    """Positions that are not padding: by the mask, or else without the pad tokens at both ends that have no loss."""
    if mask is not None:
        return [n for n, shown in enumerate(mask) if shown]
    pads = [token == padding and label == IGNORED for token, label in zip(ids, labels, strict=True)]
    first = next((n for n, pad in enumerate(pads) if not pad), len(ids))
    last = next((n for n in reversed(range(len(ids))) if not pads[n]), -1)
    return list(range(first, last + 1))


def documents_in(rows: Sequence[TokenPair], docs: Any, lm: HFLM) -> list[int | None]:
    """Number of the document in each row; None where there is none.

    It is the document whose question stands in the row, and most of whose other texts: questions may be short, and
    several share a passage.
    """
    texts = [_normalised(lm.tokenizer.decode([*context, *targets])) for context, targets in rows]
    best: list[tuple[int, int] | None] = [None] * len(rows)
    for number, doc in enumerate(docs):
        wanted = _normalised(_question(doc))
        if not wanted:
            continue
        for place, text in enumerate(texts):
            if wanted in text:
                length = sum(len(value) for value in map(_normalised, _texts(doc)) if value in text)
                known = best[place]
                best[place] = (length, number) if known is None or length > known[0] else known
    return [None if known is None else known[1] for known in best]


def _question(doc: Mapping[str, Any]) -> str:
    """What a document asks, however short; else the text that identifies it."""
    asked = next((doc[name] for name in QUESTIONS if isinstance(doc.get(name), str)), "")
    return str(asked).strip() or identifying_text(doc)


def _texts(doc: Mapping[str, Any]) -> list[str]:
    return [value for value in doc.values() if isinstance(value, str)]


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _small(case: TrainingCase) -> TrainingCase:
    """The few rows that are learned by heart."""
    return replace(case, examples=choose(case))
