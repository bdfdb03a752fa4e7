"""Errors that the doctor finds in logged outputs stand under the tables of `compare` and `eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval_files import sample

from harness_ext import cli, load_runs
from harness_ext.doctor import diagnose
from harness_ext.doctor.diagnose import find_errors
from harness_ext.protocol import tasks

TASK = "my_task"


def answered(text: str, reason: str, n: int = 40) -> list[dict]:
    lines = []
    for number in range(n):
        line = sample(number, {"question": f"What is number {number}?"}, {"exact": float(number % 2)}, target="seven")
        lines.append(line | {"resps": [[text]], "filtered_resps": [text], "finish_reason": reason})
    return lines


@pytest.fixture
def results(write_pair: Callable[..., Path]) -> Path:
    """A base that stops, and an adapter that does not."""
    configs = {TASK: {"output_type": "generate_until", "metadata": {"version": 1.0, "primary_metric": "exact"}}}
    return write_pair(
        TASK, answered("seven", "stop"), answered("seven or eight or nine", "length"), both={"configs": configs}
    )


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "html", "json"])
def test_compare_prints_errors(results, form, capsys):
    assert cli.main(["compare", str(results), "--format", form]) == 0
    out = " ".join(capsys.readouterr().out.replace("\\", "").split())
    assert "D6" in out
    assert "100.0 % of the outputs end at the token limit" in out
    if form == "table":
        assert "error: D6" in out


def test_only_errors_of_what_is_compared(results, capsys):
    runs = load_runs(results)
    (error,) = find_errors(runs)
    assert (error.id, error.where) == ("D6", f"{TASK}, sst2")
    assert not find_errors([run for run in runs if run.name != "sst2"])
    assert not find_errors(runs, tasks=["another"])
    assert cli.main(["compare", str(results), "--format", "json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[0]["id"] == "D6"
    assert findings[0]["next_step"]


def test_no_task_is_loaded(results, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a task was loaded")

    monkeypatch.setattr(tasks, "load_task", fail)
    monkeypatch.setattr(diagnose, "load_task", fail)
    assert find_errors(load_runs(results))


def test_many_documents_are_left_to_the_doctor(results, monkeypatch):
    monkeypatch.setattr(diagnose, "MOST_DOCUMENTS", 39)
    assert not find_errors(load_runs(results))


def test_eval_prints_errors(tiny_model_folder, tmp_path, capsys):
    # a random model neither answers nor stops
    output = tmp_path / "out"
    given = ["--model", "hf-tree", "--model_args", f"pretrained={tiny_model_folder}", "--tasks", "squad_v2_generate"]
    assert cli.main(["eval", *given, "--limit", "20", "--output_path", str(output), "--log_samples"]) == 0
    out = capsys.readouterr().out
    assert "\nerror: D" in out
    assert f"next: harness-ext doctor {output}" in out
