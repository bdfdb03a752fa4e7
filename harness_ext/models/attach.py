"""Put an adapter on a base model as peft alone would; `base_proof` shows afterwards that the base is what it was.

Each adapter gets a PEFT wrapper of its own, made by `PeftModel.from_pretrained` as if it were alone. The wrapper does
not go on the base itself but on a structural copy of it: new modules that share the base's weights. What an adapter
replaces or changes (layers, the embedding, biases, the start of PiSSA) belongs to the copy, which goes away with it.

```
base ──structural_copy──> modules of its own, weights shared ──PeftModel.from_pretrained──> the adapter, alone
```
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn

from harness_ext.cpu.lora_product import fuse_lora
from harness_ext.cpu.onednn import share_layouts
from harness_ext.errors import AdapterError
from harness_ext.models.adapter_input import WEIGHTS_FILE, check_layer_patterns, saved_shapes
from harness_ext.models.adapters import check_adapter, check_base_weights
from harness_ext.models.base_proof import last_logits, named_tensors
from harness_ext.models.card import read_card
from harness_ext.trees.support import kind_of

LORA_KINDS = {"LORA"}
GENTLE_STARTS = {"gaussian", "orthogonal"}  # values of init_lora_weights that leave the base's weights alone
SHARED_IN_PEFT = ("vblora_vector_bank", "prompt_encoder", "tinylora_v", "unilora_theta_d")  # saved once, not per layer
MERGE_TOLERANCE = 1e-2  # nats; a merged float32 model differs by about 1e-4


@dataclass(frozen=True)
class AttachedAdapter:
    """A model with one adapter on it."""

    model: Any  # PEFT wrapper, in eval mode
    config: PeftConfig
    untrained_tokens: tuple[str, ...] = ()  # of the tokenizer, without a trained embedding


def attach(
    model: Any,
    folder: str | Path,
    *,
    base: str,
    revision: str | None = None,
    tokenizer: Any = None,
    merge: bool = False,
    probes: Sequence[Sequence[int]] = (),
) -> AttachedAdapter:
    """Put an adapter on a copy of a base that shares the base's weights.

    Args:
        model: the base, on its device; it stays as it is.
        folder: of the adapter.
        base: name of the base, for messages and to check its weights.
        revision: of a base on the Hub.
        tokenizer: the one in use. As in lm-eval, the embedding is resized to it; an embedding that the adapter brings
            decides its own size.
        merge: add the adapter into the copy's weights.
        probes: token ids of prompts, to hold a merged model against the unmerged one.

    Raises:
        AdapterError: it does not fit the base, was saved untrained, or cannot be merged.
    """
    folder = Path(folder).expanduser()
    config = check_adapter(folder)
    check_base_weights(folder, base, revision=revision)
    shapes = saved_shapes(folder)
    check_layer_patterns(folder, config, [name for name, _ in model.named_modules()])
    if _is_untrained(folder, config):
        raise AdapterError(f"{folder} changes nothing: all of its lora_B matrices are zero; was it saved untrained?")
    own = merge or _changes_the_base(config)
    try:
        copied = structural_copy(model, own=lambda name: own or any(key.endswith(name) for key in shapes))
        new_tokens = _resize_embedding(copied, config, shapes, tokenizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys, which are an error below
            wrapper = PeftModel.from_pretrained(copied, str(folder), config=config)
            _check_keys(wrapper, folder, config)
    except (
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
        ImportError,
        re.error,  # a name of layers that peft puts into a pattern
    ) as error:
        raise AdapterError(_misfit(folder, base, config, _reason(error))) from error
    wrapper.requires_grad_(False)
    wrapper.eval()
    fuse_lora(wrapper)
    if merge and not config.is_prompt_learning:
        _merge(wrapper, folder, probes)
    return AttachedAdapter(wrapper, config, new_tokens)


def structural_copy(model: nn.Module, *, own: Callable[[str], bool] | None = None) -> Any:
    """Copy a model's modules and configuration; its weights are shared.

    Args:
        model: any module; tied weights stay tied.
        own: whether a parameter or buffer of this name is copied, too; none is when left out.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    copied = copy.deepcopy(
        model, {key: _twin(tensors[key], own=own is not None and any(map(own, names[key]))) for key in tensors}
    )
    share_layouts(model, copied)
    return copied


def _twin(tensor: Tensor, *, own: bool) -> Tensor:
    """A tensor object of its own over the same numbers; quantised weights, whose classes keep state, stay the same."""
    if type(tensor) not in (nn.Parameter, Tensor):
        return tensor
    numbers = tensor.detach().clone() if own else tensor.detach()
    return nn.Parameter(numbers, requires_grad=False) if isinstance(tensor, nn.Parameter) else numbers


def works_on_some_tokens_only(config: PeftConfig) -> bool:
    """Whether an adapter may leave an answer as it is: its tokens do not occur, or lie outside the attention window."""
    kind = kind_of(config)
    return bool(
        kind == "TRAINABLE_TOKENS"
        or config.is_prompt_learning
        or getattr(config, "trainable_token_indices", None)
        or getattr(config, "alora_invocation_tokens", None)
    )


def _is_untrained(folder: Path, config: PeftConfig) -> bool:
    """Whether a LoRA's update is zero everywhere; other methods and further saved weights are not judged."""
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        keys = list(weights.keys())
        second = [key for key in keys if "lora_B" in key or "lora_embedding_B" in key]
        first = [key for key in keys if "lora_A" in key or "lora_embedding_A" in key or "magnitude" in key]
        others = len(keys) - len(first) - len(second)
        if kind_of(config) not in LORA_KINDS or others or not second:
            return False
        return not any(bool(weights.get_tensor(key).any()) for key in second)


def _changes_the_base(config: PeftConfig) -> bool:
    """Whether loading an adapter may write into the base's weights, not only beside them.

    What LoRA and learned prompts do is known; of everything else the copy gets weights of its own.
    """
    if config.is_prompt_learning:
        return False
    if kind_of(config) not in LORA_KINDS:
        return True
    start = getattr(config, "init_lora_weights", True)
    return (isinstance(start, str) and start not in GENTLE_STARTS) or getattr(config, "bias", "none") != "none"


def _resize_embedding(
    model: Any, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]], tokenizer: Any
) -> tuple[str, ...]:
    """Give the embedding the rows that the adapter brings, else those of the tokenizer, as lm-eval does.

    Returns:
        The tokens that have a row now which nobody has trained.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    brought = _rows_brought(model, shapes)
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    needed = max(len(tokenizer or ()), max(vocabulary.values(), default=-1) + 1) or rows
    target = brought or needed
    if target != rows:
        model.resize_token_embeddings(target)
    listed = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    trained = {index for each in (listed.values() if isinstance(listed, dict) else [listed]) for index in each}
    trained |= set(range(max(rows, brought or 0)))
    return tuple(token for token, index in vocabulary.items() if index not in trained)


def _rows_brought(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the embedding or head that an adapter was saved with, None where it has neither."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if any(module is end for end in ends if end is not None)]
    rows = {"weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
    for key, shape in shapes.items():
        for name in names:
            for kind, dimension in rows.items():
                if key.endswith(f"{name}.{kind}"):
                    return shape[dimension]
    return None


def _check_keys(wrapper: PeftModel, folder: Path, config: PeftConfig) -> None:
    """Raise ValueError for weights that are missing or have no place; peft itself only warns of the former."""
    mapping = getattr(wrapper.get_base_model(), "_checkpoint_conversion_mapping", {})
    result = wrapper.load_adapter(str(folder), "default", key_mapping=None if config.is_prompt_learning else mapping)
    missing = [key for key in result.missing_keys if not any(shared in key for shared in SHARED_IN_PEFT)]
    # peft puts learned prompts in place by itself and then finds them unexpected
    if not config.is_prompt_learning and (missing or result.unexpected_keys):
        raise ValueError(_difference(missing, result.unexpected_keys))


def _merge(wrapper: PeftModel, folder: Path, probes: Sequence[Sequence[int]]) -> None:
    """Add the adapter into the weights of its own copy of the base."""
    _refuse_shared_weights(wrapper, folder)
    before = last_logits(wrapper, probes)
    try:
        wrapper.base_model.merge_adapter(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise AdapterError(f"{folder} cannot be merged ({_reason(error)}); leave out merge=true") from error
    if next(wrapper.parameters()).dtype != torch.float32:
        return
    for merged, unmerged in zip(last_logits(wrapper, probes), before, strict=True):
        gap = float((merged.log_softmax(-1) - unmerged.log_softmax(-1)).abs().max())
        if not gap <= MERGE_TOLERANCE:
            raise AdapterError(f"{folder} answers differently when merged (by {gap:.2g} nats); leave out merge=true")


def _refuse_shared_weights(wrapper: PeftModel, folder: Path) -> None:
    """Raise AdapterError where merging into one layer would change another: a tied embedding and head."""
    users: dict[int, set[str]] = {}
    for name, module in wrapper.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(parameter.data_ptr(), set()).add(name)
    for name, layer in wrapper.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for parameter in layer.get_base_layer().parameters():
            others = [user for user in users.get(parameter.data_ptr(), ()) if not user.startswith(name)]
            if others:
                raise AdapterError(
                    f"{folder} changes {name.removeprefix('base_model.model.')}, whose weight is shared with "
                    f"{others[0].removeprefix('base_model.model.')}, and cannot be merged exactly; leave out merge=true"
                )


def _misfit(folder: Path, base: str, config: PeftConfig, reason: str) -> str:
    card = read_card(folder)
    kind = kind_of(config)
    named = card.base if card else config.base_model_name_or_path
    trained = f"it was trained on {named}" if named else "it does not say which base it belongs to"
    return f"{folder} ({kind}) does not fit {base}: {trained} ({reason:.160}); name its own base"


def _reason(error: Exception) -> str:
    """The telling line of an error; torch lists the weights that do not fit below a headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]


def _difference(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Say which weights an adapter lacks for a base, and which it has too many."""
    parts = [
        f"{len(keys)} weights {what}, {keys[0].removeprefix('base_model.model.')} first"
        for what, keys in (("are missing", missing), ("have no layer in the base", unexpected))
        if keys
    ]
    return " and ".join(parts)
