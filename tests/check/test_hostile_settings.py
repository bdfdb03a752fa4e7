"""Whatever a setting of a YAML is set to, the check reports findings and raises nothing."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.check.run import check_tasks
from harness_ext.errors import HarnessExtError
from harness_ext.protocol.tasks import load_tasks

TASK: dict[str, Any] = {
    "task": "demo", "dataset_path": "csv", "dataset_kwargs": {"data_files": {}}, "training_split": "train",
    "validation_split": "validation", "output_type": "multiple_choice", "doc_to_text": "{{ text }} Label:",
    "doc_to_target": "{{ label }}", "doc_to_choice": ["a", "b"], "target_delimiter": " ", "num_fewshot": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [{"name": "none", "filter": [{"function": "take_first"}]}], "generation_kwargs": {"until": ["."]},
    "fewshot_config": {"sampler": "first_n"}, "metadata": {"version": 1.0, "primary_metric": "acc"}, "tag": "mine",
    "description": "", "repeats": 1, "should_decontaminate": False, "process_docs": None, "gen_prefix": None,
}  # fmt: skip
VALUES: list[Any] = [
    None, True, 5, -1, 10**400, 0.5, float("nan"), "", "x", "x" * 5000, "{{ text|nosuch }}", "{% for", "\x1b[31m\n", [],
    [None], ["mean"], [["mean"]], [{}], {}, {"x": 1}, {5: {True: None}}, [5], "\0",
]  # fmt: skip
NESTED = ["metric_list.0.metric", "metric_list.0.aggregation", "metric_list.0.higher_is_better", "filter_list.0.name",
          "filter_list.0.filter", "filter_list.0.filter.0", "filter_list.0.filter.0.function", "fewshot_config.sampler",
          "metadata.version", "metadata.primary_metric", "generation_kwargs.until", "dataset_kwargs.data_files",
          "metadata.metric_scale"]  # fmt: skip


def write(folder: Path, place: str, value: Any) -> Path:
    data = folder / "rows.txt"
    data.write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(4)))
    values = json.loads(json.dumps(TASK))
    values["dataset_kwargs"]["data_files"] = {"train": str(data), "validation": str(data)}
    *parents, last = place.split(".")
    holder = values
    for key in parents:
        holder = holder[int(key) if key.isdigit() else key]
    holder[int(last) if last.isdigit() else last] = value
    file = folder / "demo.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("place", "values"),
    [
        *((place, VALUES[number % 8 :: 8]) for number, place in enumerate([*TASK, *NESTED])),
        *(pytest.param(place, VALUES, marks=pytest.mark.long) for place in [*TASK, *NESTED]),
    ],
)
def test_any_value_gives_findings(tmp_path: Path, place: str, values: list[Any]) -> None:
    for number, value in enumerate(values):
        folder = tmp_path / str(number)
        folder.mkdir()
        (report,) = check_tasks([str(write(folder, place, value))])
        assert report.verified or report.findings
        assert all(str(finding).isprintable() for finding in report.findings)


@pytest.mark.parametrize(
    "place", ["task", "metric_list", "metric_list.0.aggregation", "doc_to_text", "tag", "filter_list"]
)
def test_any_value_loads_or_is_an_error_of_ours(tmp_path: Path, place: str) -> None:
    for number, value in enumerate(VALUES):
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.suppress(HarnessExtError):
            load_tasks([str(write(folder, place, value))])
