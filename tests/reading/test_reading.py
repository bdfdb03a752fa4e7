"""The readers: ordinary input is read as by the standard parsers; nothing but InputError comes out of the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.errors import InputError
from harness_ext.names import clean_name, visible
from harness_ext.reading.files import is_regular, lines_of, read_bytes, read_text
from harness_ext.reading.json_input import parse_json, read_json, read_json_object
from harness_ext.reading.yaml_input import check_yaml, parse_yaml, read_yaml

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 20)
)


# -- files -------------------------------------------------------------------------------------------------------


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_pipe, "pipe or a device"),
        (lambda _: Path("/dev/zero"), "pipe or a device"),
        (lambda folder: folder, "folder"),
        (lambda folder: folder / "none", "No such file"),
        (lambda folder: folder / ("x" * 5000), "name too long"),
        (lambda folder: folder / "a\0b", "not a possible path"),
    ],
)
@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml, check_yaml, lambda file: list(lines_of(file))])
def test_only_regular_files_are_read(
    tmp_path: Path, make: Callable[[Path], Path], words: str, read: Callable[[Path], Any]
) -> None:
    file = make(tmp_path)
    assert not is_regular(file)
    with pytest.raises(InputError, match=words):
        read(file)


def test_files_have_a_largest_size(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * 11)
    assert len(read_bytes(file, limit=11)) == 11
    with pytest.raises(InputError, match="limit of 10"):
        read_bytes(file, limit=10)


def test_a_file_without_a_size_is_limited_too() -> None:
    assert read_bytes("/proc/self/status")
    with pytest.raises(InputError, match="limit of 10"):
        read_bytes("/proc/self/status", limit=10)


def test_text_is_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve")
    assert read_text(file) == "naïve"
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8.*byte 3"):
        read_text(file)


# -- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "ü"]},
        [],
        "text",
        -(2**63),
        2**63 - 1,
        [[[]]] * 40,
        {"deep": [[[{}]]]},
        1e308,
        "\\ud800",
    ],
)
def test_ordinary_json_is_read_as_by_the_standard_parser(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text, place="f") == parse_json(text.encode(), place="f", finite=True) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 101 + "]" * 101, "100 levels"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 300 + "1" + "}" * 300, "100 levels"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b"\xff", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
    ],
)
def test_json_that_is_refused(text: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        parse_json(text, place="place:3")
    assert str(error.value).startswith("place:3: ")


def test_depth_counts_brackets_of_values_alone() -> None:
    value = ["[" * 500, {"{{{": "]" * 200}]
    assert parse_json(json.dumps(value), place="f") == value
    assert parse_json("[" * 100 + "]" * 100, place="f")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1e999", "[-1e999]"])
def test_numbers_can_be_required_to_be_finite(text: str) -> None:
    assert parse_json(text, place="f") is not None
    with pytest.raises(InputError, match=r"finite|too large"):
        parse_json(text, place="f", finite=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (str(2**63), str(2**63)),
        ("1" + "0" * 400, "1" + "0" * 400),
        ("9" * 5000, "9" * 5000),
        (r'"a\ud800b"', r"a\ud800b"),
        (r'{"\udfff": ["\uD800"]}', {r"\udfff": [r"\ud800"]}),
        (r'"\ud83d\ude00"', "😀"),
        (r'{"a\u001b[31m": 1}', {r"a\x1b[31m": 1}),
    ],
)
def test_what_breaks_its_users_is_made_harmless(text: str, expected: Any) -> None:
    value = parse_json(text, place="f")
    assert value == expected
    json.dumps(value, ensure_ascii=False).encode()


def test_an_object_can_be_required(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text("[]")
    assert read_json(file) == []
    with pytest.raises(InputError, match="JSON list"):
        read_json_object(file)


# -- YAML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, y]",
        "",
        "- &x {a: 1}\n- *x",
        "a: &d {b: 1}\nc: {<<: *d, e: 2}",
        "d: 2024-01-02",
        "t: |\n  two\n  lines",
    ],
)
def test_ordinary_yaml_is_read_as_by_the_standard_parser(text: str) -> None:
    assert parse_yaml(text, place="f") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "200,000 values"),
        ("a: &a {<<: [*b]}", "undefined alias"),
        ("&a [*a]", "inside the value"),
        ("a: &x {<<: *x}", "inside the value"),
        ("[" * 400, "100 levels"),
        ("- " * 400 + "x", "100 levels"),
        ("? " * 400, "100 levels"),
        ("x: 2024-99-99", "month"),
        ("x: " + "9" * 5000, "digits"),
        ("x: !!timestamp 5", "groupdict"),
        ("x: !!int ''", "index"),
        ("x: !!bool q", "q"),
        ("!!python/object/apply:os.system [x]", "constructor"),
        ("\0", "special characters"),
        ("--- 1\n--- 2", "another document"),
        ("[a]: 1", "unhashable"),
    ],
)
def test_yaml_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_yaml(text, place="f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("x: 1" + "0" * 400, "1" + "0" * 400), (r'x: "\ud800"', r"\ud800"), ("x: 0x" + "f" * 50, str(16**50 - 1))],
)
def test_what_breaks_users_of_yaml_is_made_harmless(text: str, expected: str) -> None:
    assert parse_yaml(text, place="f") == {"x": expected}


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.reading.yaml_input.MAX_SECONDS", 0.0)
    with pytest.raises(InputError, match="takes more than"):
        parse_yaml("[1, 2]", place="f")


@pytest.mark.parametrize("text", [LAUGHS, "&a [*a]", "[" * 400, "- " * 400 + "x", "x: 1\n" + "- " * 120 + "x"])
def test_what_no_parser_should_see_is_found_in_the_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(text)
    with pytest.raises(InputError):
        check_yaml(file)


def test_ordinary_files_pass(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("task: x\ndoc_to_text: |\n" + " " * 150 + "{{ text }}\nfunction: !function a.b\nd: &d [1]\ne: *d\n")
    check_yaml(file)


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hidden",
    [
        "\x1b[31m",
        "\n",
        "\r",
        "\t",
        "\0",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\ud800",
    ],
)
def test_what_cannot_be_seen_becomes_an_escape(hidden: str) -> None:
    name = clean_name(f"sst2{hidden}x")
    assert name.startswith("sst2\\")
    assert name.isprintable()
    assert clean_name(name) == name


@pytest.mark.parametrize("name", ["sst2", "naïve", "名前", "a b", "a\u00a0b", "ελ", "😀", "[x](y)", "=1+1"])
def test_what_can_be_seen_stays(name: str) -> None:
    assert visible(name) == clean_name(name) == name
