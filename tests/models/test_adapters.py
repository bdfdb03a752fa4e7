"""Adapters on disk and on a model: what is refused, what is kept, what must not leak."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness_ext.errors import AdapterError
from harness_ext.folders import replacing_folder
from harness_ext.models.adapters import (
    AdapterCard,
    AdapterSwitch,
    check_adapter,
    find_base,
    read_card,
    save_adapter,
)

PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


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


@torch.no_grad()
def answer(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=PROMPT).logits
    return logits


# -- on disk ---------------------------------------------------------------------------------------------------------


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
        (damage("adapter_config.json", "{"), "is damaged"),
        (damage("adapter_config.json", "[]"), "is damaged"),
        (damage("adapter_config.json", '{"r": 8}'), "is damaged"),
        (damage("adapter_model.safetensors", None), "is damaged"),
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
    with pytest.raises(AdapterError, match="local folder 'tiny'"):
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

    @pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
    def test_an_error_leaves_what_was_there(self, tmp_path: Path, error: BaseException) -> None:
        target = tmp_path / "adapter"
        target.mkdir()
        (target / "file").write_text("old")
        with pytest.raises(type(error)):
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
        with pytest.raises(OSError, match="no"):
            self.write_and_fail(target, None)
        assert (target / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# -- on a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_of_different_shape_share_a_base_and_leak_nothing(tmp_path: Path, merge: bool) -> None:
    folders = [
        make_adapter(tmp_path / "small", r=2, target_modules=["q_proj"], seed=1),
        make_adapter(tmp_path / "large", r=8, target_modules="all-linear", lora_alpha=32, seed=2),
        make_adapter(tmp_path / "other", r=3, target_modules=["v_proj", "down_proj"], seed=3),
        make_adapter(tmp_path / "head", target_modules=["k_proj"], modules_to_save=["lm_head"], seed=4),
        make_adapter(tmp_path / "dora", target_modules=["q_proj", "o_proj"], use_dora=True, seed=5),
    ]
    alone = {}
    for folder in folders:  # Oracle: each one alone on a base of its own
        switch = AdapterSwitch(tiny())
        switch.attach(folder, base="tiny")
        switch.activate(folder)
        alone[folder] = answer(switch.model)
    model = tiny()
    base = answer(model)
    rows = model.get_input_embeddings().weight.shape[0]
    switch = AdapterSwitch(model, merge=merge)
    for folder in folders:
        switch.attach(folder, base="tiny")
    for chosen in (None, *folders, None, *reversed(folders), folders[0], None):
        switch.activate(chosen)
        expected = base if chosen is None else alone[chosen]
        rounding = 1e-5 if merge and chosen is not None else 0.0  # the base comes back bit by bit
        torch.testing.assert_close(answer(switch.model), expected, atol=rounding, rtol=0, msg=str(chosen))
    assert len({tensor.sum().item() for tensor in alone.values()}) == len(folders)
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert not any(p.requires_grad for n, p in switch.model.named_parameters() if "lora" in n)


def test_merging_leaves_one_product_a_layer(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    switch = AdapterSwitch(tiny(), merge=True)
    switch.attach(folder, base="tiny")
    switch.activate(folder)
    layers = [layer for layer in switch.model.modules() if isinstance(layer, LoraLayer)]
    assert layers
    assert all(layer.merged for layer in layers)
    switch.activate(None)
    assert not any(layer.merged for layer in layers)


def test_weights_that_are_not_finite_are_not_merged(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: tensor.fill_(float("inf")) for name, tensor in weights.items()}, folder / "adapter_model.safetensors"
    )
    switch = AdapterSwitch(tiny(), merge=True)
    switch.attach(folder, base="tiny")
    with pytest.raises(AdapterError, match="leave out merge=true"):
        switch.activate(folder)


def test_attaching_while_another_is_active_changes_nothing(tmp_path: Path) -> None:
    one, other = make_adapter(tmp_path / "one", seed=1), make_adapter(tmp_path / "other", seed=2)
    switch = AdapterSwitch(tiny())
    switch.attach(one, base="tiny")
    switch.activate(one)
    before = answer(switch.model)
    switch.attach(other, base="tiny")
    assert torch.equal(answer(switch.model), before)


def test_an_untrained_adapter_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", trained=False)
    switch = AdapterSwitch(tiny())
    switch.attach(folder, base="tiny")
    with pytest.raises(AdapterError, match="changes nothing"):
        switch.activate(folder)


def rename_layers(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): t for name, t in load_file(path).items()}, path)


@pytest.mark.parametrize("beside", [False, True], ids=["first", "beside another"])
@pytest.mark.parametrize(
    ("trained_on", "lora", "said"),
    [
        ({"width": 64}, {}, "size mismatch"),
        ({"layers": 1}, {"target_modules": ["q_proj"]}, "weights are missing"),  # the second layer's
        ({"layers": 3}, {}, "have no layer in the base"),
        ({"layers": 3}, {"layers_to_transform": [2], "target_modules": ["q_proj"]}, "not found"),
        ({}, {"target_modules": ["q_proj"], "renamed": True}, "have no layer in the base"),
        ({"vocabulary": 99}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "size mismatch"),
    ],
)
def test_an_adapter_of_another_base(
    tmp_path: Path, trained_on: dict[str, int], lora: dict[str, Any], said: str, beside: bool
) -> None:
    renamed = lora.pop("renamed", False) if (lora := dict(lora)) else False
    folder = make_adapter(tmp_path / "adapter", tiny(**trained_on), **lora)
    if renamed:
        rename_layers(folder)
    fitting = make_adapter(tmp_path / "fitting", r=2, seed=5)
    model = tiny()
    base = answer(model)
    switch = AdapterSwitch(model)
    if beside:
        switch.attach(fitting, base="tiny")
    with pytest.raises(AdapterError) as caught:
        switch.attach(folder, base="tiny")
    message = str(caught.value)
    assert "\n" not in message
    assert f"{folder} does not fit tiny" in message
    assert said in message or (said == "not found" and "target_modules" in message), message
    # nothing of it is left: the base answers as before, and an adapter that fits still works
    switch.activate(None)
    assert torch.equal(answer(switch.model), base)
    if not beside:
        switch.attach(fitting, base="tiny")
    switch.activate(fitting)
    alone = AdapterSwitch(tiny())
    alone.attach(fitting, base="tiny")
    alone.activate(fitting)
    assert torch.equal(answer(switch.model), answer(alone.model))


def test_an_adapter_that_was_not_attached(tmp_path: Path) -> None:
    switch = AdapterSwitch(tiny())
    with pytest.raises(AdapterError, match="is not attached"):
        switch.activate(tmp_path / "adapter")


def test_a_base_that_was_changed_behind_our_back_is_noticed(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    model = tiny()
    switch = AdapterSwitch(model)
    switch.attach(folder, base="tiny")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(AdapterError, match="base answers otherwise"):
        switch.activate(None)


def test_other_weights_of_the_base_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    folder = make_adapter(tmp_path / "adapter")
    values = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**values, "base_sha256": "0" * 64}))
    AdapterSwitch(model).attach(folder, base=str(tmp_path / "base"))
    assert "was trained on other weights of tiny" in caplog.text


def test_learned_prompts_can_be_switched_off_too(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(tiny(), config).save_pretrained(str(tmp_path / "prompt"))
    model = tiny()
    base = answer(model)
    switch = AdapterSwitch(model)
    switch.attach(tmp_path / "prompt", base="tiny")
    switch.activate(None)
    assert torch.equal(answer(switch.model), base)
    switch.activate(tmp_path / "prompt")
    assert not torch.equal(answer(switch.model)[0, -1], base[0, -1])


def test_encoder_decoders_can_be_probed() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=61, d_model=16, d_ff=32, d_kv=4, num_layers=1, num_heads=4)
    switch = AdapterSwitch(transformers.T5ForConditionalGeneration(config).eval())
    switch.activate(None)
