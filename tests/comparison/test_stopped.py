"""Runs that were stopped early: what `compare` shows of them, and what it does not test."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stopped_results import N, design, logged, scores, watched

from harness_ext.comparison.compare import compare_runs
from harness_ext.comparison.rows import Row
from harness_ext.errors import ResultsError
from harness_ext.leaderboard import compare_runs as leaderboard_of
from harness_ext.render.terminal import render
from harness_ext.results.load import load_runs


def rows_of(folder: Path, **options: Any) -> dict[str, Row]:
    return {row.run: row for row in compare_runs(load_runs(folder), **options).rows}


def test_a_stopped_run_is_estimated_by_its_design(evaluation: Callable[..., Path]) -> None:
    before, after = scores(1, 0.15)
    folder = evaluation(before, {"good": after}, design())
    monitor = watched(before, after, design())
    row = rows_of(folder)["good"]
    final = monitor.final()
    assert row.verdict == "better"
    assert row.sequential is not None
    assert row.n == row.sequential.documents == monitor.looks[-1].documents < N / 2
    assert row.paired is not None
    assert (row.difference, row.paired.interval, row.paired.p_value) == (
        final.estimate, final.interval, final.p_value
    )  # fmt: skip
    assert row.score.interval is None


def test_every_renderer_says_so(evaluation: Callable[..., Path]) -> None:
    before, after = scores(1, 0.15)
    folder = evaluation(before, {"good": after, "null": scores(1, 0.0, 0.3)[1]}, design(family=2))
    board = leaderboard_of(load_runs(folder))
    size = next(row.sequential.documents for row in board.rows if row.run == "good" and row.sequential)
    terminal = Console(record=True, width=200, file=io.StringIO())
    for part in render(board, "rows", terminal.width):
        terminal.print(part)
    text = f"sequential, {size} of 872 documents"
    for rendered in (board.to_markdown(), board.to_latex(), board.to_html(), terminal.export_text()):
        assert text in rendered.replace("\n", " ")
    (good, *_) = [row for row in board.to_json()["rows"] if row["run"] == "good"]
    assert good["sequential"]["documents"] == size
    assert "sequential_documents" in board.to_csv().splitlines()[0]


def test_a_base_that_went_on_for_another_row(evaluation: Callable[..., Path]) -> None:
    """The rows of one evaluation stop at different looks; each is compared on its own documents."""
    before, good = scores(1, 0.15)
    null = scores(1, 0.0, 0.3)[1]
    rows = rows_of(evaluation(before, {"good": good, "null": null}, design(family=2)))
    assert rows["good"].verdict == "better"
    assert rows["null"].verdict == "undecided"
    assert rows["good"].n < rows["null"].n
    assert rows["null"].decision is not None
    assert rows["null"].decision.p_holm == 1


def test_adapters_are_not_compared_with_each_other(evaluation: Callable[..., Path]) -> None:
    before, good = scores(1, 0.15)
    folder = evaluation(before, {"good": good, "null": scores(1, 0.0, 0.3)[1]}, design(family=2))
    row = rows_of(folder, baseline="null")["good"]
    assert row.paired is None
    assert "was stopped early" in str(row.note)
    assert "'base'" in str(row.note)
    assert {row.rank for row in rows_of(folder).values()} == {None}


@pytest.mark.parametrize(
    ("options", "part"),
    [({"metric": "acc_norm"}, "by acc;"), ({"margin": 2.0}, "margin of 0.01"), ({"margins": {"acc": 3.0}}, "margin")],
)
def test_what_the_design_does_not_cover(evaluation: Callable[..., Path], options: dict, part: str) -> None:
    before, after = scores(1, 0.15)
    row = rows_of(evaluation(before, {"good": after}, design()), **options)["good"]
    assert row.paired is None
    assert part in str(row.note)


def test_runs_of_two_evaluations_are_not_mixed(evaluation: Callable[..., Path], write_run: Callable[..., Path]) -> None:
    before, after = scores(1, 0.15)
    folder = evaluation(before, {"good": after}, design())
    write_run("out/full", {"demo": logged(after, range(N))}, model_args="pretrained=org/tiny,peft=adapters/full")
    rows = rows_of(folder)
    assert rows["good"].verdict == "better"
    assert rows["full"].paired is None
    assert "does not cover this pair" in str(rows["full"].note)


def test_a_complete_run_without_a_record_is_ordinary(write_run: Callable[..., Path], tmp_path: Path) -> None:
    before, after = scores(1, 0.15)
    for name, values, more in (("base", before, ""), ("good", after, ",peft=adapters/good")):
        write_run(f"out/{name}", {"demo": logged(values, range(N))}, model_args=f"pretrained=org/tiny{more}")
    row = rows_of(tmp_path / "out")["good"]
    assert row.sequential is None
    assert row.paired is not None
    assert row.paired.is_exact


def test_other_samples_than_those_of_the_last_look(evaluation: Callable[..., Path]) -> None:
    before, after = scores(1, 0.15)
    folder = evaluation(before, {"good": after}, design())
    (file,) = (folder / "good").glob("results_*.json")
    payload = json.loads(file.read_text(encoding="utf-8"))
    payload["harness_ext"]["sequential"]["tasks"]["demo"]["looks"][-1]["estimate"] += 0.01
    file.write_text(json.dumps(payload), encoding="utf-8")
    assert "not those of the last look" in str(rows_of(folder)["good"].note)
    payload["harness_ext"]["sequential"]["digest"] = "0"
    file.write_text(json.dumps(payload), encoding="utf-8")
    with pytest.raises(ResultsError, match="not that of the design"):
        load_runs(folder)
