"""Paths of this machine, which have no place in what is published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w.:/~\\-])(?:/[\w.@+~-]+){2,}/?|(?<!\w)[A-Za-z]:\\\\?[\w.@+~ \\-]+", re.ASCII)
_SYSTEM = ("/usr/", "/bin/", "/lib", "/etc/", "/dev/", "/proc/", "/sys/", "/opt/", "/sbin/")  # the same everywhere
_PRIVATE = ("/home/", "/root/", "/Users/", "/mnt/", "/tmp/", "/scratch/", "/private/", "/data/")


def place_in(text: str, *, strict: bool = False) -> str | None:
    """The first absolute path of this machine in a text; None if there is none.

    Args:
        text: any text.
        strict: whether an absolute path counts that leads nowhere here, too, unless it is one of the system's.
    """
    for match in _ABSOLUTE.finditer(text):
        found = match.group().rstrip(".")
        if (strict and not found.startswith(_SYSTEM)) or _is_of_this_machine(found):
            return found
    return None


def without_places(value: Any) -> Any:
    """JSON in which absolute paths are cut to their last part.

    >>> without_places({"model_args": "pretrained=/home/me/models/tiny,dtype=float32", "split": "a/b"})
    {'model_args': 'pretrained=tiny,dtype=float32', 'split': 'a/b'}
    """
    if isinstance(value, str):
        return _ABSOLUTE.sub(_last_part, value)
    if isinstance(value, dict):
        return {without_places(key): without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return value


def _last_part(match: re.Match[str]) -> str:
    path = match.group()
    if not (path.startswith(_PRIVATE) or ":\\" in path or _is_of_this_machine(path)):
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _is_of_this_machine(path: str) -> bool:
    if path.startswith(_SYSTEM):
        return False
    try:
        return path.startswith(str(Path.home()) + "/") or Path(path).exists()
    except (OSError, ValueError):
        return False
