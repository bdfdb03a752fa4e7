"""Adapters of strangers: refused in one line, before peft allocates, matches or follows anything."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness_ext.errors import AdapterError
from harness_ext.models.adapter_input import layer_names, saved_shapes
from harness_ext.models.adapters import check_adapter
from harness_ext.models.attach import attach
from harness_ext.models.card import read_card
from harness_ext.reading import patterns

ENDLESS = r"(.*e|.*l|.*d|.*\w)*\!"
WEIGHTS = "adapter_model.safetensors"


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = get_peft_model(tiny(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))


def test_shapes_come_from_the_header_alone(adapter: Path) -> None:
    shapes = saved_shapes(adapter)
    assert shapes["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == (4, 32)
    assert layer_names(shapes) == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": 33}, "dimension of the saved weights is 32"),
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"r": 10**400}, "beyond 64 bits"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern of q_proj is"),
        ({"rank_pattern": [1]}, "must map layers"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern of q_proj is"),
        ({"lora_alpha": float("nan")}, "not finite"),
        ({"lora_alpha": float("inf")}, "not finite"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"megatron_config": {}, "megatron_core": "antigravity"}, "megatron_config"),
        ({"peft_type": ["LORA"]}, "kind"),
        ({"task_type": {}}, ""),
        ({"base_model_name_or_path": "x\ud800"}, "half a character"),
        ({"target_modules": "(*" * 20}, "no regular expression"),
    ],
)
def test_settings_that_are_refused(adapter: Path, settings: dict[str, Any], words: str) -> None:
    change(adapter, **settings)
    with pytest.raises(AdapterError) as caught:
        attach(tiny(), adapter, base="base")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_cannot_end_is_refused(adapter: Path, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 1.0)
    change(adapter, **{field: {ENDLESS: 4} if "pattern" in field else ENDLESS})
    started = time.monotonic()
    with pytest.raises(AdapterError, match=r"takes more than 1 s"):
        check_adapter(adapter)
    assert time.monotonic() - started < 30, "the process that matches was ended"


def test_patterns_are_tried_on_the_layers_of_the_base_too(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names in the weights may be chosen so that a pattern ends for them."""
    monkeypatch.setattr(patterns, "MAX_SECONDS", 1.0)
    change(adapter, target_modules=r"model\.layers\.0\.self_attn\.q_proj|(.*e|.*m|.*d|.*\w)*\!")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(4, 32)}, adapter / WEIGHTS)
    config = check_adapter(adapter)
    assert config.r == 4
    with pytest.raises(AdapterError, match=r"takes more than 1 s"):
        attach(tiny(), adapter, base="base")


@pytest.mark.parametrize(
    "pattern", [r".*\.q_proj", r"^(?!.*vision).*\.(q|v)_proj$", r"(model\.)?layers\.\d+\..*q_proj"]
)
def test_ordinary_patterns_pass(adapter: Path, pattern: str) -> None:
    change(adapter, target_modules=pattern)
    assert check_adapter(adapter).target_modules == pattern


def _header(adapter: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    (adapter / WEIGHTS).write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: _header(a, b"{}"),
        lambda a: _header(a, b"{", length=2**63),
        lambda a: _header(
            a, b'{"x": {"dtype": "F32", "shape": [1000000000, 1000000000], "data_offsets": [0, 4]}}', b"0000"
        ),
        lambda a: _header(a, b'{"x": {"dtype": "F32", "shape": [18446744073709551615, 2], "data_offsets": [0, 0]}}'),
        lambda a: _header(a, b'{"x": {"dtype": "NOPE", "shape": [1], "data_offsets": [0, 4]}}', b"0000"),
        lambda a: _header(a, b'{"x": ' + b"[" * 100_000),
        lambda a: _header(a, b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"0000"),
    ],
)
def test_damaged_weights(adapter: Path, damage: Callable[[Path], None]) -> None:
    damage(adapter)
    with pytest.raises(AdapterError, match=r"damaged|empty"):
        check_adapter(adapter)


def test_a_dimension_without_numbers_allows_no_rank(adapter: Path) -> None:
    _header(adapter, b'{"x": {"dtype": "F32", "shape": [1000000000, 0], "data_offsets": [0, 0]}}')
    change(adapter, r=10**9)
    with pytest.raises(AdapterError, match="is 0;"):
        check_adapter(adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_a_pipe_does_not_block(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    with pytest.raises(AdapterError, match=r"regular file"):
        check_adapter(adapter)


def test_a_pipe_as_card_does_not_block(adapter: Path) -> None:
    os.mkfifo(adapter / "card.json")
    with pytest.raises(AdapterError, match="regular file"):
        read_card(adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "card.json"])
def test_a_link_out_of_the_folder_is_refused(adapter: Path, tmp_path: Path, name: str) -> None:
    if (adapter / name).exists():
        (adapter / name).rename(tmp_path / name)
    else:
        (tmp_path / name).write_text("{}")
    (adapter / name).symlink_to(tmp_path / name)
    with pytest.raises(AdapterError, match="outside the adapter's folder"):
        check_adapter(adapter)


def test_links_of_the_cache_and_inside_the_folder_are_followed(adapter: Path, tmp_path: Path) -> None:
    """The Hub's cache holds snapshots/COMMIT/FILE -> ../../blobs/HASH."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/c0ffee", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(("adapter_config.json", WEIGHTS)):
        (adapter / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)
    assert check_adapter(linked).r == 4


CARD: dict[str, Any] = {
    "base": "b", "base_revision": None, "base_sha256": None, "task": "t", "fingerprint": "f",
    "fingerprint_fields": {}, "recipe": {}, "data_sha256": "d", "sample_data": False, "examples": 1, "tokens": 1,
    "trainable_parameters": 1, "seed": 0, "seconds": 1, "train_loss": 0.5, "validation_loss": None, "versions": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [("recipe", []), ("base", 5), ("task", None), ("examples", "1"), ("examples", True), ("train_loss", "x"),
     ("seconds", 10**400), ("sample_data", 1), ("versions", "v")],
)  # fmt: skip
def test_a_card_of_other_types_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    (tmp_path / "card.json").write_text(json.dumps({**CARD, field: value}))
    with pytest.raises(AdapterError, match=field):
        read_card(tmp_path)


def test_names_in_a_card_are_made_visible(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({**CARD, "task": "a\x1b[31m\nb", "train_loss": float("nan")}))
    card = read_card(tmp_path)
    assert card is not None
    assert card.task == r"a\x1b[31m\nb"
    assert card.seconds == 1.0
