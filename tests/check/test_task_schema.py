"""The JSON schema of task YAMLs: current, in step with the check, and right about tasks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from versions import LM_EVAL_05

from harness_ext.check import task_schema
from harness_ext.check.settings import GROUP_KEYS, TASK_KEYS
from harness_ext.new_task.make import new_task
from harness_ext.protocol.task_folders import tasks_path

SCHEMA_FILE = Path(task_schema.__file__).with_name(task_schema.FILE)
TASKS = sorted(tasks_path().rglob("*.yaml"))


def plain(text: str) -> str:
    """A YAML without tags, as an editor sees it."""
    return re.sub(r"!function\s+", "", text)


def problems(values: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    found = jsonschema.Draft7Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).iter_errors(values)
    return [error.message for error in found]


@pytest.mark.skipif(LM_EVAL_05, reason="the schema has the keys of lm-eval 0.4.13")
def test_it_is_current() -> None:
    """`python docs/generate.py` writes it."""
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == task_schema.task_schema()


@pytest.mark.skipif(LM_EVAL_05, reason="the schema has the keys of lm-eval 0.4.13")
def test_every_key_of_the_check_is_explained() -> None:
    assert task_schema.DESCRIPTIONS.keys() >= TASK_KEYS | GROUP_KEYS
    assert task_schema.task_schema()["properties"].keys() == TASK_KEYS | GROUP_KEYS


def test_check_jsonschema_accepts_all_of_our_tasks(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    files = []
    for file in TASKS:
        copy = tmp_path / file.relative_to(tasks_path())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(plain(file.read_text(encoding="utf-8")), encoding="utf-8")
        files.append(str(copy))
    assert len(files) > 20
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(SCHEMA_FILE), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_it_accepts_a_task_that_new_task_made(tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    rows = "".join(f"text {number},{'yes' if number % 2 else 'no'}\n" for number in range(60))
    data.write_text("text,label\n" + rows)
    new_task("made", kind="choice", data=str(data), output=tmp_path / "tasks")
    (file,) = (tmp_path / "tasks").rglob("made.yaml")
    assert problems(yaml.safe_load(plain(file.read_text(encoding="utf-8")))) == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"doc_to_txt": "x"}, "doc_to_txt"),
    ({"output_type": "multiple_chioce"}, "multiple_chioce"),
    ({"num_fewshot": 5.5}, "5.5"),
    ({"metric_list": [{"aggregation": "mean"}]}, "metric"),
    ({"metric_list": ["acc"]}, "acc"),
    ({"filter_list": [{"name": "x", "filter": []}]}, "[]"),
    ({"fewshot_config": {"sampl": "x"}}, "sampl"),
    ({"metadata": {"metric_scale": 10}}, "10"),
    ({"metadata": {"metrics": {"acc": {"units": "share"}}}}, "units"),
]


@pytest.mark.parametrize(("values", "named"), WRONG)
def test_it_finds_what_is_wrong(values: dict[str, Any], named: str) -> None:
    (problem,) = problems({"task": "x", **values})
    assert named in problem
