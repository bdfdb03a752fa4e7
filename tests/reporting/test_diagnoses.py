"""What the doctor wrote is shown in a report of the same results, and of no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import labelled
from report_page import Page

from harness_ext import cli


@pytest.fixture
def folder(write_pair: Callable[..., Path]) -> Path:
    return write_pair("demo", labelled([1.0, 0.0] * 30), labelled([0.0, 0.0, 0.0, 1.0] * 15))


@pytest.fixture
def saved(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Write what the doctor says of the results, with a proof of a replay and whatever a test changes."""

    def write(change: Callable[[list[dict[str, Any]]], Any] = lambda _: None) -> Path:
        cli.main(["doctor", str(folder), "--format", "json"])
        content = json.loads(capsys.readouterr().out)
        proof = {"change": "with the ChatML template", "before": 0.25, "after": 0.75, "low": 0.4, "high": 0.6, "n": 60,
                 "proved": True}  # fmt: skip
        (run,) = [each for each in content if each["run"] == "sst2"]
        run["findings"].insert(0, {
            "id": "D24", "level": "error", "where": "demo, sst2", "text": "demo, sst2: trained in ChatML",
            "numbers": proof, "next_step": "harness-ext eval --apply_chat_template",
        })  # fmt: skip
        content = change(content) or content
        (tmp_path / "doctor.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / "doctor.json"

    return write


def report(folder: Path, tmp_path: Path, file: Path) -> int:
    return cli.main(["report", str(folder), "--doctor", str(file), "--output", str(tmp_path / "report.html")])


def test_a_proof_of_a_replay_is_told_first(folder: Path, tmp_path: Path, saved: Callable[..., Path]) -> None:
    assert report(folder, tmp_path, saved()) == 0
    page = Page(tmp_path / "report.html")
    verdict = page.text_of("verdict")
    assert "demo, sst2 Another template than in training, proved: trained in ChatML." in verdict
    assert "25.0 → 75.0 +50.0 [40.0, 60.0], n=60" in page.text_of("findings")
    assert "harness-ext eval --apply_chat_template" in page.text_of("findings")
    assert f"--doctor {tmp_path / 'doctor.json'}" in page.text_of("provenance")


def test_examinations_of_trainings_are_shown(folder: Path, tmp_path: Path, saved: Callable[..., Path]) -> None:
    finding = {
        "id": "D7", "level": "error", "where": "demo", "text": "demo: 64 of 64 examples have no end token",
        "numbers": {}, "next_step": None,
    }  # fmt: skip
    training = {"subject": "training on demo", "facts": {"examples": "64"}, "findings": [finding], "notes": []}
    file = saved(lambda content: [*content, training])
    assert report(folder, tmp_path, file) == 0
    assert "training on demo: demo: 64 of 64 examples have no end token" in Page(tmp_path / "report.html").text_of(
        "findings"
    )


def _renamed(content: list[dict[str, Any]]) -> None:
    for each in content:
        each["run"] += "-other"


def _longer(content: list[dict[str, Any]]) -> None:
    content[-1]["n"] = 61


def _scored(content: list[dict[str, Any]]) -> None:
    content[-1]["decomposition"]["score"] = 0.5


@pytest.mark.parametrize(("change", "message"), [
    (_renamed, "which is not compared here"), (_longer, "were others when examined"),
    (_scored, "were others when examined"), (lambda _: {"results": {}}, "was not written by the doctor"),
    (lambda _: [7], "was not written by the doctor"), (lambda _: ["subject"], "was not written by the doctor"),
    (lambda c: [{**c[0], "findings": [{"id": "D999"}]}], "was not written by the doctor"),
    (lambda c: [{**c[0], "decomposition": {"scores": 1}}], "was not written by the doctor"),
    (lambda c: [{**c[0], "notes": "text"}], "was not written by the doctor"),
])  # fmt: skip
def test_what_does_not_belong_here_is_refused(
    folder: Path,
    tmp_path: Path,
    saved: Callable[..., Path],
    change: Callable[[Any], Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = saved(change)
    assert report(folder, tmp_path, file) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_no_file_and_no_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.json").write_text("error D1 …", encoding="utf-8")
    for name in ("missing.json", "text.json", "."):
        assert report(folder, tmp_path, tmp_path / name) == 2
        assert "harness-ext doctor RESULTS --format json" in capsys.readouterr().err
