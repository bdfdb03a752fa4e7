"""One training at a time for an output folder."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness_ext.atomic import creating_folder
from harness_ext.errors import TrainingError, WriteError, first_line

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"  # in the folder for checkpoints; the system releases it when its process dies
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_TAKEN = (errno.EAGAIN, errno.EACCES)


class OutputLock:
    """The right to write to an output folder, from before the first step until the adapter is in its place.

    Args:
        workspace: folder for checkpoints; it is created, and removed at the end if nothing else is in it.
        output: name of the output folder, for messages.
    """

    def __init__(self, workspace: Path, output: str) -> None:
        self._file = workspace / LOCK_FILE
        self._output = output
        self._descriptor: int | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[OutputLock]:
        """Hold the lock during the block.

        Raises:
            TrainingError: another training holds it, or the folder cannot be made.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(creating_folder(self._file.parent.parent))
                self._descriptor = self._acquired()
            except (OSError, WriteError) as error:
                raise TrainingError(f"{self._output} cannot be written ({first_line(error)})") from error
            yield from self._held(self._descriptor)

    def _held(self, descriptor: int) -> Iterator[OutputLock]:
        try:
            yield self
        finally:
            if self._is_ours(descriptor):
                with contextlib.suppress(OSError):  # fails if there is a checkpoint
                    self._file.unlink()
                    self._file.parent.rmdir()
            os.close(descriptor)

    def check(self) -> None:
        """Make sure that the lock is still held, before something is replaced.

        Raises:
            TrainingError: its file was deleted, so that another training may have begun.
        """
        if self._descriptor is None or not self._is_ours(self._descriptor):
            raise TrainingError(
                f"the lock of {self._output} was deleted during the training, and another one may write there; nothing "
                "is replaced, run again"
            )

    def clear_workspace(self) -> None:
        """Remove everything in the folder for checkpoints but the lock."""
        for entry in self._file.parent.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != self._file:
                entry.unlink(missing_ok=True)

    def _acquired(self) -> int:
        """Lock the file that is there: the one that was opened may just have been removed by its last holder."""
        while True:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the last holder removed the folder, too
                continue
            try:
                self._lock(descriptor)
                if self._is_ours(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        if _fcntl is None:
            return
        try:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise TrainingError(
                    f"another training writes to {self._output}; wait for its end, or choose another --output"
                ) from None
            logger.warning("%s cannot be locked (%s): start no other training there", self._output, error.strerror)

    def _is_ours(self, descriptor: int) -> bool:
        """Whether the locked file still is the one at the lock's place."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._file.stat())
        except OSError:
            return False
