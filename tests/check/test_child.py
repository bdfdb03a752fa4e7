"""Whatever a task's code does, the check says so, checks the other tasks, and does not exit with 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness_ext.check.child import check_in_child
from harness_ext.check.run import check_tasks
from harness_ext.cli import main
from harness_ext.errors import TaskError

TASK = """\
task: {name}
dataset_path: csv
dataset_kwargs: {{data_files: {{train: {data}, validation: {data}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{ text }}}}"
doc_to_target: "{{{{ label }}}}"
doc_to_choice: [a, b]
process_results: !function {name}_hook.score
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""
SOUND = """\
def score(doc, results):
    best = max(range(len(results)), key=lambda index: results[index][0])
    return {"acc": float(["a", "b"][best] == doc["label"])}
"""
EXITS = {
    "SystemExit": "import sys\ndef score(doc, results):\n    sys.exit(0)\n",
    "os._exit": "import os\ndef score(doc, results):\n    os._exit(0)\n",
    "at import": "import os\nos._exit(0)\n",
    "kill": "import os, signal\ndef score(doc, results):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
}


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a task with a hook; returns its folder."""

    def write(name: str, hook: str) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        data = tmp_path / "rows.txt"
        data.write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(8)))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
        (folder / f"{name}_hook.py").write_text(hook)
        return folder

    return write


def test_code_that_ends_the_process_is_an_error(
    write_task: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all kinds in one folder, between two sound tasks; the count comes last."""
    folder = write_task("a_sound", SOUND)
    for number, hook in enumerate(EXITS.values()):
        write_task(f"b{number}", hook)
    write_task("c_sound", SOUND)
    assert main(["check", str(folder)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split(":")[0] for line in lines if ": ok" in line] == ["a_sound", "c_sound"]
    assert sum("error C41" in line for line in lines) == len(EXITS)
    assert lines[-1].startswith(f"{len(EXITS) + 2} tasks: {len(EXITS)} errors")
    assert "a_sound_hook.py (score)" in captured.err


def test_code_that_does_not_end_is_an_error(write_task: Callable[[str, str], Path]) -> None:
    folder = write_task("slow", "import time\ndef score(doc, results):\n    time.sleep(600)\n")
    (report,) = check_in_child([str(folder)], task_seconds=3.0)
    assert report.broken
    assert "took more than 3 s" in str(report.findings[0])


def test_in_process_too(write_task: Callable[[str, str], Path]) -> None:
    (report,) = check_tasks([str(write_task("leaves", EXITS["SystemExit"]))])
    assert "C41" in [finding.id for finding in report.findings if finding.level == "error"]


def test_errors_of_use_pass_through() -> None:
    with pytest.raises(TaskError, match=r"no/such\.yaml"):
        check_in_child(["no/such.yaml"])


def test_templates_are_rendered_in_a_sandbox(write_task: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = write_task("reaches", SOUND)
    file = folder / "reaches.yaml"
    reach = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "touched") + "') }}{{ text }}"
    file.write_text(file.read_text().replace('"{{ text }}"', f'"{reach}"'))
    (report,) = check_tasks([str(folder)])
    assert report.broken
    assert "unsafe" in " ".join(map(str, report.findings))
    assert not (tmp_path / "touched").exists()
