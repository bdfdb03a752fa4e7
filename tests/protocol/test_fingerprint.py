"""The fingerprint changes with everything that shapes a prompt or a score, and with nothing else."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from harness_ext import hooks
from harness_ext.protocol.documents import DATA_VARIABLE
from harness_ext.protocol.fingerprint import (
    PROMPT_FIELDS,
    SCORING_FIELDS,
    Fingerprint,
    differing_fields,
    fingerprint,
)
from harness_ext.protocol.lm_eval_api import build_task
from harness_ext.protocol.render import PromptSettings
from harness_ext.protocol.tasks import load_task

ROWS = '{"sentence": "a fine film", "label": 1}\n{"sentence": "a dull film", "label": 0}\n'
CONFIG: dict[str, Any] = {
    "task": "made",
    "custom_dataset": hooks.load_documents,
    "dataset_kwargs": {"dataset": "sst2", "choices": ["negative", "positive"]},
    "training_split": "train",
    "validation_split": "validation",
    "fewshot_split": "train",
    "output_type": "generate_until",
    "doc_to_text": "{{sentence}}",
    "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "process_results": hooks.score_label,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1},
}
METRICS = [{"metric": "exact_match", "ignore_case": False}]


def unchanged(docs: Any) -> Any:
    return docs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two documents in each split of two data sets."""
    for name in ("sst2", "other"):
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text(ROWS)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    return tmp_path


def made(config: Mapping[str, Any] = CONFIG, **more: Any) -> ConfigurableTask:
    # lm-eval keeps and modifies the dictionaries it gets
    fresh = {key: (dict(value) if isinstance(value, dict) else value) for key, value in {**config, **more}.items()}
    return build_task(fresh)


def differing(one: Fingerprint, other: Fingerprint) -> list[str]:
    changed = differing_fields(one.fields, other.fields, (*PROMPT_FIELDS, *SCORING_FIELDS))
    assert (one.digest == other.digest) == (not changed)
    return changed


TASK_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "description": ({"description": "Read.\n"}, "description"),
    "template": ({"doc_to_text": "{{sentence}}."}, "doc_to_text"),
    "template as a function": ({"doc_to_text": lambda doc: doc["sentence"]}, "doc_to_text"),
    "delimiter": ({"target_delimiter": "\n"}, "target_delimiter"),
    "prefix": ({"gen_prefix": "It is"}, "gen_prefix"),
    "shots": ({"num_fewshot": 1}, "fewshot"),
    "process_docs": ({"process_docs": unchanged}, "process_docs"),
    "data set": ({"dataset_kwargs": {**CONFIG["dataset_kwargs"], "dataset": "other"}}, "dataset"),
    "label words": ({"dataset_kwargs": {**CONFIG["dataset_kwargs"], "choices": ["bad", "good"]}}, "dataset"),
    "target": ({"doc_to_target": "{{choices[1 - label]}}"}, "doc_to_target"),
    "choices": ({"doc_to_choice": ["negative", "positive"]}, "doc_to_choice"),
    "stop": ({"generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8}}, "generation_kwargs"),
    "new tokens": ({"generation_kwargs": {"until": ["\n"], "max_gen_toks": 9}}, "generation_kwargs"),
    "filters": ({"filter_list": [{"name": "f", "filter": [{"function": "take_first"}]}]}, "filters"),
    "scoring hook": ({"process_results": hooks.score_choice}, "process_results"),
    "metrics without a hook": ({"process_results": None, "metric_list": METRICS}, "process_results"),
    "evaluated split": ({"test_split": "test"}, "evaluation_split"),
    "version": ({"metadata": {"version": 2}}, "version"),
}


@pytest.mark.parametrize(("change", "field"), TASK_CHANGES.values(), ids=TASK_CHANGES)
def test_a_change_of_the_task_shows(change: dict[str, Any], field: str, folder: Path) -> None:
    assert differing(fingerprint(made(), PromptSettings()), fingerprint(made(**change), PromptSettings())) == [field]


def test_output_type_shows(folder: Path) -> None:
    scored = {"output_type": "loglikelihood", "generation_kwargs": None}
    changed = differing(fingerprint(made(), PromptSettings()), fingerprint(made(**scored), PromptSettings()))
    assert changed == ["output_type", "generation_kwargs"]


def test_options_of_a_metric_show(folder: Path) -> None:
    prints = [
        fingerprint(
            made(process_results=None, metric_list=[{"metric": "exact_match", "ignore_case": value}]), PromptSettings()
        )
        for value in (True, False)
    ]
    assert differing(*prints) == ["process_results"]


SETTING_CHANGES: dict[str, tuple[PromptSettings, PromptSettings, str]] = {
    "shots": (PromptSettings(), PromptSettings(num_fewshot=2), "fewshot"),
    "few-shot seed": (PromptSettings(num_fewshot=2), PromptSettings(num_fewshot=2, fewshot_seed=1), "fewshot"),
    "system instruction": (PromptSettings(), PromptSettings(system_instruction="Be brief."), "system_instruction"),
    "chat template": (PromptSettings(), PromptSettings(apply_chat_template=True), "chat_template"),
    "one turn": (
        PromptSettings(num_fewshot=2, apply_chat_template=True),
        PromptSettings(num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=False),
        "fewshot",
    ),
}


@pytest.mark.parametrize(("before", "after", "field"), SETTING_CHANGES.values(), ids=SETTING_CHANGES)
def test_a_change_of_the_settings_shows(
    before: PromptSettings, after: PromptSettings, field: str, folder: Path, tiny_lm: HFLM
) -> None:
    assert differing(fingerprint(made(), before, tiny_lm), fingerprint(made(), after, tiny_lm)) == [field]


def test_another_chat_template_shows(folder: Path, tiny_lm: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PromptSettings(apply_chat_template=True)
    before = fingerprint(made(), settings, tiny_lm)
    monkeypatch.setattr(tiny_lm.tokenizer, "chat_template", tiny_lm.tokenizer.chat_template + " ")
    assert differing(before, fingerprint(made(), settings, tiny_lm)) == ["chat_template"]


SAME: dict[str, tuple[PromptSettings, PromptSettings]] = {
    "no shots, given or not": (PromptSettings(), PromptSettings(num_fewshot=0)),
    "few-shot seed without shots": (PromptSettings(), PromptSettings(fewshot_seed=1)),
    "turns without shots": (
        PromptSettings(apply_chat_template=True),
        PromptSettings(apply_chat_template=True, fewshot_as_multiturn=False),
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_shapes_nothing_does_not_show(
    one: PromptSettings, other: PromptSettings, folder: Path, tiny_lm: HFLM
) -> None:
    assert differing(fingerprint(made(), one, tiny_lm), fingerprint(made(), other, tiny_lm)) == []


def test_an_evaluation_does_not_change_it(folder: Path) -> None:
    task = made()
    before = fingerprint(task, PromptSettings(num_fewshot=2))
    task.set_config("num_fewshot", 2)  # what `simple_evaluate` does
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=2)
    assert differing(before, fingerprint(task, PromptSettings(num_fewshot=2))) == []


def test_the_folder_of_the_data_does_not_show(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "sst2").symlink_to(folder / "sst2")
    by_variable = fingerprint(made(), PromptSettings())
    by_dir = made(dataset_kwargs={**CONFIG["dataset_kwargs"], "data_dir": str(moved / "sst2")})
    assert differing(by_variable, fingerprint(by_dir, PromptSettings())) == []
    monkeypatch.setenv(DATA_VARIABLE, str(moved))
    assert differing(by_variable, fingerprint(made(), PromptSettings())) == []
    monkeypatch.setenv(DATA_VARIABLE, "sample")
    assert differing(by_variable, fingerprint(made(), PromptSettings())) == ["dataset"]
    # ... and a folder that --metadata names is not the sample
    named = made(metadata={"version": 1, "data_dir": str(moved / "sst2")})
    assert differing(by_variable, fingerprint(named, PromptSettings())) == []


def hook_beside_yaml(folder: Path) -> ConfigurableTask:
    folder.mkdir()
    (folder / "words.py").write_text("def question(doc):\n    return doc['sentence']\n")
    (folder / "mine.yaml").write_text(
        "task: mine\ncustom_dataset: !function harness_ext.hooks.load_documents\n"
        "dataset_kwargs: {dataset: sst2, choices: [negative, positive]}\nvalidation_split: validation\n"
        "fewshot_split: train\noutput_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"
        "doc_to_text: !function words.question\n"
    )
    return load_task(str(folder / "mine.yaml"))


def test_the_folder_of_the_task_does_not_show(folder: Path) -> None:
    one, other = (fingerprint(hook_beside_yaml(folder / name), PromptSettings()) for name in ("here", "there"))
    assert differing(one, other) == []
    assert str(folder) not in json.dumps(one.fields)


def question(doc: Mapping[str, Any], end: str) -> str:
    return f"{doc['sentence']}{end}"


class Question:
    def __init__(self, end: str) -> None:
        self.end = end

    def __call__(self, doc: Mapping[str, Any]) -> str:
        return question(doc, self.end)


@pytest.mark.parametrize("make", [lambda: functools.partial(question, end="?"), lambda: Question("?")])
def test_callables_have_no_address(make: Callable[[], Any], folder: Path) -> None:
    one, other = (fingerprint(made(doc_to_text=make()), PromptSettings()) for _ in range(2))
    assert differing(one, other) == []
    assert "0x" not in json.dumps(one.fields)


def test_arguments_of_a_partial_show(folder: Path) -> None:
    tasks = [made(doc_to_text=functools.partial(question, end=end)) for end in "?!"]
    assert differing(*(fingerprint(task, PromptSettings()) for task in tasks)) == ["doc_to_text"]


@pytest.mark.slow
def test_the_same_in_another_process() -> None:
    names = ("sst2_choice", "sst2_generate", "squad_v2_generate")
    code = (
        "import json\nfrom harness_ext.protocol.fingerprint import *\nfrom harness_ext.protocol.render import *\n"
        f"print(json.dumps([fingerprint(load_task(name), PromptSettings(num_fewshot=1)) for name in {names}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
        capture_output=True,
        text=True,
    )
    here = [fingerprint(load_task(name), PromptSettings(num_fewshot=1)) for name in names]
    assert json.loads(done.stdout) == [list(each) for each in here]


def test_fields_are_named_once() -> None:
    assert len({*PROMPT_FIELDS, *SCORING_FIELDS}) == len(PROMPT_FIELDS) + len(SCORING_FIELDS)
    fields = fingerprint(load_task("squad_v2_generate"), PromptSettings()).fields
    assert set(fields) | {"class"} == {*PROMPT_FIELDS, *SCORING_FIELDS}  # a task without a class has no such field
    assert all(len(value) <= 60 for value in fields.values())


def test_a_class_and_what_it_asks_are_part_of_it(folder: Path) -> None:
    """An ordinary task has no such field, so fingerprints in older cards and results stay the same."""
    plain = fingerprint(load_task("sst2_choice"), PromptSettings())
    calibrated = fingerprint(load_task("sst2_choice_calibrated"), PromptSettings())
    assert "class" not in plain.fields
    assert "requests.Calibrat" in calibrated.fields["class"]
    other = load_task("sst2_choice_calibrated")
    other.config.metadata["content_free"] = ["nothing"]
    assert differing_fields(calibrated.fields, fingerprint(other, PromptSettings()).fields, SCORING_FIELDS) == ["class"]
