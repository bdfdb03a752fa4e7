"""The dry score: scripted answers instead of a model, scored by the task's own code.

```
documents ── construct_requests ──> requests ── scripted answers ──> filters ──> process_results ──> aggregation
```

Gold answers must get full marks, wrong answers close to zero, and always abstaining the score that the task declares.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.check.documents import Sampled
from harness_ext.check.templates import gold_answers
from harness_ext.check.tokens import cut_at_stop, stops_of
from harness_ext.check.yaml_source import TaskSource
from harness_ext.errors import described, suggest
from harness_ext.metrics.known import PRIMARY_METRICS
from harness_ext.protocol.lm_eval_api import (
    ConfigurableTask,
    Instance,
    choices_of,
    document_scores,
    gen_prefix,
    input_choice,
    mean,
    requests_for,
)

LIKELY, UNLIKELY, NEUTRAL = (0.0, True), (-50.0, False), (-10.0, False)
NONSENSE = "zebra crossing"
WRONG_SHARE = 0.1  # highest share of full marks for wrong answers, which may share words with the gold answer
OTHER_SHARE = 0.6  # highest share of full marks for another document's answer
CLOSE = 1e-6

Doc = Mapping[str, Any]
Answer = Callable[[Doc], str]


@dataclass(frozen=True)
class DryScore:
    """Aggregated metrics of one script."""

    metrics: Mapping[str, float]  # keyed by `metric` for the first filter, by `metric,filter` for others
    per_document: Mapping[str, Sequence[Any]]  # of the first filter


class ScoringError(Exception):
    """A task's scoring failed; the message says where."""


def check_scores(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> str | None:
    """Score scripted answers and note every problem; returns a summary of the scores if there is no error."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return None
    before = len(source.findings)
    golds = [_gold(task, doc) for doc in sampled.docs]
    by_id = {id(doc): gold for doc, gold in zip(sampled.docs, golds, strict=True)}
    try:
        gold = dry_score(task, sampled.docs, lambda doc: by_id[id(doc)])
        wrong = dry_score(task, sampled.docs, lambda doc: _wrong(task, doc, by_id[id(doc)]))
    except ScoringError as error:
        source.add("C31", "error", f"{error}; correct the hook, the filters or the data", _scoring_place(task))
        return None
    primary = _primary(task, gold.metrics)
    _check_listed(source, task, gold)
    if primary is None:
        source.add("C32", "error", "scoring returns none of the metrics in metric_list; return them from "
                   "process_results", "metric_list")  # fmt: skip
        return None
    full = _check_gold(source, task, gold, wrong, primary, sampled, golds)
    _check_wrong(source, task, gold, wrong, primary, full)
    _check_other_answers(source, task, sampled, golds, primary, full)
    _check_abstaining(source, task, sampled, primary)
    if len(set(golds)) == 1 and len(golds) > 1:
        source.add("C35", "warning", f"all {len(golds)} checked documents have the gold answer {golds[0]!r:.40}, so "
                   "always giving it scores full marks; evaluate documents with different answers",
                   "doc_to_target")  # fmt: skip
    if any(finding.level == "error" for finding in source.findings[before:]):
        return None
    return (f"{primary} of gold answers {_number(gold.metrics[primary])}, of wrong ones "
            f"{_number(wrong.metrics[primary])}, on {len(sampled.docs)}")  # fmt: skip


# -- scripted answers --------------------------------------------------------------------------------------------


def dry_score(task: ConfigurableTask, docs: Sequence[Doc], answer: Answer) -> DryScore:
    """Score a script that answers each document with `answer(doc)`, through lm-eval's own Task object.

    Raises:
        ScoringError: requests, filters, `process_results` or an aggregation fail.
    """
    requests: list[list[Instance]] = []
    for number, doc in enumerate(docs):
        with _scoring(f"requests of document {number} fail"):
            requests.append(_requests(task, doc, number))
    shared = _shared_contexts(requests)
    for doc, group in zip(docs, requests, strict=True):
        for request in group:
            response = NEUTRAL if request.args[0] in shared else _respond(task, request, doc, answer(doc))
            request.resps = [response] * (task.config.repeats or 1)
    task._instances = [request for group in requests for request in group]
    with _scoring("a filter fails"):
        task.apply_filters()
    raw: dict[tuple[str, str], list[Any]] = defaultdict(list)
    filters = list(task._instances[0].filtered_resps)
    for name in filters:
        for number, (doc, group) in enumerate(zip(docs, requests, strict=True)):
            with _scoring(f"process_results fails on document {number} (answer {answer(doc)!r:.40})"):
                scores = document_scores(task, doc, group, name)
            for metric, value in scores.items():
                raw[metric, name].append(value)
    return _aggregated(task, raw, filters[0])


def _requests(task: ConfigurableTask, doc: Doc, number: int) -> list[Instance]:
    context = task.fewshot_context(doc, 0, gen_prefix=gen_prefix(task, doc))
    return requests_for(task, doc, context, number=number)


def _shared_contexts(requests: Sequence[Sequence[Instance]]) -> set[str]:
    """Contexts that do not depend on the document: empty ones, and those of contextual calibration."""
    own = {group[0].args[0] for group in requests}
    if own == {""}:  # a task without prompts
        return set()
    if len(own) < 2:
        return {""}
    contexts = [{request.args[0] for request in group if request.request_type == "loglikelihood"} for group in requests]
    return {"", *set.intersection(*contexts)}


def _respond(task: ConfigurableTask, request: Instance, doc: Doc, answer: str) -> Any:
    """The response to a request of a model that considers `answer` the right one."""
    if request.request_type == "generate_until":
        return cut_at_stop(f"{task.config.target_delimiter}{answer}", stops_of(request.args[1]))
    if task.OUTPUT_TYPE != "multiple_choice":
        return LIKELY if request.args[1].strip() == answer.strip() else UNLIKELY
    own = choices_of(task, doc)
    if answer not in own:
        return UNLIKELY
    if input_choice(task, doc) is not None:  # the choices are in the contexts
        return LIKELY if request.idx == own.index(answer) else UNLIKELY
    choice = choices_of(task, request.doc)[own.index(answer)]  # a request may use other label words
    return LIKELY if request.args[1].strip() == choice.strip() else UNLIKELY


def _aggregated(task: ConfigurableTask, raw: Mapping[tuple[str, str], list[Any]], first: str) -> DryScore:
    metrics: dict[str, float] = {}
    for (metric, name), values in raw.items():
        with _scoring(f"the aggregation of {metric!r} fails"):
            aggregate = task.aggregation().get(metric, mean)
            value = aggregate(values)
            metrics[metric if name == first else f"{metric},{name}"] = float(value)
    return DryScore(metrics, {metric: values for (metric, name), values in raw.items() if name == first})


@contextlib.contextmanager
def _scoring(failure: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a task's own code raises
        raise ScoringError(f"{failure}: {described(error)}") from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep libraries from printing and logging; the check reports problems as findings."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


# -- answers -----------------------------------------------------------------------------------------------------


def _gold(task: ConfigurableTask, doc: Doc) -> str:
    if (index := input_choice(task, doc)) is not None:
        return str(choices_of(task, doc)[index])
    return gold_answers(task, doc)[0].strip(" ")


def _wrong(task: ConfigurableTask, doc: Doc, gold: str) -> str:
    """Another choice, or words that are in no answer."""
    if task.OUTPUT_TYPE == "multiple_choice":
        golds = set(gold_answers(task, doc)) if input_choice(task, doc) is None else {gold}
        return next((str(choice) for choice in choices_of(task, doc) if choice not in golds), NONSENSE)
    return NONSENSE


def _always(text: str, _: Doc) -> str:
    return text


def _primary(task: ConfigurableTask, metrics: Mapping[str, float]) -> str | None:
    declared = (task.config.metadata or {}).get("primary_metric")
    listed = [name for name in task.aggregation() if name in metrics]
    if declared in listed:
        return str(declared)
    return next((name for name in PRIMARY_METRICS if name in listed), listed[0] if listed else None)


def _scoring_place(task: ConfigurableTask) -> str:
    return "process_results" if task.config.process_results else "metric_list"


# -- requirements ------------------------------------------------------------------------------------------------


def _check_listed(source: TaskSource, task: ConfigurableTask, gold: DryScore) -> None:
    listed, scored = set(task.aggregation()), {name.partition(",")[0] for name in gold.metrics}
    for name in sorted(scored - listed):
        source.add("C32", "warning", f"scoring returns {name!r}, which is not in metric_list: lm-eval reports its "
                   "mean; list it with its aggregation", "metric_list")  # fmt: skip
    if not task.config.process_results:
        return
    for name in sorted(listed - scored):
        hint = suggest(name, scored - listed)
        source.add("C32", "error" if hint else "note", f"metric_list contains {name!r}, which scoring returns for none "
                   f"of the checked documents{hint or '; remove it unless other documents have it'}",
                   "metric_list")  # fmt: skip


def _check_gold(
    source: TaskSource,
    task: ConfigurableTask,
    gold: DryScore,
    wrong: DryScore,
    primary: str,
    sampled: Sampled,
    golds: Sequence[str],
) -> float:
    """Note if gold answers do not get full marks in the primary metric; returns the value of full marks."""
    value = gold.metrics[primary]
    declared = (task.config.metadata or {}).get("metric_scale")
    if task.higher_is_better().get(primary) is False:
        if not value < wrong.metrics[primary]:
            source.add("C28", "error", f"{primary}, where lower is better, is {_number(value)} for gold answers and "
                       f"{_number(wrong.metrics[primary])} for wrong ones; check higher_is_better",
                       "metric_list")  # fmt: skip
        return value
    full = float(declared) if declared else (100.0 if value > 1 + CLOSE else 1.0)
    if declared and _near(value, 100.0 if full == 1 else 1.0):
        source.add("C34", "error", f"metric_scale is {declared}, but gold answers score {_number(value)} {primary}; "
                   f"set it to {_number(value)}", "metadata", "metric_scale")  # fmt: skip
    elif not _near(value, full):
        source.add("C28", "error", f"gold answers score {_number(value)} {primary}, not {_number(full)}"
                   f"{_by_class(gold, primary)}{_example(task, gold, primary, sampled, golds)}; correct "
                   f"{_scoring_place(task)}"
                   f"{'' if task.config.process_results else ', the filters or doc_to_target'}",
                   _scoring_place(task))  # fmt: skip
    return full


def _near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-6, abs_tol=CLOSE)


def _by_class(gold: DryScore, primary: str) -> str:
    """The metrics of answerable and unanswerable documents, to show which of them lose points."""
    parts = {name: gold.metrics[name] for name in (f"HasAns_{primary}", f"NoAns_{primary}") if name in gold.metrics}
    return f" ({', '.join(f'{name} {_number(value)}' for name, value in parts.items())})" if parts else ""


def _example(task: ConfigurableTask, gold: DryScore, primary: str, sampled: Sampled, golds: Sequence[str]) -> str:
    """The first document whose gold answer scores 0."""
    aggregate = task.aggregation().get(primary, mean)
    for number, text, value in zip(sampled.numbers, golds, gold.per_document.get(primary, []), strict=False):
        with contextlib.suppress(Exception):  # an aggregation that needs more than one document
            if not (value if isinstance(value, (int, float)) else aggregate([value])):
                return f"; first failure: document {number}, gold {text!r:.60}"
    return ""


def _check_wrong(
    source: TaskSource, task: ConfigurableTask, gold: DryScore, wrong: DryScore, primary: str, full: float
) -> None:
    if task.higher_is_better().get(primary) is False:
        return
    value = wrong.metrics[primary]
    if value > WRONG_SHARE * full and gold.metrics[primary] > 0:
        source.add("C29", "error", f"a wrong answer on every document scores {_number(value)} {primary} of "
                   f"{_number(full)}; correct the scoring", _scoring_place(task))  # fmt: skip


def _check_other_answers(
    source: TaskSource, task: ConfigurableTask, sampled: Sampled, golds: Sequence[str], primary: str, full: float
) -> None:
    """For generation: another document's gold answer must not pass, either."""
    if task.OUTPUT_TYPE != "generate_until" or task.higher_is_better().get(primary) is False:
        return
    next_golds = [next((text for text in (*golds[number + 1 :], *golds[:number]) if text != gold), None)
                  for number, gold in enumerate(golds)]  # fmt: skip
    pairs = [(doc, answer) for doc, answer in zip(sampled.docs, next_golds, strict=True) if answer is not None]
    if not pairs:
        return
    by_id = {id(doc): answer for doc, answer in pairs}
    with contextlib.suppress(ScoringError):  # scoring worked for gold answers; it may refuse others
        value = dry_score(task, [doc for doc, _ in pairs], lambda doc: by_id[id(doc)]).metrics[primary]
        if value > OTHER_SHARE * full:
            source.add("C29", "error", f"another document's answer scores {_number(value)} {primary} of "
                       f"{_number(full)}; correct the scoring", _scoring_place(task))  # fmt: skip


def _check_abstaining(source: TaskSource, task: ConfigurableTask, sampled: Sampled, primary: str) -> None:
    """Always abstaining must score the task's `abstain_baseline`, and must not break scoring."""
    if task.OUTPUT_TYPE != "generate_until":
        return
    word = (task.config.metadata or {}).get("abstain_answer")
    answers = ["", *([word] if word is not None else [])]
    for text in answers:
        try:
            scored = dry_score(task, sampled.docs, functools.partial(_always, str(text))).metrics
        except ScoringError as error:
            source.add(
                "C31", "error", f"an empty answer breaks scoring: {error}; correct the hook", _scoring_place(task)
            )
            return
        declared = scored.get("abstain_baseline")
        if declared is not None and not _near(scored[primary], declared):
            source.add("C30", "error", f"always answering {text!r} scores {_number(scored[primary])} {primary}, but "
                       f"the task declares {_number(declared)} (abstain_baseline); correct the abstain words",
                       _scoring_place(task))  # fmt: skip
            return


def _number(value: float) -> str:
    return f"{value:.4g}"
