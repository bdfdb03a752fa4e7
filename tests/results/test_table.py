"""Runs from a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import binomtest

from harness_ext import cli
from harness_ext.errors import ComparisonError, ResultsError
from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs

HEADER = "id,run,task,metric,value"
Rows = Sequence[Sequence[object]]


def write(path: Path, rows: Rows, header: str = HEADER) -> Path:
    lines = io.StringIO()
    csv.writer(lines).writerows([header.split(","), *rows])
    path.write_text(lines.getvalue(), encoding="utf-8")
    return path


def column(run: str, values: Sequence[float], *, metric: str = "acc", task: str = "trivia") -> list[list[object]]:
    return [[f"q{place}", run, task, metric, value] for place, value in enumerate(values)]


BEFORE = [1] * 20 + [0] * 40
AFTER = [1] * 17 + [0] * 3 + [1] * 15 + [0] * 25  # 15 gained, 3 lost


@pytest.mark.parametrize("name", ["base", "baseline"])
def test_two_runs_are_compared(tmp_path, name):
    file = write(tmp_path / "scores.csv", [*column("mine", AFTER), *reversed(column(name, BEFORE))])
    comparison = compare_runs(load_runs(file))
    (row,) = comparison.rows
    assert (comparison.baseline, row.run, row.task, row.metric, row.unit, row.n) == (
        name, "mine", "trivia", "acc", "share", 60,
    )  # fmt: skip
    assert (row.baseline.value, row.score.value) == pytest.approx((20 / 60, 32 / 60))
    assert row.verdict == "better"
    assert row.paired is not None
    assert row.paired.p_value == pytest.approx(binomtest(3, 18).pvalue)


def test_the_baseline_has_to_be_named_where_no_run_is_called_so(tmp_path):
    runs = load_runs(write(tmp_path / "scores.csv", [*column("old", BEFORE), *column("new", AFTER)]))
    with pytest.raises(ComparisonError, match="any of old, new could be the baseline; choose one with --baseline"):
        compare_runs(runs)
    assert compare_runs(runs, baseline="old").rows[0].verdict == "better"


def test_clusters_are_the_unit_of_evidence(tmp_path):
    rows = [[*row, f"passage {int(str(row[0])[1:]) // 3}"] for row in [*column("base", BEFORE), *column("mine", AFTER)]]
    (row,) = compare_runs(load_runs(write(tmp_path / "scores.csv", rows, f"{HEADER},cluster"))).rows
    assert row.paired is not None
    assert (row.paired.n, row.paired.units) == (60, 20)


def test_a_metric_nobody_declared_has_its_own_unit(tmp_path):
    marks = [3.0, 4.5] * 40
    rows = [*column("base", marks, metric="marks"), *column("mine", marks, metric="marks")]
    (row,) = compare_runs(load_runs(write(tmp_path / "scores.csv", rows))).rows
    assert (row.unit, row.baseline.value, row.margin, row.verdict) == ("", 3.75, None, "undecided")


def test_percentages_are_not_taken_for_shares(tmp_path):
    rows = [*column("base", [100.0 * score for score in BEFORE]), *column("mine", AFTER)]
    with pytest.raises(ResultsError, match=r"acc on trivia ranges from 0 to 100 in base, .* 0 to 1; rescale it"):
        compare_runs(load_runs(write(tmp_path / "scores.csv", rows)))


def test_documents_pair_by_id(tmp_path):
    rows = [*column("base", BEFORE)[:50], *column("mine", AFTER)[10:]]
    (row,) = compare_runs(load_runs(write(tmp_path / "scores.csv", rows))).rows
    assert row.n == 40


def test_several_tasks_and_metrics(tmp_path):
    rows = [
        *column("base", BEFORE), *column("base", AFTER, metric="em"), *column("base", AFTER, task="other"),
        *column("mine", AFTER), *column("mine", AFTER, task="other"),
    ]  # fmt: skip
    base, mine = load_runs(write(tmp_path / "scores.csv", rows))
    assert (base.name, list(base.tasks), list(base.tasks["trivia"].metrics)) == (
        "base",
        ["trivia", "other"],
        ["acc", "em"],
    )
    assert (mine.tasks["trivia"].n, mine.adapter, mine.tool) == (60, None, "CSV")
    assert base.tasks["trivia"].samples("em").values[:, 0].tolist() == AFTER


def test_files_with_a_task_each_are_one_run(tmp_path):
    files = [
        write(tmp_path / f"{task}.csv", [*column("base", BEFORE, task=task), *column("mine", AFTER, task=task)])
        for task in ("one", "two")
    ]
    assert [(run.name, list(run.tasks)) for run in load_runs(*files)] == [
        ("base", ["one", "two"]),
        ("mine", ["one", "two"]),
    ]


def test_spreadsheets_may_begin_with_a_mark_and_pad_cells(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("\ufeffid, run, task, metric, value\nq1, base, t, acc, 1\n", encoding="utf-8")
    assert load_runs(file)[0].tasks["t"].primary.value == 1


def test_tables_are_read_only_where_they_are_named(tmp_path):
    write(tmp_path / "scores.csv", column("base", BEFORE))
    with pytest.raises(ResultsError, match="a CSV"):
        load_runs(tmp_path)


GOOD = "q1,base,t,acc,1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no column id, run, task, metric, value \(it has none\)"),
        (f"{HEADER}\n", "has no rows"),
        ("id,run,task,value\nq1,base,t,1\n", r"no column metric \(it has id, run, task, value\)"),
        (f"{HEADER},clusters\nq1,base,t,acc,1,a\n", r"unknown column 'clusters'; did you mean 'cluster'\?"),
        (f"{HEADER},id\nq1,base,t,acc,1,q1\n", "duplicate column"),
        (f"{HEADER}\n{GOOD}q2,base,t,acc,high\n", r"scores\.csv:3: value 'high' is not a number"),
        (f"{HEADER}\n{GOOD}q2,base,t,acc,nan\n", r"scores\.csv:3: value 'nan' is not a number"),
        (f"{HEADER}\n{GOOD}q2,base,t,acc,\n", r"scores\.csv:3: value is empty"),
        (f"{HEADER}\n{GOOD}q2,,t,acc,1\n", r"scores\.csv:3: run is empty"),
        (f"{HEADER}\n{GOOD}{GOOD}", r"scores\.csv:3: second value of acc for base, t, 'q1'"),
        (f"{HEADER}\n{GOOD}q2,base,t,acc\n", r"scores\.csv:3: does not have one value for each column"),
        (f"{HEADER}\n{GOOD}q2,base,t,acc,1,5\n", r"scores\.csv:3: does not have one value for each column"),
        (f"{HEADER}\nq1,base,t,target,1\n", r"scores\.csv:2: a metric cannot be called 'target'"),
        (f"{HEADER},cluster\nq1,base,t,acc,1,a\nq1,mine,t,acc,1,b\n", r"scores\.csv:3: 'q1' of t is in cluster 'b'"),
        (f'{HEADER}\n"q1,base,t,acc,1\n', "cannot be read as CSV"),
        (b"id,run,task,metric,value\n\xff\xfe,base,t,acc,1\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_bad_tables_are_named_in_one_line(tmp_path, content, message):
    file = tmp_path / "scores.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ResultsError, match=message) as caught:
        load_runs(file)
    assert "\n" not in str(caught.value)


def test_the_command_reads_a_table(tmp_path, capsys):
    file = write(tmp_path / "scores.csv", [*column("base", BEFORE), *column("mine", AFTER)])
    assert cli.main(["compare", str(file), "--format", "csv"]) == 0
    assert "better" in capsys.readouterr().out
