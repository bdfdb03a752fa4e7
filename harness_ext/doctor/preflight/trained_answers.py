"""D29 without a model: the trained answers themselves, scored by the evaluator.

A model that has learned its examples perfectly generates the supervised tokens up to the end token, and the evaluator
cuts them at its stop strings and its token limit.
"""

from __future__ import annotations

import itertools

from harness_ext.doctor.preflight.examples import Example, TrainingCase
from harness_ext.doctor.preflight.overfit import CLOSE, full_marks, primary_metric
from harness_ext.doctor.preflight.supervision import end_tokens, missing_characters
from harness_ext.doctor.rescoring import all_scores
from harness_ext.findings import Finding, Level

MOST_WRONG = 0.1  # share of the answers; a few may be longer than the token limit, or hold a stop string


def find_trained_answers(case: TrainingCase) -> list[Finding]:
    """Trained answers that are not scored as right, whatever is learned; answers that were cut are left to D10."""
    whole = [example for example in case.examples if not missing_characters(case, example)]
    if not case.is_generated or not whole:
        return []
    texts = [as_generated(case, example) for example in whole]
    scores = all_scores(case.task, [example.doc for example in whole], texts)
    metric = primary_metric(case.task, list(scores[0]))
    full = full_marks(case.task, metric, list(scores[0]))
    values = [each.get(metric) for each in scores]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if full is None or len(numbers) < len(values):
        return []
    failing = [n for n, value in enumerate(numbers) if value < full - CLOSE]
    if not failing:
        return []
    first = failing[0]
    text = (
        f"{case.where}: {len(failing)} of {len(whole)} trained answers are scored as wrong by the evaluator "
        f"({metric} {sum(numbers) / len(numbers):g} instead of {full:g}): {texts[first]!r} is trained, "
        f"{case.decode(whole[first].answer_ids)!r} is the reference answer"
    )
    evidence = {
        "failing": len(failing), "n": len(whole), "metric": metric,
        "examples": case.examples_of([whole[n] for n in failing]),
    }  # fmt: skip
    remedy = "compare them, and look at filters, stop strings, max_gen_toks and process_results of the task"
    level: Level = "error" if len(failing) > MOST_WRONG * len(whole) else "warning"
    return [Finding("D29", level, case.where, text, evidence, remedy)]


def as_generated(case: TrainingCase, example: Example) -> str:
    """What a model that knows an example by heart generates, as the evaluator cuts it."""
    kwargs = case.task.config.generation_kwargs or {}
    learned = max(0, len(example.asked) - len(example.context))  # of the prompt (D9)
    ends, limit = end_tokens(case), int(kwargs.get("max_gen_toks", case.lm.max_gen_toks))
    ids = list(itertools.takewhile(lambda token: token not in ends, example.supervised[learned:]))[:limit]
    text = str(case.lm.tokenizer.decode(ids, skip_special_tokens=True))
    until = kwargs.get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop, maxsplit=1)[0]
    return text
