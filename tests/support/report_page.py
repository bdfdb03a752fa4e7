"""Reads a report: its elements, its policy, and its compressed samples."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page in order, each with its attributes and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.unclosed: list[str] = []
        self.feed(self.source)
        self.unclosed += [self.elements[index][0] for index in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in _VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self.elements[self._open[-1]][0] == tag:
            self._open.pop()
        else:
            self.unclosed.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of a tag."""
        return [
            (attrs, "".join(text))
            for name, attrs, text in self.elements
            if name == tag and all(attrs.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    def text_of(self, id: str) -> str:
        """Text of the element with an id, with single blanks."""
        return " ".join(next("".join(text) for _, attrs, text in self.elements if attrs.get("id") == id).split())

    @property
    def ids(self) -> Counter[str]:
        """How often each id is used."""
        return Counter(str(attrs["id"]) for _, attrs, _ in self.elements if "id" in attrs)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The contents of the compressed blocks."""
        blocks = self.all("script", type="application/octet-stream")
        return [json.loads(gzip.decompress(base64.b64decode(text))) for _, text in blocks]
