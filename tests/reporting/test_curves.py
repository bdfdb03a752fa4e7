"""Curves of a report: scores in training, and the course of evaluations that were stopped early."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import labelled
from report_page import Page
from stopped_results import N, design, scores, watched

from harness_ext import cli
from harness_ext.render.report.courses import course_chart
from harness_ext.reporting.contents import Course
from harness_ext.stats.intervals import Interval
from harness_ext.stats.sequential.record import Record

SELECTION = {
    "metric": "acc", "is_share": True, "higher_is_better": True, "documents": 200, "units": 200, "data_sha256": "ab",
    "curve": [
        {"step": 20, "score": 0.7, "low": 0.6, "high": 0.8}, {"step": 40, "score": 0.9, "low": 0.85, "high": 0.95},
        {"step": 60, "score": 0.91, "low": 0.86, "high": 0.96},
    ],
    "chosen_step": 40, "best_step": 60, "last_step": 60, "planned_steps": 60, "seconds": 3.0,
    "chosen_again": {"documents": 180, "units": 180, "score": 0.88, "low": 0.83, "high": 0.92},
}  # fmt: skip


def written(folder: Path, tmp_path: Path, *flags: str) -> Page:
    file = tmp_path / "report.html"
    assert cli.main(["report", str(folder), "--output", str(file), *flags]) == 0
    return Page(file)


def course(seed: int, gain: float, **changes: Any) -> Course:
    before, after = scores(seed, gain, **changes)
    monitor = watched(before, after, design())
    return Course("run", "share", Record(design(), "demo", "base", monitor.looks[-1].documents, tuple(monitor.looks)))


# -- stopping ------------------------------------------------------------------------------------------------------


def test_the_page_shows_where_each_row_stopped(
    evaluation: Callable[..., Path],
    tmp_path: Path,
) -> None:
    before, after = scores(1, 0.15)
    looks = {name: watched(before, values, design(family=2)).looks for name, values in
             (("good", after), ("null", scores(1, 0.0, 0.3)[1]))}  # fmt: skip
    page = written(evaluation(before, {"good": after, "null": scores(1, 0.0, 0.3)[1]}, design(family=2)), tmp_path)
    text = page.text_of("tasks")
    for name, own in looks.items():
        last = own[-1]
        assert f"{name} against base Stopped after {last.documents} of 872 documents: {last.outcome}." in text
    assert text.count("Corrected for stopping: ") == 2
    charts = [attrs for attrs, _ in page.all("svg", role="img") if "documents asked" in str(attrs["aria-label"])]
    assert len(charts) == 2
    tables = [content for attrs, content in page.all("div") if str(attrs.get("aria-label")).startswith("Looks at")]
    assert sorted(table.count("[") for table in tables) == sorted(len(own) for own in looks.values())


def test_a_run_that_the_design_does_not_cover_keeps_its_course(
    evaluation: Callable[..., Path],
    tmp_path: Path,
) -> None:
    before, after = scores(1, 0.15)
    folder = evaluation(before, {"good": after, "null": scores(1, 0.0, 0.3)[1]}, design(family=2))
    text = written(folder, tmp_path, "--baseline", "null").text_of("tasks")
    assert "good against base Stopped after" in text
    assert "Corrected for stopping" not in text


def test_the_statistic_leaves_the_boundaries_where_the_row_stopped() -> None:
    drawn = course_chart(course(1, 0.15))
    upper = [float(point.split(",")[1]) for point in drawn["statistic"]["applied"][0].split()]
    *open_points, last = drawn["points"][-len(upper) :]  # the first looks may have no boundary that can be reached
    assert all(point["z"] > limit for point, limit in zip(open_points, upper, strict=False))  # y grows downwards
    assert last["z"] <= upper[-1]
    assert last["x"] == drawn["stopped_at"] < 360 / 2
    assert (drawn["verdict"], drawn["lines"][-1]["outcome"]) == ("better", "better")
    assert all(point["high"] <= point["at"] <= point["low"] for point in drawn["points"])
    ahead = [float(point.split(",")[0]) for point in drawn["statistic"]["planned"][0].split()]
    assert (ahead[0], ahead[-1]) == (pytest.approx(last["x"], abs=0.1), 360.0)


def test_a_course_without_boundaries_and_with_endless_intervals_is_drawn() -> None:
    """The first looks of few documents can reach no boundary, and graded metrics without a limit have endless ends."""
    made = course(3, 0.0)
    first = replace(
        made.record.looks[0], boundary=math.inf, limit=math.inf, interval=Interval(-math.inf, math.inf), outcome=None
    )
    record = replace(made.record, looks=(first,), documents=first.documents)
    drawn = course_chart(replace(made, record=record))
    assert drawn["sentence"] == f"Interrupted after {first.documents} of {N} documents, still open."
    assert drawn["statistic"]["applied"] == ["", ""]
    assert (drawn["points"][0]["high"], drawn["points"][0]["low"]) == (0.0, 150.0)
    assert "nan" not in json.dumps(drawn)
    assert "Infinity" not in json.dumps(drawn)


# -- training ------------------------------------------------------------------------------------------------------


def card(**changes: Any) -> dict[str, Any]:
    return {"base": "org/tiny", "task": "demo", "examples": 640, "selection": {**SELECTION, **changes}}


def test_scores_in_training_are_drawn_from_the_card(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    rows = labelled([1.0, 0.0] * 20)
    page = written(write_pair("demo", rows, rows, sst2={"ours": {"card": card()}}), tmp_path)
    text = page.text_of("tasks")
    assert "sst2 in training" in text
    assert "Kept: step 40 of 60, scored again on 180 other documents." in text
    ((label, _),) = [(attrs["aria-label"], "") for attrs, _ in page.all("svg", role="img") if "by training step" in str(
        attrs["aria-label"])]  # fmt: skip
    assert "40 → 90.0 [85.0, 95.0]" in str(label)


@pytest.mark.parametrize("changes", [
    {"curve": []}, {"curve": [{"step": 10**400, "score": 0.5, "low": 0.4, "high": 0.6}]}, {"chosen_again": None},
    {"metric": "<b>"}, {"documents": True}, {"curve": [{"step": 1, "score": 1e400, "low": 0, "high": 1}]},
])  # fmt: skip
def test_a_card_that_cannot_be_read_has_no_curve(
    write_pair: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    rows = labelled([1.0, 0.0] * 20)
    page = written(write_pair("demo", rows, rows, sst2={"ours": {"card": card(**changes)}}), tmp_path)
    assert "in training" not in page.text_of("tasks")


def test_more_training_examples_are_a_curve(write_run: Callable[..., Path], tmp_path: Path) -> None:
    write_run("out/base", {"demo": labelled([1.0, 0.0] * 20)}, model_args="pretrained=org/tiny")
    for name, examples in (("small", 100), ("large", 1_000), ("lying", 10**400)):
        own = {"card": {"base": "org/tiny", "task": "demo", "examples": examples}}
        arguments = f"pretrained=org/tiny,peft=adapters/{name}"
        write_run(f"out/{name}", {"demo": labelled([1.0] * 40)}, model_args=arguments, ours=own)
    page = written(tmp_path / "out", tmp_path)
    (label,) = [str(attrs["aria-label"]) for attrs, _ in page.all("svg", role="img")
                if "by training examples" in str(attrs["aria-label"])]  # fmt: skip
    assert [part.strip().split(":")[0] for part in label.split(";")[:2]] == ["acc by training examples", "large"]
    assert "lying" not in label
