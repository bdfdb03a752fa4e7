"""Our tasks in lm-eval's own `simple_evaluate`, answered by scripted models."""

from __future__ import annotations

import copy
import math
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager
from scripted import Scripted, run

from harness_ext.metrics.overlap import why_no_meteor
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task, load_tasks

TASKS = ("sst2_choice", "sst2_generate", "squad_v2_generate")
MEANS = {
    "sst2_choice": ("acc", "brier", "log_loss"),
    "sst2_generate": ("acc", "parsed_rate", "acc_parsed"),
    "squad_v2_generate": (
        "exact",
        "f1",
        "HasAns_exact",
        "HasAns_f1",
        "NoAns_exact",
        "NoAns_f1",
        "abstain_baseline",
        "empty_rate",
        "mapped_rate",
        "rouge1",
        "rouge2",
        "rougeL",
        "meteor",
    ),
}
# METEOR is missing without WordNet.
MISSING = set() if why_no_meteor() is None else {"meteor"}


def gold(doc: dict[str, Any]) -> str:
    if "choices" in doc:
        return f" {doc['choices'][doc['label']]}"
    return f" {(doc['answers']['text'] or ['unanswerable'])[-1]}"


def wrong(doc: dict[str, Any]) -> str:
    return f" {doc['choices'][1 - doc['label']]}" if "choices" in doc else " zebra crossing"


def abstaining(doc: dict[str, Any]) -> str:
    return "unanswerable"


def mumbling(doc: dict[str, Any]) -> str:
    return " positive" if len(doc["sentence"]) % 2 else " well,"


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


def test_gold_answers(manager: TaskManager) -> None:
    scores = run(manager, gold, *TASKS)
    for name in ("acc", "macro_f1", "mcc", "auroc"):
        assert scores["sst2_choice"][name] == 1.0
    for name in ("brier", "log_loss", "ece"):
        assert scores["sst2_choice"][name] == pytest.approx(0.0, abs=1e-9)
    for name in ("acc", "parsed_rate", "acc_parsed", "macro_f1"):
        assert scores["sst2_generate"][name] == 1.0
    squad = scores["squad_v2_generate"]
    for name in (
        "exact",
        "f1",
        "HasAns_exact",
        "HasAns_f1",
        "NoAns_exact",
        "NoAns_f1",
        "abstain_precision",
        "abstain_recall",
        "abstain_f1",
    ):
        assert squad[name] == 100.0
    assert squad["mapped_rate"] == squad["abstain_baseline"]
    assert squad["empty_rate"] == 0.0
    for task, means in MEANS.items():
        for name in {*means} - MISSING:
            assert isinstance(scores[task][f"{name}_stderr"], float), (task, name)


def test_wrong_answers(manager: TaskManager) -> None:
    scores = run(manager, wrong, *TASKS)
    assert (scores["sst2_choice"]["acc"], scores["sst2_choice"]["mcc"], scores["sst2_choice"]["auroc"]) == (
        0.0,
        -1.0,
        0.0,
    )
    assert (scores["sst2_generate"]["acc"], scores["sst2_generate"]["parsed_rate"]) == (0.0, 1.0)
    assert (scores["squad_v2_generate"]["exact"], scores["squad_v2_generate"]["f1"]) == (0.0, 0.0)
    assert math.isnan(scores["squad_v2_generate"]["abstain_precision"])


def test_always_abstaining(manager: TaskManager) -> None:
    scores = run(manager, abstaining, "squad_v2_generate", "sst2_generate")
    squad = scores["squad_v2_generate"]
    assert squad["exact"] == squad["f1"] == squad["abstain_baseline"]
    assert 0 < squad["abstain_baseline"] < 100
    assert (squad["HasAns_exact"], squad["NoAns_exact"]) == (0.0, 100.0)
    # No output has a label, so acc_parsed is missing rather than 0.
    assert scores["sst2_generate"]["parsed_rate"] == scores["sst2_generate"]["acc"] == 0.0
    assert "acc_parsed" not in scores["sst2_generate"]


def test_some_outputs_do_not_parse(manager: TaskManager) -> None:
    label = run(manager, mumbling, "sst2_generate")["sst2_generate"]
    assert 0 < label["parsed_rate"] < 1
    assert label["acc"] == pytest.approx(label["parsed_rate"] * label["acc_parsed"])
    assert label["acc_stderr"] > 0
    assert label["top_class_share"] == pytest.approx(label["parsed_rate"])


@pytest.mark.parametrize(
    "settings", [{"num_fewshot": 2}, {"system_instruction": "Be brief."}], ids=lambda s: next(iter(s))
)
def test_flags_of_the_prompt(manager: TaskManager, settings: dict[str, Any]) -> None:
    scores = run(manager, gold, *TASKS, limit=5, **settings)
    assert scores["sst2_choice"]["acc"] == scores["sst2_generate"]["acc"] == 1.0
    assert scores["squad_v2_generate"]["exact"] == 100.0


def test_samples_carry_each_metric(manager: TaskManager) -> None:
    done = lm_eval.simple_evaluate(
        Scripted(gold), tasks=list(TASKS), task_manager=manager, limit=8, log_samples=True, bootstrap_iters=0
    )
    for task in TASKS:
        metrics = {entry["metric"] for entry in done["configs"][task]["metric_list"]}
        logged = {name for sample in done["samples"][task] for name in sample["metrics"]}
        assert logged == metrics - MISSING
        assert all(set(sample["metrics"]) <= set(sample) for sample in done["samples"][task])


@pytest.mark.slow
def test_beside_the_tasks_of_lm_eval() -> None:
    """With lm-eval's own ten thousand tasks indexed, as on its command line, no task name is used twice."""
    manager = TaskManager(include_path=str(tasks_path()))
    built_in = TaskManager()
    assert not {*TASKS} & {*built_in.all_tasks}
    assert run(manager, gold, "sst2_choice", limit=5)["sst2_choice"]["acc"] == 1.0


# -- the YAMLs themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_measures(name: str) -> None:
    config = load_task(name).config
    entries = {entry["metric"]: entry for entry in config.metric_list}
    assert config.metadata["primary_metric"] in entries
    assert config.metadata["metric_scale"] in (1, 100)
    assert float(config.metadata["version"]) >= 1
    assert all(isinstance(entry["higher_is_better"], bool) for entry in entries.values())
    assert (config.training_split, config.fewshot_split, config.validation_split) == ("train", "train", "validation")
    assert {name for name, entry in entries.items() if entry["aggregation"] == "mean"} == set(MEANS[name])
    if config.output_type == "generate_until":
        assert config.generation_kwargs["do_sample"] is False
        assert config.generation_kwargs["max_gen_toks"] <= 32
        assert config.generation_kwargs["until"] == ["\n"]


def test_prompts() -> None:
    choice, generate, squad = (load_task(name) for name in TASKS)
    doc = {"sentence": "a fine film \n", "label": 1, "choices": ["negative", "positive"]}
    expected = "Decide whether the review is negative or positive.\n\nReview: a fine film\nSentiment:"
    assert choice.fewshot_context(doc, 0) == generate.fewshot_context(doc, 0) == expected
    assert (choice.doc_to_choice(doc), choice.doc_to_target(doc)) == (["negative", "positive"], 1)
    assert generate.doc_to_target(doc) == "positive"
    passage = {
        "context": 'P\'s "text".',
        "question": " Who? ",
        "answers": {"text": ['Ann\'s "cat"', "cat"], "answer_start": [0, 1]},
    }
    context = squad.fewshot_context(passage, 0)
    assert context.endswith('Passage: P\'s "text".\nQuestion: Who?\nAnswer:')
    assert squad.doc_to_target(passage) == ['Ann\'s "cat"', "cat"]
    assert squad.doc_to_target({**passage, "answers": {"text": [], "answer_start": []}}) == ["unanswerable"]
    # Shared text comes first: two questions on one passage differ only after the passage.
    other = squad.fewshot_context({**passage, "question": "What?"}, 0)
    assert context[: context.index("Who?")] == other[: other.index("What?")]


def test_yaml_files_name_their_task() -> None:
    files = [file for file in tasks_path().rglob("*.yaml") if not file.name.startswith("_")]

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    for file in files:
        config = yaml.load(file.read_text(), Loader)
        assert config.get("group", config.get("task")) == file.stem
    assert {file.stem for file in files} >= {*TASKS}


def test_a_task_object_can_be_evaluated_twice() -> None:
    manager, tasks = load_tasks(["sst2_generate"])
    before = copy.deepcopy(tasks[0].config.generation_kwargs)
    for answer, acc in ((gold, 1.0), (wrong, 0.0), (gold, 1.0)):
        done = lm_eval.simple_evaluate(Scripted(answer), tasks=tasks, task_manager=manager, limit=5, bootstrap_iters=0)
        assert done["results"]["sst2_generate"]["acc,none"] == acc
    assert tasks[0].config.generation_kwargs == before
