"""`harness-ext verify`: a card's claims against what is measured, on a tiny model; the Hub is a local one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from harness_ext import cli
from harness_ext.comparison.rows import Row, Score
from harness_ext.publish.claims import Claim
from harness_ext.publish.verify import gain_outcome, score_outcome
from harness_ext.stats.intervals import Interval
from harness_ext.stats.paired import paired_difference

TASK = "sst2_choice"
CLAIM = Claim(TASK, "acc", "none", value=0.9, n=1000, baseline=0.5, difference=0.4, fingerprint="f")


def run(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def row(value: float, *, n: int = 1000, half: float = 0.02, higher: bool = True, margin: float | None = 0.01) -> Row:
    interval = Interval(value - half, value + half)
    return Row(TASK, "a", "acc", "none", n, Score(0.5), Score(value, interval), higher_is_better=higher, margin=margin)


# -- the judgement, worked out by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize(("measured", "n", "expected"), [
    (0.900, 1000, "equivalent"), (0.909, 1000, "equivalent"), (0.891, 1000, "equivalent"),
    (0.880, 1000, "worse"), (0.920, 1000, "better"),
    (0.850, 100, "cannot tell"),  # five documents: not even if all of them changed sides is it significant
    (0.840, 100, "worse"),  # six
])  # fmt: skip
def test_of_the_same_documents(measured: float, n: int, expected: str) -> None:
    assert score_outcome(CLAIM, row(measured, n=n), same_documents=True) == expected


@pytest.mark.parametrize(("measured", "half", "expected"), [
    (0.90, 0.005, "equivalent"), (0.90, 0.05, "cannot tell"), (0.95, 0.02, "better"), (0.85, 0.02, "worse"),
    (0.905, 0.004, "equivalent"),  # above, but within the margin
])  # fmt: skip
def test_of_other_documents(measured: float, half: float, expected: str) -> None:
    assert score_outcome(CLAIM, row(measured, half=half), same_documents=False) == expected


def test_lower_may_be_better() -> None:
    assert score_outcome(CLAIM, row(0.95, higher=False), same_documents=True) == "worse"
    assert score_outcome(CLAIM, row(0.85, higher=False), same_documents=False) == "better"


def test_without_a_margin_only_the_same_number_is_equivalent() -> None:
    assert score_outcome(CLAIM, row(0.90001, margin=None), same_documents=True) == "equivalent"
    assert score_outcome(CLAIM, row(0.91, margin=None), same_documents=True) == "better"


def test_a_gain_over_a_base_that_was_understated_is_worse() -> None:
    """The score holds, but the base is at 80, not 50."""
    measured = replace(row(0.9), baseline=Score(0.8))
    assert score_outcome(CLAIM, measured, same_documents=True) == "equivalent"
    assert gain_outcome(CLAIM, measured, same_documents=True) == "worse"
    after, before = [1.0] * 90 + [0.0] * 10, [1.0] * 80 + [0.0] * 20
    paired = replace(measured, paired=paired_difference(before, after))
    assert gain_outcome(CLAIM, paired, same_documents=False) == "worse"
    assert gain_outcome(replace(CLAIM, difference=None), paired, same_documents=False) is None


def test_the_form_that_peft_writes_is_replaced(made: Path, tiny_model_folder: Path) -> None:
    text = (made / "README.md").read_text(encoding="utf-8")
    assert "More Information Needed" not in text
    assert str(tiny_model_folder.parent) not in text
    assert "# tiny" in text


# -- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny model, evaluated with its base, with the card of the results."""
    place = tmp_path_factory.mktemp("verified")
    folder = place / "adapters/tiny"
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_EXT_DATA", "sample")
        evaluation = ("--tasks", TASK, "--output_path", place / "results", "--log_samples", "--device", "cpu")
        assert run("eval", "--model_args", f"pretrained={tiny_model_folder}", "--adapters", folder, *evaluation) == 0
        assert run("card", folder, place / "results") == 0
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in made.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def claim(readme: Path, **values: object) -> None:
    """Change what a card claims."""
    text = readme.read_text(encoding="utf-8")
    for name, value in values.items():
        text, count = re.subn(rf"^([ ]*(?:- )?{name}): .*$", rf"\1: {value}", text, count=1, flags=re.MULTILINE)
        assert count == 1, name
    readme.write_text(text, encoding="utf-8")


def verify(adapter: object, *words: object) -> int:
    return run("verify", adapter, "--device", "cpu", *words)


def test_what_holds(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(adapter) == 0
    shown = capsys.readouterr().out
    assert f"{TASK}, acc: equivalent" in shown
    assert re.search(r"gain +claimed .*: equivalent", shown)
    assert "1 of 1 claim holds" in shown


def test_what_does_not_hold(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim(adapter / "README.md", value=0.99, difference=0.6)
    assert verify(adapter, "--format", "json") == 1
    captured = capsys.readouterr()
    (record,) = json.loads(captured.out)
    assert (record["outcome"], record["gain_outcome"], record["holds"]) == ("worse", "worse", False)
    assert record["claimed"] == 0.99
    assert record["low"] < record["measured"] < record["high"]
    assert "worse than claimed: sst2_choice" in captured.err


def test_what_is_better(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim(adapter / "README.md", value=0.1, difference=-0.6)
    assert verify(adapter) == 0
    assert "better than claimed" in capsys.readouterr().out


def test_another_protocol_cannot_be_told(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim(adapter / "README.md", fingerprint="ab" * 32, value=0.99)
    assert verify(adapter) == 0
    assert "another protocol" in capsys.readouterr().out
    assert verify(adapter, "--fail-on", "undecided") == 1


def test_fewer_documents(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(adapter, "--limit", "8", "--format", "json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["n"] == 8
    assert record["outcome"] in ("cannot tell", "equivalent")
    assert "measured on 8" in record["reason"]


def test_from_the_hub(adapter: Path, hub: FakeHub, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/tiny"}))
    assert run("push", adapter, "hub:me/tiny-lora") == 2  # the base was a local folder
    assert "base_model" in last_line(capsys)
    claim(adapter / "README.md", base_model="org/tiny")
    assert run("push", adapter, "hub:me/tiny-lora") == 0
    assert verify("hub:me/tiny-lora", "--model", tiny_model_folder) == 0
    assert "1 of 1 claim holds" in capsys.readouterr().out


# -- bad input -------------------------------------------------------------------------------------------------------


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


@pytest.mark.parametrize(("values", "expected"), [
    ({"task": "../../etc/task.yaml"}, "no name of a task"),
    ({"value": "high"}, "model-index cannot be read"),
    ({"value": ".nan"}, "model-index cannot be read"),
])  # fmt: skip
def test_claims_that_cannot_be_read(
    values: dict, expected: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = adapter / "README.md"
    if "task" in values:
        readme.write_text(
            readme.read_text(encoding="utf-8").replace(f"        task: {TASK}", f"        task: {values['task']}")
        )
    else:
        claim(readme, **values)
    assert verify(adapter) == 2
    assert expected in last_line(capsys)


@pytest.mark.parametrize("settings", [
    "{model_args: {trust_remote_code: true}}", "{model_args: {pretrained: evil/model}}",
    "{model_args: {tokenizer: evil/tok}}", "{include_path: /tmp}", "{gen_kwargs: {custom_generate: evil/code}}",
    "{seed: [a]}", "3", "{num_fewshot: many}",
])  # fmt: skip
def test_settings_that_a_stranger_may_not_choose(
    settings: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = adapter / "README.md"
    text = readme.read_text(encoding="utf-8")
    text, count = re.subn(
        r"^        settings:\n(          .*\n)+", f"        settings: {settings}\n", text, flags=re.MULTILINE
    )
    assert count == 1
    readme.write_text(text, encoding="utf-8")
    assert verify(adapter) == 2
    assert "model-index" in last_line(capsys)


def test_no_claims(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = adapter / "README.md"
    readme.write_text(re.sub(r"model-index:.*?^---", "---", readme.read_text(), flags=re.DOTALL | re.MULTILINE))
    assert verify(adapter) == 2
    assert "claims nothing" in last_line(capsys)
    readme.unlink()
    assert verify(adapter) == 2
    assert "no README.md" in last_line(capsys)


def test_claims_of_other_tools_name_no_task(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (adapter / "README.md").write_text(
        "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: text-generation}\n"
        "    dataset: {name: SST-2, type: stanfordnlp/sst2}\n    metrics: [{type: accuracy, value: 0.9}]\n---\n"
    )
    assert verify(adapter) == 2
    assert "names no lm-eval task" in last_line(capsys)


def test_nothing_on_the_hub(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "hub:me/none") == 2
    assert "me/none" in last_line(capsys)


def test_a_task_that_is_not_claimed(adapter: Path, capsys: Callable) -> None:
    assert verify(adapter, "--tasks", "squad_v2_generate") == 2
    assert TASK in last_line(capsys)
