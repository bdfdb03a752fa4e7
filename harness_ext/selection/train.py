"""Training as users call it: with an evaluation of checkpoints if the recipe asks for one."""

from __future__ import annotations

from collections.abc import Callable

from harness_ext.selection.live import live_evaluator
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import TrainedAdapter, Training, TrainingStart, start_training
from harness_ext.training.workspace import claimed


def train_adapter(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    inspect: Callable[[TrainingStart], None] | None = None,
    on_evaluation: Callable[[str], None] | None = None,
) -> TrainedAdapter:
    """Train a LoRA adapter on a task and write it to `recipe.output`.

    Args:
        recipe: all settings of the run.
        resume: continue from the last checkpoint of an interrupted run.
        overwrite: replace an existing adapter.
        inspect: called before the first step of a run that is not resumed; what it raises stops the run. It has to
            leave the model and all random generators as they are.
        on_evaluation: called with a line of text after each evaluation of a checkpoint; None: the line is logged.

    Returns:
        The adapter's folder, which is written only at the end, and its card.

    Raises:
        HarnessExtError: the run cannot start or fails; no adapter folder is left behind.
    """
    with claimed(recipe.output, resume=resume, overwrite=overwrite) as claim:
        start = start_training(recipe)
        evaluator = None if recipe.evaluate_every is None else live_evaluator(start, report=on_evaluation)
        training = Training(start, claim, evaluator)
        if inspect is not None and not resume:
            inspect(start)
        training.fit()
        return training.write()
