from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import numpy as np
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks import TaskManager
from lm_eval_files import DATE, labelled, sample

from harness_ext.errors import ResultsError
from harness_ext.protocol.token_settings import parse_model_args
from harness_ext.results.load import load_runs

LATER = "2025-06-02T10-00-00.000000"


def test_a_stock_run_is_read(write_run):
    path = write_run("org__tiny", {"demo": labelled([1, 0, 1, 1])}, model_args="pretrained=org/tiny,dtype=float32")
    (run,) = load_runs(path)
    result = run.tasks["demo"]
    assert (run.name, run.base, run.adapter) == ("tiny", "org/tiny", None)
    assert run.path == path / f"results_{DATE}.json"
    assert (result.version, result.n_shot, result.n, result.fingerprint) == ("1.0", 0, 4, None)
    assert result.primary.value == 0.75
    assert result.primary.stderr is None  # lm-eval wrote N/A
    assert result.samples("acc").values[:, 0].tolist() == [1, 0, 1, 1]
    assert not result.is_sample


@pytest.mark.parametrize(
    ("model_args", "name", "base", "adapter"),
    [
        ("pretrained=org/tiny,peft=adapters/sst2/", "sst2", "org/tiny", "adapters/sst2/"),
        ({"pretrained": "models/tiny", "lora_local_path": "adapters/x"}, "x", "models/tiny", "adapters/x"),
        ("model=gpt,base_url=http://a?b=c", "gpt", "gpt", None),
        (None, "hf", None, None),
    ],
)
def test_base_and_adapter_come_from_the_model_arguments(write_run, model_args, name, base, adapter):
    (run,) = load_runs(write_run("out", {"demo": labelled([1, 0])}, model_args=model_args))
    assert (run.name, run.base, run.adapter) == (name, base, adapter)


def test_arguments_keep_what_follows_the_first_equals_sign():
    assert parse_model_args("base_url=http://a?b=c,x=1") == {"base_url": "http://a?b=c", "x": "1"}


def test_our_keys_win(write_run):
    ours = {"variant": "mine", "base": "org/b", "adapter": "adapters/mine", "fingerprints": {"demo": "f" * 64}}
    ours |= {"fingerprint_fields": {"demo": {"stop": "abc"}}, "sample_data": True}
    path = write_run("out", {"demo": labelled([1, 0])}, model_args="pretrained=x", ours=ours, log_samples=False)
    (run,) = load_runs(path)
    result = run.tasks["demo"]
    assert (run.name, run.base, run.adapter, result.fingerprint) == ("mine", "org/b", "adapters/mine", "f" * 64)
    assert result.fingerprint_fields == {"stop": "abc"}
    assert result.samples_path is None
    assert result.is_sample  # there are no samples, so the results file decides


def test_every_task_comes_from_its_newest_file(write_run):
    args = {"model_args": "pretrained=org/tiny"}
    write_run("out", {"a": labelled([0, 0]), "b": labelled([0, 1])}, **args)
    path = write_run("out", {"a": labelled([1, 1])}, date=LATER, **args)
    (run,) = load_runs(path)
    assert {task: result.primary.value for task, result in run.tasks.items()} == {"a": 1.0, "b": 0.5}
    assert run.path.name == f"results_{LATER}.json"
    assert run.tasks["b"].samples("acc").values[:, 0].tolist() == [0, 1]


def test_speed_arguments_do_not_make_another_run(write_run):
    write_run("out", {"a": labelled([0, 0])}, model_args="pretrained=org/tiny,merge=True,pack_tokens=512")
    path = write_run("out", {"b": labelled([1, 1])}, date=LATER, model_args="pretrained=org/tiny")
    (run,) = load_runs(path)
    assert sorted(run.tasks) == ["a", "b"]


def test_a_newer_file_without_samples_does_not_borrow_old_ones(write_run):
    write_run("out", {"a": labelled([0, 0])})
    path = write_run("out", {"a": labelled([1, 1])}, date=LATER, log_samples=False)
    assert load_runs(path)[0].tasks["a"].samples_path is None


def test_files_given_by_name_stay_apart_and_nothing_is_read_twice(write_run, tmp_path):
    path = write_run("out", {"a": labelled([0, 0])}, model_args="pretrained=org/tiny")
    write_run("out", {"a": labelled([1, 1])}, model_args="pretrained=org/tiny", date=LATER)
    runs = load_runs(*sorted(path.glob("results_*.json")))
    assert [run.name for run in runs] == [f"out/tiny ({DATE})", f"out/tiny ({LATER})"]
    assert len(load_runs(tmp_path, path)) == 1


def test_equal_names_get_the_folder_that_tells_them_apart(write_run, tmp_path):
    for folder in ("seed1/org__tiny", "seed2/org__tiny"):
        write_run(folder, {"a": labelled([0, 1])}, model_args="pretrained=org/tiny,peft=adapters/x")
    assert [run.name for run in load_runs(tmp_path)] == ["seed1/x", "seed2/x"]


def test_a_json_output_path_names_files_differently(write_run):
    path = write_run("out", {"a": labelled([0, 1])})
    (path / f"results_{DATE}.json").rename(path / f"mine_{DATE}.json")  # lm-eval's --output_path out/mine.json
    assert load_runs(path)[0].tasks["a"].samples("acc").values[:, 0].tolist() == [0, 1]


def test_a_renamed_results_file_finds_the_only_samples(write_run):
    path = write_run("out", {"a": labelled([0, 1]), "a_b": labelled([1, 1])})
    renamed = (path / f"results_{DATE}.json").rename(path / "mine.json")
    tasks = load_runs(renamed)[0].tasks
    assert (tasks["a"].samples_path, tasks["a_b"].samples_path) == tuple(
        path / f"samples_{task}_{DATE}.jsonl" for task in ("a", "a_b")
    )


@pytest.mark.parametrize(
    ("metrics", "metadata", "primary"),
    [
        (["f1", "acc"], {}, "acc"),
        (["f1", "exact"], {}, "exact"),
        (["bleu", "ter"], {}, "bleu"),
        (["acc", "macro_f1"], {"primary_metric": "macro_f1"}, "macro_f1"),
    ],
)
def test_primary_metric(write_run, metrics, metadata, primary):
    samples = [sample(i, {"idx": i}, dict.fromkeys(metrics, 0.5)) for i in range(3)]
    path = write_run("out", {"a": samples}, configs={"a": {"metadata": metadata}})
    assert load_runs(path)[0].tasks["a"].primary.metric == primary


def test_metrics_of_several_filters(write_run):
    strict = [{**s, "filter": "strict"} for s in labelled([0, 0, 1])]
    flexible = [{**s, "filter": "flexible"} for s in labelled([1, 0, 1])]
    path = write_run("out", {"a": strict + flexible})
    file = path / f"results_{DATE}.json"
    payload = json.loads(file.read_text())
    payload["results"]["a"] = {"alias": "a", "acc,strict": 1 / 3, "acc_stderr,strict": 0.1, "acc,flexible": 2 / 3}
    payload["higher_is_better"]["a"] = {"acc": False}
    file.write_text(json.dumps(payload))
    result = load_runs(path)[0].tasks["a"]
    assert set(result.metrics) == {"acc", "acc,flexible"}
    assert (result.metrics["acc"].stderr, result.metrics["acc"].higher_is_better) == (0.1, False)
    assert result.metric("acc", "flexible").value == pytest.approx(2 / 3)
    assert result.samples("acc").values[:, 0].tolist() == [0, 0, 1]
    assert result.samples("acc", "flexible").values[:, 0].tolist() == [1, 0, 1]


def test_samples_are_ordered_counted_and_complete(write_run):
    doc = {"question": "q", "context": "one"}
    samples = [
        sample(2, doc, {"exact": 3}),
        sample(0, doc, {"exact": 1, "HasAns_exact": 1}),
        sample(1, {"question": "r", "context": "two"}, {"exact": True}),
    ]
    path = write_run("out", {"a": samples}, metrics={"a": {"HasAns_exact,none": 1.0}})
    result = load_runs(path)[0].tasks["a"]
    samples = result.samples("exact", cluster="context")
    assert samples.values[:, 0].tolist() == [1, 1, 3]  # sorted by doc_id: ranks log one after the other
    assert samples.occurrence.tolist() == [0, 0, 1]
    assert samples.clusters is not None
    assert len(np.unique(samples.clusters)) == 2
    assert result.samples("exact", cluster="passage").clusters is None  # no document has it
    assert result.samples("exact").clusters is None
    assert len(result.samples("HasAns_exact")) == 1  # documents without the metric are left out


@pytest.mark.parametrize(("doc", "expected"), [({"id": "sample-1"}, True), ({"idx": "sample-9"}, True), ({}, False)])
def test_the_bundled_sample_is_known_by_its_first_document(write_run, doc, expected):
    path = write_run("out", {"a": [sample(0, doc, {"acc": 1})]}, ours={"sample_data": not expected})
    assert load_runs(path)[0].tasks["a"].is_sample is expected


def test_a_group_is_not_a_task(write_run):
    path = write_run("out", {"a": labelled([0, 1])})
    file = path / f"results_{DATE}.json"
    payload = json.loads(file.read_text())
    payload["results"]["group"] = {"alias": "group", "acc,none": 0.5}
    file.write_text(json.dumps(payload))
    assert set(load_runs(path)[0].tasks) == {"a"}


def broken(kind: str, path: Path) -> Path:
    results, samples = path / f"results_{DATE}.json", path / f"samples_a_{DATE}.jsonl"
    match kind:
        case "missing":
            return path / "nowhere"
        case "empty":
            (path / "empty").mkdir()
            return path / "empty"
        case "cut results":
            results.write_text(results.read_text()[:-20])
        case "list":
            results.write_text("[]")
        case "other json":
            results.write_text("{}")
            return results
        case "cut samples":
            samples.write_bytes(samples.read_bytes()[:-20])
        case "old samples":
            samples.write_text('{"doc_id": 0, "acc": 1.0}\n')
        case "pairs":
            samples.write_text(samples.read_text().replace('"acc": 1', '"acc": [1, 2]'))
        case "not finite":
            samples.write_text(samples.read_text().replace('"acc": 1', '"acc": NaN'))
        case "nothing":
            samples.write_text(samples.read_text().replace('"acc": 1', '"acc": null'))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"nowhere: no such file or folder; .*--output_path .* --log_samples"),
        ("empty", r"empty: no results_\*\.json in it; .*--output_path .* --log_samples"),
        ("cut results", rf"results_{DATE}\.json: cannot be read as JSON"),
        ("list", rf"results_{DATE}\.json: holds a JSON list"),
        ("other json", rf"results_{DATE}\.json: not a results file"),
        ("cut samples", rf"samples_a_{DATE}\.jsonl:3: cannot be read as JSON"),
        ("old samples", rf"samples_a_{DATE}\.jsonl:1: no 'doc_hash'"),
        ("pairs", rf"samples_a_{DATE}\.jsonl:1: acc is \[1, 2\]"),
        ("not finite", rf"samples_a_{DATE}\.jsonl:1: acc is nan"),
        ("nothing", rf"samples_a_{DATE}\.jsonl:1: acc is null"),
    ],
)
def test_broken_files_are_named_in_one_line(write_run, kind, message):
    path = broken(kind, write_run("out", {"a": labelled([1, 0, 0])}))
    with pytest.raises(ResultsError, match=message) as caught:
        load_runs(path)[0].tasks["a"].samples("acc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", ["accc", "acc,strict"])
def test_an_unknown_metric_is_refused_with_a_hint(write_run, metric):
    result = load_runs(write_run("out", {"a": labelled([1, 0])}))[0].tasks["a"]
    with pytest.raises(ResultsError, match=r"it has acc\)"):
        result.metric(*metric.split(","))


def test_nothing_given_is_refused():
    with pytest.raises(ResultsError, match="no results given"):
        load_runs()


TASK = """
task: tiny_local
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}} is"
doc_to_target: label
doc_to_choice: ["bad", "good"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""


def test_files_of_a_real_stock_run_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(DummyLM, "tokenizer_name", str(tmp_path))  # lm-eval would ask the Hub for one, then go on
    rows = [{"idx": i, "text": f"film {i}", "label": i % 2} for i in range(6)] + [
        {"idx": 0, "text": "film 0", "label": 0}
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_local.yaml").write_text(TASK.replace("DATA", str(data)))
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = lm_eval.simple_evaluate(
        model="dummy",
        model_args="pretrained=org/dummy,peft=adapters/quiet",
        tasks=["tiny_local"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        evaluation_tracker=tracker,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="tiny_local", samples=samples["tiny_local"])

    (run,) = load_runs(tmp_path / "out")
    result = run.tasks["tiny_local"]
    logged = result.samples("acc")
    assert (run.name, run.base, run.adapter) == ("quiet", "org/dummy", "adapters/quiet")
    assert (result.version, result.n_shot, result.n) == ("2.0", 0, 7)
    assert result.primary.metric == "acc"
    assert logged.values[:, 0].mean() == pytest.approx(result.primary.value)
    assert logged.occurrence.tolist() == [0, 0, 0, 0, 0, 0, 1]  # the last document repeats the first
    assert logged.doc_hash[0] == logged.doc_hash[6]
    assert logged.clusters is None


def test_a_large_file_is_read_in_bounded_memory(tmp_path):
    import tracemalloc

    from harness_ext.results.samples import read_scores

    path = tmp_path / "samples.jsonl"
    line = json.dumps(sample(0, {"context": "passage " * 100}, {"acc": 1.0}, prompt="word " * 200))
    with path.open("w") as lines:
        for number in range(5_000):
            lines.write(line.replace('"doc_id": 0', f'"doc_id": {number}') + "\n")
    tracemalloc.start()
    samples = read_scores(path, "acc", "none")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 5_000
    assert path.stat().st_size > 10e6
    assert peak < 1e6 + 200 * len(samples)  # bytes per document, and a few lines at a time


def test_settings_are_read_where_they_are_logged(write_run):
    config = {"model": "hf", "model_args": "pretrained=x,dtype=auto", "model_dtype": "torch.bfloat16"}
    path = write_run("out", {"a": labelled([0, 1])}, config=config, chat_template_sha="abc", fewshot_as_multiturn=True)
    assert load_runs(path)[0].tasks["a"].settings == {
        "dtype": "bfloat16", "chat_template": "abc", "fewshot_as_multiturn": True,
    }  # fmt: skip
