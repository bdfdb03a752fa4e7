"""The question-answering tasks: gold, wrong and abstaining answers through lm-eval's own evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scripted import Scripted, run

from harness_ext import hooks
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.metrics import overlap
from harness_ext.models.card import read_card
from harness_ext.protocol.fingerprint import PROMPT_FIELDS, differing_fields, fingerprint
from harness_ext.protocol.render import PromptSettings, render, training_docs
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task

ROOT = Path(__file__).parents[1]
GENERATED = ("squad_v1_generate", "squad_v2_answerable", "squad_v2_generate", "squad_v2_1shot", "squad_v2_abstain_prob")
OVERLAPS = ("rouge1", "rougeL", "bleu_1")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


def gold(doc: dict[str, Any]) -> str:
    return f" {(doc['answers']['text'] or ['unanswerable'])[0]}"


def nonsense(doc: dict[str, Any]) -> str:
    return " zebra crossing"


@pytest.mark.parametrize("task", GENERATED)
def test_gold_and_wrong_answers(task: str, manager: TaskManager) -> None:
    right, wrong = (run(manager, answer, task)[task] for answer in (gold, nonsense))
    assert right["exact"] == right["f1"] == 100.0
    assert wrong["exact"] == wrong["f1"] == 0.0
    for name in OVERLAPS if task != "squad_v2_abstain_prob" else ():
        assert right[name] == pytest.approx(100.0)
        assert wrong[name] == 0.0


def test_overlaps_are_of_answerable_questions_only(manager: TaskManager) -> None:
    done = lm_eval.simple_evaluate(
        Scripted(gold), tasks=["squad_v2_generate"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    for sample in json.loads(json.dumps(done["samples"]["squad_v2_generate"])):
        answerable = bool(sample["doc"]["answers"]["text"])
        assert ("bleu" in sample) == ("rouge1" in sample) == answerable
        if answerable:  # normalised (prediction, references), needed for bootstrapping
            prediction, references = sample["bleu"]
            assert prediction in references


def test_abstention_words_leave_nothing_to_overlap() -> None:
    doc = {"answers": {"text": ["unanswerable riddle"]}}
    scores = hooks.score_squad_v2(doc, ["Unanswerable."])
    assert scores["bleu"] == ("", ["unanswerable riddle"])
    assert scores["rouge1"] == 0.0


def test_meteor_without_wordnet_is_missing_and_says_so(
    manager: TaskManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overlap, "why_no_meteor", lambda: "nltk finds no WordNet; run `make wordnet`")
    scores = run(manager, gold, "squad_v1_generate")["squad_v1_generate"]
    assert "meteor" not in scores
    assert scores["exact"] == 100.0
    assert [r.message for r in caplog.records if "METEOR is missing" in r.message] == [
        "METEOR is missing from these results: nltk finds no WordNet; run `make wordnet`"
    ]


def test_one_shot(manager: TaskManager) -> None:
    task = load_task("squad_v2_1shot")
    assert task.config.num_fewshot == 1
    assert task.config.generation_kwargs["max_gen_toks"] == 32
    context = task.fewshot_context(task.eval_docs[0], 1)
    assert context.count("Passage: ") == 2


# -- abstaining by probability -----------------------------------------------------------------------------------


class Doubtful(Scripted):
    """Always answers with the first gold answer or nonsense; the abstention word is more likely if there is none."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        assert all(request.args[1] == " unanswerable" for request in requests)
        return [(-4.0 if request.doc["answers"]["text"] else -2.0, False) for request in requests]


def answered(doc: dict[str, Any]) -> str:
    return (doc["answers"]["text"] or ["zebra crossing"])[0]


def threshold_run(task: str, **metadata: float) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata)
    done = lm_eval.simple_evaluate(Doubtful(answered), tasks=[task], task_manager=manager, bootstrap_iters=0)
    return {name.removesuffix(",none"): value for name, value in done["results"][task].items()}


def test_a_threshold_is_tuned_on_the_training_split_and_set_by_metadata() -> None:
    untuned = threshold_run("squad_v2_abstain_prob")
    assert untuned["exact"] == pytest.approx(100.0 - untuned["abstain_baseline"])
    assert untuned["threshold_rate"] == 0.0
    tuned = threshold_run("squad_v2_abstain_tune")
    assert tuned["best_threshold"] == -3.0  # the midpoint
    assert tuned["exact_tuned"] == 100.0
    assert load_task("squad_v2_abstain_tune").config.validation_split == "train"
    with_it = threshold_run("squad_v2_abstain_prob", abstain_threshold=-3.0)
    assert with_it["exact"] == with_it["abstain_f1"] == 100.0
    assert with_it["threshold_rate"] == with_it["abstain_baseline"]
    assert with_it["abstain_auroc"] == untuned["abstain_auroc"] == 1.0


def test_a_generated_abstention_stays_one() -> None:
    doc = {"answers": {"text": []}}
    scores = hooks.score_squad_v2_threshold(doc, ["unanswerable", (-9.0, False)], threshold=-1.0)
    assert (scores["exact"], scores["threshold_rate"], scores["mapped_rate"]) == (100.0, 0.0, 100.0)


def test_both_requests_have_one_prompt_and_hf_tree_takes_them(
    manager: TaskManager, tiny_lm: HFLM, tiny_model_folder: Path
) -> None:
    tree = TreeLM(pretrained=str(tiny_model_folder), device="cpu", dtype="float32")
    logged = []
    for lm in (tiny_lm, tree):
        done = lm_eval.simple_evaluate(
            lm, tasks=["squad_v2_abstain_prob"], task_manager=manager, limit=4, bootstrap_iters=0, log_samples=True
        )
        logged.append(done["samples"]["squad_v2_abstain_prob"])
    for plain, shared in zip(*logged, strict=True):
        (prompt, _), (same, word) = plain["arguments"]
        assert prompt == same
        assert word == " unanswerable"
        assert plain["filtered_resps"][0] == shared["filtered_resps"][0]
        assert plain["abstain_auroc"][1] == pytest.approx(shared["abstain_auroc"][1], abs=1e-4)


# -- bits per byte -----------------------------------------------------------------------------------------------


def test_gold_bits(manager: TaskManager) -> None:
    scores = run(manager, gold, "squad_v2_gold_bits")["squad_v2_gold_bits"]
    assert scores["bits_per_byte"] == scores["corpus_bits_per_byte"] == 0.0
    assert scores["greedy_rate"] == 100.0
    worse = run(manager, nonsense, "squad_v2_gold_bits")["squad_v2_gold_bits"]
    assert worse["NoAns_bits_per_byte"] == pytest.approx(50 / math.log(2) / len("unanswerable"))


# By hand: ln p = -ln 2 · bytes is one bit per byte; é has two bytes.
@pytest.mark.parametrize(
    ("answers", "size", "group"),
    [(["cat", "dogs"], 3, "HasAns"), (["café"], 5, "HasAns"), ([], 12, "NoAns")],
)
def test_score_gold_bits(answers: list[str], size: int, group: str) -> None:
    scores = hooks.score_gold_bits({"answers": {"text": answers}}, [(-math.log(2) * size, False)])
    assert scores["bits_per_byte"] == scores[f"{group}_bits_per_byte"] == pytest.approx(1.0)
    assert scores["corpus_bits_per_byte"] == (pytest.approx(size), size)
    assert hooks.corpus_bits_per_byte([(6.0, 3), (5.0, 8)]) == 1.0


# -- training and adapters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GENERATED, "squad_v2_gold_bits"])
def test_each_can_be_trained_on(name: str, tiny_lm: HFLM) -> None:
    task = load_task(name)
    docs = training_docs(task).select(range(4))
    for doc, rendered in zip(docs, render(task, docs, PromptSettings(), tiny_lm), strict=True):
        assert rendered.continuation == gold(doc)


@pytest.mark.parametrize(
    ("adapter", "task"),
    [
        ("sst2", "sst2_choice"),
        ("sst2", "sst2_generate"),
        ("sst2", "sst2_choice_calibrated"),
        ("squad_v2", "squad_v2_generate"),
        ("squad_v2", "squad_v2_abstain_prob"),
        ("squad_v2", "squad_v2_gold_bits"),
    ],
)
def test_shipped_adapters_are_asked_as_they_were_trained(adapter: str, task: str) -> None:
    card = read_card(str(ROOT / "adapters" / adapter))
    assert card is not None
    current = fingerprint(load_task(task), PromptSettings())
    differing = differing_fields(card.fingerprint_fields, current.fields, PROMPT_FIELDS)
    assert set(differing) <= {"dataset"}  # here the documents are the bundled sample
