"""What fails for one task does not cost the others their results; whatever it is, and whenever it fails."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from versions import request

from harness_ext.engine import hosts, provenance
from harness_ext.engine import session as engine
from harness_ext.engine.asking import Answering
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.isolation import Failures, evaluate_isolated
from harness_ext.engine.session import VariantResults
from harness_ext.engine.store import ResponseStore
from harness_ext.engine.writing import write_results
from harness_ext.errors import ModelError, TaskError

GOOD = "sst2_choice"
HOOKS = """
    def raise_on_second(doc, results):
        return {"acc": 1 / (0 if doc["text"] == "second" else 1)}

    def target_of_first(doc):
        return {"first": 0}[doc["text"]]

    def no_mean(items):
        raise KeyError("no value for this metric")

    def by_pair(doc, results):
        return {"acc": {(0, 1): 1.0}}

    def half_a_character(doc, results):
        return {"acc": chr(0xD83D)}

    def one_half(items):
        return 0.5
"""
CHOICE = """
    task: broken
    dataset_path: json
    dataset_kwargs: {data_files: {test: FOLDER/docs.jsonl}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{text}}"
    doc_to_choice: ["no", "yes"]
    doc_to_target: 0
    metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
METRIC = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
# What goes wrong: lines put in the place of lines of CHOICE, and part of the reason given.
AFTER_THE_ANSWERS = {
    "scoring a document": ("doc_to_target: 0", "doc_to_target: 0\n    process_results: !function hooks.raise_on_second",
                           "ZeroDivisionError: division by zero (hooks.py:2)"),
    "an aggregation": (METRIC, METRIC.replace("mean", "!function hooks.no_mean"), "no value for this metric"),
}  # fmt: skip


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., str]:
    """Write a task of four documents with some lines replaced; returns the path of its YAML."""

    def write(*replacements: str, task: str = "broken", text: str = CHOICE) -> str:
        rows = [{"text": word} for word in ("first", "second", "third", "fourth")]
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "hooks.py").write_text(textwrap.dedent(HOOKS).lstrip())
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            text = text.replace(old, new)
        text = text.replace("task: broken", f"task: {task}").replace("FOLDER", str(tmp_path))
        (tmp_path / f"{task}.yaml").write_text(textwrap.dedent(text))
        return str(tmp_path / f"{task}.yaml")

    return write


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every request that the model is asked, with its token ids."""
    asked: list[Any] = []
    original = TreeLM._loglikelihood_tokens

    def counting(self: TreeLM, requests: list[Any], **options: Any) -> Any:
        asked.extend(requests)
        return original(self, requests, **options)

    monkeypatch.setattr(TreeLM, "_loglikelihood_tokens", counting)
    return asked


def evaluate_both(base: Path, output: Path, *tasks: str, **settings: Any) -> VariantResults:
    settings = {"limit": 4, "output_path": str(output), "log_samples": True, **settings}
    return evaluate(str(base), tasks=[GOOD, *tasks], **settings)[0]


def assert_good_task_is_whole(done: VariantResults, alone: VariantResults) -> None:
    """In memory, in the results file and in the samples: as if the good task had been evaluated alone."""
    assert done.folder is not None
    (results,) = done.folder.glob("results_*.json")
    written = json.loads(results.read_text())
    for found in (done.results, written):
        assert found["results"][GOOD] == alone.results["results"][GOOD]
        assert found["harness_ext"]["fingerprints"][GOOD] == alone.results["harness_ext"]["fingerprints"][GOOD]
    (samples,) = done.folder.glob(f"samples_{GOOD}_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4


@pytest.fixture
def alone(tiny_model_folder: Path, tmp_path: Path) -> VariantResults:
    return evaluate_both(tiny_model_folder, tmp_path / "alone")


@pytest.mark.parametrize(("old", "new", "reason"), AFTER_THE_ANSWERS.values(), ids=AFTER_THE_ANSWERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_task_that_fails_behind_its_answers(
    old: str, new: str, reason: str, first: bool, broken: Callable[..., str],
    questions: list[Any], alone: VariantResults, tiny_model_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    task = broken(old, new)
    questions.clear()
    tasks = [task, GOOD] if first else [GOOD, task]
    done = evaluate_both(tiny_model_folder, tmp_path / "out", *tasks)
    assert len(questions) == 16  # four documents of two choices, of two tasks: nothing is asked twice
    assert_good_task_is_whole(done, alone)
    assert done.failures.keys() == {"broken"}
    assert reason in done.failures["broken"]
    assert "\n" not in done.failures["broken"]
    assert "broken" not in done.results["results"]
    with pytest.raises(TaskError, match="broken failed"):
        evaluate(str(tiny_model_folder), tasks=[task], limit=4, log_samples=True, output_path=str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "doc_to_target: 0\n    num_fewshot: 5",
            "has 4 few-shot examples for a document, but num_fewshot is 5; lower num_fewshot",
        ),
        ("doc_to_target: !function hooks.target_of_first", "KeyError: 'second' (hooks.py:5)"),
    ],
    ids=["shots", "a target"],
)
def test_a_task_that_fails_before_it_is_asked(
    line: str, reason: str,
    broken: Callable[..., str], alone: VariantResults, tiny_model_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    done = evaluate_both(tiny_model_folder, tmp_path / "out", broken("doc_to_target: 0", line))
    assert_good_task_is_whole(done, alone)
    assert done.failures.keys() == {"broken"}
    assert done.failures["broken"].endswith(reason)


@pytest.mark.parametrize(
    ("hook", "reason"), [("by_pair", "TypeError: keys must be"), ("half_a_character", "UnicodeEncodeError: ")]
)
def test_samples_that_cannot_be_written(
    hook: str, reason: str,
    broken: Callable[..., str], alone: VariantResults, tiny_model_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    task = broken(
        "doc_to_target: 0", f"doc_to_target: 0\n    process_results: !function hooks.{hook}",
        METRIC, METRIC.replace("mean", "!function hooks.one_half"),
    )  # fmt: skip
    done = evaluate_both(tiny_model_folder, tmp_path / "out", task)
    assert_good_task_is_whole(done, alone)
    assert done.failures["broken"].startswith(f"its samples could not be written: {reason}")
    assert done.results["results"]["broken"]["acc,none"] == 0.5  # the score is there
    assert not list((tmp_path / "out").rglob("samples_broken_*"))  # a file is whole or not there


@pytest.mark.parametrize(("module", "name"), [(provenance, "fingerprint"), (hosts, "add_generation_records")])
def test_what_we_add_to_results_fails(
    module: ModuleType, name: str,
    broken: Callable[..., str], alone: VariantResults, tiny_model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    original = getattr(module, name)

    def fails(about: Any, *arguments: Any) -> Any:
        if "broken" in (about if isinstance(about, dict) else about.task_name):
            raise KeyError("no such thing")
        return original(about, *arguments)

    monkeypatch.setattr(module, name, fails)
    done = evaluate_both(tiny_model_folder, tmp_path / "out", broken())
    assert_good_task_is_whole(done, alone)
    assert "no such thing" in done.failures["broken"]
    assert "acc,none" in done.results["results"]["broken"]


def test_a_rolling_task_with_samples(
    broken: Callable[..., str], alone: VariantResults, tiny_model_folder: Path, tmp_path: Path
) -> None:
    rolling = broken(
        "multiple_choice", "loglikelihood_rolling", 'doc_to_choice: ["no", "yes"]', "", '"{{text}}"', '""',
        "doc_to_target: 0", 'doc_to_target: "{{text}}"', METRIC, "metric_list: [{metric: byte_perplexity}]",
        task="rolling",
    )  # fmt: skip
    done = evaluate_both(tiny_model_folder, tmp_path / "out", rolling)
    assert_good_task_is_whole(done, alone)
    assert not done.failures
    assert done.results["results"]["rolling"]["byte_perplexity,none"] > 1
    (samples,) = (tmp_path / "out").rglob("samples_rolling_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4


def test_generated_answers_keep_their_records(
    broken: Callable[..., str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Tasks are scored three times over; each answer is generated, and recorded, once."""
    task = broken("doc_to_target: 0", "doc_to_target: 0\n    process_results: !function hooks.raise_on_second")
    settings: dict[str, Any] = {"limit": 4, "log_samples": True, "output_path": str(tmp_path / "out")}
    (alone,) = evaluate(str(tiny_model_folder), tasks=["sst2_generate"], **settings)
    (done,) = evaluate(str(tiny_model_folder), tasks=["sst2_generate", task], **settings)
    assert done.failures.keys() == {"broken"}
    for found, expected in zip(*(each.results["samples"]["sst2_generate"] for each in (done, alone)), strict=True):
        for name in ("resps", "finish_reason", "output_tokens"):
            assert found[name] == expected[name]
        assert "generations" not in found  # one answer each


def test_a_group_without_one_of_its_members(
    broken: Callable[..., str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    broken(task="fine")
    broken("doc_to_target: 0", "doc_to_target: 0\n    process_results: !function hooks.raise_on_second")
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [fine, broken]\naggregate_metric_list: [{metric: acc, aggregation: mean}]\n"
    )
    done = evaluate(str(tiny_model_folder), tasks=["both"], include_path=str(tmp_path), limit=4)[0]
    assert done.results["results"].keys() == {"fine"}
    assert done.failures["both"] == "no value for the group without broken"
    assert "division by zero" in done.failures["broken"]


def test_an_adapter_is_scored_by_its_own_answers(
    broken: Callable[..., str], make_adapter: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter = make_adapter("isolated")
    output = str(tmp_path / "out")
    settings: dict[str, Any] = {"adapters": [adapter], "limit": 4, "log_samples": True, "output_path": output}
    apart = evaluate(str(tiny_model_folder), tasks=[GOOD], **settings)
    task = broken("doc_to_target: 0", "doc_to_target: 0\n    process_results: !function hooks.raise_on_second")
    together = evaluate(str(tiny_model_folder), tasks=[GOOD, task], **settings)
    for one, other in zip(apart, together, strict=True):
        assert other.failures.keys() == {"broken"}
        assert answers(one) == pytest.approx(answers(other), abs=1e-5)
    assert answers(apart[0]) != pytest.approx(answers(apart[1]), abs=1e-3)


def answers(done: VariantResults) -> list[float]:
    return [float(response[0][0]) for sample in done.results["samples"][GOOD] for response in sample["resps"]]


# -- without a model ---------------------------------------------------------------------------------------------


class FakeTask:
    """What the isolation looks at of a task."""

    def __init__(self, name: str, *words: str) -> None:
        self.task_name = name
        self.requests = [request("loglikelihood", (word, " yes"), n, task=name) for n, word in enumerate(words)]
        self._instances: list[Instance] | None = None

    @property
    def instances(self) -> list[Instance] | None:
        return self._instances


class FakeModel:
    world_size = 1
    cache_hook = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args[0] for request in requests]
        return [(-1.0, True) for _ in requests]

    loglikelihood_rolling = generate_until = loglikelihood


def test_answers_of_an_earlier_run_are_not_served() -> None:
    """The tasks still hold the base's answers when the run of an adapter fails before anything is asked."""
    task, other = FakeTask("task", "a"), FakeTask("other")
    task._instances = [request("loglikelihood", ("a", " yes"), task="task", resps=["the base's answer"])]
    lm = FakeModel()

    def run(tasks: Any) -> dict[str, Any]:
        if other in tasks:
            raise ValueError("cannot be built")
        return {"results": lm.loglikelihood(task.requests)}

    with ResponseStore(None) as store, Answering(store, b"", lm):
        results, failures = evaluate_isolated(run, [task, other], lm, explain=lambda _: None)
    assert results == {"results": [(-1.0, True)]}
    assert failures.keys() == {"other"}
    assert lm.asked == ["a"]  # by the task alone; the last call takes what is in the store


@pytest.mark.parametrize(
    ("reasons", "raised", "message"),
    [
        ([ModelError("no template"), ModelError("no template")], ModelError, r"^no template$"),
        ([TaskError("x"), TaskError("y")], TaskError, "^every task failed: one: x; two: y$"),
        ([OSError("z"), OSError("z")], TaskError, r"^every task failed: OSError: z \(test_isolation.py:\d+\)$"),
    ],
)
def test_no_task_goes_well(reasons: list[Exception], raised: type[Exception], message: str) -> None:
    tasks = [FakeTask("one"), FakeTask("two")]

    def run(some: Any) -> dict[str, Any]:
        raise reasons[tasks.index(some[0])]

    with pytest.raises(raised, match=message):
        evaluate_isolated(run, tasks, FakeModel(), explain=lambda _: None)


def test_several_processes_stop_at_the_first_error() -> None:
    """The others wait inside lm-eval: a second call on this one alone would wait for them for ever."""
    calls: list[Any] = []
    lm = FakeModel()
    lm.world_size = 2

    def run(some: Any) -> dict[str, Any]:
        calls.append(some)
        raise ValueError("no")

    with pytest.raises(TaskError, match="one, two failed: ValueError: no"):
        evaluate_isolated(run, [FakeTask("one"), FakeTask("two")], lm, explain=lambda _: None)
    assert len(calls) == 1


@pytest.mark.parametrize("bad", [{(0, 1): 2}, "\ud83d", None], ids=["key", "surrogate", "circle"])
def test_a_task_whose_settings_json_cannot_hold(bad: Any, tmp_path: Path) -> None:
    if bad is None:
        bad = {}
        bad["itself"] = bad
    tracker = engine.EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.model_name_sanitized = "model"
    results = {"results": {"one": {"acc": 1}, "two": {"acc": 0}}, "configs": {"one": {"a": bad}, "two": {}}}
    failures = Failures()
    folder = write_results(tracker, {**results, "config": {"model": "x"}}, failures, log_samples=False)
    assert failures.keys() == {"one"}
    (file,) = folder.glob("results_*.json")
    written = json.loads(file.read_text())
    assert written["results"] == {"two": {"acc": 0}}
    assert results["results"].keys() == {"one", "two"}  # in memory nothing is lost
