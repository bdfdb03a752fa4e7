"""Scores a model in training: adapters on, nothing reloaded, by hf-tree and the task's own requests and filters.

```
model in training ── untouched ──> TreeLM ── lm_eval.evaluate ──> primary metric of each document
```
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

from accelerate import PartialState

from harness_ext.doctor.preflight.examples import asking, quiet
from harness_ext.doctor.preflight.memorise import kept_random_state
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.errors import HarnessExtError, RecipeError, TaskError, TrainingError, described
from harness_ext.metrics.declarations import declared
from harness_ext.metrics.statistic import POINTS, SHARE, Statistic
from harness_ext.protocol.lm_eval_api import ConfigurableTask, evaluate
from harness_ext.results.run import primary_name
from harness_ext.selection.carve import carve
from harness_ext.training.evaluator import EvaluatedMetric, HeldOutDocuments
from harness_ext.training.trainer import TrainingStart

logger = logging.getLogger(__name__)

WITHOUT = "train without --evaluate-every"
SEED = 1234  # of sampled answers, as lm-eval's
OF_HOOKS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)  # and of filters
REMEDY = f"name one that has in the task's YAML (metadata: primary_metric:), or {WITHOUT}"


class LiveEvaluator:
    """Scores a model in training on documents of the training split that are not trained on.

    Args:
        start: what training starts from.
        report: shows a line about the progress.
        seed: of the draw of documents; None: the recipe's.

    Raises:
        TaskError: the task's primary metric has no score for each document.
        TrainingError: there are too few documents.
    """

    def __init__(
        self, start: TrainingStart, report: Callable[[str], None] = logger.info, *, seed: int | None = None
    ) -> None:
        recipe = start.recipe
        self._start = start
        with kept_random_state(recipe.seed):  # lm-eval draws a number whenever a task's name is read
            self._statistic, self.metric = primary_metric(start.task)
            carved = carve(
                start.task, start.docs, size=recipe.evaluation_documents, seed=recipe.seed if seed is None else seed
            )
        self.for_choice, self.for_report = carved.for_choice, carved.for_report
        self.excluded, self.data_sha256 = carved.excluded, carved.data_sha256
        self.report = report
        self._lm: TreeLM | None = None

    def scores(self, model: Any, documents: HeldOutDocuments) -> list[float]:
        """The score of each document, (n,); shares on 0–1.

        Raises:
            HarnessExtError: the model cannot be scored.
        """
        task, settings = self._start.task, self._start.recipe.prompt
        with untouched(model), quiet():
            probe = asking(task, [self._start.docs[number] for number in documents.numbers], settings)
            lm = self._evaluating(model)
            try:
                results = evaluate(
                    lm,
                    probe,
                    bootstrap_iters=0,
                    system_instruction=settings.system_instruction,
                    apply_chat_template=settings.apply_chat_template,
                    fewshot_as_multiturn=settings.multiturn,
                )
            except HarnessExtError:
                raise
            except OF_HOOKS as error:
                raise TaskError(
                    f"task {task.task_name!r} cannot be evaluated in training: {described(error):.200}; see "
                    f"`harness-ext check {task.task_name}`, or {WITHOUT}"
                ) from error
            finally:
                lm.generation_records.clear()
            (samples,) = results["samples"].values()
        return self._numbers(samples, len(documents.numbers))

    def _evaluating(self, model: Any) -> TreeLM:
        """The model as lm-eval sees it; made once, so that what was found out about its support is kept."""
        if self._lm is None:
            start = self._start
            with _without_tying(model):
                self._lm = TreeLM(
                    pretrained=model, tokenizer=start.lm.tokenizer, backend="causal",
                    batch_size=start.recipe.batch_size,
                )  # fmt: skip
        return self._lm

    def _numbers(self, samples: list[dict[str, Any]], expected: int) -> list[float]:
        first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        in_order = sorted(first, key=lambda sample: int(sample["doc_id"]))
        factor = 0.01 if self._statistic.unit == POINTS else 1.0
        try:
            scores = [factor * float(self._statistic.numbers(sample[self.metric.name])[0]) for sample in in_order]
        except (KeyError, TypeError, ValueError, IndexError):
            scores = []
        if len(scores) != expected or not all(map(math.isfinite, scores)):
            raise TaskError(
                f"{self.metric.name} of {self._start.task.task_name!r} has no number for each document, so checkpoints "
                f"cannot be compared by it; {REMEDY}"
            )
        low, high = self.metric.limits
        if (low is not None and min(scores) < low) or (high is not None and max(scores) > high):
            raise TaskError(
                f"{self.metric.name} of {self._start.task.task_name!r} is {min(scores):g} to {max(scores):g}, outside "
                f"its range of {low} to {high}; declare its unit in the task's YAML (metadata: metrics:)"
            )
        return scores


def primary_metric(task: ConfigurableTask) -> tuple[Statistic, EvaluatedMetric]:
    """The task's primary metric as declared, and as it is scored in training.

    Raises:
        TaskError: it is not the mean of a score for each document.
    """
    names, metadata = list(task.aggregation()), task.config.metadata or {}
    if not names:
        raise TaskError(f"task {task.task_name!r} has no metric to choose a checkpoint by; {REMEDY}")
    name = primary_name(metadata.get("primary_metric"), names)
    statistic = declared(name, metadata, names)[0]
    if name not in names or not statistic.is_mean or statistic.scale != "linear" or statistic.describes:
        raise TaskError(
            f"{name}, the primary metric of {task.task_name!r}, has no score for each document, so checkpoints cannot "
            f"be compared by it; {REMEDY}"
        )
    shown = statistic.in_shares()
    direction = task.higher_is_better().get(name, statistic.higher_is_better)
    metric = EvaluatedMetric(name, shown.limits, direction is None or bool(direction), shown.unit == SHARE)
    return statistic, metric


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Leave a model as it is: modes of its modules, what is trained, and all random generators."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with kept_random_state(SEED):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)


@contextlib.contextmanager
def _without_tying(model: Any) -> Iterator[None]:
    """Let lm-eval take a model without tying its weights again, which would lose a head that is being trained."""
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


def check_one_process() -> None:
    """Raise RecipeError if several processes were launched."""
    if (processes := PartialState().num_processes) > 1:
        raise RecipeError(
            f"--evaluate-every and tournaments work in one process, and {processes} were launched; train without "
            "accelerate or torchrun"
        )


def live_evaluator(
    start: TrainingStart,
    *,
    report: Callable[[str], None] | None = None,
    seed: int | None = None,
) -> LiveEvaluator:
    """The evaluator of a training that starts.

    Args:
        start: what training starts from.
        report: shows a line about the progress; None logs it.
        seed: of the draw of documents; None: the recipe's.

    Raises:
        RecipeError: there are several processes.
        HarnessExtError: the model cannot be scored in training.
    """
    check_one_process()
    try:
        return LiveEvaluator(start, report or logger.info, seed=seed)
    except (ValueError, KeyError) as error:
        raise TrainingError(
            f"the evaluated documents of {start.task.task_name!r} cannot be read ({described(error):.200}); {WITHOUT}"
        ) from error
