"""Adapters on disk: what is refused, what is kept, how they are named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from harness_ext.atomic import replacing_folder
from harness_ext.errors import AdapterError, WriteError
from harness_ext.models.adapters import adapter_folder, check_adapter, expand_adapters, find_base, save_adapter
from harness_ext.models.card import AdapterCard, read_card


def tiny(layers: int = 2, width: int = 32, vocabulary: int = 61) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def card(**values: Any) -> AdapterCard:
    known: dict[str, Any] = {
        "base": "tiny", "base_revision": None, "base_sha256": None, "task": "sst2_choice", "fingerprint": "f" * 64,
        "fingerprint_fields": {"version": "1.0"}, "recipe": {"lora_rank": 4}, "data_sha256": "d" * 64,
        "sample_data": True, "examples": 3, "tokens": 6, "trainable_parameters": 10, "seed": 0, "seconds": 1.5,
        "train_loss": 0.5, "validation_loss": None, "versions": {"peft": "1"},
    }  # fmt: skip
    return AdapterCard(**{**known, **values})


def make_adapter(
    folder: Path, model: Any = None, *, seed: int = 1, trained: bool = True, dtype: Any = None, **lora: Any
) -> Path:
    """Save an adapter whose update matrices are random, as if trained."""
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    wrapped = get_peft_model(model or tiny(), LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name and trained:
            torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir()
    save_adapter(wrapped, folder, card=card(), readme="# card\n", dtype=dtype)
    return folder


# -- on disk ---------------------------------------------------------------------------------------------------------


def test_cards_with_and_without_evaluated_checkpoints(tmp_path: Path) -> None:
    """Older cards have no such field; something else in its place is damage."""
    folder = make_adapter(tmp_path / "adapter")
    values = json.loads((folder / "card.json").read_text())
    point = {"score": 0.8, "low": 0.7, "high": 0.9}
    selection = {
        "metric": "acc", "is_share": True, "higher_is_better": True, "documents": 60, "units": 60, "data_sha256": "e",
        "curve": [{"step": 20, **point}], "chosen_step": 20, "best_step": 20, "last_step": 20, "planned_steps": 20,
        "chosen_again": {"documents": 60, **point}, "seconds": 3,
    }  # fmt: skip
    for value, expected in ((..., None), (None, None), (selection, selection)):
        changed = {**values, "selection": value}
        if value is ...:
            del changed["selection"]
        (folder / "card.json").write_text(json.dumps(changed))
        assert read_card(folder) == card(selection=expected)
    for damage in (
        [20], {}, {**selection, "metric": "acc | <!-- -->"}, {**selection, "curve": []}, {**selection, "curve": [3]},
        {**selection, "chosen_step": "20"}, {**selection, "chosen_again": {"documents": True, **point}},
    ):  # fmt: skip
        (folder / "card.json").write_text(json.dumps({**values, "selection": damage}))
        with pytest.raises(AdapterError, match=r"card\.json is damaged \(selection"):
            read_card(folder)


def test_the_record_of_a_tournament_is_checked(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    values = json.loads((folder / "card.json").read_text())
    score = {"score": 0.8, "low": 0.7, "high": 0.9}
    entry = {"name": "seed=0", "rung": 1, "step": 2, "planned_steps": 8, "standing": "winner", **score}
    loser = {
        **entry, "name": "seed=1", "standing": "worse", "difference": -0.1, "difference_low": -0.2,
        "difference_high": -0.01, "p_value": 0.03,
    }  # fmt: skip
    tournament = {
        "design_sha256": "d", "metric": "acc", "is_share": True, "higher_is_better": True, "documents": 60, "units": 60,
        "data_sha256": "e", "rungs": [{"share": 0.25, "entries": 2}], "entries": [entry, loser], "winner": 1,
        "winner_again": {"documents": 60, "units": 60, **score}, "trained_share": 0.6, "training_seconds": 3.0,
        "full_training_seconds": 5.0, "scoring_seconds": 1.0,
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps({**values, "tournament": tournament}))
    assert read_card(folder) == card(tournament=tournament)
    for damage in (
        [], {}, {**tournament, "rungs": []}, {**tournament, "metric": "<b>"}, {**tournament, "winner": 3},
        {**tournament, "entries": [entry, {**loser, "standing": "fine"}]}, {**tournament, "winner_again": {}},
        {**tournament, "entries": [entry, {**entry, "standing": "worse"}]}, {**tournament, "entries": [entry, 3]},
    ):  # fmt: skip
        (folder / "card.json").write_text(json.dumps({**values, "tournament": damage}))
        with pytest.raises(AdapterError, match=r"card\.json is damaged \(tournament"):
            read_card(folder)


def test_a_saved_adapter_is_complete_and_says_nothing_of_this_machine(tmp_path: Path) -> None:
    model = tiny()
    model.config._name_or_path = model.name_or_path = str(tmp_path / "secret-place" / "tiny")
    folder = make_adapter(tmp_path / "adapter", model)
    assert {file.name for file in folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "card.json", "README.md",
    }  # fmt: skip
    assert read_card(folder) == card()
    for file in folder.iterdir():
        text = file.read_bytes().decode("utf-8", errors="replace")
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text or str(Path.home()) == "/"
        assert "secret-place" not in text
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # whoever may read one may read all


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = make_adapter(tmp_path / "one"), make_adapter(tmp_path / "other")
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name
    modules = json.loads((one / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)


def test_half_the_bytes_in_bfloat16(tmp_path: Path) -> None:
    exact = make_adapter(tmp_path / "exact")
    half = make_adapter(tmp_path / "half", dtype=torch.bfloat16)
    weights = load_file(half / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for name, tensor in load_file(exact / "adapter_model.safetensors").items():
        assert torch.equal(weights[name], tensor.to(torch.bfloat16))


def damage(file: str, text: str | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(text)

    return apply


def truncate(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def empty(folder: Path) -> None:
    save_file({}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shutil.rmtree, "no adapter folder"),
        (damage("adapter_config.json", None), "holds no adapter_config.json"),
        (damage("adapter_config.json", "{"), "cannot be read as JSON"),
        (damage("adapter_config.json", "[]"), "JSON list, not an object"),
        (damage("adapter_config.json", '{"r": 8}'), "names no peft_type"),
        (
            damage("adapter_config.json", '{"peft_type": "NEW_KIND"}'),
            "kind 'NEW_KIND', which peft",
        ),
        (damage("adapter_model.safetensors", None), "is missing"),
        (damage("adapter_model.safetensors", ""), "is damaged"),
        (truncate, "is damaged"),
        (empty, "is empty"),
    ],
)
def test_a_broken_folder_is_named(tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    folder = make_adapter(tmp_path / "adapter")
    harm(folder)
    with pytest.raises(AdapterError, match=re.escape(str(folder))) as caught:
        check_adapter(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"base": "x"}'])
def test_a_damaged_card(tmp_path: Path, text: str) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / "card.json").write_text(text)
    with pytest.raises(AdapterError, match=r"card\.json is damaged .*; train the adapter again or delete the card"):
        read_card(folder)


def test_the_base_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_adapter(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"'tiny', a folder that is not on this machine.*pretrained="):
        find_base(folder)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert find_base(folder) == "models/tiny"
    (folder / "card.json").unlink()  # an adapter that another tool made
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, expected in (("someone/model", "someone/model"), (None, None)):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
        if expected:
            assert find_base(folder) == expected
        else:
            with pytest.raises(AdapterError, match="does not say which base"):
                find_base(folder)


@pytest.mark.parametrize(
    "base", ["/home/me/axolotl/models/llama-7b", "../Qwen2.5-0.5B", "~/llama", "C:\\models\\llama"]
)
def test_a_base_on_another_machine_is_named_with_the_remedy(tmp_path: Path, base: str) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / "card.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    with pytest.raises(AdapterError, match=r"not on this machine.*pretrained=") as caught:
        find_base(folder)
    assert base in str(caught.value).replace("\\\\", "\\")


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin.*safetensors: python -c") as caught:
        check_adapter(folder)
    command = shlex.split(str(caught.value).split("safetensors: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    check_adapter(folder)
    assert load_file(folder / "adapter_model.safetensors").keys() == weights.keys()


def test_patterns_are_expanded_to_adapter_folders(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_adapter(tmp_path / name)
    (tmp_path / "recipe").mkdir()  # no adapter
    (tmp_path / "a.yaml").write_text("")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert expand_adapters([f"{tmp_path}/*", "org/name@main", b + "/"]) == [a, b, "org/name@main", b]
    with pytest.raises(AdapterError, match="no adapter folder matches"):
        expand_adapters([f"{tmp_path}/nothing*"])


def test_an_adapter_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the Hub's cache, as `snapshot_download` fills it; without a network it answers from there."""
    commit = "0123456789" * 4
    repo = tmp_path / "cache" / "models--org--name"
    (repo / "snapshots").mkdir(parents=True)
    make_adapter(repo / "snapshots" / commit)
    for revision in ("main", "v1"):
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("org/name", "org/name@v1", f"org/name@{commit}"):
        check_adapter(adapter_folder(name))
    with pytest.raises(AdapterError, match=r"no adapter folder org/name@v2, and the Hub gives no adapter") as caught:
        adapter_folder("org/name@v2")
    assert "\n" not in str(caught.value)
    (tmp_path / "adapters").mkdir()
    monkeypatch.chdir(tmp_path)
    assert adapter_folder("adapters/mistyped") == Path("adapters/mistyped")  # a folder, not a Hub id


class TestReplacingFolder:
    @staticmethod
    def write_and_fail(target: Path, error: BaseException | None) -> None:
        with replacing_folder(target) as partial:
            (partial / "file").write_text("new")
            if error:
                raise error

    def test_takes_the_place(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "adapter"
        for text in ("first", "second"):
            with replacing_folder(target) as partial:
                (partial / "file").write_text(text)
                assert partial.parent == target.parent
            assert (target / "file").read_text() == text
            assert [path.name for path in target.parent.iterdir()] == ["adapter"]

    @pytest.mark.parametrize(
        ("error", "raised"),
        [(OSError("No space left on device"), WriteError), (KeyboardInterrupt(), KeyboardInterrupt)],
    )
    def test_an_error_leaves_what_was_there(
        self, tmp_path: Path, error: BaseException, raised: type[BaseException]
    ) -> None:
        target = tmp_path / "adapter"
        target.mkdir()
        (target / "file").write_text("old")
        with pytest.raises(raised):
            self.write_and_fail(target, error)
        assert (target / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    def test_a_failing_rename_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "adapter"
        target.mkdir()
        (target / "file").write_text("old")
        rename = Path.rename

        def fail(self: Path, to: Path) -> Path:
            if ".partial" in self.name:
                raise OSError("no")
            return rename(self, to)

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(WriteError, match="no"):
            self.write_and_fail(target, None)
        assert (target / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
