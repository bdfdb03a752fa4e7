"""What a user sees of a training run, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from harness_ext.training.recipe import Recipe
from harness_ext.training.schedule import few_steps_advice

logger = logging.getLogger(__name__)


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C ends training after the step it hits, with a checkpoint; a second one ends it at once."""

    def __init__(self) -> None:
        self.interrupted = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch Ctrl-C in this block. Python gives signals to the main thread only: in another one nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

        def note(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
            logger.warning("stopping after this step; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop; no checkpoint and no end without a report of the loss up to there."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True


class FewSteps(TrainerCallback):
    """Says when a training has few optimiser steps, and what to change; not again when it is resumed."""

    def __init__(self, recipe: Recipe, examples: int) -> None:
        self._recipe = recipe
        self._examples = examples

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """One warning line, on the first process."""
        total, processes = state.max_steps, args.world_size
        advice = few_steps_advice(total, self._recipe, examples=self._examples, processes=processes)
        if advice and state.global_step == 0 and state.is_world_process_zero:
            logger.warning("%s", advice)


class TrainingBar(TrainerCallback):
    """A progress bar with the loss, in place of Trainer's bar and its printed dictionaries."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Show the bar, on the first process."""
        self._bar = tqdm(
            desc=self._title,
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=not state.is_world_process_zero,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,  # a log file is no terminal
        )

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """One step on."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Show the loss; library users find it in their log as well."""
        if self._bar is None or "loss" not in (logs or {}):
            return
        self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        if state.is_world_process_zero:
            logger.info("%s: step %d of %d, loss %.4f", self._title, state.global_step, state.max_steps, logs["loss"])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the last state on the screen."""
        self._bar.close()
