"""Leaks: documents among their own few-shot examples, and evaluated documents in the training split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from harness_ext.check.documents import Sampled
from harness_ext.check.yaml_source import TaskSource
from harness_ext.errors import described
from harness_ext.findings import Level
from harness_ext.protocol.content import content_keys, prompt_columns
from harness_ext.protocol.fewshot import DEFAULT_SEED
from harness_ext.protocol.lm_eval_api import ConfigurableTask, gen_prefix

TRIED_SHOTS = 3  # for a task that does not set num_fewshot


def check_fewshot(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> None:
    """Build few-shot prompts as lm-eval does, and note documents that are among their own examples."""
    own = task.config.num_fewshot
    pool = getattr(getattr(task, "sampler", None), "df", None)
    if own == 0 or not pool or task.config.metadata.get("num_fewshot") == 0:
        return
    shots = own or min(TRIED_SHOTS, len(pool) - 1)
    if shots < 1:
        return
    try:
        leaked, prompts = _leaks(task, sampled, shots)
    except Exception as error:  # lm-eval's sampler uses assert
        level: Level = "error" if own else "note"
        source.add("C18", level, f"prompts with {shots} examples cannot be built: {described(error)}; lower "
                   "num_fewshot or enlarge the few-shot split", "num_fewshot")  # fmt: skip
        return
    splits = f"fewshot_split {task.config.fewshot_split!r}" if task.config.fewshot_split else "the few-shot split"
    remedy = "use another fewshot_split (lm-eval excludes the document only if this is the test split)"
    place = "fewshot_split" if task.config.fewshot_split else "num_fewshot"
    if leaked and own:
        source.add("C26", "error", f"few-shot leak: {leaked} of {prompts} documents are examples in their own prompt, "
                   f"since {splits} contains them; {remedy}", place)  # fmt: skip
    elif any(doc in pool for doc in sampled.docs[:5]) and leaked:
        source.add("C26", "warning", f"few-shot leak: {splits} is also evaluated; with --num_fewshot {shots}, "
                   f"{leaked} of {prompts} documents are examples in their own prompt; {remedy}", place)  # fmt: skip


def _leaks(task: ConfigurableTask, sampled: Sampled, shots: int) -> tuple[int, int]:
    task.set_fewshot_seed(seed=DEFAULT_SEED)
    leaked = 0
    with _recorded_examples(task) as drawn:
        for doc in sampled.docs:
            drawn.clear()
            task.fewshot_context(doc, shots, gen_prefix=gen_prefix(task, doc))
            leaked += doc in drawn
    return leaked, len(sampled.docs)


@contextlib.contextmanager
def _recorded_examples(task: ConfigurableTask) -> Iterator[list[Any]]:
    """Record the examples that the task's own sampler draws."""
    sampler, drawn = task.sampler, []

    def sample(*args: Any, **options: Any) -> Any:
        examples = type(sampler).sample(sampler, *args, **options)
        drawn.extend(examples)
        return examples

    sampler.sample = sample
    try:
        yield drawn
    finally:
        del sampler.sample


def check_overlap(source: TaskSource, task: ConfigurableTask, columns: Sequence[str]) -> str | None:
    """Look for every evaluated document, word for word, in the training split.

    Returns:
        The number of training documents in words, or None if the splits could not be compared.
    """
    if not task.has_training_docs() or task.config.training_split not in getattr(task, "dataset", {}):
        return None
    evaluated = task.config.test_split or task.config.validation_split
    if task.config.training_split == evaluated:
        source.add("C27", "error", f"training_split and the evaluated split are both {evaluated!r}: a model would be "
                   "tested on its training data; use another training_split", "training_split")  # fmt: skip
        return None
    training, evaluation = task.training_docs(), task.eval_docs
    compared = prompt_columns(task, columns, evaluation)
    if not compared or not set(compared) <= set(training[0]):
        return None
    number_of = {key: number for number, key in enumerate(content_keys(evaluation, compared))}
    repeated = {number_of[key] for key in content_keys(training, compared) if key in number_of}
    if repeated:
        share = len(repeated) / max(1, len(evaluation))
        source.add("C27", "warning", f"{len(repeated)} of {len(evaluation)} evaluated documents ({share:.1%}) are also "
                   f"in the training split, with the same {', '.join(compared)} (first: {min(repeated)}); remove them "
                   "from the training split", "training_split")  # fmt: skip
    return f"{len(training):,} to train on"
