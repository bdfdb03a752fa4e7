"""Code of strangers' tasks is found in their YAML, announced once, and refused with --no-code, before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness_ext.cli import main
from harness_ext.errors import TaskError
from harness_ext.protocol.task_code import code_of
from harness_ext.protocol.task_folders import tasks_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A group, a member with hooks, an included file, and Python that would leave a trace."""
    tasks = tmp_path / "tasks"
    (tasks / "inner").mkdir(parents=True)
    trace = f"open({str(tmp_path / 'trace')!r}, 'w').close()\n"
    (tasks / "inner" / "scoring.py").write_text(trace + "def score(doc, results):\n    return {}\n")
    (tasks / "shared.py").write_text(trace + "def text(doc):\n    return ''\n")
    (tasks / "_base.yaml").write_text("doc_to_text: !function shared.text\n")
    (tasks / "inner" / "member.yaml").write_text(
        "task: member\ninclude: ../_base.yaml\ntag: mine\nprocess_results: !function scoring.score\n"
        "custom_dataset: !function harness_ext.hooks.load_documents\n"
        "metric_list:\n  - metric: !function os.path.join\n  - metric: bleu\n    hf_evaluate: true\n"
    )
    (tasks / "group.yaml").write_text("group: all_mine\ntask:\n  - member\n  - task: sst2_choice\n")
    (tasks / "plain.yaml").write_text("task: plain\ndataset_path: csv\ndoc_to_text: '{{ text }}'\n")
    return tasks


@pytest.mark.parametrize("name", ["member", "all_mine", "mine", "mem*", "FILE", "FOLDER"])
def test_all_code_is_found_however_the_task_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    given = {"FILE": str(folder / "inner" / "member.yaml"), "FOLDER": str(folder)}.get(name, name)
    uses = code_of([given], [folder])
    assert {(use.place, use.function) for use in uses} == {
        (str(folder / "inner" / "scoring.py"), "score"),
        (str(folder / "shared.py"), "text"),
        ("module os.path", "join"),
        ("Hugging Face Evaluate", "bleu"),
    }
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["plain", "sst2_choice", "sst2_prompts", str(tasks_path()), "no_such_task"])
def test_tasks_without_code_and_those_of_the_package_are_not_named(folder: Path, name: str) -> None:
    assert code_of([name], [folder]) == []


def test_a_task_that_cannot_be_read_is_an_error(folder: Path) -> None:
    (folder / "inner" / "member.yaml").write_text("task: [" * 300)
    with pytest.raises(TaskError, match="100 levels"):
        code_of([str(folder / "inner" / "member.yaml")])


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "--model_args", "pretrained=nowhere", "--tasks", "member", "--include_path", "FOLDER"],
        ["train", "member", "--model", "nowhere", "--output", "OUT", "--include_path", "FOLDER"],
        ["check", "FOLDER"],
    ],
)
def test_no_code_refuses_before_anything_runs(
    folder: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word.replace("FOLDER", str(folder)).replace("OUT", str(tmp_path / "out")) for word in command]
    assert main([*arguments, "--no-code"]) == 2
    error = capsys.readouterr().err
    assert "--no-code refuses" in error
    assert "scoring.py (score)" in error
    assert not (tmp_path / "trace").exists()
