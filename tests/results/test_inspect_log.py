"""Logs of Inspect: a real one of version 0.3.285, and small ones in the format of its source."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from harness_ext.errors import ComparisonError, ResultsError
from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs

REAL = Path(__file__).parent / "data" / "inspect_0.3.285.eval"  # three samples, two epochs, compressed by zstandard
NAN = float("nan")


def logged(number: int, scores: Mapping[str, Any], *, epoch: int = 1, prompt: str = "Q", **changes: Any) -> dict:
    """One sample in the format of `EvalSample`."""
    question = {"id": f"m{number}-{epoch}", "content": f"{prompt} {number}?", "source": "input", "role": "user"}
    answer = {"id": f"a{number}-{epoch}", "content": "x", "source": "generate", "role": "assistant"}
    return {
        "id": number,
        "epoch": epoch,
        "input": f"Q {number}?",
        "target": "x",
        "messages": [question, answer],
        "output": {"model": "m", "choices": [{"message": answer, "stop_reason": "stop"}], "completion": "x"},
        "scores": {name: {"value": value, "answer": "x", "history": []} for name, value in scores.items()},
        "metadata": {"passage": f"p{number // 3}"},
    } | changes


def log_of(model: str, samples: Sequence[dict], *, task: str = "demo", status: str = "success", **changes: Any) -> dict:
    """A log in the format of `EvalLog`; its results are the plain means that `accuracy` gives."""
    marks = {"C": 1.0, "I": 0.0}
    scores = []
    for name in dict.fromkeys(name for sample in samples for name in sample["scores"]):
        values = [sample["scores"][name]["value"] for sample in samples if name in sample["scores"]]
        if all(value in marks for value in values if isinstance(value, str)) and not isinstance(values[0], dict):
            numbers = [float(marks.get(value, value)) for value in values]
            kept = [number for number in numbers if number == number]
            metric = {"name": "accuracy", "value": sum(kept) / len(kept), "params": {}}
            scores.append({"name": name, "scorer": name, "params": {}, "metrics": {"accuracy": metric}})
    spec = {
        "created": "2026-01-01T10:00:00+00:00",
        "task": task,
        "task_version": 2,
        "task_args": {},
        "dataset": {"name": "questions", "samples": len(samples), "shuffled": False},
        "model": model,
        "model_generate_config": {},
        "model_args": {},
        "config": {"epochs": max(sample["epoch"] for sample in samples)},
        "scorers": [{"name": score["name"], "options": {}} for score in scores],
    }
    plan = {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": {}}
    spec |= {name: value for name, value in changes.items() if name in spec}
    plan |= {name: value for name, value in changes.items() if name in plan}
    results = {"total_samples": len(samples), "completed_samples": len(samples), "scores": scores}
    results |= {name: value for name, value in changes.items() if name == "headline"}
    return {"version": 2, "status": status, "eval": spec, "plan": plan, "results": results, "samples": list(samples)}


def write(path: Path, log: dict) -> Path:
    """Write a log in the format of the suffix: a zip of header and samples, or one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(log, indent=2))
        return path
    header = {name: value for name, value in log.items() if name != "samples"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": log["eval"], "plan": log["plan"]}))
        for sample in log["samples"]:
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
        archive.writestr("summaries.json", "[]")
        archive.writestr("header.json", json.dumps(header))
    return path


def marks(right: Sequence[int], **changes: Any) -> list[dict]:
    return [
        logged(number, {"match": "C" if correct else "I"}, **changes) for number, correct in enumerate(right, start=1)
    ]


def test_a_real_log_is_read():
    (run,) = load_runs(REAL)
    result = run.tasks["capitals"]
    assert (run.name, run.adapter, run.tool, result.version, result.n) == ("mockllm/model", None, "Inspect", "0", 3)
    assert {name: metric.value for name, metric in result.metrics.items()} == {
        "match": 0.5,
        "grades/length": 4.5,
        "grades/polite": 1.0,
    }
    assert result.primary.metric == "match"
    assert result.samples("match").values[:, 0].tolist() == [1, 0.5, 0]  # of q2, one of two epochs is right
    assert result.samples("grades/length").values[:, 0].tolist() == [5, 4.5, 4]
    assert result.samples("grades/polite").values[:, 0].tolist() == [1, 1]  # q2 was not scored
    assert not result.is_sample


def test_both_formats_of_a_log_are_read_alike(tmp_path):
    log = log_of("m", [*marks([1, 0, 1]), *marks([0, 0, 1], epoch=2)])
    zipped, plain = (load_runs(write(tmp_path / f"log{suffix}", log))[0].tasks["demo"] for suffix in (".eval", ".json"))
    first, second = zipped.samples("match"), plain.samples("match")
    assert first.values[:, 0].tolist() == second.values[:, 0].tolist() == [0.5, 0, 1]
    assert first.keys().tolist() == second.keys().tolist()
    assert first.prompt_hash.tolist() == second.prompt_hash.tolist()
    assert zipped.primary.value == plain.primary.value == 0.5


# Oracle: inspect_ai.scorer.value_to_float.
@pytest.mark.parametrize(
    ("value", "number", "unit"),
    [
        ("C", 1, "share"),
        ("I", 0, "share"),
        ("P", 0.5, "share"),
        ("N", 0, "share"),
        ("Yes", 1, "share"),
        ("false", 0, "share"),
        (True, 1, "share"),
        (0.25, 0.25, ""),
        (7, 7, ""),
        ("7.5", 7.5, ""),
    ],
)
def test_scores_become_numbers(tmp_path, value, number, unit):
    samples = [logged(1, {"mine": value, "several": {"a": value, "b": 3}}), logged(2, {"mine": value})]
    result = load_runs(write(tmp_path / "log.eval", log_of("m", samples)))[0].tasks["demo"]
    assert result.samples("mine").values[:, 0].tolist() == [number, number]
    assert result.samples("several/a").values[:, 0].tolist() == [number]
    assert result.samples("several/b").values[:, 0].tolist() == [3]
    declared = {name: fields["unit"] for name, fields in result.metadata["metrics"].items()}
    assert declared.get("mine", "") == declared.get("several/a", "") == unit
    assert "several/b" not in declared


def test_what_was_not_scored_is_left_out_and_counted(tmp_path, caplog):
    samples = marks([1, 0])
    samples += [logged(3, {"match": NAN}), logged(4, {}, error={"message": "timeout", "traceback": ""})]
    (run,) = load_runs(write(tmp_path / "log.json", log_of("m", samples)))
    assert run.tasks["demo"].n == 2
    assert run.tasks["demo"].samples("match").values[:, 0].tolist() == [1, 0]
    (record,) = caplog.records
    assert record.args == (tmp_path / "log.json", 2, 1)


def test_an_epoch_that_was_not_scored_leaves_the_others(tmp_path):
    samples = [logged(1, {"match": "C"}), logged(1, {"match": NAN}, epoch=2), logged(1, {"match": "I"}, epoch=3)]
    (run,) = load_runs(write(tmp_path / "log.eval", log_of("m", samples)))
    assert run.tasks["demo"].samples("match").values[:, 0].tolist() == [0.5]


def test_text_that_is_no_score_is_not_tested(tmp_path):
    grades = [logged(number, {"grade": "excellent"}) for number in (1, 2)]
    log = log_of("m", grades)
    log["results"]["scores"] = [{"name": "grade", "scorer": "grade", "metrics": {"accuracy": {"value": 0.0}}}]
    (run,) = load_runs(write(tmp_path / "log.eval", log))
    with pytest.raises(ResultsError, match=r'grade is "excellent"'):
        run.tasks["demo"].samples("grade")


def test_another_reducer_is_not_taken_for_the_mean(tmp_path):
    log = log_of("m", [*marks([1, 0]), *marks([1, 1], epoch=2)])
    log["results"]["scores"][0] |= {"reducer": "max", "metrics": {"accuracy": {"value": 1.0}}}
    assert load_runs(write(tmp_path / "log.eval", log))[0].tasks["demo"].primary.value == 0.75


def test_f1_beside_exact_is_on_0_to_1(tmp_path):
    """Unlike SQuAD's f1 beside exact in lm-eval, which is on 0–100."""
    samples = [logged(number, {"exact": "I", "f1": 0.4}) for number in range(1, 9)]
    first, second = (write(tmp_path / f"{name}.eval", log_of(name, samples)) for name in "ab")
    (row,) = compare_runs(load_runs(first, second), baseline="a", metric="f1").rows
    assert (row.unit, row.baseline.value, row.margin) == ("share", 0.4, 0.01)


def test_a_headline_is_primary(tmp_path):
    samples = [logged(number, {"acc": 1.0, "judge": {"style": 3, "tone": 4}}) for number in (1, 2)]
    log = log_of("m", samples, headline={"scorer": "judge", "score": "tone", "metric": "mean"})
    assert load_runs(write(tmp_path / "log.eval", log))[0].tasks["demo"].primary.metric == "judge/tone"


# -- comparing -----------------------------------------------------------------------------------------------------

BEFORE = [1] * 20 + [0] * 40
AFTER = [1] * 17 + [0] * 3 + [1] * 15 + [0] * 25  # gains 15, loses 3


def test_two_models_are_compared(tmp_path):
    write(tmp_path / "logs" / "old.eval", log_of("openai/old", marks(BEFORE)))
    write(tmp_path / "logs" / "new.json", log_of("openai/new", marks(AFTER)))
    (row,) = compare_runs(load_runs(tmp_path), baseline="openai/old").rows
    assert (row.task, row.run, row.metric, row.unit, row.n) == ("demo", "openai/new", "match", "share", 60)
    assert row.verdict == "better"
    assert row.paired is not None
    assert row.paired.difference == pytest.approx(12 / 60)
    assert row.paired.p_value == pytest.approx(binomtest(3, 18).pvalue)


def test_metadata_can_be_the_unit_of_evidence(tmp_path):
    files = [
        write(tmp_path / f"{name}.eval", log_of(name, marks(right))) for name, right in (("a", BEFORE), ("b", AFTER))
    ]
    (row,) = compare_runs(load_runs(*files), baseline="a", clusters={"demo": "passage"}).rows
    assert row.paired is not None
    assert (row.paired.n, row.paired.units) == (60, 21)


def test_a_number_without_a_declared_unit_is_never_equivalent(tmp_path):
    samples = [logged(number, {"style": 3 + number % 2}) for number in range(1, 101)]
    files = [write(tmp_path / f"{name}.eval", log_of(name, samples)) for name in "ab"]
    (row,) = compare_runs(load_runs(*files), baseline="a").rows
    assert (row.unit, row.margin, row.verdict) == ("", None, "undecided")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"config": {"epochs": 1, "temperature": 0.5}}, "generation_kwargs"),
        ({"task_args": {"shots": 5}}, "task_args"),
        ({"steps": [{"solver": "chain_of_thought", "params": {}}]}, "solver"),
        ({"scorers": [{"name": "match", "options": {"location": "any"}}]}, "scorers"),
        ({"dataset": {"name": "others"}}, "dataset"),
        ({"task_version": 3}, "version"),
    ],
)
def test_another_protocol_is_refused(tmp_path, changes, field):
    files = [write(tmp_path / "a.eval", log_of("a", marks(BEFORE)))]
    files += [write(tmp_path / "b.eval", log_of("b", marks(AFTER), **changes))]
    with pytest.raises(ComparisonError, match=f"--allow {field}"):
        compare_runs(load_runs(*files), baseline="a")
    (row,) = compare_runs(load_runs(*files), baseline="a", allow=[field]).rows
    assert row.allowed == (field,)


def test_another_prompt_is_refused(tmp_path):
    files = [write(tmp_path / f"{name}.eval", log_of(name, marks(BEFORE, prompt=name))) for name in "ab"]
    with pytest.raises(ComparisonError, match=r"different prompts on 60 of 60 .*--allow prompts"):
        compare_runs(load_runs(*files), baseline="a")


# -- files ---------------------------------------------------------------------------------------------------------


def test_logs_of_one_model_are_one_run(tmp_path):
    first = write(tmp_path / "one" / "a.eval", log_of("m", marks([1, 0]), task="first"))
    second = write(tmp_path / "two" / "b.eval", log_of("m", marks([1, 0]), task="second"))
    for runs in (load_runs(tmp_path), load_runs(first, second)):
        assert [sorted(run.tasks) for run in runs] == [["first", "second"]]


def test_in_a_folder_the_newest_log_of_a_task_counts(tmp_path):
    write(tmp_path / "a.eval", log_of("m", marks([1, 1]), created="2026-02-01T10:00:00+00:00"))
    older = write(tmp_path / "b.eval", log_of("m", marks([1, 0])))
    (run,) = load_runs(tmp_path)
    assert run.tasks["demo"].primary.value == 1
    assert len(load_runs(tmp_path / "a.eval", older)) == 2  # given by name, both count


def test_a_task_that_was_asked_in_two_ways_is_two_runs(tmp_path):
    write(tmp_path / "a.eval", log_of("m", marks([1, 1]), task_args={"shots": 0}))
    write(tmp_path / "b.eval", log_of("m", marks([1, 0]), task_args={"shots": 5}))
    runs = load_runs(tmp_path)
    assert len({run.name for run in runs}) == 2


def test_other_files_are_left_alone(tmp_path):
    write(tmp_path / "a.eval", log_of("m", marks([1, 0])))
    (tmp_path / "config.json").write_text('{"version": 2}')
    (tmp_path / "broken.json").write_text("{")
    assert [run.name for run in load_runs(tmp_path)] == ["m"]


def test_an_unfinished_log_is_left_out_of_its_folder(tmp_path, caplog):
    write(tmp_path / "a.eval", log_of("m", marks([1, 0])))
    write(tmp_path / "b.eval", log_of("m", marks([1, 1]), status="error", created="2027-01-01T00:00:00+00:00"))
    (run,) = load_runs(tmp_path)
    assert run.tasks["demo"].primary.value == 0.5
    assert "b.eval" in caplog.text
    (tmp_path / "a.eval").unlink()
    with pytest.raises(ResultsError, match="inspect eval-retry"):
        load_runs(tmp_path)


def broken(kind: str, folder: Path) -> Path:
    log, file = log_of("m", marks([1, 0])), folder / "log.eval"
    match kind:
        case "empty":
            file.write_bytes(b"")
        case "no zip":
            file.write_text("not a zip")
        case "cut":
            file.write_bytes(REAL.read_bytes()[:-2000])
        case "damaged":
            content = bytearray(REAL.read_bytes())
            content[content.index(b"samples/q2_epoch_1.json") + 600] ^= 255
            file.write_bytes(content)
        case "started":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("_journal/start.json", "{}")
        case "cancelled":
            write(file, log | {"status": "cancelled"})
        case "other":
            write(file, {"eval": {}, "plan": {}, "samples": []})
        case "chunked":
            write(file, log)
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr("samples/9_epoch_1/sample.json", "{}")
        case "half a sample":
            write(file, log)
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr("samples/9_epoch_1.json", '{"id": 9, ')
        case "nothing scored":
            write(file, log_of("m", [logged(1, {}), logged(2, {})]))
        case "cut json":
            file = write(folder / "log.json", log)
            file.write_text(file.read_text()[:-20])
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "not a complete zip"),
        ("no zip", "not a complete zip"),
        ("cut", "not a complete zip"),
        ("damaged", r"samples/q2_epoch_1\.json is damaged"),
        ("started", r"no header\.json.*eval-retry"),
        ("cancelled", "status 'cancelled'; .*eval-retry"),
        ("other", "not a log of Inspect"),
        ("chunked", "in chunks"),
        ("half a sample", r"samples/9_epoch_1\.json: cannot be read as JSON"),
        ("nothing scored", "nothing was scored"),
        ("cut json", "log.json: .*cannot be read as JSON"),
    ],
)
def test_broken_logs_are_named_in_one_line(tmp_path, kind, message):
    file = broken(kind, tmp_path)
    with pytest.raises(ResultsError, match=message) as caught:
        load_runs(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
