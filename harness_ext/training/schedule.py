"""The learning rate at each optimiser step, and what to say when there are few of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from harness_ext.training.recipe import Recipe

FEW_STEPS = 20  # below: most adapters have hardly left their start


def warmup_steps(total: int, ratio: float) -> int:
    """Optimiser steps in which the rate rises: a share of all, rounded up, but never all of them.

    >>> [warmup_steps(total, 0.05) for total in (1, 2, 20, 21, 100)]
    [0, 1, 1, 2, 5]
    """
    return min(math.ceil(total * ratio), total - 1)


def make_schedule(
    name: str, optimizer: Optimizer, *, total: int, ratio: float, options: Mapping[str, Any] | None = None
) -> LRScheduler:
    """A schedule of transformers whose first step has a rate: it depends on the step and their total alone.

    With w steps of warm-up the rate rises as 1/(w+1), 2/(w+1), …; transformers begins at 0, which loses the first
    step, and with a single step all of the training. From the end of the warm-up on the rates are transformers' own.

    Args:
        name: of transformers' `SchedulerType`.
        optimizer: whose rates it sets.
        total: optimiser steps of the whole training.
        ratio: share of them in which the rate rises, at least 0 and below 1.
        options: further arguments of this schedule.
    """
    rising = warmup_steps(total, ratio)
    schedule: LRScheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=rising,
        num_training_steps=total,
        scheduler_specific_kwargs=dict(options or {}),
    )
    if not isinstance(schedule, LambdaLR) or schedule.lr_lambdas[0](0) > 0:
        return schedule
    return LambdaLR(optimizer, [_rising(factor, rising) for factor in schedule.lr_lambdas])


def _rising(factor: Callable[[int], float], rising: int) -> Callable[[int], float]:
    def rate(step: int) -> float:
        return (step + 1) / (rising + 1) if step < rising else factor(step)

    return rate


def few_steps_advice(steps: int, recipe: Recipe, *, examples: int, processes: int = 1) -> str | None:
    """What to change when a training has few optimiser steps; None when it has enough.

    Args:
        steps: of the whole training.
        recipe: that it follows.
        examples: to train on.
        processes: that share each step.

    >>> recipe = Recipe(task="sst2_choice", model="m", output="adapters/x", batch_size=16)
    >>> few_steps_advice(3, recipe, examples=48)
    '3 optimiser steps are few to learn from; use --epochs 7 or --batch-size 2 for at least 20'
    """
    if steps >= FEW_STEPS:
        return None
    plural = "1 optimiser step is" if steps == 1 else f"{steps} optimiser steps are"
    if recipe.max_steps:
        return f"{plural} few to learn from; use --max-steps {FEW_STEPS} or more"
    ways = [f"--epochs {math.ceil(FEW_STEPS / _steps_per_epoch(recipe, recipe.batch_size, examples, processes))}"]
    sizes = (
        size
        for size in range(recipe.batch_size - 1, 0, -1)
        if math.ceil(recipe.epochs * _steps_per_epoch(recipe, size, examples, processes)) >= FEW_STEPS
    )
    if size := next(sizes, None):
        ways.append(f"--batch-size {size}")
    return f"{plural} few to learn from; use {' or '.join(ways)} for at least {FEW_STEPS}"


def _steps_per_epoch(recipe: Recipe, batch_size: int, examples: int, processes: int) -> int:
    batches = math.ceil(math.ceil(examples / batch_size) / processes)
    return max(1, math.ceil(batches / recipe.gradient_accumulation_steps))
