"""Every format of every view is complete, escaped and reproducible; and the gate of --fail-on."""

from __future__ import annotations

import csv
import io
import json
import random
import re

import pytest
from lm_eval_files import labelled, sample
from rich.console import Console

from harness_ext.comparison.gate import why_it_fails
from harness_ext.errors import ComparisonError
from harness_ext.leaderboard import compare_runs
from harness_ext.render import tables
from harness_ext.render.records import columns
from harness_ext.results.load import load_runs


def coin(share: float, seed: int, n: int = 400) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


@pytest.fixture
def runs(write_run, tmp_path):
    """A base and three adapters on three tasks: c is good, a is bad, b is as the base; b misses one task."""
    for name, share in (("base", 0.6), ("a", 0.4), ("b", 0.6), ("c", 0.8)):
        tasks = {task: labelled(coin(share, 0 if name in ("base", "b") else 1)) for task in ("x_1", "x_2", "y")}
        if name == "b":
            del tasks["y"]
        adapter = "" if name == "base" else f",peft=adapters/{name}"
        write_run(f"out/{name}", tasks, model_args=f"pretrained=org/tiny{adapter}")
    return load_runs(tmp_path / "out")


def terminal(comparison, width: int, view: str = "auto") -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for part in comparison.to_terminal(width, view):
        console.print(part)
    return console.export_text()


def test_many_runs_stand_against_tasks(runs):
    comparison = compare_runs(runs)
    head, _, *lines = [line for line in comparison.to_markdown().splitlines() if line.startswith("|")]
    assert head == "| model | mean rank | x_1 · acc, n=400 | x_2 · acc, n=400 | y · acc, n=400 |"
    names = [line.split("|")[1].strip() for line in lines]
    assert names == ["tiny", "c", "a", "b", "(majority)"]  # b has no mean rank: it misses a task
    best = next(line for line in lines if line.startswith("| c "))
    assert re.search(r"\*\*\d\d\.\d #1 ▲\*\* · \+\d", best)
    assert " | – |" in next(line for line in lines if line.startswith("| b "))
    assert "▼" in next(line for line in lines if line.startswith("| a "))
    assert [(row.rank, row.baseline_rank) for row in comparison.rows if row.run == "c"] == [(1, 2)] * 3


@pytest.mark.parametrize(("sort", "first"), [("name", "a"), ("difference", "c"), ("score", "c"), ("rank", "c")])
def test_order(runs, sort, first):
    comparison = compare_runs(runs, sort=sort)
    assert comparison.rows[0].run == first
    assert comparison.to_markdown().splitlines()[5].startswith(f"| {first} ")


def test_tasks_and_runs_are_chosen_by_pattern(runs):
    comparison = compare_runs(runs, tasks=["x_*"], only=["a", "c"])
    assert {(row.task, row.run) for row in comparison.rows} == {(t, r) for t in ("x_1", "x_2") for r in "ac"}
    assert "Holm's correction over the 4 tests" in comparison.to_markdown()
    with pytest.raises(ComparisonError, match=r"--tasks 'z\*' matches none of x_1, x_2, y"):
        compare_runs(runs, tasks=["z*"])
    with pytest.raises(ComparisonError, match="--runs 'd' matches none of a, b, c"):
        compare_runs(runs, only=["d"])


@pytest.mark.parametrize("options", [{"margin": -1}, {"margin": float("nan")}, {"sort": "random"}])
def test_impossible_options_are_refused(runs, options):
    with pytest.raises(ComparisonError):
        compare_runs(runs, **options)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_board_is_cut_to_the_terminal(runs, width):
    text = terminal(compare_runs(runs), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count(" model ") == {60: 3, 80: 2, 200: 1}[width]
    for task in ("x_1", "x_2", "y"):
        assert task in text


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("view", ["rows", "board"])
def test_nothing_is_cut_off_on_a_narrow_terminal(write_run, tmp_path, width, view):
    recipe = {"task": "elsewhere", "seed": 0, "trainable_parameters": 2_442_240, "tokens": 48_000, "seconds": 90.0}
    outputs = {"configs": {"sst2_choice_calibrated": {"output_type": "generate_until"}}}
    for number, (name, parsed) in enumerate((("base", 0.6), ("sst2-seed0", 0.7), ("sst2-seed1", 0.7), ("other", 0.62))):
        scores = [{"acc": value, "parsed_rate": value} for value in coin(parsed, number)]
        samples = [sample(i, {"idx": i}, score, target=i % 2) for i, score in enumerate(scores)]
        ours = {"card": {**recipe, "seed": number, "recipe": {"name": name[:4]}}} if number else {}
        arguments = "pretrained=org/tiny" + (f",peft=adapters/{name}" if number else "")
        tasks = {"sst2_choice_calibrated": samples}
        write_run(f"out/{name}", tasks, model_args=arguments, ours={"variant": name, **ours}, **outputs)
    comparison = compare_runs(load_runs(tmp_path / "out"))
    text = terminal(comparison, width, view)
    assert max(map(len, text.splitlines())) <= width
    for grid in tables.grids_of(comparison, view):
        for line in (line for row in grid.rows for entry in row for line in entry.lines):
            assert line in text


def test_csv_is_flat_and_complete(runs):
    comparison = compare_runs(runs)
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert len(rows) == len(comparison.rows) == 8
    assert list(rows[0]) == columns()
    assert {row["verdict"] for row in rows} == {"better", "worse", "equivalent"}
    for written, row in zip(rows, comparison.rows, strict=True):  # shares are written as points, p-values as they are
        assert written["unit"] == "points"
        assert float(written["difference"]) == pytest.approx(100 * row.difference, abs=1e-5)
        assert float(written["score"]) == pytest.approx(100 * row.score.value, abs=1e-5)
        assert float(written["p_holm"]) == pytest.approx(row.decision.p_holm, rel=1e-2)


def test_json_keeps_small_p_values(runs):
    record = json.loads(json.dumps(compare_runs(runs).to_json()))
    assert record["schema"] == 2
    assert record["margin"] == 1
    row = next(row for row in record["rows"] if row["run"] == "c")
    assert 0 < row["paired"]["p_value"] <= row["p_holm"] < 1e-4


def test_latex_compiles_in_principle(write_pair):
    samples = [sample(i, {"idx": i}, {"acc": float(i % 3 > 0)}) for i in range(60)]
    path = write_pair("a_b", samples, samples, sst2={"ours": {"variant": "50%_{x}\\"}})
    text = compare_runs(load_runs(path)).to_latex()
    assert r"50\%\_\{x\}\textbackslash{}" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    assert all(line.count(" & ") == 7 for line in text.splitlines() if line.endswith(r"\\"))


def test_the_same_results_give_the_same_bytes(runs):
    first, second = compare_runs(runs), compare_runs(list(reversed(runs)))
    for form in ("to_markdown", "to_latex", "to_html", "to_csv", "to_json"):
        assert getattr(first, form)() == getattr(second, form)(), form


def test_views_can_be_chosen(runs):
    comparison = compare_runs(runs)
    assert comparison.to_markdown("rows").count("| x_1 ") == 3
    assert "| model |" in compare_runs(runs, only=["a"], tasks=["y"]).to_markdown("board")
    assert "#rank" not in comparison.to_markdown("rows")


def test_groups_of_unknown_tasks_are_shown_and_not_tested(write_run, tmp_path):
    for name, value in (("base", 0.5), ("a", 0.7)):
        path = write_run(
            f"out/{name}",
            {"x": labelled(coin(value, 1))},
            model_args="pretrained=org/tiny" + (",peft=a" if name == "a" else ""),
            groups={"family": {"alias": "family", "acc,none": value}, "heading": {"alias": "heading", " ": " "}},
        )
        file = next(path.glob("results_*.json"))
        payload = json.loads(file.read_text())
        payload["results"] |= {"family": {"alias": "family", "acc,none": value}, "heading": {" ": " ", "alias": "h"}}
        file.write_text(json.dumps(payload))
    comparison = compare_runs(load_runs(tmp_path / "out"))
    group, task = comparison.rows
    assert (group.task, group.is_group, group.verdict) == ("family", True, None)
    assert group.note
    assert group.difference == pytest.approx(0.2)
    assert task.verdict == "better"
    assert not [finding for finding in comparison.findings if "family" in finding.text]
    assert why_it_fails(comparison, "not-better") is None


@pytest.mark.parametrize(
    ("only", "bar", "pattern"),
    [
        ("c", "not-better", None),
        (
            "a",
            "worse",
            r"fails --fail-on worse: a on x_1 is worse \(acc -\d+\.\d \[.*\], p <\.0001, n 400\); and 2 more",
        ),
        ("b", "worse", "fails --fail-on worse: b: not evaluated on y"),
        ("b", "not-better", "b on x_1 is equivalent"),
    ],
)
def test_gate(runs, only, bar, pattern):
    reason = why_it_fails(compare_runs(runs, only=[only]), bar)
    assert (reason is None) if pattern is None else re.search(pattern, reason)


def test_what_was_not_tested_passes_only_the_lowest_bar(write_pair):
    samples = labelled(coin(0.5, 1))
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples, base={"log_samples": False})))
    assert why_it_fails(comparison, "worse") is None
    assert "not tested (no samples logged)" in str(why_it_fails(comparison, "undecided"))


HOSTILE = [
    "\x1b[31mred",
    "two\nlines | x",
    "a\r\\input{x}",
    "[x](javascript:alert(1))",
    "<img src=x>",
    "=1+1",
    "@x",
    "[opt",
    "*",
]


@pytest.mark.parametrize("view", ["rows", "board"])
def test_names_of_strangers_do_nothing_in_any_format(write_run, tmp_path, view):
    """Each as a task, and all together as a run and a metric."""
    tasks = {task: labelled([1, 0, 1, 1, 0, 1]) for task in ("plain",)}
    written = []
    for name, variant in (("base", "base"), ("other", "\n".join(HOSTILE))):
        folder = write_run(f"out/{name}", tasks, model_args="pretrained=m", ours={"variant": variant})
        (file,) = folder.glob("results_*.json")
        payload = json.loads(file.read_text())
        for task in HOSTILE:
            for part in ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better"):
                payload[part][task] = payload[part]["plain"]
        file.write_text(json.dumps(payload))
        written.append(file)
    comparison = compare_runs(load_runs(tmp_path / "out"), baseline="base")
    markdown, latex, page, table = (
        comparison.to_markdown(view), comparison.to_latex(view), comparison.to_html(view), comparison.to_csv(),
    )  # fmt: skip
    for text in (markdown, latex, page, table, terminal(comparison, 200, view)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    assert not [line for line in latex.splitlines() if line.startswith(("[", "*", "\\input", "lines"))]
    assert "<img" not in page
    rows = list(csv.DictReader(io.StringIO(table)))
    assert {row["task"] for row in rows} >= {"'=1+1", "'@x", "plain"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@"))]
    terminal_lines = terminal(comparison, 200, view)
    assert "\\x1b[31mred" in terminal_lines
