"""Outputs of EvalScope 1.14, in the format of its source and of a run with its mock model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import binomtest

from harness_ext.errors import ComparisonError, ResultsError
from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs

ACCURACY = {
    "semantic_id": "quality.accuracy.ratio", "metric_name": "Accuracy", "kind": "quality",
    "direction": "higher_is_better", "value_range": {"min": 0.0, "max": 1.0}, "display_kind": "percent",
    "display_multiplier": 100.0, "display_unit": "%", "display_precision": 1,
}  # fmt: skip


def review(
    number: int, value: Mapping[str, Any], *, group: int | None = None, prompt: str = "Q", **metadata: Any
) -> dict:
    """One line of a review file."""
    question = {"id": f"{number:08x}", "content": f"{prompt} {group or number}?", "source": None, "role": "user"}
    answer = {"id": f"a{number:07x}", "content": "x", "source": "generate", "role": "assistant", "model": "m"}
    score = {"value": value, "status": "success", "extracted_prediction": "x", "prediction": "x", "metadata": {}}
    return {
        "index": number,
        "target": "x",
        "messages": [question, answer],
        "agent_trace": None,
        "sample_score": {
            "score": score,
            "sample_id": number,
            "group_id": number if group is None else group,
            "generation_index": 0,
            "sample_metadata": metadata,
        },
    }


def reported(score: float, subsets: Mapping[str, int], **changes: Any) -> dict:
    """One metric of a report."""
    metric: dict[str, Any] = {
        "identity": {"name": "accuracy", "aggregation": "mean", "dimensions": {}},
        "legacy_name": None,
        "num": sum(subsets.values()),
        "score": round(score, 4),
        "macro_score": round(score, 4),
        "categories": [
            {"name": ["default"], "subsets": [{"name": name, "score": 0.0, "num": n} for name, n in subsets.items()]}
        ],
        "semantics": ACCURACY,
    }
    return metric | changes


def write(
    root: Path,
    model: str,
    reviews: Mapping[str, Sequence[dict]],
    metrics: Sequence[dict],
    *,
    dataset: str = "demo",
    resolved: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write the folder of one evaluation: a report, its reviews by subset, its configuration."""
    report = root / "reports" / model / f"{dataset}.json"
    folder, configs = root / "reviews" / model, root / "configs"
    for parent in (report.parent, folder, configs):
        parent.mkdir(parents=True, exist_ok=True)
    payload = {
        "schema_version": 2,
        "name": f"{model}@{dataset}",
        "dataset_name": dataset,
        "model_name": model,
        "metrics": list(metrics),
        "analysis": "N/A",
        "primary_metric_identity": metrics[0].get("identity") if metrics else None,
        "num": metrics[0]["num"] if metrics else 0,
    }
    report.write_text(json.dumps(payload | changes, indent=4))
    for subset, rows in reviews.items():
        lines = "".join(json.dumps(row) + "\n" for row in reversed(rows))  # in order of completion
        (folder / f"{dataset}_{subset}.jsonl").write_text(lines)
    if resolved is not None:
        identity = {"benchmarks": {dataset: {"evaluation_version": "v1.1"}}}
        config = {"resolved_benchmarks": {dataset: resolved}, "evaluation_identity": identity, "repeats": 1}
        (configs / "task_config.yaml").write_text(yaml.safe_dump(config))
    return root


def answered(right: Sequence[float], metric: str = "accuracy", **changes: Any) -> list[dict]:
    return [review(number, {metric: value}, **changes) for number, value in enumerate(right)]


def simple(root: Path, model: str, right: Sequence[float], **changes: Any) -> Path:
    return write(
        root, model, {"main": answered(right)}, [reported(sum(right) / len(right), {"main": len(right)})], **changes
    )


BEFORE = [1] * 20 + [0] * 40
AFTER = [1] * 17 + [0] * 3 + [1] * 15 + [0] * 25  # gains 15, loses 3


def test_two_models_are_compared(tmp_path):
    simple(tmp_path / "20260101_100000", "old", BEFORE, resolved={"few_shot_num": 4})
    simple(tmp_path / "20260101_110000", "new", AFTER, resolved={"few_shot_num": 4})
    runs = load_runs(tmp_path)
    assert [(run.name, run.tool, run.adapter) for run in runs] == [
        ("old", "EvalScope", None),
        ("new", "EvalScope", None),
    ]
    assert (runs[0].tasks["demo"].n_shot, runs[0].tasks["demo"].version) == (4, "v1.1")
    (row,) = compare_runs(runs, baseline="old").rows
    assert (row.task, row.run, row.metric, row.unit, row.n) == ("demo", "new", "accuracy", "share", 60)
    assert row.baseline.value == pytest.approx(20 / 60)  # the report says .3333
    assert row.verdict == "better"
    assert row.paired is not None
    assert row.paired.p_value == pytest.approx(binomtest(3, 18).pvalue)


def test_subsets_are_one_task(tmp_path):
    reviews = {"easy": answered([1, 1, 0]), "hard": answered([0])}
    root = write(tmp_path, "m", reviews, [reported(0.5, {"easy": 3, "hard": 1})])
    other = root / "reviews" / "m" / "demo_easy_extra.jsonl"  # of another dataset, demo_easy
    other.write_text(json.dumps(review(0, {"accuracy": 1})) + "\n")
    result = load_runs(root)[0].tasks["demo"]
    assert (result.n, result.primary.value) == (4, 0.5)
    assert sorted(result.samples("accuracy").values[:, 0]) == [0, 0, 1, 1]
    assert len(set(result.samples("accuracy").keys().tolist())) == 4


def test_repeats_of_a_sample_are_averaged(tmp_path):
    rows = [review(number, {"accuracy": number % 2}, group=number // 2) for number in range(6)]
    result = load_runs(write(tmp_path, "m", {"main": rows}, [reported(0.5, {"main": 6})]))[0].tasks["demo"]
    assert result.n == 3
    assert result.samples("accuracy").values[:, 0].tolist() == [0.5, 0.5, 0.5]


def test_a_score_that_is_no_mean_is_not_tested(tmp_path):
    for model in ("a", "b"):
        write(tmp_path, model, {"main": answered([1, 0, 0, 1])}, [reported(0.7, {"main": 4})])
    (row,) = compare_runs(load_runs(tmp_path), baseline="a").rows
    assert (row.score.value, row.verdict, row.note) == (0.7, None, "not the mean of its documents")


def test_what_has_no_usable_score_is_left_out_and_counted(tmp_path, caplog):
    rows = [*answered([1, 0]), review(2, {})]  # a judge that failed
    result = load_runs(write(tmp_path, "m", {"main": rows}, [reported(0.5, {"main": 2})]))[0].tasks["demo"]
    assert result.n == 2
    (record,) = caplog.records
    assert record.args is not None
    assert record.args[1] == 1


def test_other_aggregations_stand_beside_the_mean(tmp_path):
    at_two = reported(
        0.9, {"main": 2}, identity={"name": "accuracy", "aggregation": "pass_at_k", "dimensions": {"k": 2}}
    )
    root = write(tmp_path, "m", {"main": answered([1, 0])}, [reported(0.5, {"main": 2}), at_two])
    assert {name: metric.value for name, metric in load_runs(root)[0].tasks["demo"].metrics.items()} == {
        "accuracy": 0.5,
        "accuracy:pass_at_k[k=2]": 0.9,
    }


@pytest.mark.parametrize(
    ("semantics", "unit", "higher"),
    [
        (ACCURACY, "share", True),
        (ACCURACY | {"direction": "lower_is_better"}, "share", False),
        (ACCURACY | {"value_range": {"min": 0.0, "max": 100.0}}, "points", True),
        (ACCURACY | {"display_kind": "number", "value_range": None}, None, True),
        (ACCURACY | {"direction": "none", "kind": "diagnostic", "display_kind": "number"}, None, None),
    ],
)
def test_units_and_directions_are_those_of_the_report(tmp_path, semantics, unit, higher):
    metric = reported(0.5, {"main": 2}, semantics=semantics)
    result = load_runs(write(tmp_path, "m", {"main": answered([1, 0])}, [metric]))[0].tasks["demo"]
    assert result.metadata["metrics"].get("accuracy", {}).get("unit") == unit
    assert result.primary.higher_is_better is higher


# As in examples/viz of the repository.
@pytest.mark.parametrize(("key", "name"), [("acc", "mean_acc"), ("prompt_level_strict", "mean_prompt_level_strict")])
def test_reports_of_the_first_version_are_read(tmp_path, key, name):
    metric = {"name": name, "num": 2, "score": 0.5, "macro_score": 0.5}
    metric["categories"] = [{"name": ["default"], "subsets": [{"name": "main", "score": 0.5, "num": 2}]}]
    root = write(tmp_path, "m", {"main": answered([1, 0], key)}, [metric], schema_version=None, score=0.5)
    result = load_runs(root)[0].tasks["demo"]
    assert {name: metric.value for name, metric in result.metrics.items()} == {key: 0.5}
    assert result.samples(key).values[:, 0].tolist() in ([1, 0], [0, 1])


def test_a_report_without_reviews_is_shown_and_not_tested(tmp_path):
    for model in ("a", "b"):
        write(tmp_path, model, {}, [reported(0.5, {"main": 10})])
    (row,) = compare_runs(load_runs(tmp_path), baseline="a").rows
    assert (row.score.value, row.n, row.note) == (0.5, 10, "no samples logged")


def test_metadata_can_be_the_unit_of_evidence(tmp_path):
    for model, right in (("a", BEFORE), ("b", AFTER)):
        rows = [review(number, {"accuracy": value}, story=number // 3) for number, value in enumerate(right)]
        write(tmp_path, model, {"main": rows}, [reported(sum(right) / 60, {"main": 60})])
    (row,) = compare_runs(load_runs(tmp_path), baseline="a", clusters={"demo": "story"}).rows
    assert row.paired is not None
    assert (row.paired.n, row.paired.units) == (60, 20)


@pytest.mark.parametrize(
    ("resolved", "field"),
    [
        ({"few_shot_num": 0, "prompt_template": "{question}"}, "num_fewshot"),
        ({"few_shot_num": 4, "prompt_template": "Q: {question}"}, "prompt_template"),
    ],
)
def test_another_protocol_is_refused(tmp_path, resolved, field):
    simple(tmp_path / "1", "a", BEFORE, resolved={"few_shot_num": 4, "prompt_template": "{question}"})
    simple(tmp_path / "2", "b", AFTER, resolved=resolved)
    with pytest.raises(ComparisonError, match=f"--allow {field}$"):
        compare_runs(load_runs(tmp_path), baseline="a")


def test_another_prompt_is_refused(tmp_path):
    for model in ("a", "b"):
        write(tmp_path, model, {"main": answered([1, 0], prompt=model)}, [reported(0.5, {"main": 2})])
    with pytest.raises(ComparisonError, match="--allow prompts"):
        compare_runs(load_runs(tmp_path), baseline="a")


def test_evaluations_of_one_model_are_one_run_unless_a_task_stands_twice(tmp_path):
    simple(tmp_path / "1", "m", [1, 0], dataset="first")
    simple(tmp_path / "2", "m", [1, 0], dataset="second")
    assert [list(run.tasks) for run in load_runs(tmp_path)] == [["first", "second"]]
    simple(tmp_path / "3", "m", [1, 0], dataset="second")
    assert [run.name for run in load_runs(tmp_path)] == ["1/m", "2/m", "3/m"]


def test_a_report_can_be_named_itself(tmp_path):
    root = simple(tmp_path, "m", [1, 0])
    assert load_runs(root / "reports" / "m" / "demo.json")[0].tasks["demo"].n == 2


def test_an_unreadable_configuration_only_leaves_the_protocol_unknown(tmp_path, caplog):
    root = simple(tmp_path, "m", [1, 0])
    (root / "configs" / "task_config.yaml").write_text("a: [")
    assert load_runs(root)[0].tasks["demo"].fingerprint is None
    assert "task_config.yaml" in caplog.text


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut report", r"demo\.json: cannot be read as JSON"),
        ("no metric", r"demo\.json: has no metric"),
        ("cut reviews", r"demo_main\.jsonl:2: cannot be read as JSON"),
        ("old reviews", r"demo_main\.jsonl:1: no sample_score"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path, kind, message):
    root = simple(tmp_path, "m", [1, 0])
    report, reviews = root / "reports" / "m" / "demo.json", root / "reviews" / "m" / "demo_main.jsonl"
    match kind:
        case "cut report":
            report.write_text(report.read_text()[:-20])
        case "no metric":
            report.write_text(json.dumps(json.loads(report.read_text()) | {"metrics": []}))
        case "cut reviews":
            reviews.write_text(reviews.read_text()[:-20])
        case "old reviews":
            reviews.write_text('{"index": 0, "reviews": []}\n')
    with pytest.raises(ResultsError, match=message) as caught:
        load_runs(root)
    assert "\n" not in str(caught.value)
