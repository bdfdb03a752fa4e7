"""The metadata at the head of a README.md: read with limits, and changed key by key, so that comments stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from harness_ext.errors import CardError, InputError, first_line
from harness_ext.reading.yaml_input import parse_yaml

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_KEY = re.compile(r"^(?P<key>[\w.-]+|\"[^\"\n]*\"|'[^'\n]*')[ \t]*:(?=\s|$)", re.MULTILINE)


def split(text: str) -> tuple[str, str]:
    """The YAML of a README and what follows it; the YAML is empty if there is none.

    >>> split("---\\ntags: [lora]\\n---\\n# mine\\n")
    ('tags: [lora]', '# mine\\n')
    """
    match = _FRONT.match(text)
    return (match["yaml"], text[match.end() :]) if match else ("", text)


def metadata_of(text: str, place: str) -> dict[str, Any]:
    """The metadata of a README; empty if it has none.

    Args:
        text: the README.
        place: its path, for messages.

    Raises:
        CardError: the metadata are no YAML mapping.
    """
    try:
        values = parse_yaml(split(text)[0], place=place)
    except InputError as error:
        raise CardError(f"{error}; correct the metadata at its head") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise CardError(f"{place}: its metadata are no mapping; correct what stands between the lines ---")
    return values


def with_metadata(text: str, changes: Mapping[str, Any], place: str) -> str:
    """A README in which some keys of the metadata have new values; other keys and comments stay as they are.

    Raises:
        CardError: the metadata are no YAML mapping, or the Hub's parser would refuse the new ones.
    """
    before = metadata_of(text, place)
    front, body = split(text)
    changed = {key: value for key, value in changes.items() if before.get(key) != value}
    wanted = {**before, **changed}
    check(wanted, place)
    if not changed:
        return text
    edited = _edited(front, changed)
    try:
        kept = parse_yaml(edited, place=place) == wanted
    except InputError:
        kept = False
    return f"---\n{edited if kept else _dumped(wanted)}---\n{body}"


def check(metadata: Mapping[str, Any], place: str) -> None:
    """Raise CardError for metadata that huggingface_hub cannot read."""
    try:
        ModelCardData(**{str(key): value for key, value in metadata.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CardError(
            f"{place}: the Hub cannot read its metadata ({first_line(error):.160}); correct them"
        ) from error


def _edited(front: str, changed: Mapping[str, Any]) -> str:
    """The YAML with the blocks of some keys replaced, and new keys at the end."""
    starts = [(match["key"].strip("\"'"), match.start()) for match in _KEY.finditer(front)]
    ends = [*(start for _, start in starts), len(front)][1 : len(starts) + 1]
    parts = [front[: starts[0][1]] if starts else front]
    for (key, start), end in zip(starts, ends, strict=True):
        parts.append(_dumped({key: changed[key]}) if key in changed else front[start:end])
    written = {key for key, _ in starts}
    new = {key: value for key, value in changed.items() if key not in written}
    text = "".join(parts).rstrip()
    return (f"{text}\n" if text else "") + (_dumped(new) if new else "")


def _dumped(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
