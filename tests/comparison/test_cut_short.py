"""A run that was killed, or that a full disk cut short, is not tested and fails the gate; a whole one never is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval_files import DATE, digest, labelled, sample
from scripted import Scripted

from harness_ext.cli import main
from harness_ext.comparison.choices import BARS
from harness_ext.comparison.gate import why_it_fails
from harness_ext.errors import CutShortError, ResultsError
from harness_ext.leaderboard import Leaderboard, compare_runs
from harness_ext.results.load import load_results, load_runs

ROWS = [{"text": f"text {number}", "label": number % 2} for number in range(8)]
BASE = """
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/docs.jsonl}}
test_split: test
doc_to_text: "{{text}}"
metric_list: [{metric: METRIC, aggregation: mean, higher_is_better: true}]
"""
CHOICE = (
    BASE.replace("METRIC", "acc") + 'doc_to_target: label\ndoc_to_choice: ["no", "yes"]\noutput_type: multiple_choice'
)
GENERATE = (
    BASE.replace("METRIC", "exact_match") + 'doc_to_target: "{{label}}"\noutput_type: generate_until\n'
    "generation_kwargs: {until: ['.']}\n"
)
FILTERS = """
filter_list:
- {name: first, filter: [{function: take_first}]}
- {name: strict, filter: [{function: regex, regex_pattern: 'yes'}, {function: take_first}]}
"""
HALF = CHOICE + "\nprocess_results: !function hooks.half"
TASKS = {
    "choice": CHOICE,
    "filters": GENERATE + FILTERS,
    "repeats": GENERATE + "repeats: 3\nfilter_list:\n- {name: first, filter: [{function: take_first}]}",
    "half": HALF,
}


@pytest.fixture
def stock(tmp_path: Path) -> Callable[..., Path]:
    """Let lm-eval evaluate a scripted model on several kinds of tasks, and write as it does."""
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "hooks.py").write_text(
        "def half(doc, results):\n    return {'acc': 1.0} if doc['label'] else {'other': 0.0}\n"
    )
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n" + text.replace("FOLDER", str(tmp_path)))
    (tmp_path / "group.yaml").write_text(
        yaml.safe_dump({
            "group": "both", "task": ["choice", "half"],
            "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean"}],
        })
    )  # fmt: skip

    def evaluate(name: str, answer: str, **settings: Any) -> Path:
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        tracker = EvaluationTracker(output_path=str(tmp_path / "results"))
        results = lm_eval.simple_evaluate(
            Scripted(lambda doc: answer), model_args={"pretrained": name}, tasks=["both", "filters", "repeats"],
            task_manager=manager, evaluation_tracker=tracker, bootstrap_iters=0, **{"limit": 6, **settings},
        )  # fmt: skip
        assert results is not None
        samples = results.pop("samples")
        tracker.save_results_aggregated(results, samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task, rows)
        return tmp_path / "results"

    return evaluate


@pytest.mark.parametrize(
    "settings",
    [{}, {"limit": None}, {"limit": 0.5}, {"limit": None, "samples": {"choice": [1, 4, 5], "filters": [0, 7]}}],
    ids=["limit", "whole", "share", "chosen"],
)
def test_stock_results_are_never_taken_for_cut(stock: Callable[..., Path], settings: dict[str, Any]) -> None:
    """Several filters, repeats, groups, and documents that not every metric has."""
    if settings.get("samples") and hasattr(lm_eval.api.task, "GenerateTask"):
        pytest.skip("lm-eval 0.5.0.dev1 numbers logged samples wrongly when samples are chosen")
    stock("base", "yes", **settings)
    comparison = compare_runs(load_runs(stock("other", "no", **settings)), baseline="base")
    assert {row.task for row in comparison.rows} == {*TASKS, "both"}
    assert not [finding for finding in comparison.findings if finding.id in ("R16", "R17")]


def test_stock_results_that_were_cut_at_any_line(stock: Callable[..., Path]) -> None:
    stock("base", "yes")
    folder = stock("other", "no")
    for task in TASKS:
        (file,) = (folder / "other").glob(f"samples_{task}_*.jsonl")
        lines = file.read_bytes().splitlines(keepends=True)
        for kept in range(len(lines)):
            for half_a_line in (b"", lines[kept][:-3]):
                file.write_bytes(b"".join(lines[:kept]) + half_a_line)
                comparison = compare_runs(load_runs(folder), baseline="base", tasks=[task])
                assert [finding.id for finding in comparison.findings if finding.id in ("R09", "R16")] == ["R16"]
                assert comparison.rows[0].paired is None
        file.write_bytes(b"".join(lines))


def cut(folder: Path, lines: int) -> None:
    (file,) = folder.glob("samples_*.jsonl")
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize("which", ["base", "sst2"])
@pytest.mark.parametrize("bar", BARS)
def test_a_cut_run_fails_every_bar(which: str, bar: Any, write_pair: Callable[..., Path]) -> None:
    folder = write_pair("a", labelled([0, 1] * 20), labelled([1, 1] * 20))
    cut(folder / which, 12)
    comparison = compare_runs(load_runs(folder))
    (row,) = comparison.rows
    assert row.verdict is None
    assert row.note == "the run was cut short: has 12 of 40 documents; evaluate again"
    reason = why_it_fails(comparison, bar)
    assert reason is not None
    assert "the run was cut short" in reason
    (finding,) = [finding for finding in comparison.findings if finding.id == "R16"]
    assert finding.next_step == "evaluate again"


def test_documents_that_are_there_twice_count_once(write_pair: Callable[..., Path]) -> None:
    folder = write_pair("a", labelled([0, 1] * 20), labelled([1, 1] * 20))
    cut(folder / "sst2", 20)
    (file,) = (folder / "sst2").glob("samples_*.jsonl")
    file.write_bytes(file.read_bytes() * 2)
    (row,) = compare_runs(load_runs(folder)).rows
    assert row.note == "the run was cut short: has 20 of 40 documents; evaluate again"


def test_one_seed_of_several_that_is_cut(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("base", "m-seed0", "m-seed1"):
        adapter = "" if name == "base" else f",peft=adapters/{name}"
        write_run(f"out/{name}", {"a": labelled([0, 1] * 20)}, model_args=f"pretrained=org/tiny{adapter}")
    cut(tmp_path / "out" / "m-seed1", 30)
    comparison = compare_runs(load_runs(tmp_path / "out"))
    assert why_it_fails(comparison, "worse") is not None


def test_samples_that_were_logged_and_are_gone(write_pair: Callable[..., Path]) -> None:
    """lm-eval writes results before samples: a kill in between leaves only their hash."""
    before, after = labelled([0, 1] * 20), labelled([1, 1] * 20)
    hashed = digest("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in before))
    folder = write_pair("a", before, after, both={"task_hashes": {"a": hashed}})
    assert compare_runs(load_runs(folder)).rows[0].paired is not None
    (file,) = (folder / "sst2").glob("samples_*.jsonl")
    file.unlink()
    comparison = compare_runs(load_runs(folder))
    assert why_it_fails(comparison, "worse") is not None
    assert [finding.id for finding in comparison.findings if finding.id in ("R09", "R16")] == ["R16"]


def test_results_without_logged_samples_pass_the_lowest_bar(write_pair: Callable[..., Path]) -> None:
    folder = write_pair("a", labelled([0, 1] * 20), labelled([1, 1] * 20), sst2={"log_samples": False})
    comparison = compare_runs(load_runs(folder))
    assert [finding.id for finding in comparison.findings if finding.id in ("R09", "R16")] == ["R09"]
    assert why_it_fails(comparison, "worse") is None


@pytest.mark.parametrize(
    ("version", "sample_len", "whole"),
    [
        ("0.4.9", 12, True),
        ("0.4.9.1", 40, False),
        ("0.4.9", None, True),
        ("0.4.13", 12, False),
        ("0.5.0.dev1", 12, False),
    ],
)
def test_old_versions_count_documents_wrongly(
    version: str, sample_len: int | None, whole: bool, write_pair: Callable[..., Path]
) -> None:
    """Before 0.4.13, `effective` is that of the whole split when --samples chooses."""
    folder = write_pair(
        "a", labelled([0, 1] * 6), labelled([1, 1] * 6),
        both={
            "lm_eval_version": version, "metrics": {"a": {"sample_len": sample_len}},
            "n-samples": {"a": {"original": 40, "effective": 40}},
        },
    )  # fmt: skip
    assert (compare_runs(load_runs(folder)).rows[0].paired is not None) == whole


def test_a_filter_that_is_missing(write_pair: Callable[..., Path]) -> None:
    """The first filter's samples are all there; the run was killed before those of the second."""
    rows = [sample(n, {"idx": n}, {"acc": n % 2}) for n in range(8)]
    metrics = {"a": {"acc,strict": 0.5}}
    both = {"metrics": metrics}
    folder = write_pair("a", [*rows, *({**row, "filter": "strict"} for row in rows)], rows, both=both)
    (row,) = compare_runs(load_runs(folder)).rows
    assert row.note == "the run was cut short: has 0 of 8 documents; evaluate again"


def test_the_samples_of_a_cut_run_are_an_error_for_all_readers(write_run: Callable[..., Path]) -> None:
    folder = write_run("one", {"a": labelled([0, 1] * 20)})
    cut(folder, 12)
    (run,) = load_runs(folder)
    with pytest.raises(CutShortError, match="has 12 of 40 documents"):
        run.tasks["a"].samples("acc")
    with pytest.raises(ResultsError):
        list(run.tasks["a"].logged_samples())


# -- what is no results file ---------------------------------------------------------------------------------------


def gate(folder: Path, *flags: str) -> int:
    return main(["compare", str(folder), "--fail-on", "worse", *flags])


@pytest.fixture
def good(write_pair: Callable[..., Path]) -> Path:
    """Results that pass the gate."""
    folder = write_pair("a", labelled([0, 1] * 20), labelled([1, 1] * 20))
    assert gate(folder) == 0
    return folder


def test_samples_without_results(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """We write samples first: a kill before the results leaves them alone."""
    killed = good / "third"
    killed.mkdir()
    (killed / f"samples_a_{DATE}.jsonl").write_text("{}\n")
    assert gate(good) == 1
    told = capsys.readouterr()
    assert "without results" in told.err
    assert "R17" not in told.err
    (killed / "results_2025-06-02T10-00-00.000000.json").write_text(
        (good / "base" / f"results_{DATE}.json").read_text()
    )
    assert not load_results(good).unreadable  # it was evaluated again


def test_a_folder_that_cannot_be_listed(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = good / "third"
    locked.mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "third":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert gate(good) == 1
    assert load_results(good).unreadable == [f"{locked}: cannot be read (Permission denied); check its permissions"]


@pytest.mark.parametrize("content", ["", "{", '{"results": {"a": '])
def test_a_results_file_that_is_cut(content: str, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((good / "sst2").glob("results_*")).write_text(content)
    assert gate(good) == 2
    assert re.search(r"cannot be read as JSON .*evaluate again", capsys.readouterr().err)


@pytest.mark.parametrize("lacks", ["base", "sst2"])
def test_a_task_that_a_run_lacks(lacks: str, write_run: Callable[..., Path], tmp_path: Path) -> None:
    for name, arguments in (("base", "pretrained=org/tiny"), ("sst2", "pretrained=org/tiny,peft=adapters/sst2")):
        tasks = {"a": labelled([0, 1] * 20), "b": labelled([0, 1] * 20)}
        if name == lacks:
            del tasks["b"]
        write_run(f"out/{name}", tasks, model_args=arguments)
    assert gate(tmp_path / "out") == 1
    assert gate(tmp_path / "out", "--tasks", "a") == 0


def test_a_run_that_has_none_of_the_compared_tasks(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for name, task in (("base", "a"), ("one", "a"), ("two", "b")):
        adapter = "" if name == "base" else f",peft=adapters/{name}"
        write_run(f"out/{name}", {task: labelled([0, 1] * 20)}, model_args=f"pretrained=org/tiny{adapter}")
    assert gate(tmp_path / "out") == 1
    comparison = compare_runs(load_runs(tmp_path / "out"))
    assert isinstance(comparison, Leaderboard)
    assert "two: left out b, which tiny was not evaluated on; not evaluated on a" in comparison.warnings
    assert gate(tmp_path / "out", "--runs", "one") == 0


KILLED = """
import os, sys
from pathlib import Path
from harness_ext.cli import main
replace, count = Path.replace, []
def dies(path, target):
    count.append(target)
    return os._exit(9) if len(count) > int(sys.argv[1]) else replace(path, target)
Path.replace = dies
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_real_run_that_is_killed_while_it_writes(files: int, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Of two tasks: before the first file, between samples, before the results."""
    out = tmp_path / "out"
    command = [
        "eval", "--model_args", f"pretrained={tiny_model_folder}", "--tasks", "sst2_choice,sst2_generate",
        "--limit", "2", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", KILLED, str(files), *command], capture_output=True, check=False)
    assert done.returncode == 9
    assert not list(out.rglob("results_*.json"))
    whole = [path for path in out.rglob("samples_*.jsonl") if not path.name.startswith(".")]
    assert [len(path.read_text().splitlines()) for path in whole] == [2] * files
    with pytest.raises(ResultsError, match="no results"):
        load_runs(out)
