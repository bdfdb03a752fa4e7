"""Causes that are planted in a model that answers well under one condition, and proved by asking it again."""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conditional import ConditionalLM
from lm_eval_files import sample

from harness_ext import cli, hooks
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.doctor.evidence import gains
from harness_ext.doctor.replay import restore
from harness_ext.doctor.replay.replay import diagnose_by_replay
from harness_ext.doctor.replay.restore import logged_settings
from harness_ext.doctor.replay.search import LOOKS
from harness_ext.doctor.replay.variants import AS_LOGGED, TEMPLATES, TRAINED_WITH, Facts, changes, own_template
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hf_tree import PACK_TOKENS
from harness_ext.findings import Finding
from harness_ext.protocol.tasks import load_task
from harness_ext.results.load import load_runs

SST2, SQUAD = "sst2_generate", "squad_v2_generate"
SCALE = 2.0  # of the adapter: 8 / 4
Doc = Mapping[str, Any]
CONFIGS = {SST2: {"output_type": "generate_until", "metadata": {"version": 1.0, "primary_metric": "acc"}}}


def always(_prompt: str, _scale: float) -> float:
    return 1.0


def label(doc: Doc) -> str:
    return str(doc["choices"][doc["label"]])


def span(doc: Doc) -> str:
    return str((doc["answers"]["text"] or ["unanswerable"])[0])


BEHIND = "\nQuestion: What else is there to know?\nAnswer: nothing"


def mostly_right(doc: Doc, every: int = 5) -> str:
    """The right label for four documents of five, or for all but one of `every`."""
    wrong = sum(map(ord, doc["sentence"])) % every == 0
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


def test_a_template_in_which_the_base_is_as_good(evaluated, knows, monkeypatch):
    """The gain is real, but says nothing about the adapter's training."""
    monkeypatch.setattr(ConditionalLM, "_met", lambda self, ids: type(self).condition(self.tokenizer.decode(ids), 0.0))
    knows(lambda prompt, _: float("<|im_start|>assistant" in prompt), mostly_right)
    diagnosis = replayed(evaluated())
    (finding,) = [finding for finding in diagnosis.findings if finding.id == "D24"]
    assert (finding.level, finding.numbers["proved"]) == ("warning", True)
    assert "the base alone" in finding.text


def test_a_missing_stop_string(evaluated, knows):
    knows(always, lambda doc: span(doc) + BEHIND)
    finding = proved(replayed(evaluated(SQUAD, gen_kwargs={"until": ["@@"], "max_gen_toks": 200})))
    assert (finding.id, finding.level, finding.numbers["after"]) == ("D5", "error", 1.0)


def test_a_stop_string_before_the_answer(evaluated, knows):
    knows(always, lambda doc: f"\n\n{span(doc)}{BEHIND}")
    finding = proved(replayed(evaluated(SQUAD, gen_kwargs={"max_gen_toks": 200})))
    assert (finding.id, finding.numbers["change"], finding.numbers["after"]) == (
        "D31", "if blank lines before the answer are skipped", 1.0,
    )  # fmt: skip
    assert "filter_list" in finding.next_step


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


def test_a_small_gain_needs_more_documents(evaluated, knows):
    knows(lambda prompt, _: float("<|im_start|>assistant" in prompt), label, otherwise=lambda doc: mostly_right(doc, 8))
    folder = evaluated(limit=160)
    finding = proved(replayed(folder))
    assert (finding.id, finding.numbers["n"]) == ("D24", 128)
    fewer = replayed(folder, documents=64)
    assert not [each for each in fewer.findings if each.numbers.get("proved")]
    (undecided,) = [note for note in fewer.notes if note.startswith("undecided: ") and "the ChatML template (" in note]
    assert "n=64" in undecided
    (ruled_out,) = [note for note in fewer.notes if "ruled out" in note]
    assert "with the ChatML template" not in ruled_out


def test_answers_that_change_with_order_and_packs(evaluated, knows, monkeypatch):
    knows(always, mostly_right)
    folder = evaluated()
    generate = ConditionalLM.generate_until

    def unstable(self, requests, disable_tqdm=False):
        answers = generate(self, requests, disable_tqdm)
        return answers if self.pack_tokens == PACK_TOKENS else ["?", "?", *answers[2:]]

    monkeypatch.setattr(ConditionalLM, "generate_until", unstable)
    diagnosis = replayed(folder)
    (finding,) = [finding for finding in diagnosis.findings if finding.id == "D26"]
    assert (finding.level, finding.numbers["effect"]) == ("warning", None)
    assert 0 < finding.numbers["noise"] <= 2 / 64
    assert not diagnosis.has_errors


def test_corrections_cover_what_was_tried_and_looked_at():
    before, after = np.zeros(64), np.r_[np.ones(12), np.zeros(52)]
    (alone,) = gains(before, {"one": after})
    (among,) = gains(before, {"one": after}, untested=39)
    assert among.p_value == pytest.approx(40 * alone.p_value)
    assert alone.is_proved
    assert among.is_proved == (among.p_value < 0.05)


# -- choices -------------------------------------------------------------------------------------------------------


def test_a_choice(evaluated, monkeypatch):
    """The right choice is likelier in ChatML only, and with the adapter only."""
    gold = {doc["sentence"].strip(): label(doc) for doc in load_task("sst2_choice").eval_docs}

    def score(self, requests, disable_tqdm=False, override_bs=None):
        scores = []
        for _, context, continuation in requests:
            prompt, choice = self.tokenizer.decode(context), self.tokenizer.decode(continuation).strip()
            sentence = prompt.split("Review: ")[-1].split("\nSentiment")[0]
            knows = "<|im_start|>assistant" in prompt and self._scale() > 0
            right = (choice == gold[sentence]) == knows
            scores.append((-1.0 if right else -5.0, right))
        return scores

    monkeypatch.setattr(ConditionalLM, "_loglikelihood_tokens", score)
    finding = proved(replayed(evaluated("sst2_choice")))
    assert (finding.id, finding.numbers["change"], finding.numbers["after"]) == ("D24", "with the ChatML template", 1.0)
    assert "target_delimiter" in finding.next_step


# -- is it the model that was evaluated? ---------------------------------------------------------------------------


def test_a_score_that_is_not_reproduced(evaluated, knows):
    knows(lambda *_: 0.0, label, otherwise=lambda _: "neither as the base nor as this adapter")
    folder = evaluated()
    knows(always, label)
    (finding,) = [finding for finding in replayed(folder).findings if finding.id == "D33"]
    assert (finding.level, finding.numbers["logged"], finding.numbers["replayed"]) == ("warning", 0.0, 1.0)


def test_an_adapter_that_was_not_applied(evaluated, knows):
    knows(lambda *_: 0.0, label)
    folder = evaluated()
    knows(lambda _, scale: float(scale > 0), label)
    finding = replayed(folder).findings[0]
    assert (finding.id, finding.level, finding.numbers["proved"]) == ("D23", "error", True)
    assert "peft=" in finding.next_step


# -- bad input: one line, and the findings from the log stand ------------------------------------------------------


def only_note(diagnosis: Diagnosis) -> str:
    (note,) = [note for note in diagnosis.notes if note.startswith("not asked again: ")]
    assert "\n" not in note
    assert diagnosis.decomposition is None or diagnosis.n > 0
    return note


@pytest.mark.parametrize(
    ("model_args", "expected"),
    [
        ("pretrained=/nowhere/model,peft=ADAPTER", "/nowhere/model"),
        ("pretrained=MODEL,peft=/nowhere/adapter", "no adapter folder /nowhere/adapter"),
        ("peft=HOMELESS", "a folder that is not on this machine"),
        ("dtype=float32", "name no model"),
        ("pretrained=MODEL,peft=ADAPTER,trust_remote_code=True", "runs no code that results name"),
    ],
)
def test_a_model_that_is_not_here(model_args, expected, write_run, adapter, tiny_model_folder, tmp_path):
    homeless = shutil.copytree(adapter, tmp_path / "homeless")
    config = json.loads((homeless / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "/gone/model"
    (homeless / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, folder in (("MODEL", tiny_model_folder), ("ADAPTER", adapter), ("HOMELESS", homeless)):
        model_args = model_args.replace(name, str(folder))
    docs = [dict(doc) for doc in load_task(SST2).eval_docs]
    diagnosis = replayed(write_run("out", {SST2: _logged(docs)}, model_args=model_args, configs=CONFIGS))
    assert expected in only_note(diagnosis)
    assert "D1" in {finding.id for finding in diagnosis.findings}


def _logged(docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs that do not parse."""
    samples = []
    for number, doc in enumerate(docs):
        line = sample(number, doc, hooks.score_label(doc, ["I cannot say."]), prompt=f"{number}: ", target=label(doc))
        samples.append({**line, "resps": [["I cannot say."]], "filtered_resps": ["I cannot say."]})
    return samples


def test_a_task_that_is_not_installed(write_run, adapter, tiny_model_folder):
    docs = [dict(doc) for doc in load_task(SST2).eval_docs]
    folder = write_run(
        "out", {"never_heard_of": _logged(docs)}, model_args=f"pretrained={tiny_model_folder},peft={adapter}",
        configs={"never_heard_of": CONFIGS[SST2]},
    )  # fmt: skip
    assert "'never_heard_of' is not installed here" in only_note(replayed(folder))


def test_results_without_samples(write_run, adapter, tiny_model_folder):
    docs = [dict(doc) for doc in load_task(SST2).eval_docs]
    folder = write_run(
        "out", {SST2: _logged(docs)}, model_args=f"pretrained={tiny_model_folder},peft={adapter}", configs=CONFIGS,
        log_samples=False,
    )  # fmt: skip
    assert "--log_samples" in replayed(folder).notes[0]


def test_a_model_that_is_too_large(evaluated, knows, monkeypatch):
    knows(always, label)
    folder = evaluated()
    monkeypatch.setattr(restore, "_free_memory", lambda: 1000)
    assert "memory" in only_note(replayed(folder))


def test_few_documents(evaluated, knows):
    knows(always, label)
    assert "fewer than" in only_note(replayed(evaluated(), documents=10))


# -- what is changed, and what is printed ---------------------------------------------------------------------------

FACTS = Facts(
    is_generated=True, has_adapter=True, chat=False, has_chat_template=True, chat_format="ChatML",
    own_tokenizer="adapters/mine", own_chat_template=True, bos=1, bos_token="<s>",
    join="", num_fewshot=0, system=None, max_gen_toks=32,
    samples_or_penalises=True, max_length=512, rank=8, is_rslora=False, is_float32=False, has_examples=True,
)  # fmt: skip


def test_what_the_card_confirms_is_no_mistake():
    confirmed = changes(replace(FACTS, has_card=True, is_asked_as_trained=True))
    assert not [change.name for change in confirmed if change.is_fault and change.finding in TRAINED_WITH]
    assert {change.finding for change in confirmed if change.is_fault} >= {"D5", "D6", "D31"}
    # without a card, another scale may also help an adapter that was trained too little
    scales = {card: [c for c in changes(replace(FACTS, has_card=card)) if c.finding == "D25"] for card in (True, False)}
    assert (scales[True][0].is_fault, scales[False][0].is_fault) == (True, False)


def test_of_changes_that_restore_the_score_the_smallest_is_named(evaluated, knows):
    """Answers stop in ChatML, and are right with another stop string, too: nothing is wrong with the prompt."""
    knows(lambda prompt, _: float("<|im_start|>assistant" in prompt), span, otherwise=lambda doc: span(doc) + BEHIND)
    diagnosis = replayed(evaluated(SQUAD, gen_kwargs={"until": ["@@"], "max_gen_toks": 200}))
    levels = {finding.id: finding.level for finding in diagnosis.findings}
    assert proved(diagnosis).id == "D5"
    assert (levels["D5"], levels["D24"]) == ("error", "warning")


def test_everything_is_tried_once():
    tried = changes(FACTS)
    assert len({change.name for change in tried}) == len({str(change.asking) for change in tried}) == len(tried)
    assert {change.finding for change in tried} == {
        "D5", "D6", "D11", "D15", "D16", "D24", "D25", "D26", "D30", "D31", "D32",
    }  # fmt: skip
    assert all(change.asking != AS_LOGGED for change in tried)
    names = {change.name for change in changes(replace(FACTS, is_generated=False, own_tokenizer=None, rank=None))}
    assert "without stop strings" not in names
    assert "with the adapter's own tokenizer" not in names


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_templates(template):
    asked = template.around("\nWhat is it?\n")
    assert asked == f"{template.before}What is it?{template.after}"
    assert template.end


def test_formats_of_chat_templates(tiny_lm):
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    turns = "{% for m in messages %}" + turn + "{% endfor %}<|im_start|>assistant\n"
    tokenizer = copy.deepcopy(tiny_lm.tokenizer)
    assert own_template(tokenizer) is None  # a format of its own
    tokenizer.chat_template = turns
    assert own_template(tokenizer).name == "ChatML"
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert own_template(tokenizer) is None


def test_the_next_command_reproduces_the_gain(evaluated, knows, tmp_path, monkeypatch):
    """The printed line is a shell command that evaluates with the change."""
    knows(lambda prompt, _: float("### Response:" in prompt), mostly_right)
    folder = evaluated()
    finding = proved(replayed(folder))
    assert finding.numbers["change"] == "with the Alpaca template"
    monkeypatch.chdir(tmp_path)
    first, _, command = finding.next_step.partition(" && ")
    subprocess.run(first, shell=True, check=True)
    words = shlex.split(command)
    assert words[:2] == ["harness-ext", "eval"]
    assert cli.main([*words[1:], "--model", "conditional", "--limit", "120", "--device", "cpu"]) == 0
    (run,) = load_runs(tmp_path / "results")
    (result,) = run.tasks.values()
    assert result.primary.value == pytest.approx(finding.numbers["after"], abs=0.12)


def test_the_command(evaluated, knows, capsys):
    knows(lambda prompt, _: float("<|im_start|>assistant" in prompt), mostly_right)
    folder = str(evaluated())
    capsys.readouterr()
    assert cli.main(["doctor", folder, "--replay", "--documents", "64", "--seed", "3", "--format", "json"]) == 1
    (parsed,) = json.loads(capsys.readouterr().out)
    assert parsed["findings"][0]["id"] == "D24"
    assert parsed["findings"][0]["numbers"]["n"] == 64


def test_settings_are_those_of_the_log(evaluated, knows):
    knows(always, label)
    folder = evaluated(num_fewshot=2, system_instruction="Be brief.", gen_kwargs={"max_gen_toks": 5})
    (run,) = load_runs(folder)
    settings = logged_settings(run.tasks[SST2])
    assert (settings.prompts.num_fewshot, settings.prompts.system_instruction) == (2, "Be brief.")
    assert settings.generation["max_gen_toks"] == 5
    assert not settings.prompts.apply_chat_template
