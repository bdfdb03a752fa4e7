"""Match patterns against names, in a process of its own that can be ended: a regular expression can run for ages.

Run as a script by `patterns.check_patterns`; needs the standard library only, so it starts in milliseconds.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any


def match_all(request: dict[str, Any]) -> str:
    """Match every pattern with every name; the problem of the first that is no regular expression, else ''."""
    for pattern in request["patterns"]:
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError, MemoryError) as error:
            return f"{pattern!r:.80} is no regular expression ({error})"
        for name in request["names"]:
            compiled.match(name)
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(match_all(json.load(sys.stdin))))
