"""Products by oneDNN against PyTorch's own: the same numbers, the same gradients, no stale weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness_ext.cpu import onednn
from harness_ext.cpu.capabilities import cpu_has_bfloat16
from harness_ext.cpu.onednn import OneDnnLinear, use_onednn
from harness_ext.models.attach import structural_copy

pytestmark = pytest.mark.skipif(not onednn._is_fast(torch.zeros(64, 64)), reason="oneDNN is for x86 CPUs")


def plain_and_fast(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, OneDnnLinear]:
    torch.manual_seed(0)
    plain = nn.Linear(192, 320, bias=bias, dtype=dtype).requires_grad_(False)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    assert isinstance(fast, OneDnnLinear)
    assert fast.packs
    return plain, fast


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tiny_llama(**settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 192), (3, 192), (1, 77, 192), (2, 5, 192), (1024, 192)])
@pytest.mark.parametrize("packs", [True, False])
def test_the_product_is_that_of_a_linear_layer(shape: tuple[int, ...], bias: bool, packs: bool) -> None:
    plain, fast = plain_and_fast(bias=bias)
    fast.packs = packs
    torch.testing.assert_close(fast(rows(*shape)), plain(rows(*shape)), rtol=1e-5, atol=1e-5)
    assert (fast._packed is not None) == packs


def test_rows_that_do_not_lie_one_after_the_other() -> None:
    plain, fast = plain_and_fast()
    for scattered in (rows(192, 30).t(), rows(4, 2, 192)[:, 1], rows(9, 192).flip(1)[::2]):
        torch.testing.assert_close(fast(scattered), plain(scattered), rtol=1e-5, atol=1e-5)


def test_no_rows() -> None:
    _, fast = plain_and_fast()
    assert fast(torch.empty(0, 192)).shape == (0, 320)


def test_the_gradient_of_a_frozen_layer() -> None:
    plain, fast = plain_and_fast()
    ours, theirs = rows(1, 50, 192).requires_grad_(), rows(1, 50, 192).requires_grad_()
    weights = rows(1, 50, 320)
    product = fast(ours)
    assert "_Product" in type(product.grad_fn).__name__  # it is our backward that is tested
    (product * weights).sum().backward()
    (plain(theirs) * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_trained_learns_as_ever() -> None:
    plain, fast = plain_and_fast()
    for layer in (plain, fast):
        layer.requires_grad_(True)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)  # changes weights uncounted
        for _ in range(2):
            layer(rows(5, 192)).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                layer(rows(5, 192))  # between steps: must not be remembered
    with torch.no_grad():
        torch.testing.assert_close(fast(rows(5, 192)), plain(rows(5, 192)), rtol=1e-5, atol=1e-5)
    assert not torch.equal(fast.weight, plain_and_fast()[0].weight)


def test_a_changed_weight_is_laid_out_anew() -> None:
    plain, fast = plain_and_fast()
    fast(rows(5, 192))
    for layer in (plain, fast):
        layer.weight.mul_(2)  # in place
    torch.testing.assert_close(fast(rows(5, 192)), plain(rows(5, 192)), rtol=1e-5, atol=1e-5)
    for layer in (plain, fast):
        layer.weight.data = layer.weight.data + 1  # another tensor
    torch.testing.assert_close(fast(rows(5, 192)), plain(rows(5, 192)), rtol=1e-5, atol=1e-5)


def test_changes_that_pytorch_does_not_count_are_seen_after_forgetting() -> None:
    plain, fast = plain_and_fast()
    fast(rows(5, 192))
    for layer in (plain, fast):
        layer.weight.data.mul_(2)
    onednn.forget_layouts(fast)
    torch.testing.assert_close(fast(rows(5, 192)), plain(rows(5, 192)), rtol=1e-5, atol=1e-5)


def test_a_model_with_lora_gives_the_same_loss_and_gradients() -> None:
    losses, gradients = [], []
    for ours in (False, True):
        model = tiny_llama()
        if ours:
            use_onednn(model.requires_grad_(False))
        torch.manual_seed(1)
        wrapped = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        )
        ids = torch.arange(40)[None] * 7 % 300
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in wrapped.parameters() if p.requires_grad])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert len(gradients[0]) == len(gradients[1]) > 0
    for theirs, mine in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_copy_uses_the_layouts_of_weights_it_shares_and_sees_merging() -> None:
    model = tiny_llama()
    use_onednn(model.requires_grad_(False))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        copied = structural_copy(model)
        assert torch.equal(copied(ids).logits, before)
        layers = [
            (one, other)
            for one, other in zip(model.modules(), copied.modules(), strict=True)
            if isinstance(one, OneDnnLinear)
        ]
        assert layers
        assert all(one._packed is other._packed for one, other in layers)
        wrapped = get_peft_model(copied, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
        beside = wrapped(input_ids=ids).logits
        assert not torch.allclose(before, beside, atol=1e-3)
        wrapped.merge_adapter(safe_merge=True)
        torch.testing.assert_close(wrapped(input_ids=ids).logits, beside, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(ids).logits, before)


def test_the_head_is_not_held_twice_and_neither_is_what_exceeds_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    monkeypatch.setattr(onednn, "PACKED_BYTES", 3 * 64 * 64 * 4)
    use_onednn(model.requires_grad_(False))
    use_onednn(model)  # takes no more room
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, OneDnnLinear)}
    assert [name.rsplit(".", 1)[-1] for name, layer in layers.items() if layer.packs] == ["q_proj", "k_proj", "v_proj"]
    assert len(layers) == 2 * 7 + 1
    assert not layers["lm_head"].packs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_stay_with_pytorch(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 64, dtype=dtype)
    use_onednn(layer)
    assert type(layer) is nn.Linear


def test_a_model_moved_to_another_dtype_later_still_works() -> None:
    plain, fast = plain_and_fast()
    fast(rows(5, 192))
    ours, theirs = fast.double()(rows(5, 192).double()), plain.double()(rows(5, 192).double())
    assert torch.equal(ours, theirs)


def test_parametrized_weights_are_never_laid_out() -> None:
    class Scaled(nn.Module):
        factor = 1.0

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.factor

    plain, fast = plain_and_fast()
    scaling = Scaled()
    torch.nn.utils.parametrize.register_parametrization(fast, "weight", scaling)
    for factor in (1.0, 2.0, 3.0, 4.0):
        scaling.factor = factor
        product = torch.nn.functional.linear(rows(5, 192), factor * plain.weight, plain.bias)
        torch.testing.assert_close(fast(rows(5, 192)), product, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no units for bfloat16")
def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "cpu_has_bfloat16", lambda: True)  # tests otherwise compute in float32
    plain, fast = plain_and_fast(dtype=torch.bfloat16)
    answer = fast(rows(9, 192).bfloat16())
    assert fast._packed is not None
    torch.testing.assert_close(answer, plain(rows(9, 192).bfloat16()), rtol=2e-2, atol=2e-2)


def test_small_layers_and_a_switched_off_onednn_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "SMALLEST_SIDE", 64)
    small = nn.Linear(512, 8)
    use_onednn(small)
    assert type(small) is nn.Linear
    _, fast = plain_and_fast()
    with torch.backends.mkldnn.flags(enabled=False):
        fast(rows(5, 192))
    assert fast._packed is None


def test_copies_and_pickles_lay_out_their_own() -> None:
    plain, fast = plain_and_fast()
    fast(rows(5, 192))
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other._packed is None
        torch.testing.assert_close(other(rows(5, 192)), plain(rows(5, 192)), rtol=1e-5, atol=1e-5)
    assert fast.state_dict().keys() == plain.state_dict().keys()
