"""Files and folders that are written completely or not at all. Everything that this package writes goes through here.

```
temporary name beside the target ──> flush, fsync ──> read back ──> rename
```

Until the rename, what was there before stays as it was. Temporary names hold the machine and the process that made
them, so what a dead process left behind is found and removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness_ext.errors import WriteError

CHUNK = 1 << 20  # bytes that are read at once
LONGEST_NAME = 255  # bytes, on all usual file systems
_MACHINE = re.sub(r"[^\w-]", "_", socket.gethostname())[:40] or "machine"
_TEMPORARY = re.compile(r"\..*\.(?:partial|replaced)-(?P<machine>[\w-]+)-(?P<process>\d+)", re.DOTALL)
_REMEDIES = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "free some of your quota, then try again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then try again",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8; see `write_chunks`.

    Raises:
        WriteError: it cannot be written, or has characters that UTF-8 does not encode.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise WriteError(f"{path} is not written: {error.reason} at character {error.start:,}; remove it") from error
    write_chunks(path, [content])


def write_chunks(path: str | Path, chunks: Iterable[bytes]) -> None:
    """Write bytes to a file that exists completely or not at all; an existing file is replaced only at the end.

    A link is followed. What is no regular file (a terminal, a pipe, /dev/null) is written to directly.

    Args:
        path: its folder has to exist.
        chunks: the content, in pieces.

    Raises:
        WriteError: it cannot be written. An existing file is as it was, and nothing else is left behind.
    """
    path = Path(path)
    with _explained(path):
        target = path.resolve()
        if target.exists() and not target.is_file():
            with target.open("wb") as stream:
                stream.writelines(chunks)
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _replace_file(target, chunks)


def check_writable(path: str | Path) -> None:
    """Make sure, as far as can be told, that a file can be written: before the work that fills it.

    Raises:
        WriteError: it is a folder, its folder is missing, or permissions are missing.
    """
    path = Path(path)
    with _explained(path):
        target = path.resolve()
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
        if not os.access(target if target.exists() else target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _replace_file(target: Path, chunks: Iterable[bytes]) -> None:
    remove_abandoned(target.parent)
    partial = _temporary(target, "partial")
    partial.unlink(missing_ok=True)
    try:
        written = hashlib.sha256()
        with partial.open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                written.update(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if _digest(partial) != written.digest():
            raise OSError(errno.EIO, "what was read back differs from what was written")
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
        _sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; it replaces `target` if the block succeeds, and is deleted if not.

    If the replacement fails, the old `target` is restored. Parent folders that were created for it are removed again.

    Raises:
        WriteError: a file or folder cannot be written, whatever the block writes with.
    """
    partial, replaced = _temporary(target, "partial"), _temporary(target, "replaced")
    with _explained(target), creating_folder(target.parent):
        remove_abandoned(target.parent)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            sync_tree(partial)
            if target.exists():
                target.rename(replaced)
            try:
                partial.rename(target)
            except OSError:
                if replaced.exists():
                    replaced.rename(target)
                raise
            _sync_folder(target.parent)
        finally:
            for leftover in (partial, replaced):
                shutil.rmtree(leftover, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders that processes of this machine left behind when they died.

    A process that was stopped between the two renames of a folder has left the old one under its temporary name: it is
    put back.
    """
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and match["machine"] == _MACHINE and not _is_running(int(match["process"])):
                _remove_or_restore(entry)


def _remove_or_restore(entry: Path) -> None:
    name, _, kind = entry.name[1:].rpartition(".")
    original = entry.with_name(name)
    if kind.startswith("replaced") and not original.exists():
        entry.rename(original)
    elif entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _temporary(target: Path, kind: str) -> Path:
    """A name beside the target that no other process uses; the target's name is cut where it would become too long."""
    ending = f".{kind}-{_MACHINE}-{os.getpid()}"
    name = target.name.encode("utf-8", "surrogateescape")[: LONGEST_NAME - len(ending) - 1]
    return target.with_name(f".{name.decode('utf-8', 'ignore')}{ending}")


@contextlib.contextmanager
def creating_folder(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; those that are empty afterwards, since the block failed, are removed again.

    Raises:
        WriteError: it cannot be created.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):  # fails if the target is in it
                parent.rmdir()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """An OSError becomes a WriteError, in one line."""
    try:
        yield
    except OSError as error:
        raise WriteError(why_not_written(path, error)) from error


def why_not_written(path: str | Path, error: OSError) -> str:
    """One line: which file or folder could not be written, why, and what to do.

    >>> why_not_written("comparison", OSError(errno.ENOSPC, "No space left on device"))
    'comparison cannot be written (no space left on device); free some space, then try again'
    """
    reason = str(error.strerror or error).splitlines()[0]
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    return f"{path} cannot be written ({reason[:1].lower()}{reason[1:]}); {remedy}"


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.digest()


def sync_tree(folder: Path) -> None:
    """Make sure that what was written to the files of a folder is on the disk; a full one may say so only now."""
    for file in folder.rglob("*"):
        if stat.S_ISREG(file.lstat().st_mode):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
