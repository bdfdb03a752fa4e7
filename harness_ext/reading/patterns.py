"""Regular expressions from outside: those that do not end within a time limit are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from harness_ext.errors import InputError

MAX_SECONDS = 10.0  # for all patterns and names; ordinary ones take milliseconds
LONGEST = 5_000  # characters of a pattern
_SCRIPT = Path(__file__).with_name("match_patterns.py")


def check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Make sure that patterns are regular expressions, and that matching the names with them ends.

    Patterns with at most one repetition always end, and are not tried.

    Raises:
        InputError: a pattern is none, or matching takes more than `MAX_SECONDS`.
    """
    patterns = list(dict.fromkeys(patterns))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{pattern!r:.80} is no regular expression ({error})") from None
    repeating = [pattern for pattern in patterns if sum(map(pattern.count, "*+?{")) > 1]
    if too_long := [pattern for pattern in repeating if len(pattern) > LONGEST]:
        raise InputError(f"the pattern {too_long[0]!r:.80} has {len(too_long[0]):,} characters")
    if repeating and (problem := _problem(tuple(repeating), tuple(names))):
        raise InputError(problem)


@lru_cache(maxsize=64)
def _problem(patterns: tuple[str, ...], names: tuple[str, ...]) -> str:
    command = [sys.executable, "-I", str(_SCRIPT)]
    request = json.dumps({"patterns": patterns, "names": names})
    try:
        run = subprocess.run(command, input=request, capture_output=True, text=True, timeout=MAX_SECONDS, check=True)
        return str(json.loads(run.stdout))
    except subprocess.TimeoutExpired:
        return f"matching {patterns[0]!r:.80} takes more than {MAX_SECONDS:.0f} s"
    except (subprocess.CalledProcessError, ValueError):
        return f"matching {patterns[0]!r:.80} fails"
