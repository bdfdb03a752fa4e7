"""`harness-ext export`: files that the schemas of Every Eval Ever accept, and that say what the results say.

data/*.schema.json are those of https://github.com/evaleval/every_eval_ever, version 0.3.0 (MIT, see data/LICENSE).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import sample

from harness_ext import cli
from harness_ext.publish.every_eval_ever import Source, export
from harness_ext.results.load import load_runs

jsonschema = pytest.importorskip("jsonschema")
SCHEMAS = Path(__file__).parent / "data"
SOURCE = Source("My Lab", "first_party")


def valid(value: Any, schema: str) -> None:
    jsonschema.Draft7Validator(json.loads((SCHEMAS / schema).read_text())).validate(value)


def exported(output: Path) -> list[tuple[dict, list[dict]]]:
    """The aggregates and samples below a folder, each checked against its schema and its partner."""
    found = []
    for file in sorted(output.rglob("*.json")):
        aggregate, lines = json.loads(file.read_text(encoding="utf-8")), []
        valid(aggregate, "eval.schema.json")
        assert file.relative_to(output).parts[0] == "data"
        if detailed := aggregate.get("detailed_evaluation_results"):
            samples = output / detailed["file_path"]
            assert samples == file.with_name(f"{file.stem}_samples.jsonl")
            assert detailed["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest()
            lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
            assert len(lines) == detailed["total_rows"]
        ids = {result["evaluation_result_id"] for result in aggregate["evaluation_results"]}
        for line in lines:
            valid(line, "instance_level_eval.schema.json")
            assert line["evaluation_id"] == aggregate["evaluation_id"]
            assert line["model_id"] == aggregate["model_info"]["id"]
            assert line["evaluation_result_id"] in ids
        found.append((aggregate, lines))
    return found


def test_base_and_adapter(adapter: Path, write_results: Callable[..., Path], tmp_path: Path) -> None:
    words = ["export", str(write_results(adapter)), "--output", str(tmp_path / "eee"), "--organization", "My Lab"]
    assert cli.main([*words, "--relationship", "first_party"]) == 0
    by_model = {aggregate["model_info"]["id"]: (aggregate, lines) for aggregate, lines in exported(tmp_path / "eee")}
    assert by_model.keys() == {"org/tiny", "local/sst2"}
    aggregate, lines = by_model["local/sst2"]
    (result,) = aggregate["evaluation_results"]
    assert result["score_details"]["score"] == pytest.approx(0.9)
    assert result["score_details"]["uncertainty"]["num_samples"] == 200
    assert result["metric_config"]["lower_is_better"] is False
    assert (result["metric_config"]["min_score"], result["metric_config"]["max_score"]) == (0, 1)
    assert result["source_data"]["hf_repo"] == "stanfordnlp/sst2"
    assert aggregate["source_metadata"]["evaluator_relationship"] == "first_party"
    assert len(lines) == 200
    assert sum(line["evaluation"]["is_correct"] for line in lines) == 180
    assert str(tmp_path) not in json.dumps(aggregate)


def test_the_same_results_have_the_same_names(
    adapter: Path, write_results: Callable[..., Path], tmp_path: Path
) -> None:
    runs = load_runs(write_results(adapter))
    first = [done.file.name for done in export(runs, tmp_path / "a", SOURCE)]
    assert [done.file.name for done in export(runs, tmp_path / "b", SOURCE)] == first
    assert len(set(first)) == 2


def choice(doc_id: int, best: int) -> dict:
    row = sample(doc_id, {"idx": doc_id}, {"acc": float(best == 0), "macro_f1": [0, best]}, prompt="Q", target=0)
    row["arguments"] = {f"gen_args_{place}": {"arg_0": "Q", "arg_1": f" {word}"} for place, word in enumerate("ab")}
    row["filtered_resps"] = (
        [["-1.0", "True"], ["-2.0", "False"]] if best == 0 else [["-2.0", "False"], ["-1.0", "True"]]
    )
    row["resps"] = [[answer] for answer in row["filtered_resps"]]
    return row


def test_choices_and_pairs_of_labels(write_run: Callable[..., Path], tmp_path: Path) -> None:
    rows = [choice(0, 0), choice(1, 1)]
    folder = write_run(
        "out", {"demo": rows}, model_args="pretrained=org/tiny", metrics={"demo": {"macro_f1,none": 0.5}}
    )
    export(load_runs(folder), tmp_path / "eee", SOURCE)
    ((aggregate, lines),) = exported(tmp_path / "eee")
    assert {result["metric_config"]["metric_id"] for result in aggregate["evaluation_results"]} == {"acc", "macro_f1"}
    assert [line["input"]["choices"] for line in lines] == [[" a", " b"]] * 2  # of acc; a pair is no number
    assert [line["output"]["raw"] for line in lines] == [[" a"], [" b"]]
    assert [line["evaluation"] for line in lines] == [
        {"score": 1.0, "is_correct": True}, {"score": 0.0, "is_correct": False},
    ]  # fmt: skip


def test_without_samples(write_run: Callable[..., Path], tmp_path: Path) -> None:
    rows = [choice(0, 0), choice(1, 1)]
    folder = write_run("out", {"demo": rows}, model_args="pretrained=org/tiny", log_samples=False)
    (done,) = export(load_runs(folder), tmp_path / "eee", SOURCE)
    assert done.samples is None
    ((aggregate, lines),) = exported(tmp_path / "eee")
    assert "detailed_evaluation_results" not in aggregate
    assert not lines


def test_samples_cut_short_write_nothing(
    adapter: Path, write_results: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(adapter)
    (samples,) = (results / "base").glob("samples_*.jsonl")
    samples.write_text(samples.read_text()[:5000])
    words = ["export", str(results / "base"), "--output", str(tmp_path / "eee"), "--organization", "x"]
    assert cli.main(words) == 2
    assert "cut short" in capsys.readouterr().err
    assert not list((tmp_path / "eee").rglob("*.json*"))


def test_what_is_not_of_lm_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("run,task,doc_id,acc\n" + "".join(f"a,t,{n},1\nb,t,{n},0\n" for n in range(3)))
    words = ["export", str(table), "--output", str(tmp_path / "eee"), "--organization", "x"]
    assert cli.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_output_that_is_a_file(
    adapter: Path, write_results: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exported").write_text("mine")
    words = ["export", str(write_results(adapter)), "--output", str(tmp_path / "exported"), "--organization", "Lab"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "exported").read_text() == "mine"
