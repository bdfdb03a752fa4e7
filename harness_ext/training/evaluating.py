"""Evaluation in training: score states by the task's own metric, keep them all, and choose one at the end.

```
step 50 ──> scores of each document ──> state kept in the workspace ──> which one would be kept? ──> stop early?
…
last step ──> the earliest state that is not worse beyond noise ──> its weights, scored again on untouched documents
```
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from harness_ext.errors import TrainingError
from harness_ext.stats.intervals import Mean
from harness_ext.stats.selection import Choice
from harness_ext.training.evaluated_states import EvaluatedState, EvaluatedStates, trained_sha256
from harness_ext.training.evaluator import Evaluator, HeldOutDocuments
from harness_ext.training.recipe import Recipe

logger = logging.getLogger(__name__)

RESERVED = 2  # evaluations that are always made: of the last state, and of the chosen one on other documents
FEW_STATES = 4  # to choose from; rather than fewer, they are scored on fewer documents
WARM_UP, TRIAL = 10, 60  # documents; after these it is known how long one takes


class StateEvaluation(TrainerCallback):
    """Scores the adapter every so many steps, and chooses one of its states at the end.

    Args:
        evaluator: scores the model.
        recipe: of the run.
        workspace: folder for checkpoints of the run.
    """

    def __init__(self, evaluator: Evaluator, recipe: Recipe, workspace: Path) -> None:
        self.trainer: Any = None  # set by the trainer's maker, since a callback is made before it
        self._evaluator, self._metric = evaluator, evaluator.metric
        self._recipe = recipe
        self._title = f"train {recipe.task_name}"
        self._store = EvaluatedStates(workspace)
        self._states: list[EvaluatedState] = []
        self._every = 1
        self._cost: float | None = None  # seconds of an evaluation, without what only the first one does
        self._first_step, self._started, self._evaluating = 0, math.nan, 0.0  # of this process; nan: not begun

    def resume(self, step: int) -> None:
        """Take over the states that were scored before a checkpoint.

        Raises:
            TrainingError: one of them is damaged.
        """
        self._states = self._store.read(until=step)

    def has_stopped(self) -> bool:
        """Whether patience has ended the training."""
        if not self._recipe.patience or not self._states:
            return False
        return len(self._states) - 1 - self._choice().kept >= self._recipe.patience

    # -- in training -------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, _control: Any, *, train_dataloader: Any = None, **_: Any) -> None:
        """Find out how many steps are between evaluations."""
        every = self._recipe.evaluate_every or 1
        if every < 1:
            every *= math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        self._every = max(1, round(every))
        self._first_step, self._started, self._evaluating = state.global_step, time.monotonic(), 0.0
        if self._every >= state.max_steps and not self._states:
            logger.warning(
                "--evaluate-every %g is not reached before the last of %d steps, so there is one checkpoint to choose "
                "from; lower it", self._recipe.evaluate_every, state.max_steps,
            )  # fmt: skip

    def on_step_end(self, _args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Score the model if it is time to; stop if nothing has become better for long."""
        due = self._states[-1].next_step if self._states else self._every
        if state.global_step != due and state.global_step < state.max_steps:
            return
        started = time.monotonic()
        self._evaluate(model, state.global_step, state.max_steps)
        self._evaluating += time.monotonic() - started
        if self.has_stopped() and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = control.should_log = True
            self._evaluator.report(
                f"{self._title}: stopped at step {state.global_step} of {state.max_steps}, since no checkpoint of the "
                f"last {self._recipe.patience} was better beyond noise"
            )

    def _evaluate(self, model: Any, step: int, total: int) -> None:
        weights = trained_sha256(model)
        state = self._store.made_before(step, weights)
        if state is None:
            self._store.remove_after(step - 1)
            started = time.monotonic()
            scores = self._evaluator.scores(model, self._documents) if self._states else self._trial(model, step, total)
            seconds = time.monotonic() - started
            state = EvaluatedState(step, scores, seconds, self._next(step, total, seconds), weights)
            self._store.save(state, model)
        self._states.append(state)
        mean, name = self._mean(state.scores, self._documents), self._metric.name
        low, high = mean.interval.low, mean.interval.high
        self.trainer.log({f"eval_{name}": mean.value, f"eval_{name}_low": low, f"eval_{name}_high": high})
        self._evaluator.report(self._line(state, mean, total))

    @property
    def _documents(self) -> HeldOutDocuments:
        """The documents that all states are scored on: those of the first one."""
        return self._evaluator.for_choice.part(0, len(self._states[0].scores))

    def _trial(self, model: Any, step: int, total: int) -> list[float]:
        """Score the first state on a few documents, and then on more as long as there is time for them."""
        documents, share = self._evaluator.for_choice, self._recipe.evaluation_cost
        most = len(documents.numbers)
        if not share:
            return self._evaluator.scores(model, documents)
        begun = time.monotonic()
        seconds = share * total * self._seconds_per_step(step, begun)
        scores = self._evaluator.scores(model, documents.part(0, WARM_UP))  # also finds out what the model supports
        warm_up, end, per_document = time.monotonic() - begun, len(documents.first(TRIAL).numbers), 0.0
        while end > len(scores):
            before, done = time.monotonic(), len(scores)
            scores += self._evaluator.scores(model, documents.part(done, end))
            per_document = (time.monotonic() - before) / (end - done)
            states = 1 + math.ceil((total - step) / self._every)
            count = affordable_documents(
                most, states=states, seconds_per_document=per_document, seconds=seconds - warm_up
            )
            if count > end:
                end = len(documents.first(min(count, 2 * end)).numbers)
        self._cost = per_document * len(scores)
        if len(scores) < most:
            self._evaluator.report(
                f"{self._title}: checkpoints are scored on {len(scores)} of {most} documents, so that evaluations take "
                f"about {100 * share:g} % of the training time"
            )
        return scores

    def _seconds_per_step(self, step: int, now: float) -> float:
        return (now - self._started - self._evaluating) / max(1, step - self._first_step)

    def _next(self, step: int, total: int, seconds: float) -> int:
        later = [state.seconds for state in self._states[1:]] + [seconds] * bool(self._states)
        return next_evaluation(
            step,
            every=self._every,
            total=total,
            seconds_per_step=self._seconds_per_step(step, time.monotonic() - seconds),
            cost=sum(later) / len(later) if later else self._cost or seconds,
            spent=sum(state.seconds for state in self._states) + seconds,
            share=self._recipe.evaluation_cost,
        )

    def _line(self, state: EvaluatedState, mean: Mean, total: int) -> str:
        kept = self._states[self._choice().kept].step
        shown = self._metric.described(mean.value, mean.interval.low, mean.interval.high)
        line = (
            f"{self._title}: step {state.step} of {total}, {shown} on {len(state.scores)} documents, would keep step "
        )
        line += str(kept)
        if state.step < total and state.next_step > state.step + self._every:
            share = f"{100 * self._recipe.evaluation_cost:g} %"
            line += f"; next at step {state.next_step}, so that evaluations take at most {share} of the training time"
        return line

    def _mean(self, scores: list[float], documents: HeldOutDocuments) -> Mean:
        return self._metric.mean(scores, documents)

    def _choice(self) -> Choice:
        return self._metric.choose([state.scores for state in self._states], self._documents)

    # -- at the end --------------------------------------------------------------------------------------------------

    def finish(self, model: Any) -> Mapping[str, Any]:
        """Load the chosen state into the model and score it on untouched documents.

        Returns:
            The curve and the choice, for the adapter's card.

        Raises:
            TrainingError: the chosen state cannot be loaded.
        """
        choice, states = self._choice(), self._states
        chosen = states[choice.kept]
        self._load(chosen, model)
        started = time.monotonic()
        documents, others, metric = self._documents, self._others(), self._metric
        again = self._mean(self._evaluator.scores(model, others), others)
        in_training = sum(state.seconds for state in states)
        seconds = in_training + time.monotonic() - started
        means = [self._mean(state.scores, documents) for state in states]
        self._evaluator.report(
            f"{self._title}: kept step {chosen.step}, "
            f"{metric.described(again.value, again.interval.low, again.interval.high)} on {len(others.numbers)} other "
            f"documents; evaluations took {self._share(seconds, in_training)}"
        )
        return {
            "metric": metric.name,
            "is_share": metric.in_points,
            "higher_is_better": metric.higher_is_better,
            "documents": len(documents.numbers),
            "units": documents.independent,
            "data_sha256": self._evaluator.data_sha256,
            "curve": [
                {"step": state.step, **_numbers(mean), "p_against_best": p}
                for state, mean, p in zip(states, means, choice.p_values, strict=True)
            ],
            "chosen_step": chosen.step,
            "best_step": states[choice.best].step,
            "last_step": states[-1].step,
            "planned_steps": self.trainer.state.max_steps,
            "chosen_again": {"documents": len(others.numbers), "units": others.independent, **_numbers(again)},
            "seconds": round(seconds, 1),
        }

    def _share(self, seconds: float, in_training: float) -> str:
        """The time of all evaluations as a share of that of the training without them."""
        logged = [entry["seconds"] for entry in self.trainer.state.log_history if "seconds" in entry]
        trained = max(logged, default=0.0) - in_training
        return f"{seconds:.0f} s" + (f", {100 * seconds / trained:.0f} % of the training time" if trained > 0 else "")

    def _others(self) -> HeldOutDocuments:
        """The untouched documents that the chosen state is scored on: as many as there is still time for."""
        share, others, steps = self._recipe.evaluation_cost, self._evaluator.for_report, self._states[-1].step
        costs = [state.seconds for state in self._states]
        if not share or math.isnan(self._started):  # only the end of a finished training is repeated
            return others
        left = share * steps * self._seconds_per_step(steps, time.monotonic()) - sum(costs)
        count = left / (min(costs) / len(self._documents.numbers)) if min(costs) > 0 else len(others.numbers)
        return others.first(max(math.floor(count), len(self._documents.numbers)))

    def _load(self, chosen: EvaluatedState, model: Any) -> None:
        if trained_sha256(model) == chosen.weights_sha256:
            return
        self._store.check(chosen.step)
        self.trainer._load_from_checkpoint(str(self._store.folder(chosen.step)))
        if trained_sha256(model) != chosen.weights_sha256:
            raise TrainingError(
                f"the weights of step {chosen.step} are not those that were evaluated; train again with --overwrite"
            )


def _numbers(mean: Mean) -> dict[str, float]:
    return {"score": mean.value, "low": mean.interval.low, "high": mean.interval.high}


def next_evaluation(
    step: int, *, every: int, total: int, seconds_per_step: float, cost: float, spent: float, share: float
) -> int:
    """The step of the next evaluation: after `every` steps, or a multiple of it to keep to a share of the time.

    Args:
        step: at which an evaluation was just made.
        every: steps between evaluations, as wanted.
        total: steps of the training; the last state is always evaluated.
        seconds_per_step: of training.
        cost: seconds of an evaluation.
        spent: seconds of all evaluations so far.
        share: of the training time that all evaluations may take; 0: no limit.

    >>> plan = dict(every=10, total=100, seconds_per_step=1.0, spent=1.0)
    >>> next_evaluation(10, **plan, cost=0.5, share=0.1), next_evaluation(10, **plan, cost=2.0, share=0.1)
    (20, 40)
    >>> next_evaluation(10, **plan, cost=9.0, share=0.1), next_evaluation(10, **plan, cost=9.0, share=0)
    (100, 20)
    """
    stretch = 1
    if share:
        left = share * seconds_per_step * total - spent - RESERVED * cost
        affordable = math.floor(left / cost) if cost > 0 else total
        if affordable < 1:
            return total
        stretch = math.ceil((total - step) / (affordable + 1) / every)
    return min(total, step + max(1, stretch) * every)


def affordable_documents(most: int, *, states: int, seconds_per_document: float, seconds: float) -> int:
    """How many documents to score each state on, so that there are a few states to choose from.

    Args:
        most: documents that there are.
        states: to be scored, if there is time for all of them.
        seconds_per_document: of scoring.
        seconds: for all evaluations, with that of the chosen state on other documents.

    >>> affordable_documents(200, states=10, seconds_per_document=0.1, seconds=60.0)
    120
    >>> affordable_documents(200, states=2, seconds_per_document=0.1, seconds=60.0)
    200
    """
    if seconds_per_document <= 0:
        return most
    return max(0, min(most, math.floor(seconds / ((min(states, FEW_STATES) + 1) * seconds_per_document) + 1e-9)))
