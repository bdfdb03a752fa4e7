"""The learning rate at each optimiser step, and advice for trainings with few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from harness_ext.training.recipe import Recipe

FEW_STEPS = 20  # with fewer steps most adapters hardly change


def warmup_steps(total: int, ratio: float) -> int:
    """Number of warm-up steps: a share of all steps, rounded up, but never all of them.

    >>> [warmup_steps(total, 0.05) for total in (1, 2, 20, 21, 100)]
    [0, 1, 1, 2, 5]
    """
    return min(math.ceil(total * ratio), total - 1)


def pause_step(total: int, share: float) -> int:
    """The optimiser step at which a share of a training is done, rounded up.

    >>> [pause_step(60, share) for share in (1 / 12, 1 / 6, 0.99, 1.0)], pause_step(3, 0.01)
    ([5, 10, 60, 60], 1)
    """
    return min(total, max(1, math.ceil(total * share - 1e-9)))


def make_schedule(
    name: str, optimizer: Optimizer, *, total: int, ratio: float, options: Mapping[str, Any] | None = None
) -> LRScheduler:
    """A schedule of transformers, except that the warm-up does not start at a learning rate of 0.

    With w warm-up steps the factors are 1/(w+1), 2/(w+1), …; transformers starts at 0, which wastes the first step, and
    the whole training if it has a single step. After the warm-up the rates are those of transformers.

    Args:
        name: name in transformers' `SchedulerType`.
        optimizer: the optimiser whose rates are set.
        total: optimiser steps of the whole training.
        ratio: share of warm-up steps, at least 0 and below 1.
        options: further arguments of the schedule.
    """
    warmup = warmup_steps(total, ratio)
    schedule: LRScheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total,
        scheduler_specific_kwargs=dict(options or {}),
    )
    if not isinstance(schedule, LambdaLR) or schedule.lr_lambdas[0](0) > 0:
        return schedule
    return LambdaLR(optimizer, [_with_warmup(factor, warmup) for factor in schedule.lr_lambdas])


def _with_warmup(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    def rate(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else factor(step)

    return rate


def few_steps_advice(steps: int, recipe: Recipe, *, examples: int, processes: int = 1) -> str | None:
    """Advice for a training with few optimiser steps; None if it has enough.

    Args:
        steps: optimiser steps of the whole training.
        recipe: recipe of the training.
        examples: number of training examples.
        processes: number of processes that share each step.

    >>> recipe = Recipe(task="sst2_choice", model="m", output="adapters/x", batch_size=16)
    >>> few_steps_advice(3, recipe, examples=48)
    'only 3 optimiser steps, probably too few; use --epochs 7 or --batch-size 2 for at least 20'
    """
    if steps >= FEW_STEPS:
        return None
    problem = f"only {steps} optimiser step{'' if steps == 1 else 's'}, probably too few"
    if recipe.max_steps:
        return f"{problem}; use --max-steps {FEW_STEPS} or more"
    remedies = [f"--epochs {math.ceil(FEW_STEPS / _steps_per_epoch(recipe, recipe.batch_size, examples, processes))}"]
    sizes = (
        size
        for size in range(recipe.batch_size - 1, 0, -1)
        if math.ceil(recipe.epochs * _steps_per_epoch(recipe, size, examples, processes)) >= FEW_STEPS
    )
    if size := next(sizes, None):
        remedies.append(f"--batch-size {size}")
    return f"{problem}; use {' or '.join(remedies)} for at least {FEW_STEPS}"


def _steps_per_epoch(recipe: Recipe, batch_size: int, examples: int, processes: int) -> int:
    batches = math.ceil(math.ceil(examples / batch_size) / processes)
    return max(1, math.ceil(batches / recipe.gradient_accumulation_steps))
