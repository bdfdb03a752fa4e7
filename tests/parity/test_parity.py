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
from tiny_model import save_tiny_model
from tokenizers.processors import TemplateProcessing

from harness_ext import cli
from harness_ext.errors import HarnessExtError, NotAppliedError
from harness_ext.findings import Finding
from harness_ext.parity.answers import Answer, Form, Noise, beyond, limits
from harness_ext.parity.causes import Compared, ends_elsewhere
from harness_ext.parity.check import DOCUMENTS, check_parity
from harness_ext.parity.outcome import TaskParity
from harness_ext.parity.served import Target
from harness_ext.parity.weights import NF4, rounded

TASK = "sst2_choice"


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
    (differs,) = beyond(Form(False, True, True), theirs, ours, Noise(ours, again))
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
