"""Results on disk: lm-eval's format, whole or not there, samples before results."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker

from harness_ext import atomic
from harness_ext.cli import main
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.isolation import Failures
from harness_ext.engine.store import FILE
from harness_ext.engine.writing import write_results
from harness_ext.errors import WriteError
from harness_ext.names import clean_name
from harness_ext.protocol.documents import DATA_VARIABLE, SAMPLE
from harness_ext.results.load import load_runs

TASK = "sst2_choice"


@pytest.fixture(scope="module")
def results(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a base on two tasks, with samples."""
    output = str(tmp_path_factory.mktemp("first"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_VARIABLE, SAMPLE)
        settings: dict[str, Any] = {"limit": 3, "log_samples": True, "output_path": output}
        (done,) = evaluate(str(tiny_model_folder), tasks=[TASK, "sst2_generate"], **settings)
    return dict(done.results)


def tracker_of(output: Path, name: str = "model") -> EvaluationTracker:
    tracker = EvaluationTracker(output_path=str(output))
    tracker.general_config_tracker.model_name_sanitized = name
    return tracker


def contents(folder: Path) -> dict[str, Any]:
    """Text of each file by its name without the date, of results without the seconds."""
    texts = {re.sub(r"_\d{4}-[\dT.-]+\d", "", file.name): file.read_text() for file in folder.rglob("*.json*")}
    seconds = r'"(total_evaluation_time_seconds|end_time)": "?[\d.e-]+"?'
    return {name: re.sub(seconds, "", text) for name, text in texts.items()}


@pytest.mark.parametrize("output", ["folder", "folder/mine.json"])
def test_the_files_are_those_of_lm_eval(results: dict[str, Any], output: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours" / output, tmp_path / "theirs" / output
    before = copy.deepcopy(results["samples"])
    write_results(tracker_of(ours), results, Failures(), log_samples=True)
    assert results["samples"] == before
    tracker, samples = tracker_of(theirs), copy.deepcopy(results["samples"])
    tracker.save_results_aggregated({k: v for k, v in results.items() if k != "samples"}, samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task, rows)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert len(contents(tmp_path / "ours")) == 3


def fail_in_file(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full when a file of this name is renamed."""
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if Path(target).name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)


@pytest.mark.parametrize("name", ["results_", "samples_sst2_choice", "samples_sst2_generate"])
def test_a_full_disk_leaves_nothing_and_the_last_results(
    name: str, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_results(tracker_of(tmp_path), results, Failures(), log_samples=True)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    fail_in_file(monkeypatch, name)
    with pytest.raises(WriteError, match=r"no space left on device.*free some space"):
        write_results(tracker_of(tmp_path), results, Failures(), log_samples=True)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_samples_come_before_the_results(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a process that is killed leaves no results file whose samples are missing."""
    order: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append(target.name), replace(path, target)))
    write_results(tracker_of(tmp_path), results, Failures(), log_samples=True)
    assert [name.split("_")[0] for name in order] == ["samples", "samples", "results"]


def test_the_command_says_it_and_fails(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What every variant meets is said once; nothing advises to compare what is not there."""
    fail_in_file(monkeypatch, "results_")
    code = main([
        "eval", "--model_args", f"pretrained={tiny_model_folder}", "--adapters", str(make_adapter("full")),
        "--tasks", TASK, "--limit", "2", "--output_path", str(tmp_path / "out"), "--log_samples",
    ])  # fmt: skip
    told = capsys.readouterr()
    assert code == 2
    assert "no space left on device" in told.err
    assert "Traceback" not in told.err
    assert "next:" not in told.out
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [FILE]  # the answers


@pytest.mark.parametrize("task", ["mine/sst2", "mine%2Fsst2", "100%", "../up", "ä" * 100, "a b", "a" * 300])
def test_any_name_of_a_task_has_its_samples(task: str, results: dict[str, Any], tmp_path: Path) -> None:
    other = f"{task}x"
    renamed = {
        name: {task: part[TASK], other: part["sst2_generate"]} if isinstance(part, dict) and TASK in part else part
        for name, part in results.items()
    }
    failures = Failures()
    write_results(tracker_of(tmp_path), renamed, failures, log_samples=True)
    assert not failures
    assert len(list((tmp_path / "model").iterdir())) == 3  # and nothing beside the folder
    (run,) = load_runs(tmp_path)
    assert len(run.tasks[clean_name(task)].samples("acc")) == 3
    assert run.tasks[clean_name(other)].samples_path != run.tasks[clean_name(task)].samples_path


def test_a_model_whose_path_is_too_long_for_a_folder(results: dict[str, Any], tmp_path: Path) -> None:
    folders = [
        write_results(tracker_of(tmp_path, start + "x" * 300), results, Failures(), log_samples=True)
        for start in ("a", "b")
    ]
    assert len(set(folders)) == 2
    assert len(load_runs(tmp_path)) > 0


def test_partial_files_of_a_dead_process_are_removed(results: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    dead = folder / f".results_2025.json.partial-{atomic._MACHINE}-{2**22 + 1}"  # Linux gives lower numbers
    dead.write_text("{")
    write_results(tracker_of(tmp_path), results, Failures(), log_samples=False)
    assert not dead.exists()
    assert json.loads(next(folder.glob("results_*")).read_text())


def test_a_second_process_writes_the_same(results: dict[str, Any], tmp_path: Path) -> None:
    """A function in the settings of a task is known by its name: its address is another one in every process."""
    settings = {**results["configs"][TASK], "fewshot_config": {"doc_to_target": clean_name, "n": {1}}}
    written = {**results, "configs": {**results["configs"], TASK: settings}}
    folder = write_results(tracker_of(tmp_path), written, Failures(), log_samples=False)
    config = json.loads(next(folder.glob("results_*")).read_text())["configs"][TASK]["fewshot_config"]
    assert config == {"doc_to_target": "harness_ext.names.clean_name", "n": [1]}
