"""The examination of a training run before its first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from harness_ext.doctor.diagnosis import Examination
from harness_ext.doctor.logged.leaks import overlapping
from harness_ext.doctor.preflight.examples import TrainingCase, read_training
from harness_ext.doctor.preflight.memorise import kept_random_state
from harness_ext.doctor.preflight.overfit import Overfit, choose, find_overfit, overfit
from harness_ext.doctor.preflight.prompts import begin_tokens, find_prompts, join_of
from harness_ext.doctor.preflight.supervision import (
    end_tokens_per_example,
    find_supervision,
    supervised_per_completion,
)
from harness_ext.doctor.preflight.trained_answers import find_trained_answers
from harness_ext.doctor.preflight.verbaliser import find_verbaliser, labels_of
from harness_ext.errors import HarnessExtError, described
from harness_ext.findings import Finding
from harness_ext.protocol.render import PromptSettings
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import TrainingStart, start_training

logger = logging.getLogger(__name__)

DOCUMENTS = 64  # that are looked at
_LEVELS = {"error": 0, "warning": 1, "note": 2}


def examine_task(
    task: str, model: str, *, include_path: Sequence[str | Path] = (), settings: PromptSettings | None = None
) -> Examination:
    """Examine how a task would be trained with the default recipe.

    Args:
        task: name, or path of a YAML file.
        model: Hub id, local folder or packaged model.
        include_path: folders of further tasks.
        settings: few-shot, chat template, system instruction.

    Raises:
        HarnessExtError: the task or the model cannot be loaded, or the task cannot be trained on.
    """
    recipe = recipe_for(task, model, include_path=include_path, settings=settings)
    return examine_training(start_training(recipe), compares_splits=True)


def recipe_for(
    task: str, model: str, *, include_path: Sequence[str | Path] = (), settings: PromptSettings | None = None
) -> Recipe:
    """The default recipe for a task and a model, which is only examined."""
    settings = settings or PromptSettings()
    return Recipe(
        task=task,
        model=model,
        output="unused",
        include_path=[str(folder) for folder in include_path] or None,
        num_fewshot=settings.num_fewshot,
        apply_chat_template=bool(settings.apply_chat_template),
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        system_instruction=settings.system_instruction,
    )


def examine_training(start: TrainingStart, *, compares_splits: bool = False) -> Examination:
    """Examine the examples of a training run, then learn a few of them by heart and score these with the evaluator.

    The model and all random generators are left as they are.

    Args:
        start: what training starts from.
        compares_splits: look for evaluated documents in the training split, which reads all of it.

    Raises:
        TaskError: a template fails on a document.
        TrainingError: the task cannot be trained on.
    """
    with kept_random_state(start.recipe.seed):
        return _examine(start, compares_splits=compares_splits)


def _examine(start: TrainingStart, *, compares_splits: bool) -> Examination:
    recipe, lm = start.recipe, start.lm
    limit = DOCUMENTS if recipe.limit is None else min(DOCUMENTS, recipe.limit)
    case = read_training(
        start.task, start.docs, recipe.prompt, lm,
        limit=limit, max_length=lm.max_length, seed=recipe.seed, trees=recipe.prefix_trees,
    )  # fmt: skip
    examination = examine_case(case, _small(start, case), recipe)
    return _with_overlap(examination, start, case) if compares_splits else examination


def examine_case(case: TrainingCase, small: TrainingCase, recipe: Recipe) -> Examination:
    """Examine training examples, and learn a few of them by heart.

    Args:
        case: the examples.
        small: those that are learned by heart.
        recipe: gives precision, quantisation and prompts.
    """
    findings = [*find_supervision(case), *find_prompts(case), *find_verbaliser(case)]
    facts = _facts(case)
    notes: list[str] = []
    done = _overfit(small, recipe, notes)
    if done is not None:
        facts["trial"] = _trial(done)
        findings += find_overfit(small, done)
    if not any(finding.id in ("D15", "D29") for finding in findings):
        findings += find_trained_answers(case)
    return Examination(
        subject=f"training on {case.where}",
        facts=facts,
        findings=_in_order(findings),
        notes=notes,
        examples=case.marked(),
    )


def _in_order(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _LEVELS[finding.level])


def _small(start: TrainingStart, case: TrainingCase) -> TrainingCase:
    """The few documents that are learned by heart, rendered anew: few-shot examples depend on the order."""
    recipe = start.recipe
    chosen = choose(case)
    docs = [example.doc for example in chosen]
    small = read_training(
        case.task, docs, recipe.prompt, case.lm, limit=None, max_length=case.max_length, seed=recipe.seed
    )
    numbered = [replace(example, document=chosen[example.document].document) for example in small.examples]
    return replace(small, examples=numbered)


def _overfit(case: TrainingCase, recipe: Recipe, notes: list[str]) -> Overfit | None:
    try:
        done = overfit(case, recipe)
    except Exception as error:  # of memory, or whatever a model, an adapter or a task's own code raises
        logger.debug("the examples of %s cannot be learned by heart", case.where, exc_info=error)
        notes.append(f"no examples were learned by heart: {described(error):.200}")
        return None
    if not done.memory.is_learned:
        notes.append(
            f"{done.n} examples were not learned by heart in {done.memory.steps} steps, so the evaluator's score of "
            "them says nothing"
        )
    elif done.full is None:
        notes.append(f"{done.metric} has no full marks for a document, so the evaluator's score was not judged")
    return done


def _with_overlap(examination: Examination, start: TrainingStart, case: TrainingCase) -> Examination:
    """An examination, and how many evaluated documents stand in the training split."""
    try:
        evaluated = list(start.task.eval_docs)
    except (HarnessExtError, ValueError, KeyError) as error:
        note = f"the evaluated documents cannot be read: {described(error):.200}"
        return replace(examination, notes=[*examination.notes, note])
    seen = overlapping(evaluated, start.docs)
    fact = f"{len(seen):,} of {len(evaluated):,} evaluated documents stand in the training split"
    examination = replace(examination, facts={**examination.facts, "overlap": fact})
    if not seen:
        return examination
    numbers = {"documents": len(seen), "n": len(evaluated), "first": seen[0]}
    remedy = "remove them from the training split, or evaluate on other documents"
    finding = Finding("D22", "warning", case.where, f"{case.where}: {fact}", numbers, remedy)
    return replace(examination, findings=_in_order([*examination.findings, finding]))


# -- facts ---------------------------------------------------------------------------------------------------------


def _facts(case: TrainingCase) -> dict[str, str]:
    n, first = len(case.examples), case.examples[0]
    supervised = sum(len(example.supervised) for example in case.examples) / n
    facts = {
        "examples": f"{n} looked at, up to {max(len(e.context) + len(e.supervised) for e in case.examples):,} tokens",
        "supervised": f"{supervised:.1f} tokens of an example, {end_tokens_per_example(case):.1f} of them end tokens; "
        f"{supervised_per_completion(case):.2f} times the tokens of its answer",
        "begin tokens": f"{begin_tokens(case, first.context)} in training, {begin_tokens(case, first.asked)} in "
        "evaluation",
        "join": join_of(case, first),
    }
    if labels := labels_of(case):
        facts["labels (tokens)"] = ", ".join(f"{case.decode(label)!r} ({len(label)})" for label in labels)
    return facts


def _trial(done: Overfit) -> str:
    learned = "learned by heart" if done.memory.is_learned else "not learned by heart"
    score = f" and scored {done.metric} {sum(done.scores) / done.n:g} by the evaluator" if done.scores else ""
    return f"{done.n} examples {learned} in {done.memory.steps} steps{score} ({done.seconds:.1f} s)"
