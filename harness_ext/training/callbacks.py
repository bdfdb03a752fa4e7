"""Callbacks for progress, warnings and Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from harness_ext.training.recipe import Recipe
from harness_ext.training.schedule import few_steps_advice, pause_step

logger = logging.getLogger(__name__)


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C or SIGTERM, training finishes the current step, saves a checkpoint and stops; a second stops at once.

    Slurm, Kubernetes and spot instances send SIGTERM before they end a process.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # that was received first

    @property
    def interrupted(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals in this block. No effect outside the main thread, the only one that can handle them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

        def interrupt(number: int, _: Any) -> None:
            self.signal = number
            restore()
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            logger.warning("stopping after this step%s", again)

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if interrupted; report the loss with every checkpoint and at the end."""
        if args.world_size > 1:
            self._agree(args.device)
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def _agree(self, device: torch.device) -> None:
        """Let all processes stop at the same step, whichever of them received the signal."""
        received = torch.tensor(self.signal or 0, device=device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        self.signal = int(received) or None


class PauseAt(TrainerCallback):
    """Saves a checkpoint and stops where a share of the planned steps is done.

    Args:
        share: of the planned steps; 1: training goes on to its end.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if this is the step."""
        if state.global_step == pause_step(state.max_steps, self._share) < state.max_steps:
            control.should_save = control.should_training_stop = control.should_log = True


class FewSteps(TrainerCallback):
    """Warns about a training with few optimiser steps; the warning is not repeated when it is resumed."""

    def __init__(self, recipe: Recipe, examples: int) -> None:
        self._recipe = recipe
        self._examples = examples

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Log one line, on the first process only."""
        total, processes = state.max_steps, args.world_size
        advice = few_steps_advice(total, self._recipe, examples=self._examples, processes=processes)
        if advice and state.global_step == 0 and state.is_world_process_zero:
            logger.warning("%s", advice)


class TrainingBar(TrainerCallback):
    """A progress bar with the loss, instead of Trainer's bar and printed dictionaries."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Show the bar, on the first process only."""
        self._bar = tqdm(
            desc=self._title,
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=not state.is_world_process_zero,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,  # fewer lines in a log file
        )

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Advance the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Show the loss in the bar and log it."""
        if self._bar is None or "loss" not in (logs or {}):
            return
        self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        if state.is_world_process_zero:
            logger.info("%s: step %d of %d, loss %.4f", self._title, state.global_step, state.max_steps, logs["loss"])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        self._bar.close()
