"""LoRA layers in one piece against peft's own: the same numbers and gradients, peft's way for what is special."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from harness_ext.cpu import lora_product
from harness_ext.cpu.lora_product import FusedLoraLinear, fuse_lora
from harness_ext.cpu.onednn import use_onednn


class TwoLayers(nn.Module):
    """In: (..., 96), out: (..., 80)."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(96, 128, bias=bias)
        self.second = nn.Linear(128, 80, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def peft_and_fused(dtype: torch.dtype = torch.float32, *, bias: bool = True, **settings: Any) -> list[PeftModel]:
    """The same adapter on the same layers, twice."""
    torch.manual_seed(0)
    base = TwoLayers(bias=bias).to(dtype)
    defaults = {"r": 4, "lora_alpha": 12, "target_modules": ["first", "second"], "init_lora_weights": False}
    model = get_peft_model(base, LoraConfig(**{**defaults, **settings}), autocast_adapter_dtype=False).to(dtype)
    fused = copy.deepcopy(model)
    use_onednn(fused)
    fuse_lora(fused)
    assert sum(isinstance(layer, FusedLoraLinear) for layer in fused.modules()) == 2
    return [model, fused]


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each product in one piece."""
    calls: list[int] = []
    plain = lora_product._LoraProduct.apply

    def counted(*args: Any) -> Any:
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(lora_product._LoraProduct, "apply", counted)
    return calls


def losses_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    loss = model(x).square().sum()
    loss.backward()
    return loss.detach(), [x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (7, 96), (1, 130, 96), (2, 3, 5, 96)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_the_same_numbers_and_gradients(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, tolerance: float, fused_calls: list[int]
) -> None:
    found = [
        losses_and_gradients(m, rows(*shape, dtype=dtype).requires_grad_()) for m in peft_and_fused(dtype, bias=bias)
    ]
    assert len(fused_calls) == 2
    torch.testing.assert_close(found[1][0], found[0][0], rtol=tolerance, atol=0)
    assert len(found[0][1]) == 1 + 4
    for theirs, ours in zip(found[0][1], found[1][1], strict=True):
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_the_gradients_are_the_derivatives() -> None:
    _, fused = peft_and_fused(torch.float64)
    layer = fused.base_model.model.first
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = lora_product._LoraProduct.apply(x, a, b, layer.base_layer, 3.0)
        return out

    inputs = (rows(3, 96, dtype=torch.float64).requires_grad_(), *(w.detach().requires_grad_() for w in weights))
    assert torch.autograd.gradcheck(product, inputs)


def test_input_that_wants_no_gradient(fused_calls: list[int]) -> None:
    found = [losses_and_gradients(model, rows(9, 96))[1] for model in peft_and_fused()]
    assert fused_calls
    assert found[0][0] is found[1][0] is None
    for theirs, ours in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"r": 8, "lora_alpha": 8}, {"lora_dropout": 0.0}])
def test_other_plain_settings(settings: dict[str, Any], fused_calls: list[int]) -> None:
    plain, fused = peft_and_fused(**settings)
    torch.testing.assert_close(fused(rows(9, 96)), plain(rows(9, 96)), rtol=1e-5, atol=1e-4)
    assert fused_calls


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_special_settings_go_the_way_of_peft(settings: dict[str, Any], fused_calls: list[int]) -> None:
    plain, fused = peft_and_fused(**settings)
    answers = []
    for model in (plain, fused):
        torch.manual_seed(2)  # of the dropout
        answers.append(model.train()(rows(9, 96)))
    assert not fused_calls
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-4)


def test_converted_after_fusing(fused_calls: list[int]) -> None:
    plain, fused = peft_and_fused()
    fused(rows(9, 96))  # in float32, laid out
    ours, theirs = fused.double()(rows(9, 96).double()), plain.double()(rows(9, 96).double())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert len(fused_calls) == 4


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B", "lora_dropout"])
def test_hooks_inside_are_heard(part: str, fused_calls: list[int]) -> None:
    _, fused = peft_and_fused()
    layer = getattr(fused.base_model.model.first, part)
    heard = []
    (layer if part == "base_layer" else layer["default"]).register_forward_hook(lambda *_: heard.append(1))
    fused(rows(9, 96))
    assert heard == [1]
    assert len(fused_calls) == 1


def test_dropout_is_off_in_evaluation(fused_calls: list[int]) -> None:
    plain, fused = (model.eval() for model in peft_and_fused(lora_dropout=0.5))
    torch.testing.assert_close(fused(rows(9, 96)), plain(rows(9, 96)), rtol=1e-5, atol=1e-4)
    assert fused_calls


def test_disabled_merged_and_second_adapters(fused_calls: list[int]) -> None:
    plain, fused = (model.eval() for model in peft_and_fused())
    with plain.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(fused(rows(9, 96)), plain(rows(9, 96)), rtol=1e-5, atol=1e-4)
    for model in (plain, fused):
        torch.manual_seed(3)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    count = len(fused_calls)
    torch.testing.assert_close(fused(rows(9, 96)), plain(rows(9, 96)), rtol=1e-5, atol=1e-4)
    assert len(fused_calls) == count + 1  # the second layer has one adapter only
    for model in (plain, fused):
        model.set_adapter("default")
        model.merge_adapter()
    torch.testing.assert_close(fused(rows(9, 96)), plain(rows(9, 96)), rtol=1e-5, atol=1e-4)
    for model in (plain, fused):
        model.unmerge_adapter()
        model.disable_adapter_layers()
    torch.testing.assert_close(fused(rows(9, 96)), plain(rows(9, 96)), rtol=1e-5, atol=1e-4)
    assert len(fused_calls) == count + 1


def test_a_base_that_is_trained_too_goes_the_way_of_peft(fused_calls: list[int]) -> None:
    _, fused = peft_and_fused()
    fused.base_model.model.first.base_layer.weight.requires_grad_(True)
    fused(rows(9, 96)).sum().backward()
    assert fused.base_model.model.first.base_layer.weight.grad is not None
    assert len(fused_calls) == 1
