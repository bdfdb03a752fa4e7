"""Names from outside (tasks, runs, metrics, adapters): what cannot be seen in them becomes a visible escape."""

from __future__ import annotations

import hashlib
import re

LONGEST_NAME = 200  # characters; a longer name is cut, and a hash keeps it apart from others
_BREAKS = "\u2028\u2029"
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSEEN = "\u00ad\u180e\u200b-\u200d\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
INVISIBLE = f"\x00-\x1f\x7f-\x9f{_BREAKS}{_DIRECTIONS}{_UNSEEN}\ud800-\udfff"  # ranges of a character class
_INVISIBLE = re.compile(f"[{INVISIBLE}]")


def visible(text: str) -> str:
    r"""The text with control, bidirectional, line-break and invisible characters, and lone surrogates, as escapes.

    >>> print(visible("sst2\x1b[31m"), visible("two\nlines"), visible("\u202etxt"), visible("naïve 名前"))
    sst2\x1b[31m two\nlines \u202etxt naïve 名前
    """
    return text if text.isprintable() else _INVISIBLE.sub(_escape, text)


def clean_name(name: object) -> str:
    """A name as it is shown and compared: visible, and of at most `LONGEST_NAME` characters.

    >>> clean_name("sst2"), len(clean_name("x" * 5000)), clean_name("x" * 5000) == clean_name("x" * 5001)
    ('sst2', 200, False)
    """
    text = visible(str(name))
    if len(text) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: LONGEST_NAME - len(digest) - 1]}…{digest}"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
