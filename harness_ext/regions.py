"""Marked regions of a Markdown file: what stands between two HTML comments is generated, all else is a person's.

```
<!-- harness-ext:results begin 3f1c9a0b5d2e -->     the number is a hash of the region as it was generated
…
<!-- harness-ext:results end -->
```
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness_ext.errors import CardError

_MARKER = re.compile(
    r"^[ \t]*<!-- harness-ext:(?P<name>[a-z_]+) (?:begin(?: (?P<hash>[0-9a-f]{12}))?|(?P<end>end)) -->[ \t\r]*$",
    re.MULTILINE,
)
_OPENING = "<!-- harness-ext:"


@dataclass(frozen=True)
class Region:
    """A region as it stands in a text."""

    name: str
    start: int  # of its first marker
    end: int  # behind its last marker
    line: int  # of its first marker, from 1
    content: str
    recorded: str | None  # hash in the marker

    @property
    def is_edited(self) -> bool:
        """Whether somebody has changed it since it was generated."""
        return self.recorded != _hash(self.content)


def marked(name: str, content: str) -> str:
    """A region with its markers, without a line break at the end.

    >>> print(marked("use", "Load it."))
    <!-- harness-ext:use begin ebc977e64417 -->
    Load it.
    <!-- harness-ext:use end -->
    """
    body = content.strip("\n").replace(_OPENING, "&lt;!-- harness-ext:")
    return f"{_OPENING}{name} begin {_hash(body)} -->\n{body}\n{_OPENING}{name} end -->"


def find_regions(text: str, place: str) -> dict[str, Region]:
    """The regions of a text by name, in their order.

    Args:
        text: of a Markdown file.
        place: its path, for messages.

    Raises:
        CardError: a marker has no counterpart, or a name occurs twice.
    """
    found: dict[str, Region] = {}
    opened: re.Match[str] | None = None
    for marker in _MARKER.finditer(text):
        line, name = text.count("\n", 0, marker.start()) + 1, marker["name"]
        if (marker["end"] is None) != (opened is None) or (opened is not None and opened["name"] != name):
            raise CardError(f"{place}:{line}: the marker of region {name!r} has no counterpart; repair or remove it")
        if marker["end"] is None:
            opened = marker
            continue
        assert opened is not None
        if name in found:
            raise CardError(f"{place}:{line}: region {name!r} occurs twice; remove one of them")
        first = text.count("\n", 0, opened.start()) + 1
        content = text[opened.end() + 1 : marker.start()]
        found[name] = Region(name, opened.start(), marker.end(), first, content, opened["hash"])
        opened = None
    if opened is not None:
        line = text.count("\n", 0, opened.start()) + 1
        raise CardError(f"{place}:{line}: the marker of region {opened['name']!r} has no counterpart; "
                        "repair or remove it")  # fmt: skip
    return found


def with_regions(text: str, contents: Mapping[str, str], place: str) -> str:
    """A text with its regions generated again; everything outside them stays as it is.

    A region that the text lacks comes behind the one that precedes it in `contents`, or else at the end.

    Args:
        text: of a Markdown file.
        contents: of each region, in the order in which they are to stand.
        place: path of the file, for messages.

    Raises:
        CardError: the markers do not match.
    """
    before: str | None = None
    for name, content in contents.items():
        regions = find_regions(text, place)
        region = marked(name, content)
        if name in regions:
            text = text[: regions[name].start] + region + text[regions[name].end :]
        elif before is not None:
            end = regions[before].end
            text = f"{text[:end]}\n\n{region}{text[end:]}"
        else:
            text = f"{text.rstrip()}\n\n{region}\n" if text.strip() else f"{region}\n"
        before = name
    return text


def _hash(content: str) -> str:
    lines = [line.rstrip() for line in content.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()[:12]
