"""Tasks that are only YAML on existing hooks: each renders, gives gold answers full marks, and can be trained on.

The documents have the columns that the datasets have on the Hub; the sentences are made up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scripted import run

from harness_ext.protocol.documents import CATALOGUE, DATA_VARIABLE
from harness_ext.protocol.render import PromptSettings, render, training_docs
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task


def classes(names: list[str]) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=names)


def text(**columns: Any) -> datasets.Features:
    return datasets.Features({name: kind or datasets.Value("string") for name, kind in columns.items()})


# Features as the Hub declares them; the splits a task reads.
SHAPES: dict[str, tuple[datasets.Features, tuple[str, ...]]] = {
    "ag_news": (text(text=None, label=classes(["World", "Sports", "Business", "Sci/Tech"])), ("train", "test")),
    "imdb": (text(text=None, label=classes(["neg", "pos"])), ("train", "test")),
    "boolq": (
        text(question=None, passage=None, idx=datasets.Value("int32"), label=classes(["False", "True"])),
        ("train", "validation"),
    ),
    "rte": (
        text(
            sentence1=None,
            sentence2=None,
            label=classes(["entailment", "not_entailment"]),
            idx=datasets.Value("int32"),
        ),
        ("train", "validation"),
    ),
    "mnli": (
        text(
            premise=None,
            hypothesis=None,
            label=classes(["entailment", "neutral", "contradiction"]),
            idx=datasets.Value("int32"),
        ),
        ("train", "validation_matched"),
    ),
}
PROMPTS = {
    "ag_news_choice": "Decide whether the news item is about world, sports, business or technology.\n\n"
    "News: text 1\nTopic:",
    "imdb_choice": "Decide whether the review is negative or positive.\n\nReview: text 1\nSentiment:",
    "boolq_choice": "Answer the question about the passage with yes or no.\n\n"
    "Passage: passage 1\nQuestion: question 1?\nAnswer:",
    "rte_choice": "Decide whether the text implies the claim: yes or no.\n\n"
    "Text: sentence1 1\nClaim: sentence2 1\nAnswer:",
    "mnli_choice": "If the text is true, is the claim true, too: yes, maybe or no?\n\n"
    "Text: premise 1\nClaim: hypothesis 1\nAnswer:",
}
TASKS = (*PROMPTS, "triviaqa_generate", "tickets_choice")


def rows(features: datasets.Features, split: str) -> list[dict[str, Any]]:
    """Twelve documents with alternating labels; each text contains its column's name and its number."""
    kinds = {"string": lambda name, n: f"{name} {n} ", "int32": lambda name, n: n}
    return [
        {
            name: n % kind.num_classes if isinstance(kind, datasets.ClassLabel) else kinds[kind.dtype](name, n)
            for name, kind in features.items()
        }
        for n in range(12)
    ]


TRIVIA = [
    {
        "question": f"Who was number {n}? ",
        "question_id": f"tc_{n}",
        "answer": {"value": f"The Person {n}", "aliases": [f"Person {n}", f"P. {n}"], "normalized_aliases": [f"p {n}"]},
    }
    for n in range(12)
]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, (features, splits) in SHAPES.items():
        (root / name).mkdir()
        for split in splits:
            made = datasets.Dataset.from_list(rows(features, split), features=features)
            made.to_parquet(root / name / f"{split}.parquet")
    (root / "trivia_qa").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_list(TRIVIA).to_parquet(root / "trivia_qa" / f"{split}.parquet")
    return root


@pytest.fixture(autouse=True)
def _these_documents(_bundled_sample: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(folder))


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


def gold(doc: dict[str, Any]) -> str:
    return f" {doc['choices'][doc['label']]}" if "choices" in doc else f" {doc['answer']['aliases'][-1]}"


def wrong(doc: dict[str, Any]) -> str:
    return f" {doc['choices'][doc['label'] - 1]}" if "choices" in doc else " zebra crossing"


@pytest.mark.parametrize("task", TASKS)
def test_gold_is_100_and_wrong_is_0(task: str, manager: TaskManager) -> None:
    primary = load_task(task).config.metadata["primary_metric"]
    full = load_task(task).config.metadata["metric_scale"]
    assert run(manager, gold, task)[task][primary] == full
    assert run(manager, wrong, task)[task][primary] == 0.0
    assert run(manager, gold, task, num_fewshot=3)[task][primary] == full


@pytest.mark.parametrize("task", TASKS)
def test_trains(task: str, tiny_lm: HFLM) -> None:
    loaded = load_task(task)
    docs = training_docs(loaded)
    for doc, rendered in zip(docs, render(loaded, docs, PromptSettings(), tiny_lm), strict=True):
        assert rendered.continuation == (gold(doc) if "choices" in doc else f" {doc['answer']['value']}")
        assert not rendered.context[-1].isspace()


@pytest.mark.parametrize(("task", "prompt"), PROMPTS.items())
def test_prompts(task: str, prompt: str) -> None:
    loaded = load_task(task)
    docs = {loaded.fewshot_context(doc, 0) for doc in loaded.eval_docs}
    assert prompt in docs


def test_metrics_of_two_classes_and_of_more(manager: TaskManager) -> None:
    assert "auroc" in run(manager, gold, "boolq_choice")["boolq_choice"]
    assert "auroc" not in run(manager, gold, "ag_news_choice")["ag_news_choice"]


def test_any_alias_counts(manager: TaskManager) -> None:
    for answer in ("the person {}", "P {}", "Person {}."):
        scores = run(manager, lambda doc, a=answer: a.format(doc["question"].split()[-1][:-1]), "triviaqa_generate")
        assert scores["triviaqa_generate"]["exact"] == 100.0


def test_a_limit_takes_both_classes_of_a_sorted_split() -> None:
    task = load_task("imdb_choice")
    assert list(task.eval_docs["text"]) != list(task.dataset["test"]["text"])


def test_the_data_of_tickets_lies_beside_its_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DATA_VARIABLE)
    task = load_task("tickets_choice")
    assert (len(task.training_docs()), len(task.eval_docs)) == (40, 20)
    train, evaluated = (set(docs["message"]) for docs in (task.training_docs(), task.eval_docs))
    assert not train & evaluated
    assert sorted(task.eval_docs["label"]) == sorted([0, 1, 2, 3] * 5)


def test_the_catalogue_knows_them() -> None:
    assert {*SHAPES, "trivia_qa"} <= set(CATALOGUE)


def test_only_yaml(manager: TaskManager) -> None:
    """These tasks have no code of their own."""
    assert not list(tasks_path().rglob("*.py"))
    assert set(TASKS) <= set(manager.all_tasks)
