"""D29: a few training examples, learned by heart, must get full marks from the evaluator.

```
8 examples ── memorise ──> model that knows them by heart ── lm_eval.evaluate ──> primary metric: full marks, or D29
```
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness_ext.doctor.preflight.examples import Example, TrainingCase, asking, padding_token, quiet
from harness_ext.doctor.preflight.memorise import Memory, memorise, recall
from harness_ext.doctor.preflight.prompts import first_difference
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.findings import Finding
from harness_ext.metrics.declarations import declared
from harness_ext.metrics.known import PRIMARY_METRICS
from harness_ext.models.attach import structural_copy
from harness_ext.protocol.lm_eval_api import ConfigurableTask, evaluate
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import add_lora

EXAMPLES = 8
SECONDS = 15.0  # of learning by heart, at most
RANK = 16
CLOSE = 1e-6


@dataclass(frozen=True)
class Overfit:
    """What the evaluator made of examples that a model knows by heart."""

    memory: Memory
    seconds: float  # with the evaluation
    n: int
    metric: str = ""
    scores: Sequence[float] = ()  # of each example
    full: float | None = None  # full marks; None where the metric has none for a single document
    outputs: Sequence[str] = ()  # what the model answered

    @property
    def failing(self) -> list[int]:
        """Numbers of the examples that did not get full marks."""
        return [] if self.full is None else [n for n, score in enumerate(self.scores) if score < self.full - CLOSE]


def choose(case: TrainingCase) -> list[Example]:
    """The shortest examples, each prompt once and no answer in more than half of them."""
    chosen: list[Example] = []
    prompts: set[tuple[int, ...]] = set()
    answers: Counter[tuple[int, ...]] = Counter()
    for example in sorted(case.examples, key=lambda example: len(example.context) + len(example.supervised)):
        prompt, answer = tuple(example.context), tuple(example.supervised)
        if prompt in prompts or answers[answer] >= EXAMPLES // 2:
            continue
        chosen.append(example)
        prompts.add(prompt)
        answers[answer] += 1
        if len(chosen) == EXAMPLES:
            break
    return chosen


def overfit(case: TrainingCase, recipe: Recipe) -> Overfit:
    """Learn the examples of a case by heart, and let the evaluator score them.

    The case's model is left as it is.

    Args:
        case: of a few documents.
        recipe: gives precision, quantisation and prompts; the LoRA is one that learns fast.
    """
    try:
        with quiet():
            return _overfit(case, recipe)
    finally:
        gc.collect()  # the copy refers to itself
        torch.cuda.empty_cache() if torch.cuda.is_available() else None


def _overfit(case: TrainingCase, recipe: Recipe) -> Overfit:
    started = time.monotonic()
    model = add_lora(structural_copy(case.lm.model), _learning_fast(recipe))
    lm = TreeLM(
        pretrained=model,
        tokenizer=case.lm.tokenizer,
        backend="causal",
        max_length=case.max_length,
        batch_size=EXAMPLES,
    )
    layout: dict[str, Any] = {
        "trees": recipe.prefix_trees and lm.takes_trees(case.pairs, new_tokens=_new_tokens(case)),
        "pad_token_id": padding_token(lm),
    }
    memory = memorise(model, case.pairs, seconds=SECONDS, **layout)
    done = _evaluated(case, lm, Overfit(memory, 0.0, len(case.examples)))
    if done.failing:  # because of the task, or because the kept layers misled the training
        memory = replace(memory, probability=recall(model, case.pairs, **layout))
    return replace(done, memory=memory, seconds=time.monotonic() - started)


def _learning_fast(recipe: Recipe) -> Recipe:
    return replace(
        recipe, lora_rank=RANK, lora_alpha=2.0 * RANK, lora_dropout=0.0, target_modules="all-linear",
        modules_to_save=None, use_rslora=False, use_dora=False, init_lora_weights="default",
    )  # fmt: skip


def _new_tokens(case: TrainingCase) -> int:
    if not case.is_generated:
        return 0
    kwargs = case.task.config.generation_kwargs or {}
    return int(kwargs.get("max_gen_toks", case.lm.max_gen_toks))


def _evaluated(case: TrainingCase, lm: TreeLM, done: Overfit) -> Overfit:
    """Score the examples as `harness-ext eval` does: the task's own requests, filters and `process_results`."""
    probe = asking(case.task, [example.doc for example in case.examples], case.settings)
    name = str(probe.task_name)
    results = evaluate(
        lm,
        probe,
        bootstrap_iters=0,
        system_instruction=case.settings.system_instruction,
        apply_chat_template=case.settings.apply_chat_template,
        fewshot_as_multiturn=case.settings.multiturn,
    )
    samples: list[dict[str, Any]] = results["samples"][name]
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    metric = primary_metric(probe, samples[0]["metrics"])
    scores = [float(sample[metric]) for sample in samples if isinstance(sample.get(metric), (int, float))]
    full = full_marks(probe, metric, samples[0]["metrics"])
    outputs = [_output(sample) for sample in samples]
    if len(scores) < len(samples):  # pairs of labels, or documents without this metric
        return replace(done, metric=metric, outputs=outputs)
    return replace(done, metric=metric, scores=scores, full=full, outputs=outputs)


def primary_metric(task: ConfigurableTask, metrics: Sequence[str]) -> str:
    """The task's primary metric, as `compare` chooses it."""
    wanted = str((task.config.metadata or {}).get("primary_metric"))
    return next((name for name in (wanted, *PRIMARY_METRICS) if name in metrics), metrics[0])


def full_marks(task: ConfigurableTask, metric: str, metrics: Sequence[str]) -> float | None:
    """The best value that a document can have; None if no range is declared, or if lower is better."""
    statistic = declared(metric, task.config.metadata, list(metrics))[0]
    return statistic.high if statistic.higher_is_better is not False and statistic.score is None else None


def _output(sample: Mapping[str, Any]) -> str:
    """What the model generated, or the continuation that it preferred."""
    responses = [response[0] for response in sample["resps"]]
    if isinstance(responses[0], str):
        return responses[0]
    best = max(range(len(responses)), key=lambda number: float(responses[number][0]))
    return str(sample["arguments"][best][1])


# -- findings ------------------------------------------------------------------------------------------------------


def find_overfit(case: TrainingCase, done: Overfit) -> list[Finding]:
    """Examples that are known by heart and still not scored as right."""
    if not done.memory.is_learned or not done.failing:
        return []
    first = done.failing[0]
    example = case.examples[first]
    text = (
        f"{case.where}: {len(done.failing)} of {done.n} training examples that a model knows by heart are scored as "
        f"wrong by the evaluator ({done.metric} {sum(done.scores) / done.n:g} instead of {done.full:g}): "
        f"{_difference(case, example, done.outputs[first])}"
    )
    examples = [
        {
            "doc_id": case.examples[number].document,
            "prompt": case.decode(case.examples[number].asked),
            "output": done.outputs[number],
            "target": case.decode(case.examples[number].supervised),
            "trained_ids": [*case.examples[number].context, *case.examples[number].supervised],
            "asked_ids": case.examples[number].asked,
        }
        for number in done.failing[:3]
    ]
    numbers = {"failing": len(done.failing), "n": done.n, "metric": done.metric, "examples": examples}
    remedy = "compare the tokens, and look at filters, stop strings, max_gen_toks and process_results of the task"
    return [Finding("D29", "error", case.where, text, numbers, remedy)]


def _difference(case: TrainingCase, example: Example, output: str) -> str:
    """What was trained against what was answered, token by token; and the prompts, where these differ."""
    trained = " ".join(map(repr, case.pieces(example.supervised)))
    answered = " ".join(map(repr, case.pieces(case.lm.tok_encode(output, add_special_tokens=False)))) or "nothing"
    verb = "generated" if case.is_generated else "preferred"
    text = f"trained {trained}, {verb} {answered}"
    if example.context != example.asked:
        text += f"; the prompts differ {first_difference(case, example.context, example.asked)}"
    return text
