"""Matrix products by oneDNN on an x86 CPU, with weights laid out for it once.

PyTorch gives float32 products to MKL, which reads a weight row by row and rearranges it at every call. oneDNN takes
weights that were rearranged once: as fast with a thousand rows, up to twice as fast with a few dozen, as in decoding.
It is what `torch.compile` does with frozen weights, without the compiling. Only kernels change: the model keeps its
layers, parameters and names, and its numbers up to rounding.
"""

from __future__ import annotations

import platform
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness_ext.cpu.capabilities import cpu_has_bfloat16

PACKED_BYTES = 2**30  # of weights held a second time; layers beyond it go to oneDNN as they are
SMALLEST_SIDE = 64  # below there is nothing to gain


class _Packed(NamedTuple):
    weight: Tensor  # opaque, in the layout of oneDNN
    made_of: tuple[int, int]  # address and version of the weight it was made of


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, its product by oneDNN as long as nothing asks for the gradient of its weight."""

    packs: bool
    _packed: _Packed | None

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out), as `nn.Linear`."""
        if "weight" not in self._parameters:  # parametrized: another tensor at each access
            return super().forward(input)
        weight = self.weight
        alike = input.dtype == weight.dtype and input.device == weight.device and input.numel() > 0
        trained = torch.is_grad_enabled() and (weight.requires_grad or _needs_grad(self.bias))
        if not alike or trained or not _is_fast(weight) or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled() and input.requires_grad:
            product: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
            return product
        return self.product(input)

    def product(self, input: Tensor) -> Tensor:
        """The product alone, unknown to autograd.

        A weight that is being trained is never laid out beforehand: fused optimizers change it without a trace.
        """
        if self.packs and not self.weight.requires_grad:
            return _linear(input, self._laid_out(), self.bias)
        self._packed = None
        return _linear(input, self.weight, self.bias)

    def _laid_out(self) -> Tensor:
        """The weight in oneDNN's layout, made anew when it was changed."""
        state = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed.made_of != state:
            with torch.no_grad():
                self._packed = _Packed(torch.ops.mkldnn._reorder_linear_weight(self.weight.detach()), state)
        return self._packed.weight

    def _apply(self, *args: Any, **kwargs: Any) -> OneDnnLinear:
        self._packed = None  # moved or converted
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # the layout can be neither copied nor pickled


class _Product(torch.autograd.Function):
    """The product with a frozen weight: its gradient is another such product."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: OneDnnLinear) -> Tensor:
        ctx.weight = layer.weight
        return layer.product(input)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return linear(grad, ctx.weight.t()), None


def use_onednn(model: Any) -> None:
    """Let a model's linear layers multiply by oneDNN; nothing happens where it would not be faster.

    Only frozen weights are laid out beforehand, and not the head: it is large, often the embedding itself, and used on
    few rows.

    Args:
        model: a transformers model, PEFT-wrapped or not, on its device. Call again when layers were added.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    of_head = set() if head is None else set(head.modules())  # peft may have wrapped it
    ours = (layer for layer in model.modules() if isinstance(layer, OneDnnLinear))
    room = PACKED_BYTES - sum(layer.weight.nbytes for layer in ours if layer.packs)
    for layer in model.modules():
        if type(layer) is not nn.Linear or min(layer.weight.shape) < SMALLEST_SIDE or not _is_fast(layer.weight):
            continue
        size = layer.weight.nbytes
        packs = layer not in of_head and not layer.weight.requires_grad and size <= room
        room -= size if packs else 0
        layer.__class__ = OneDnnLinear
        vars(layer).update(packs=packs, _packed=None)


def share_layouts(model: nn.Module, copied: nn.Module) -> None:
    """Let a copy that shares a model's weights use its layouts; a layer whose weight is another lays out its own.

    Args:
        model: the original.
        copied: its modules in the same order.
    """
    for layer, twin in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(layer, OneDnnLinear) and isinstance(twin, OneDnnLinear):
            twin._packed = layer._packed


def forget_layouts(model: nn.Module) -> None:
    """Have weights laid out anew, after they were changed in a way that PyTorch does not count (through `.data`)."""
    for layer in model.modules():
        if isinstance(layer, OneDnnLinear):
            layer._packed = None


def _is_fast(weight: Tensor) -> bool:
    """Whether oneDNN multiplies such a weight here, and faster."""
    if type(weight) not in (Tensor, nn.Parameter):  # quantised, distributed
        return False
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if weight.dtype != torch.float32 and not (weight.dtype == torch.bfloat16 and cpu_has_bfloat16()):
        return False
    return _HAS_OPERATORS and bool(torch.backends.mkldnn.enabled)


def linear(input: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.linear` without a bias, by oneDNN where that is fast; unknown to autograd.

    Args:
        input: (T, in).
        weight: (out, in), also a transposed view.
    """
    if input.dtype == weight.dtype and _is_fast(weight):
        return _linear(input.contiguous(), weight.detach(), None)
    return torch.nn.functional.linear(input, weight)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def _needs_grad(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


_HAS_OPERATORS = torch._C._has_mkldnn and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
