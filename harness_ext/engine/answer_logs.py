"""Answers in a folder that machines share: each process appends to a log of its own, and reads all logs.

```
node 1, process A ──appends──> responses-…-A.log ─┐
node 2, process B ──appends──> responses-…-B.log ─┴──read by all, from where they stopped──> index of each process
```

No file has two writers, so nothing depends on locks, which network file systems may lack. A line is a CRC and JSON;
what a killed process has left unfinished is a line without an end, and is not read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness_ext.errors import StoreError

logger = logging.getLogger(__name__)

PATTERN = "responses-*.log"
FORMAT = 1
HEADER = {"harness-ext responses": FORMAT}
_NEVER = 2**62  # bytes: nothing is read behind them


class AnswerLogs:
    """The logs of a folder, and the log that this process appends to, once it has something to say.

    Args:
        folder: need not exist.
        schema: SQL of the tables into which the logs are read.
        writes: the statements that logs may hold, by name.

    Raises:
        StoreError: a log is of a newer release, or no log.
    """

    def __init__(self, folder: Path, *, schema: str, writes: dict[str, str]) -> None:
        self._folder = folder
        self._writes = writes
        self._read_to: dict[Path, int] = {}  # bytes
        self._log: int | None = None  # file descriptor
        self._length = 0  # bytes of our own log that are whole
        self.index = sqlite3.connect(
            "", isolation_level=None
        )  # of SQLite's own: in memory, or in a file that it removes
        self.index.executescript(schema)
        self.refresh(strict=True)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._read_to)

    def close(self) -> None:
        """Close the log and the index."""
        if self._log is not None:
            os.close(self._log)
            self._log = None
        self.index.close()

    # -- reading -------------------------------------------------------------------------------------------------

    def refresh(self, *, strict: bool = False) -> None:
        """Read what has been appended to the logs since the last time.

        Args:
            strict: raise for a file that is no log of this format; otherwise it is not read.
        """
        for file in sorted(self._folder.glob(PATTERN)):  # names begin with the time at which they were begun
            start = self._read_to.get(file, 0)
            try:
                if file.is_file() and file.stat().st_size > start:
                    self._read(file, start, strict=strict)
            except OSError as error:
                logger.warning("%s cannot be read (%s): its answers are not used", file, error.strerror or error)
                self._read_to[file] = _NEVER

    def _read(self, file: Path, start: int, *, strict: bool) -> None:
        damaged = 0
        with file.open("rb") as log, self._transaction():  # opened anew, so that a network file system looks again
            log.seek(start)
            for line in log:
                if not line.endswith(b"\n"):  # it is being written, or was when its process ended
                    break
                if start == 0 and not _is_header(line):
                    if strict:
                        raise StoreError(
                            f"{file} is no log of answers that this release reads; update harness-ext, move it away, "
                            "or name another folder with --store"
                        )
                    break
                damaged += start > 0 and not self._apply(line)
                start += len(line)
        self._read_to[file] = start
        if damaged:
            logger.warning("%s: %d lines are damaged and are not used", file, damaged)

    def _apply(self, line: bytes) -> bool:
        """Put a line into the index; returns whether it is one."""
        try:
            name, *values = _parsed(line)
            self.index.execute(self._writes[name], [_from_json(value) for value in values])
        except (TypeError, ValueError, LookupError, RecursionError, sqlite3.Error):
            return False
        return True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.index.execute("BEGIN")
        try:
            yield
        finally:
            self.index.execute("COMMIT")  # each row stands for itself

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Append rows, each the name of a statement and its values, to this process's log, and to the index.

        Raises:
            OSError: they cannot be written; the log is as it was.
        """
        lines = b"".join(_line([name, *map(_to_json, values)]) for name, values in rows)
        self._write(lines)
        with self._transaction():
            for name, values in rows:
                self.index.execute(self._writes[name], values)

    def _write(self, lines: bytes) -> None:
        if self._log is None:
            self._log, file = self._begun()
            self._length = 0
            self._read_to[file] = _NEVER  # the index has its rows
        begin = _line(HEADER) if self._length == 0 else b""
        os.ftruncate(self._log, self._length)  # what an earlier failure has left
        os.lseek(self._log, self._length, os.SEEK_SET)
        rest = memoryview(begin + lines)
        while rest:
            rest = rest[os.write(self._log, rest) :]
        os.fsync(self._log)  # a network file system may say only now that the disk is full
        self._length += len(begin) + len(lines)

    def _begun(self) -> tuple[int, Path]:
        host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:40]
        name = f"responses-{time.time_ns()}-{host}-{os.getpid()}-{secrets.token_hex(4)}.log"
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / name
        return os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), file


def _line(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x " % zlib.crc32(text) + text + b"\n"


def _is_header(line: bytes) -> bool:
    try:
        return bool(_parsed(line) == HEADER)
    except ValueError:
        return False


def _parsed(line: bytes) -> Any:
    """What a line says; raises ValueError for a damaged one."""
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if crc != b"%08x" % zlib.crc32(text):
        raise ValueError("damaged")
    return json.loads(text)


def _to_json(value: Any) -> Any:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
