"""An adapter added into the base's weights for as long as it is evaluated, and the base put back bit by bit.

Merged, a layer is one matrix product again, and no slower than the base's. peft's own unmerging subtracts what was
added, which leaves rounding behind; here the weights are kept and copied back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from harness_ext.models.onednn import forget_layouts


@dataclass(frozen=True)
class MergedAdapter:
    """A merge, and what undoes it."""

    layers: tuple[BaseTunerLayer, ...]
    originals: tuple[tuple[Tensor, Tensor], ...]  # each parameter that merging may change, and its copy

    @classmethod
    @torch.no_grad()
    def of(cls, model: PeftModel) -> MergedAdapter:
        """Merge the active adapter.

        Raises:
            ValueError: the adapter cannot be merged, or its weights are not finite.
        """
        layers = tuple(layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
        parameters = [parameter for layer in layers for parameter in layer.get_base_layer().parameters()]
        merged = cls(layers, tuple((parameter, parameter.detach().clone()) for parameter in parameters))
        model.base_model.merge_adapter(safe_merge=True)
        merged._forget_layouts()
        return merged

    @torch.no_grad()
    def undo(self) -> None:
        """Put the base's weights back, bit by bit."""
        for layer in self.layers:
            if layer.merged:
                layer.unmerge()
        for parameter, original in self.originals:
            parameter.copy_(original)
        self._forget_layouts()

    def _forget_layouts(self) -> None:
        for layer in self.layers:
            forget_layouts(layer.get_base_layer())
