# ruff: noqa: E501 (tables of values)
"""Changes to valid files. A case names a reader and, as numbers, what is changed where, so that it can be replayed.

New hostile values go to the end of their list, so that kept cases stay the same.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

LONG = "x" * 5000
VALUES = [  # texts of JSON values
    "null", "true", "false", "0", "-1", "1", "0.5", "1e308", "1e999", "-1e999", "NaN", "Infinity",
    str(2**63), str(-(2**63) - 1), "1" + "0" * 400, "9" * 5000, '""', '"x"', '" "', f'"{LONG}"', r'"\ud800"', r'"\u0000"',
    r'"\u001b[31m"', r'"a\nb"', r'"\u202etxt"', '"../../../etc/passwd"', '"/dev/zero"', '"yes"', '"null"', '"nan"',
    '"[x](javascript:alert(1))"', '"=1+1"', '"{{ cycler.__init__.__globals__ }}"', '"(.*a|.*b|.*c)*d"', "[]", "[[]]",
    "[null]", "[1]", '["x"]', '[{"x": 1}]', "{}", '{"x": 1}', '{"": null}', '{"x": {"x": {}}}', r'{"\ud800": "\udfff"}',
    "[" * 99 + "]" * 99, "[" * 150 + "]" * 150, "[" * 5000 + "]" * 5000, '{"a":' * 150 + "1" + "}" * 150,
    '{"a": 1, "a": 2}', "[" + "0," * 5000 + "0]", '"\U0001f92f"', '"a/b"', '"a,b=c"', "2", "100",
]  # fmt: skip
TEXTS = [  # pieces of YAML and CSV
    "", "null", "yes", "~", "5", "-1", "1e999", ".nan", ".inf", "1" + "0" * 400, "9" * 5000, "'x'", LONG, r'"\ud800"',
    r'"\0"', r'"\e[31m"', r'"a\nb"', "[]", "[x]", "[[x]]", "{}", "{x: 1}", "[mean]", "{{ text|nosuch }}", '"{{ text|nosuch }}"',
    '"{{ nosuch }}"', '"{% for"', '"{{ cycler.__init__.__globals__.os.getcwd() }}"', "!function x.y", "!function os.getcwd",
    "!!python/object/apply:os.getcwd []", "!!binary x", "!!timestamp 5", "2024-99-99", "2024-01-02", "0x1F", "1:30",
    "&a [*a]", "*a", "<<: 5", "[" * 200, "- " * 200, "? ", ": :", "\t", "\ufeff", "\0", "\x1b", '"', "'", "|", ">", "%", "@", "`",
    '"unclosed', "a,b,c,d,e,f", ",,,,", ";", "=1+1", "nan", "1_000", "\u2028", "#", "---", "...", "!!set {a}", "true", "0.5",
    '"{{ text }}"', "text", "label", "{{text}}",
]  # fmt: skip
BYTES = [
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b",", b"0" * 400, b"\x1b[31m",
    b"\xef\xbb\xbf", b"[" * 300, b"\x7f" * 64, b"PK\x03\x04", b"PAR1", b"-", b"e", b":", b"\\u", b"\\ud800",
]  # fmt: skip
PLACES = ("pipe", "device", "folder", "missing", "empty", "dangling", "loop", "unreadable")


class Change(NamedTuple):
    """One change: of what kind, in which file, where, and to what; numbers are taken modulo what there is."""

    kind: str  # value, key, text, bytes, cut, place
    file: int
    where: int
    what: int


KINDS = ("value", "key", "text", "bytes", "cut", "place")


def apply(folder: Path, change: Change) -> None:
    """Change one file of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    if not files:
        return
    file = files[change.file % len(files)]
    if change.kind == "place":
        _replace(file, PLACES[change.what % len(PLACES)])
    elif file.suffix == ".eval":
        _in_zip(file, change)
    else:
        file.write_bytes(changed(file.read_bytes(), file.suffix, change))


def changed(content: bytes, suffix: str, change: Change) -> bytes:
    """The content of a file with one change; a kind that does not fit changes bytes."""
    if change.kind in ("value", "key") and suffix == ".json":
        return _in_json(content, change)
    if change.kind in ("value", "key") and suffix == ".jsonl":
        lines = content.splitlines() or [b"{}"]
        number = change.where % len(lines)
        lines[number] = _in_json(lines[number], change._replace(where=change.where // len(lines)))
        return b"\n".join(lines) + b"\n"
    if change.kind == "value" and suffix == ".yaml":
        return _in_yaml(content, change)
    if change.kind in ("value", "key", "text") and suffix in (".yaml", ".csv"):
        return _in_text(content, suffix, change)
    place = change.where % (len(content) + 1)
    if change.kind == "cut":
        return content[:place]
    piece = BYTES[change.what % len(BYTES)]
    return content[:place] + piece + content[place + len(piece) * (change.what % 2) :]


def _in_yaml(content: bytes, change: Change) -> bytes:
    """As in JSON, which YAML contains."""
    try:
        values = json.dumps(yaml.safe_load(content))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError):  # whatever PyYAML raises
        return content
    return _in_json(values.encode(), change)


def _in_json(content: bytes, change: Change) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places = list(_places(value))
    if not places:
        return VALUES[change.what % len(VALUES)].encode()
    holder, key = places[change.where % len(places)]
    marker = "@@here@@"
    if change.kind == "key" and isinstance(holder, dict):
        holder[marker] = holder.pop(key)
        text = VALUES[change.what % len(VALUES)]
        name = text if text.startswith('"') else json.dumps(text[:300])
        return json.dumps(value).replace(json.dumps(marker), name).encode()
    holder[key] = marker
    return json.dumps(value).replace(json.dumps(marker), VALUES[change.what % len(VALUES)]).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _in_text(content: bytes, suffix: str, change: Change) -> bytes:
    lines = content.decode("utf-8", "replace").split("\n")
    number = change.where % len(lines)
    piece, line = TEXTS[change.what % len(TEXTS)], lines[number]
    if suffix == ".csv":
        cells = line.split(",")
        cells[change.where // len(lines) % len(cells)] = piece
        lines[number] = ",".join(cells)
    else:
        before, colon, _ = line.partition(":")
        lines[number] = f"{piece}:{_}" if change.kind == "key" else f"{before}{colon} {piece}" if colon else piece
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _in_zip(file: Path, change: Change) -> None:
    content = file.read_bytes()
    if change.kind not in ("value", "key", "text") or not zipfile.is_zipfile(file):
        file.write_bytes(changed(content, "", change))
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError, RuntimeError):
        return
    if not members:
        return
    name = sorted(members)[change.where % len(members)]
    members[name] = changed(members[name], ".json", change._replace(where=change.where // len(members)))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def _replace(file: Path, place: str) -> None:
    if place == "unreadable":
        file.chmod(0)
        return
    file.unlink()
    if place == "pipe":
        os.mkfifo(file)
    elif place == "folder":
        file.mkdir()
    elif place == "empty":
        file.write_bytes(b"")
    elif place != "missing":
        file.symlink_to({"device": "/dev/zero", "dangling": "/nowhere/at/all", "loop": file.name}[place])
