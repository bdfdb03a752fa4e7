"""Planted faults of serving are found and named within 50 documents; sound exports raise no alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openai_server import OpenAIServer
from parity_faults import to_integers_of_4_bits, with_names, with_settings
from peft import LoraConfig, get_peft_model
from tiny_model import save_tiny_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext import cli
from harness_ext.errors import HarnessExtError, NotAppliedError
from harness_ext.findings import Finding
from harness_ext.parity.answers import Answer, Form, Noise, beyond, limits, share_beyond
from harness_ext.parity.causes import Compared, ends_elsewhere
from harness_ext.parity.check import DOCUMENTS, check_parity
from harness_ext.parity.outcome import TaskParity
from harness_ext.parity.served import Target
from harness_ext.parity.weights import NF4, rounded

TASK = "sst2_choice"
PARTLY = 28_500.0  # times the last hidden states: some are too large for float16


def checked(adapter: Path, against: str | Path | Target, task: str = TASK, **settings: Any) -> TaskParity:
    target = str(against) if isinstance(against, Path) else against
    (found,) = check_parity(adapter, target, tasks=[task], device="cpu", **settings).tasks
    return found


def named(found: TaskParity) -> Finding:
    """The only finding, an error that took at most 50 documents."""
    (finding,) = found.findings
    assert finding.level == "error", finding
    assert found.documents <= 50 == DOCUMENTS
    assert found.differing
    return finding


# -- no alarm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sound_merges(dtype: str, adapter: Path) -> None:
    found = checked(adapter, Target.of("merged", dtype=dtype))
    assert (found.verdict, found.findings, found.compared) == ("as evaluated", [], "log-probabilities")
    assert found.to_adapter is not None
    assert found.to_base is not None
    assert found.to_adapter < 0.1 * found.to_base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_export_in_other_batches(dtype: torch.dtype, adapter: Path, export: Callable[..., Path]) -> None:
    name = str(dtype).removeprefix("torch.")
    target = Target.of(str(export(dtype=dtype)), dtype=name, arguments={"batch_size": 7})
    assert checked(adapter, target).verdict == "as evaluated"


def test_a_sound_export_that_generates(adapter: Path, export: Callable[..., Path]) -> None:
    found = checked(adapter, export(), "sst2_generate")
    assert (found.verdict, found.compared) == ("as evaluated", "log-probabilities and texts")


# -- numbers that overflow ----------------------------------------------------------------------------------------


@pytest.fixture
def loud(tiny_model_folder: Path, tmp_path: Path) -> Callable[[float], Path]:
    """An adapter on a base whose last hidden states are too large for float16, by a factor; the logits are not."""

    def make(factor: float) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        with torch.no_grad():
            model.model.norm.weight.mul_(factor)
            model.lm_head.weight.div_(factor)
        model.save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "base")
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        with_adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
        for name, parameter in with_adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        with_adapter.save_pretrained(tmp_path / "loud")
        return tmp_path / "loud"

    return make


@pytest.mark.parametrize("factor", [3e5, PARTLY])
def test_a_precision_that_overflows(factor: float, loud: Callable[[float], Path]) -> None:
    adapter = loud(factor)
    assert checked(adapter, Target.of("merged", dtype="float32")).verdict == "as evaluated"
    found = checked(adapter, Target.of("merged", dtype="float16"))
    finding = named(found)
    assert (finding.id, found.verdict) == ("P11", "otherwise")
    assert f"so do {finding.numbers['lost']} of them by peft in float16" in finding.text
    assert "inf" not in json.dumps([found.to_adapter, found.to_base, found.noise]).lower()
    if factor == PARTLY:
        assert 0 < finding.numbers["lost"] < found.documents


def test_a_served_model_gives_no_numbers(adapter: Path, export: Callable[..., Path]) -> None:
    def spoil(model: torch.nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("model.norm.weight")[0] = torch.nan

    found = checked(adapter, export(change_base=spoil))
    assert (named(found).id, named(found).numbers["by_precision"]) == ("P11", 0)


def test_the_adapter_itself_gives_no_numbers(loud: Callable[[float], Path]) -> None:
    with pytest.raises(HarnessExtError, match=r"logits are NaN for .*; try dtype=float32"):
        checked(loud(float("inf")), "merged")


def test_what_rounding_alone_changes_tells_nothing() -> None:
    ours = [Answer((-1.0,), "a")] * 10
    lost = [Answer((-1.0,), f"{n}") for n in range(10)]
    (texts,) = beyond(Form(False, True, True), ours, ours, Noise(ours, lost))
    assert share_beyond([texts]) is None  # of no document left, none differs
    overflown = [Answer((float("nan"),), "a")] * 10
    scores, texts = beyond(Form(True, True, True), ours, ours, Noise(ours, overflown))
    assert (scores.share, texts.share, share_beyond([scores, texts])) == (None, "low", None)
    scores, texts = beyond(Form(True, True, True), ours, ours, Noise(ours, lost))
    assert (scores.share, texts.share, share_beyond([scores, texts])) == ("low", None, "low")


# -- planted faults ------------------------------------------------------------------------------------------------


def test_the_base_is_served(adapter: Path, tiny_model_folder: Path) -> None:
    found = checked(adapter, tiny_model_folder)
    assert named(found).id == "P01"
    assert found.verdict == "as the base"


@pytest.mark.parametrize(
    ("alpha", "factor", "why"), [(16, 2.0, "merged into already"), (4, 0.5, "α"), (13.6, 1.7, "")], ids=str
)
def test_another_scale(alpha: float, factor: float, why: str, adapter: Path, export: Callable[..., Path]) -> None:
    finding = named(checked(adapter, export(change_adapter=with_settings(lora_alpha=alpha))))
    assert finding.id == "P02"
    assert f"scaled by {2 * factor:.3g} instead of 2" in finding.text
    assert why in finding.text or factor != 2.0


def test_a_stale_chat_template(adapter: Path, export: Callable[..., Path]) -> None:
    def stale(tokenizer: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>", "### Assistant:")

    found = checked(adapter, export(change_tokenizer=stale), apply_chat_template=True)
    finding = named(found)
    assert (finding.id, finding.numbers["change"]) == ("P03", "with the chat template of what is served")


def test_two_begin_tokens(adapter: Path, export: Callable[..., Path]) -> None:
    def twice(tokenizer: Any) -> None:
        begin = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> <s> $A", special_tokens=begin)

    finding = named(checked(adapter, export(change_tokenizer=twice)))
    assert (finding.id, finding.numbers["change"]) == ("P04", "with two begin tokens")


def test_another_base(adapter: Path, export: Callable[..., Path], tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "other", seed=5)
    finding = named(checked(adapter, export(base=tmp_path / "other")))
    assert (finding.id, finding.numbers["proved"]) == ("P06", True)
    assert "embed_tokens" in finding.text


def test_another_adapter(adapter: Path, export: Callable[..., Path]) -> None:
    def trained_further(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "adapter_model.safetensors"
        weights = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})

    torch.manual_seed(3)
    finding = named(checked(adapter, export(change_adapter=trained_further)))
    assert finding.id == "P06"
    assert "proved" not in finding.numbers
    assert "scale" in finding.numbers["tried"]


def test_weights_of_4_bits(adapter: Path, export: Callable[..., Path]) -> None:
    finding = named(checked(adapter, export(change_base=to_integers_of_4_bits)))
    assert finding.id == "P07"


def test_layers_of_another_name(adapter: Path, export: Callable[..., Path]) -> None:
    finding = named(checked(adapter, export(change_adapter=with_names(".mlp.", ".feed_forward."))))
    assert finding.id == "P05"
    assert "its weights for gate_proj, up_proj, down_proj are dropped" in finding.text


def test_blocks_of_another_name(adapter: Path, export: Callable[..., Path]) -> None:
    finding = named(checked(adapter, export(change_adapter=with_names("layers.1.", "blocks.1."))))
    assert finding.id == "P05"
    assert "weights for layers.1 are dropped" in finding.text


def test_an_engine_that_proves_that_it_does_not_apply_it(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise NotAppliedError("answers 4 prompts exactly as without it")

    monkeypatch.setattr("harness_ext.parity.served._host", refuses)
    found = checked(adapter, "vllm")
    assert (found.verdict, found.documents, found.findings[0].id) == ("as the base", 0, "P01")


def test_all_layers_of_another_name(adapter: Path, export: Callable[..., Path]) -> None:
    change = with_names("model.model.layers", "model.language_model.layers")
    assert named(checked(adapter, export(change_adapter=change))).id == "P01"


# -- servers -------------------------------------------------------------------------------------------------------


def test_a_server(adapter: Path, tiny_model_folder: Path) -> None:
    with OpenAIServer(tiny_model_folder, {"mine": adapter}).running() as server:
        found = checked(adapter, server.url)
    assert (found.verdict, found.compared) == ("as evaluated", "log-probabilities")


def test_a_server_without_log_probabilities(adapter: Path, tiny_model_folder: Path) -> None:
    with OpenAIServer(tiny_model_folder, {"served": adapter}, without_echo=True).running() as server:
        found = checked(adapter, Target.of(server.url, name="served"))
    assert (found.verdict, found.compared) == ("as evaluated", "texts")


def test_a_server_that_does_not_apply_it(adapter: Path, tiny_model_folder: Path) -> None:
    with OpenAIServer(tiny_model_folder, {"mine": adapter}, ignores_adapters=True).running() as server:
        assert named(checked(adapter, server.url)).id == "P01"


def test_a_server_that_does_not_stop(adapter: Path, tiny_model_folder: Path) -> None:
    with OpenAIServer(tiny_model_folder, {"mine": adapter}, goes_on=True).running() as server:
        finding = named(checked(adapter, server.url, "sst2_generate"))
    assert finding.id == "P08"
    assert "go on behind" in finding.text


def chat(server: OpenAIServer) -> Target:
    return Target.of(server.url.replace("/completions", "/chat/completions"), name="mine")


def test_a_chat_server(adapter: Path, tiny_model_folder: Path) -> None:
    """Prompts go through the server's own template, which the evaluation has to use, too."""
    with OpenAIServer(tiny_model_folder, {"mine": adapter}).running() as server:
        alike = checked(adapter, chat(server), "sst2_generate", apply_chat_template=True)
        plain = checked(adapter, chat(server), "sst2_generate")
    assert (alike.verdict, alike.compared) == ("as evaluated", "texts")
    finding = named(plain)
    assert (finding.id, finding.numbers["change"]) == ("P03", "with the tokenizer's chat template")


# -- the command ---------------------------------------------------------------------------------------------------


def parity(*arguments: str | Path) -> int:
    try:
        return cli.main(["parity", *map(str, arguments), "--device", "cpu"])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_command_writes_the_card(
    adapter: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(adapter, tmp_path / "mine"))
    card = json.loads((Path(cli.__file__).parents[2] / "adapters/sst2/card.json").read_text(encoding="utf-8"))
    (mine / "card.json").write_text(json.dumps({**card, "base_sha256": None}), encoding="utf-8")
    base = ("--model", tiny_model_folder, "--write-card")
    assert parity(mine, "--against", "merged", *base) == 0
    assert "as evaluated" in capsys.readouterr().out
    assert parity(mine, "--against", tiny_model_folder, *base, "--format", "json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["holds"], shown["tasks"][0]["findings"][0]["id"]) == (False, "P01")
    written = json.loads((mine / "card.json").read_text(encoding="utf-8"))
    assert written["fingerprint"] == card["fingerprint"]
    assert written["parity"]["merged"]["tasks"][TASK]["verdict"] == "as evaluated"
    assert written["parity"]["folder"]["tasks"][TASK]["findings"] == ["P01"]
    assert str(tmp_path) not in json.dumps(written["parity"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs ADAPTER and --against WHAT"),
        (["ADAPTER", "--against", "mergd"], "did you mean 'merged'"),
        (["ADAPTER", "--against", "gguf"], "--against FILE.gguf"),
        (["ADAPTER", "--against", "/nowhere/model.gguf"], "there is no file /nowhere/model.gguf"),
        (["ADAPTER", "--against", "ADAPTER"], "holds an adapter"),
        (["ADAPTER", "--against", "merged"], "has no card.json that names its task; add --task TASK"),
        (["ADAPTER", "--against", "merged", "--task", TASK, "--write-card"], "has no card.json to write to"),
        (["ADAPTER", "--against", "merged", "--task", TASK, "--documents", "0"], "--documents must be positive"),
        (["ADAPTER", "--against", "merged", "--task", TASK, "--model_args", "a"], "name=value"),
        (["ADAPTER", "--against", "http://127.0.0.1:9/v1/completions", "--task", TASK], "cannot be reached"),
        (["/nowhere", "--against", "merged", "--task", TASK], "no adapter folder /nowhere"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], message: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity(*[str(adapter) if word == "ADAPTER" else word for word in arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness-ext: ")]
    assert message in error


def test_4_bits_need_a_library(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(HarnessExtError, match="pip install bitsandbytes"):
        checked(adapter, "4bit")


# -- pure parts ----------------------------------------------------------------------------------------------------


def test_rounding_explains_no_more_than_a_few_times_the_noise() -> None:
    noise = np.array([0.0, 0.01, 0.02, 0.5])
    assert limits(noise).tolist() == pytest.approx([0.06, 0.06, 0.08, 2.0])
    assert limits(0 * noise).tolist() == [1e-3] * 4


def test_texts_that_rounding_changes_do_not_count() -> None:
    ours, again, theirs = ([Answer((), text) for text in texts] for texts in ("abc", "abx", "xyz"))
    (found,) = beyond(Form(False, True, True), theirs, ours, Noise(ours, again))
    differs = found.differs
    assert differs.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(["a b", "c d"], "2 of 2 texts go on"), (["", "c"], "1 of 1 texts end before"), (["x", "y"], None)],
)
def test_ends(theirs: list[str], expected: str | None) -> None:
    ours = [Answer((), text) for text in "ac"]
    compared = Compared(Form(False, True, True), [], [Answer((), text) for text in theirs], Noise(ours, ours))
    assert (ends_elsewhere(compared) or "").startswith(expected or "") is True
    assert (ends_elsewhere(compared) is None) == (expected is None)


def test_4_bits_are_the_nearest_of_16_values() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 50)  # blocks of 64 that end in the middle of a row
    flat, levels = weight.flatten(), torch.tensor(NF4)
    expected = [
        scale * levels[(value / scale - levels).abs().argmin()]
        for block in flat.split(64)
        for scale in [block.abs().max()]
        for value in block
    ]
    assert torch.allclose(rounded(weight).flatten(), torch.stack(expected))
