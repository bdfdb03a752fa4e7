"""The other SST-2 tasks (calibrated, several prompts) in lm-eval's own evaluation."""

from __future__ import annotations

import math
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scripted import Scripted

from harness_ext.engine.hf_tree import TreeLM
from harness_ext.errors import TaskError
from harness_ext.protocol.render import PromptSettings, render, training_docs
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task, load_tasks

LIMIT = 30
KEPT = ("results", "samples")
CONTENT_FREE = ("Review: N/A\n", "Review: \n", "Review: [MASK]\n")
PROMPTS = (
    "sst2_choice",
    "sst2_prompt_question",
    "sst2_prompt_cloze",
    "sst2_prompt_labelled",
    "sst2_prompt_dialogue",
    "sst2_prompt_verbalised",
)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


def evaluated(manager: TaskManager, model: Any, *tasks: str, **settings: Any) -> dict[str, Any]:
    done = lm_eval.simple_evaluate(
        model, tasks=list(tasks), task_manager=manager, limit=LIMIT, bootstrap_iters=0, log_samples=True, **settings
    )
    # lm-eval 0.5 names a member of a group "group::task"
    return {part: {name.rpartition("::")[2]: each for name, each in done[part].items()} for part in KEPT}


# -- calibration -------------------------------------------------------------------------------------------------


class Biased(Scripted):
    """Prefers the correct answer by two nats, and "positive" by three."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(self._score(request), False) for request in requests]

    def _score(self, request: Instance) -> float:
        context, continuation = request.args
        positive = continuation.strip() == "positive"
        knows = not any(free in context for free in CONTENT_FREE) and positive == bool(request.doc["label"])
        return 3.0 * positive + 2.0 * knows


def test_calibration_takes_a_bias_away(manager: TaskManager) -> None:
    done = evaluated(manager, Biased(lambda doc: ""), "sst2_choice_calibrated", "sst2_choice")
    calibrated, plain = (done["results"][task] for task in ("sst2_choice_calibrated", "sst2_choice"))
    assert calibrated["acc,none"] == 1.0
    assert calibrated["top_class_share,none"] == pytest.approx(calibrated["majority_baseline,none"])
    assert calibrated["acc_uncalibrated,none"] == plain["acc,none"] < 1.0
    assert plain["top_class_share,none"] == 1.0
    assert calibrated["content_free_share,none"] == pytest.approx(1 / (1 + math.exp(-3)))
    # Calibration leaves only the preference for the correct answer: two nats.
    sample = done["samples"]["sst2_choice_calibrated"][0]
    assert sample["auroc"][1] == pytest.approx(2.0 if sample["doc"]["label"] else -2.0)


@pytest.mark.parametrize("settings", [{}, {"num_fewshot": 2}, {"system_instruction": "Be brief."}])
def test_prompts_without_content_differ_in_the_review_alone(manager: TaskManager, settings: dict[str, Any]) -> None:
    done = evaluated(manager, Scripted(lambda doc: "positive"), "sst2_choice_calibrated", **settings)
    for sample in done["samples"]["sst2_choice_calibrated"]:
        contexts = [context for context, _ in sample["arguments"]]
        assert [label for _, label in sample["arguments"]] == [" negative", " positive"] * 4
        own = f"Review: {sample['doc']['sentence'].strip()}\nSentiment:"
        assert contexts[0] == contexts[1]
        assert contexts[0].endswith(own)
        for number, free in enumerate(CONTENT_FREE, start=1):
            assert (
                contexts[2 * number] == contexts[2 * number + 1] == f"{contexts[0].removesuffix(own)}{free}Sentiment:"
            )
    contexts = {context for sample in done["samples"]["sst2_choice_calibrated"] for context, _ in sample["arguments"]}
    if "num_fewshot" not in settings:
        assert len(contexts) == LIMIT + 3  # the same for all documents


def test_calibration_in_the_chat_template(manager: TaskManager, tiny_lm: HFLM) -> None:
    done = evaluated(manager, tiny_lm, "sst2_choice_calibrated", apply_chat_template=True)
    first, *_, last = done["samples"]["sst2_choice_calibrated"][0]["arguments"]
    assert "<|assistant|>" in last[0]
    assert "[MASK]" in last[0]
    assert "[MASK]" not in first[0]


def test_hf_and_hf_tree_agree(manager: TaskManager, tiny_lm: HFLM, tiny_model_folder: Any) -> None:
    tree = TreeLM(pretrained=str(tiny_model_folder), device="cpu", dtype="float32")
    tasks = ("sst2_choice_calibrated", "sst2_prompts_spread", "sst2_choice_5shot")
    plain, shared = (evaluated(manager, lm, *tasks)["results"] for lm in (tiny_lm, tree))
    for task in tasks:
        for name, value in plain[task].items():
            if isinstance(value, float):
                assert shared[task][name] == pytest.approx(value, abs=1e-4, nan_ok=True), (task, name)


# -- several wordings --------------------------------------------------------------------------------------------


class OnePrompt(Scripted):
    """Correct if the label words are good and bad, else always the first label."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(self._score(*request.args, request.doc), False) for request in requests]

    def _score(self, context: str, continuation: str, doc: dict[str, Any]) -> float:
        word = continuation.strip()
        if "bad or good" in context:
            return float(word == ("bad", "good")[doc["label"]])
        return float(word == "negative")


def test_the_group_and_its_spread(manager: TaskManager) -> None:
    done = evaluated(manager, OnePrompt(lambda doc: ""), "sst2_prompts")
    accuracies = [done["results"][task]["acc,none"] for task in PROMPTS]
    negative = 1 - sum(sample["doc"]["label"] for sample in done["samples"]["sst2_choice"]) / LIMIT
    assert accuracies == pytest.approx([negative] * 5 + [1.0])
    spread = {name.removesuffix(",none"): value for name, value in done["results"]["sst2_prompts_spread"].items()}
    assert spread["acc_min"] == spread["acc_median"] == pytest.approx(negative)
    assert spread["acc_max"] == 1.0
    assert spread["acc_mean"] == pytest.approx(sum(accuracies) / 6)
    assert spread["consistency"] == pytest.approx(negative)  # all prompts agree if "negative" is correct


def test_the_spread_asks_what_the_group_asks(manager: TaskManager) -> None:
    done = evaluated(manager, Scripted(lambda doc: ""), "sst2_prompts")
    for number, spread in enumerate(done["samples"]["sst2_prompts_spread"]):
        asked = [tuple(request) for task in PROMPTS for request in done["samples"][task][number]["arguments"]]
        assert [tuple(request) for request in spread["arguments"]] == asked
    # No two prompts have the same words around the review.
    sample = done["samples"]["sst2_prompts_spread"][0]
    frames = {context.replace(sample["doc"]["sentence"].strip(), "") for context, _ in sample["arguments"]}
    assert len(frames) == len(PROMPTS)


def test_the_spread_takes_no_examples(manager: TaskManager) -> None:
    task = load_task("sst2_prompts_spread")
    task.set_config("num_fewshot", 2)
    with pytest.raises(TaskError, match="compares prompts without examples"):
        task.construct_requests(task.eval_docs[0], "", metadata=("x", 0, 1))


# -- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PROMPTS, "sst2_choice_5shot", "sst2_choice_calibrated", "sst2_prompts_spread"])
def test_each_can_be_trained_on(name: str, tiny_lm: HFLM) -> None:
    task = load_task(name)
    docs = training_docs(task).select(range(3))
    for doc, rendered in zip(docs, render(task, docs, PromptSettings(), tiny_lm), strict=True):
        assert rendered.continuation == f" {doc['choices'][doc['label']]}"
        assert rendered.context.rpartition("\n\n")[2].count(doc["sentence"].strip()) == 1


def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("sst2_choice_calibrated")
    del task.config.metadata["content_free"]
    with pytest.raises(TaskError, match=r"needs 'content_free'; add it under metadata: in its YAML"):
        task.construct_requests(task.eval_docs[0], "", metadata=("x", 0, 1))


def test_a_chat_template_that_rewrites_the_question() -> None:
    task = load_task("sst2_choice_calibrated")
    with pytest.raises(TaskError, match="the chat template changes the question"):
        task.construct_requests(task.eval_docs[0], "SOMETHING ELSE", metadata=("x", 0, 1))


def test_the_group_is_one_name() -> None:
    _, [group] = load_tasks(["sst2_prompts"])
    assert [task.task_name for task in group.get_all_tasks()] == [*PROMPTS, "sst2_prompts_spread"]
