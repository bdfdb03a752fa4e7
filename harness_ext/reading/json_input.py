r"""JSON from outside, with limits: depth, integers of 64 bits, no repeated key, no lone surrogates.

What is legal JSON but breaks those who use it is made harmless when it is read: an integer beyond 64 bits is kept as
text, a lone surrogate becomes the visible escape `\ud800`, and so do invisible characters in keys, which are names.
With `exact` (data that go on as they are) the first two are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from harness_ext.errors import InputError, first_line
from harness_ext.names import visible
from harness_ext.reading.files import SETTINGS_SIZE, decoded, read_bytes, shown

MAX_DEPTH = 100  # arrays and objects inside each other
_LARGEST = 2**63 - 1
_DIGITS = len(str(_LARGEST))
_BITS = 10_000  # Python writes no larger integers in decimal digits
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(file: str | Path, *, limit: int = SETTINGS_SIZE, finite: bool = False, exact: bool = False) -> Any:
    """The value in a JSON file.

    Args:
        file: a regular file in UTF-8.
        limit: of its size, in bytes.
        finite: refuse NaN and Infinity, which JSON does not have, but many programs write.
        exact: refuse what could not be kept as it is: integers beyond 64 bits, lone surrogates.

    Raises:
        InputError: it cannot be read, or breaks a limit; the message names the file, without a remedy.
    """
    return parse_json(read_bytes(file, limit=limit), place=shown(file), finite=finite, exact=exact)


def read_json_object(
    file: str | Path, *, limit: int = SETTINGS_SIZE, finite: bool = False, exact: bool = False
) -> dict[str, Any]:
    """The object in a JSON file; arguments as for `read_json`.

    Raises:
        InputError: as `read_json`, or the value is no object.
    """
    value = read_json(file, limit=limit, finite=finite, exact=exact)
    if not isinstance(value, dict):
        raise InputError(f"{shown(file)}: holds a JSON {type(value).__name__}, not an object")
    return value


def parse_json(content: bytes | str, *, place: str, finite: bool = False, exact: bool = False) -> Any:
    """The value in a JSON text.

    Args:
        content: the text; bytes are UTF-8.
        place: where it comes from, for messages: a file, or file:line.
        finite: refuse NaN and Infinity.
        exact: refuse integers beyond 64 bits and lone surrogates.

    Raises:
        InputError: it is not JSON, too deep, or has a repeated key.
    """
    text = decoded(content, place) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    try:
        value = _DECODERS[finite, exact].decode(text)
    except _Refused as error:
        raise InputError(f"{place}: {error}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise InputError(f"{place}: cannot be read as JSON ({reason})") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise InputError(f"{place}: is nested more than {MAX_DEPTH} levels deep")
    may_have = r"\ud" in text or r"\uD" in text or (isinstance(content, str) and _SURROGATE.search(text))
    if not may_have:
        return value
    harmless_value = _without_surrogates(value)
    if exact and harmless_value != value:
        raise InputError(f"{place}: has half a character (a lone surrogate, \\ud800 to \\udfff)")
    return harmless_value


class _Refused(ValueError):
    """What is JSON, but not accepted."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in values if keys.count(key) > 1)
        raise _Refused(f"has the key {visible(repeated)!r:.60} twice")
    if not "".join(values).isprintable():
        return {visible(key): value for key, value in pairs}
    return values


def _integer(text: str) -> int | str:
    if len(text) > _DIGITS + 1:
        return text
    number = int(text)
    return number if -_LARGEST - 1 <= number <= _LARGEST else text


def _exact_integer(text: str) -> int:
    number = _integer(text)
    if isinstance(number, str):
        raise _Refused(f"has the number {text:.20}…, which is beyond 64 bits; write it as text")
    return number


def _finite_number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _Refused(f"has the number {text:.20}, which is too large")
    return number


def _no_constant(text: str) -> NoReturn:
    raise _Refused(f"has the number {text}, which is not finite")


_DECODERS = {
    (finite, exact): json.JSONDecoder(
        object_pairs_hook=_object,
        parse_int=_exact_integer if exact else _integer,
        parse_float=_finite_number if finite else None,
        parse_constant=_no_constant if finite else None,
    )
    for finite in (False, True)
    for exact in (False, True)
}


def _is_deep(value: Any) -> bool:
    """Whether arrays and objects are nested more than `MAX_DEPTH` levels, found level by level."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _members(outer)]
    return any(isinstance(value, (dict, list)) for value in level)


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def harmless(value: Any) -> Any:
    r"""A scalar that may be used anywhere: integers beyond 64 bits as text, lone surrogates as escapes.

    >>> harmless(2**70), harmless(7), harmless("a\ud800")
    ('1180591620717411303424', 7, 'a\\ud800')
    """
    if isinstance(value, str):
        return _SURROGATE.sub(_escape, value) if _SURROGATE.search(value) else value
    if isinstance(value, int) and not -_LARGEST - 1 <= value <= _LARGEST:
        return str(value) if value.bit_length() < _BITS else hex(value)
    return value


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {harmless(key): _without_surrogates(item) for key, item in value.items()}
    return harmless(value)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
