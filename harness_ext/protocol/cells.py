"""Values of table cells as text: plain texts, labels in all their spellings, gold answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> str | None:
    """A cell as stripped text; None when it is empty.

    >>> plain(" World "), plain(1.0), plain(True), plain("  "), plain(None)
    ('World', '1', 'true', None, None)
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        value = None if value != value else int(value) if value.is_integer() else value
    text = "" if value is None else str(value).strip()
    return text or None


def spellings(value: Any) -> list[str]:
    """The ways in which a file may write a label: a text has one, booleans and whole numbers have several.

    >>> spellings(" World "), spellings(True), spellings(1), spellings(0.5), spellings(None)
    (['World'], ['true', 'True', 'TRUE'], ['1', '1.0'], ['0.5'], [])
    """
    text = plain(value)
    if text is None:
        return []
    if isinstance(value, bool):
        return [text, text.title(), text.upper()]
    is_whole = isinstance(value, (int, float)) and text.lstrip("-").isdigit()
    return [text, f"{text}.0"] if is_whole else [text]


def answers_of(value: Any) -> list[str]:
    """Gold answers in a cell: a text, a list of texts, SQuAD's `{"text": [...]}`, TriviaQA's `{"value", "aliases"}`.

    >>> answers_of("Paris"), answers_of({"text": [], "answer_start": []}), answers_of({"value": "a", "aliases": ["b"]})
    (['Paris'], [], ['a', 'b'])
    """
    if isinstance(value, Mapping):
        value = value["text"] if "text" in value else [value.get("value"), *(value.get("aliases") or ())]
    if not isinstance(value, list):
        value = [value]
    return [text for text in map(plain, value) if text is not None]
