"""Commands that run in a child of this process and may be killed at any moment.

The child is forked from a process that has imported everything but has run nothing, so a command begins within
milliseconds. What it is doing is in memory that both share, so that the killer knows what it hit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

POLL_SECONDS = 0.0002


class Board:
    """Numbers that a child writes and its parent reads, also after the child was killed.

    Args:
        names: of the numbers.
        stages: what the child may be doing; the first is what it does in the beginning.
    """

    def __init__(self, *names: str, stages: tuple[str, ...]) -> None:
        self._places = {name: place for place, name in enumerate(("stage", *names, *stages))}
        self._numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.stages = stages

    def __getitem__(self, name: str) -> int:
        return self._numbers[self._places[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._numbers[self._places[name]] = value

    def clear(self) -> None:
        """All numbers are 0, and the stage is the first."""
        for place in self._places.values():
            self._numbers[place] = 0

    @property
    def stage(self) -> str:
        """What the child does, or did last."""
        return self.stages[self["stage"]]

    @contextlib.contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """The child is in a stage during the block; how often it has been there is counted under the stage's name."""
        before = self["stage"]
        self["stage"] = self.stages.index(stage)
        self[stage] += 1
        try:
            yield
        finally:
            self["stage"] = before

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Let a function of a module or class be a stage."""
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            with self.at(stage):
                return original(*arguments, **options)

        setattr(owner, name, watched)


class Child:
    """A process that runs a function; its output goes to a file.

    Args:
        run: returns the exit code.
        log: file for its output, which is appended to.
    """

    def __init__(self, run: Callable[[], int], log: Path) -> None:
        self.code: int | None = None  # negative: the signal that ended it
        self.seconds = 0.0  # of the processor, once it has ended
        self._process = os.fork()
        if self._process == 0:
            code = 1
            try:
                with log.open("ab") as stream:
                    os.dup2(stream.fileno(), 1)
                    os.dup2(stream.fileno(), 2)
                tqdm.set_lock(threading.RLock())  # the usual one is shared by processes, and would stay locked
                code = run()
                sys.stdout.flush()
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)

    def is_running(self) -> bool:
        """Look whether it has ended."""
        if self.code is None:
            self._look(os.WNOHANG)
        return self.code is None

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        if self.code is None:
            self._look(0)
        assert self.code is not None
        return self.code

    def _look(self, how: int) -> None:
        process, status, used = os.wait4(self._process, how)
        if process:
            self.code = os.waitstatus_to_exitcode(status)
            self.seconds = used.ru_utime + used.ru_stime

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal if it still runs, and wait; returns the exit code."""
        if self.is_running():
            os.kill(self._process, number)
        return self.wait()

    def wait_until(self, seconds: float) -> None:
        """Wait until it has used so many seconds of the processor, or for its end; other load does not matter then."""
        process = psutil.Process(self._process)
        while self.is_running() and sum(process.cpu_times()[:2]) < seconds:
            time.sleep(0.002)

    def wait_for(self, board: Board, stage: str, times: int, delay: float) -> None:
        """Wait until the child has entered a stage so often, and for some seconds more, or for its end."""
        while self.is_running() and board[stage] < times:
            time.sleep(POLL_SECONDS)
        end = time.monotonic() + delay
        while self.is_running() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)


def environment(work: Path) -> Mapping[str, str]:
    """Settings of commands on the tiny model: bundled documents, caches of their own, no Hub."""
    return {
        "HARNESS_EXT_DATA": "sample",
        "HARNESS_EXT_HOME": str(work / "home"),
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
