"""Opens files that others wrote: regular files only, up to a size.

A named pipe blocks its reader, `/dev/zero` never ends, and a file may be larger than memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from harness_ext.errors import InputError
from harness_ext.names import visible

MEGABYTE = 2**20
SETTINGS_SIZE = 16 * MEGABYTE  # configurations, cards, indexes
TASK_SIZE = MEGABYTE  # of a YAML
RESULTS_SIZE = 2048 * MEGABYTE  # results and logs, which may hold all samples
LINE_SIZE = 256 * MEGABYTE  # of one line of a JSON lines file


@contextlib.contextmanager
def open_regular(file: str | Path, *, limit: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file for reading bytes.

    Args:
        file: its path.
        limit: of its size, in bytes.

    Raises:
        InputError: it is missing, no regular file, too large, or cannot be opened or read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _require_regular(file, os.stat(file), limit)  # noqa: PTH116 (a device is not even opened)
        descriptor = os.open(file, flags)
    except OSError as error:
        raise InputError(f"{shown(file)}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a null character or a lone surrogate
        raise InputError(f"{shown(file)}: is not a possible path") from error
    with os.fdopen(descriptor, "rb") as stream:
        _require_regular(file, os.fstat(descriptor), limit)
        try:
            yield stream
        except OSError as error:
            raise InputError(f"{shown(file)}: cannot be read ({error.strerror or error})") from error


def _require_regular(file: str | Path, status: os.stat_result, limit: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{shown(file)}: is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{shown(file)}: is a pipe or a device, not a regular file")
    if limit is not None and status.st_size > limit:
        raise InputError(f"{shown(file)}: has {status.st_size:,} bytes, more than the limit of {limit:,}")


def read_bytes(file: str | Path, *, limit: int = SETTINGS_SIZE) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        InputError: as `open_regular`.
    """
    with open_regular(file, limit=limit) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:  # it grew, or does not tell its size, like those under /proc
        raise InputError(f"{shown(file)}: is larger than the limit of {limit:,} bytes")
    return content


def read_text(file: str | Path, *, limit: int = SETTINGS_SIZE) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        InputError: as `open_regular`, or it is not UTF-8.
    """
    return decoded(read_bytes(file, limit=limit), shown(file))


def decoded(content: bytes, place: str) -> str:
    """Bytes as UTF-8 text, without a byte order mark.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: is not UTF-8 text ({error.reason} at byte {error.start + 1})") from error


def lines_of(file: str | Path) -> Iterator[bytes]:
    """The lines of a regular file, one at a time.

    Raises:
        InputError: as `open_regular`, or a line is longer than `LINE_SIZE`.
    """
    with open_regular(file) as stream:
        number = 0
        while line := stream.readline(LINE_SIZE + 1):
            number += 1
            if len(line) > LINE_SIZE:
                raise InputError(f"{shown(file)}:{number}: the line is longer than {LINE_SIZE:,} bytes")
            yield line


def is_regular(file: str | Path) -> bool:
    """Whether a path leads to a regular file; False also for paths that the system cannot have."""
    try:
        return stat.S_ISREG(os.stat(file).st_mode)  # noqa: PTH116 (Path.is_file raises for names that are too long)
    except (OSError, ValueError):
        return False


def shown(file: str | Path) -> str:
    """A path in a message."""
    return visible(str(file))
