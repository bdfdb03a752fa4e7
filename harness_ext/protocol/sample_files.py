"""The name of the file that holds a task's logged samples."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

LONGEST_TASK = 180  # bytes of a task's name in a file name, which may have 255
_KEPT = 80  # characters of a longer one


def samples_file(task: str, date: str) -> str:
    """lm-eval's name; where a file cannot have it, the task's name is quoted, and cut if it is too long.

    Different tasks have different files.

    >>> samples_file("sst2_choice", "2025-06-01T10-00-00")
    'samples_sst2_choice_2025-06-01T10-00-00.jsonl'
    >>> samples_file("mine/sst2", "2025-06-01T10-00-00")
    'samples_mine%2Fsst2_2025-06-01T10-00-00.jsonl'
    """
    name = re.sub(r"[/\x00]|%(?=[0-9A-F]{2})", lambda match: quote(match[0], safe=""), task)
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_TASK:
        name = f"{name[:_KEPT].encode('ascii', 'replace').decode()}-{_digest(task)}"
    return f"samples_{name}_{date}.jsonl"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
