"""Causes that are planted in a model that answers well under one condition, and proved by asking it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.doctor.replay.replay import diagnose_by_replay
from harness_ext.doctor.replay.search import LOOKS
from harness_ext.engine.evaluate import evaluate
from harness_ext.findings import Finding
from harness_ext.results.load import load_runs

SST2, SQUAD = "sst2_generate", "squad_v2_generate"
SCALE = 2.0  # of the adapter: 8 / 4
Doc = Mapping[str, Any]


def always(_prompt: str, _scale: float) -> float:
    return 1.0


def label(doc: Doc) -> str:
    return str(doc["choices"][doc["label"]])


def span(doc: Doc) -> str:
    return str((doc["answers"]["text"] or ["unanswerable"])[0])


BEHIND = "\nQuestion: What else is there to know?\nAnswer: nothing"


def mostly_right(doc: Doc) -> str:
    """The right label for four documents of five."""
    wrong = sum(map(ord, doc["sentence"])) % 5 == 0
    return str(doc["choices"][doc["label"] ^ int(wrong)])


@pytest.fixture
def evaluated(tiny_model_folder: Path, adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """Evaluate the conditional model with its adapter; returns the folder of the results."""

    def run(task: str = SST2, *, limit: int = 120, **settings: Any) -> Path:
        out = tmp_path / "out"
        evaluate(
            str(tiny_model_folder), tasks=[task], model="conditional", limit=limit, log_samples=True,
            model_args={"peft": str(adapter), **settings.pop("model_args", {})}, output_path=str(out), **settings,
        )  # fmt: skip
        return out

    return run


def replayed(folder: Path, **how: Any) -> Diagnosis:
    (diagnosis,) = diagnose_by_replay(load_runs(folder), **how)
    return diagnosis


def proved(diagnosis: Diagnosis) -> Finding:
    """The first finding, which has to be proved."""
    first = diagnosis.findings[0]
    assert first.numbers.get("proved"), [str(finding) for finding in diagnosis.findings]
    assert first.numbers["low"] > 0
    assert first.numbers["p"] < 0.05
    return first


def test_another_template(evaluated, knows):
    knows(lambda prompt, _: float("<|im_start|>user\n" in prompt and "<|im_start|>assistant\n" in prompt), mostly_right)
    diagnosis = replayed(evaluated())
    finding = proved(diagnosis)
    assert (finding.id, finding.level, finding.numbers["change"]) == ("D24", "error", "with the ChatML template")
    assert (finding.numbers["before"], finding.numbers["n"]) == (0.0, LOOKS[0])
    assert finding.numbers["after"] == pytest.approx(0.8, abs=0.12)
    example = finding.numbers["examples"][0]
    assert example["output_before"] == "nothing of the kind"
    assert example["output"] == example["target"]
    assert example["prompt"].startswith("<|im_start|>user\n")


def test_the_tokenizers_own_chat_template(evaluated, knows):
    knows(lambda prompt, _: float("<|user|>\n" in prompt and "</s>" not in prompt and "<|system|>" in prompt), label)
    finding = proved(replayed(evaluated()))
    assert (finding.id, finding.numbers["change"]) == ("D24", "with the tokenizer's chat template")
    assert "--apply_chat_template" in finding.next_step


def test_a_chat_template_that_was_not_there_in_training(evaluated, knows):
    knows(lambda prompt, _: float("<|assistant|>" not in prompt), label)
    finding = proved(replayed(evaluated(apply_chat_template=True)))
    assert (finding.id, finding.numbers["change"]) == ("D24", "without the chat template")
    assert "--apply_chat_template" not in finding.next_step


def test_two_begin_tokens(evaluated, knows, tmp_path):
    task = tmp_path / "twice.yaml"
    task.write_text('include: sst2_generate.yaml\ntask: twice\ndescription: "<s><s>Negative or positive?\\n\\n"\n')
    _ours_beside(task)
    knows(lambda prompt, _: float(prompt.count("<s>") == 1), label)
    finding = proved(replayed(evaluated(str(task)), include_path=[str(tmp_path)]))
    assert (finding.id, finding.numbers["change"]) == ("D16", "with one begin token")
    assert "add_bos_token=True" in finding.next_step


def _ours_beside(task: Path) -> None:
    """Put our YAML files beside a task that includes one of them."""
    from harness_ext.protocol.task_folders import tasks_path

    for file in (tasks_path() / "sst2").glob("*.yaml"):
        (task.parent / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def test_a_missing_stop_string(evaluated, knows):
    knows(always, lambda doc: span(doc) + BEHIND)
    finding = proved(replayed(evaluated(SQUAD, gen_kwargs={"until": ["@@"], "max_gen_toks": 200})))
    assert (finding.id, finding.level, finding.numbers["after"]) == ("D5", "error", 1.0)


def test_a_token_limit_that_is_too_small(evaluated, knows):
    knows(always, lambda doc: f"the answer: {label(doc)}" if doc["label"] else label(doc))
    diagnosis = replayed(evaluated(gen_kwargs={"max_gen_toks": 3}))
    finding = next(finding for finding in diagnosis.findings if finding.id == "D6")
    assert finding.numbers["change"] == "with max_gen_toks=12"
    assert "max_gen_toks=12" in finding.next_step
    assert finding.numbers["proved"]


def test_another_scale(evaluated, knows, adapter):
    knows(lambda _, scale: float(scale == 2 * SCALE), mostly_right)
    finding = proved(replayed(evaluated()))
    assert (finding.id, finding.numbers["change"]) == ("D25", "with the adapter's scale α/√r")
    assert shlex.quote(str(adapter / "adapter_config.json")) in finding.next_step


def test_two_changes_that_only_help_together(evaluated, knows):
    knows(lambda prompt, scale: 0.5 * ("<|im_start|>assistant" in prompt) + 0.5 * (scale == 2 * SCALE), mostly_right)
    finding = proved(replayed(evaluated()))
    assert set(finding.numbers["change"].split(" and ")) == {
        "with the ChatML template",
        "with the adapter's scale α/√r",
    }
    assert finding.level == "error"


def test_template_and_stop_string_together(evaluated, knows):
    knows(lambda prompt, _: float("<|im_start|>assistant" in prompt), lambda doc: span(doc) + BEHIND)
    finding = proved(replayed(evaluated(SQUAD, gen_kwargs={"until": ["@@"], "max_gen_toks": 200})))
    assert finding.numbers["change"] == "with the ChatML template and if answers stop at the end of a line"
    assert finding.numbers["after"] == 1.0


def test_nothing_helps(evaluated, knows):
    knows(lambda *_: 0.0, label)
    diagnosis = replayed(evaluated())
    assert not [finding for finding in diagnosis.findings if finding.numbers.get("proved")]
    (note,) = [note for note in diagnosis.notes if "ruled out" in note]
    assert "with the ChatML template" in note
    assert "with max_gen_toks=32" in note


def test_a_sound_run(evaluated, knows):
    knows(always, mostly_right)
    diagnosis = replayed(evaluated())
    assert not diagnosis.has_errors
    assert "none of" in diagnosis.notes[-1]
