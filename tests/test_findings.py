"""The catalogue of findings is complete and used, and is printed by `--explain`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import harness_ext
from harness_ext import cli
from harness_ext.catalogue import CATALOGUE, Rule
from harness_ext.errors import HarnessExtError
from harness_ext.findings import Finding, explain

PACKAGE = Path(harness_ext.__file__).parent
ID = re.compile(r"[CPR]\d\d|D\d{1,2}")
RULES = pytest.mark.parametrize(("id", "rule"), CATALOGUE.items(), ids=CATALOGUE)


def ids_in_code() -> set[str]:
    """Every string in the package that is an id."""
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "catalogue.py"]
    return {
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ID.fullmatch(node.value)
    }


def test_every_id_in_the_code_is_explained_and_every_entry_is_used() -> None:
    assert ids_in_code() == set(CATALOGUE)


def test_ids_have_no_gaps() -> None:
    for letter in "CPR":
        ids = [id for id in CATALOGUE if id.startswith(letter)]
        assert ids == [f"{letter}{n:02}" for n in range(1, len(ids) + 1)]


@RULES
def test_no_entry_is_empty(id: str, rule: Rule) -> None:
    texts = (rule.what, rule.why, rule.example, rule.remedy)
    assert all(text.strip() == text and text for text in texts)
    assert not rule.what.endswith(".")
    assert rule.why.endswith(".")
    assert rule.remedy.endswith(".")
    if id.startswith("C"):
        assert re.match(rf"[\w/]+\.ya?ml:\d+: (error|warning|note) {id} \S", rule.example)


@RULES
def test_entries_refer_to_entries(id: str, rule: Rule) -> None:
    mentioned = set(re.findall(r"\b[CPR]\d\d\b", f"{rule.why} {rule.remedy}"))
    assert mentioned <= set(CATALOGUE) - {id}


def test_a_finding_is_one_line_and_hashable() -> None:
    finding = Finding("C04", "error", "news.yaml:3", "unknown key 'zebra'", {"file": "news.yaml", "line": 3})
    assert str(finding) == "news.yaml:3: error C04 unknown key 'zebra'"
    assert len({finding, Finding("C04", "error", "news.yaml:3", "unknown key 'zebra'", finding.numbers)}) == 1


# -- --explain ---------------------------------------------------------------------------------------------------


@RULES
def test_explain_prints_the_whole_entry(id: str, rule: Rule) -> None:
    text = explain(id.lower())
    assert text.startswith(f"{id}  ")
    assert [part for part in (rule.what, rule.why, rule.example, rule.remedy) if part not in text] == []


@pytest.mark.parametrize("id", ["C99", "R0", "", "zebra"])
def test_unknown_ids_are_refused(id: str) -> None:
    last = [max((id for id in CATALOGUE if id.startswith(letter)), key=lambda id: int(id[1:])) for letter in "CRDP"]
    with pytest.raises(HarnessExtError, match=f"C01 to {last[0]}, R01 to {last[1]}, D1 to {last[2]}, P01 to {last[3]}"):
        explain(id)


@pytest.mark.parametrize("command", ["check", "compare", "doctor", "parity"])
@pytest.mark.parametrize("id", ["C20", "R07", "D5"])
def test_commands_explain_every_id(command: str, id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--explain", id]) == 0
    assert capsys.readouterr().out == explain(id) + "\n"


@pytest.mark.parametrize(
    "arguments", [("check", "--explain", "C99"), ("compare", "--explain", "X1"), ("check",), ("compare",)]
)
def test_an_error_of_use_is_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("harness-ext: ")
    assert printed.err.count("\n") == 1
