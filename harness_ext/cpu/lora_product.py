"""A LoRA layer's product in one piece: what peft adds in four passes over the layer's output is added in one.

```
peft   y = x W' ;  u = x A' ;  v = u B' ;  v = v * scale ;  y = y + v      and the same again, backwards
here   y = x W' ;  u = x A' ;  y += scale * u B'                           the scale and the sum inside the product
```

The update has a rank of 8 or so: almost no arithmetic, but each pass over (tokens, width) costs a tenth of the layer's
own product. Its gradients are written down below instead of being recorded step by step.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from harness_ext.cpu.onednn import OneDnnLinear, forget_layouts, linear


class FusedLoraLinear(LoraLinear):
    """peft's LoRA layer, the plain case computed in one piece; whatever else it can do, it does as ever."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out), as peft's layer."""
        name = None if args or kwargs else self._plain_adapter(x)
        if name is None:
            answer: Tensor = super().forward(x, *args, **kwargs)
            return answer
        a, b, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        product: Tensor = _LoraProduct.apply(x, a, b, self.base_layer, scale)  # type: ignore[no-untyped-call]
        return product

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Add adapters into the base's weight, as peft does."""
        try:
            super().merge(*args, **kwargs)
        finally:
            forget_layouts(self.base_layer)

    def unmerge(self) -> None:
        """Subtract them again, as peft does."""
        super().unmerge()
        forget_layouts(self.base_layer)

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The only active adapter, if it is a plain LoRA over a frozen layer, all in one dtype."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) != 1 or self.disable_adapters or self.merged or names[0] in self.lora_variant:
            return None
        (name,) = names
        base, a, b = self.base_layer, self.lora_A[name], self.lora_B[name]
        dropout = self.lora_dropout[name]
        parameters = [base.weight, a.weight, b.weight]
        plain = (
            type(base) in (nn.Linear, OneDnnLinear)
            and not any(map(_is_hooked, (base, a, b, dropout)))
            and not any(parameter.requires_grad for parameter in base.parameters())
            and a.bias is None
            and b.bias is None
            and (isinstance(dropout, nn.Identity) or not dropout.training)
            and x.numel() > 0
            and all(p.dtype == x.dtype and p.device == x.device for p in parameters)
            and not torch.is_autocast_enabled(x.device.type)
        )
        return name if plain else None


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens to a module's calls, or has replaced them: they would not happen."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + scale * (x A') B', differentiable in x, A (rank, in) and B (out, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: nn.Linear, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (T, in)
        product = base(rows)  # (T, out)
        inner = linear(rows, a)  # (T, rank)
        product.addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, a, b)
        ctx.weight, ctx.scale = base.weight, scale
        return product.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        rows, inner, a, b = ctx.saved_tensors
        outer = grad.reshape(-1, grad.shape[-1])  # (T, out)
        grad_inner = linear(outer, b.t()).mul_(ctx.scale)  # (T, rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(outer, ctx.weight.detach().t()).addmm_(grad_inner, a).view(*grad.shape[:-1], -1)
        # (rank, T) times (T, out): as (out, T) times (T, rank) the product is several times slower
        grad_b = (inner.t() @ outer).mul_(ctx.scale).t()
        return grad_x, grad_inner.t() @ rows, grad_b, None, None


def fuse_lora(model: nn.Module) -> None:
    """Let a model's LoRA layers on a CPU multiply in one piece.

    Args:
        model: PEFT-wrapped. Layers of other methods, quantised ones and those on a GPU stay as they are.
    """
    layer: Any  # its class is peft's, untyped
    for layer in model.modules():
        if type(layer) is LoraLinear and layer.get_base_layer().weight.device.type == "cpu":
            layer.__class__ = FusedLoraLinear
