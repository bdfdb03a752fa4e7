"""What an adapter folder says, checked before peft acts on it: files, shapes, sizes, scales and patterns.

peft allocates what `adapter_config.json` asks for, and matches its patterns with every layer, before it looks at the
weights. The header of the safetensors file says what is really there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from harness_ext.errors import AdapterError, InputError, first_line
from harness_ext.reading.files import is_regular
from harness_ext.reading.json_input import read_json_object
from harness_ext.reading.patterns import check_patterns

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "card.json"

RANKS = ("r", "rank", "init_r", "target_r")
SIZES = (  # other settings of peft's methods that size what is allocated
    "boft_block_num", "boft_block_size", "encoder_hidden_size", "encoder_num_layers", "num_attention_heads",
    "num_layers", "num_transformer_submodules", "num_vectors", "num_virtual_tokens", "oft_block_size", "token_dim",
    "vector_length",
)  # fmt: skip
SCALES = ("alpha", "lora_alpha", "scaling", "init_weights_scale")
_MODEST = 10_000  # sizes up to this are small, whatever the weights are
_MATRIX = re.compile(r"\.(lora|hada|lokr|ia3|oft|boft|vera|vblora)_.*$|\.(weight|bias|modules_to_save.*)$")

Shapes = Mapping[str, tuple[int, ...]]


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in `adapter_config.json`, checked against the weights that are there.

    Raises:
        AdapterError: a file leads out of the folder, is damaged, or asks for more than the weights need.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        _check_place(folder, folder / name)
    try:
        settings = read_json_object(folder / CONFIG_FILE, finite=True, exact=True)
    except InputError as error:
        raise AdapterError(f"{error}; copy the adapter again or train it again") from error
    _check_values(folder / CONFIG_FILE, settings, saved_shapes(folder))
    return settings


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each saved weight, from the header alone.

    Raises:
        AdapterError: there are none, or the file is damaged.
    """
    file = folder / WEIGHTS_FILE
    if not is_regular(file):
        problem = "is no regular file" if os.path.lexists(file) else "is missing"
        raise AdapterError(f"{file} {problem}; copy the adapter again or train it again")
    try:
        with safe_open(file, framework="numpy") as weights:  # compares the header with the file's size
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise AdapterError(f"{file} is damaged ({first_line(error):.120}); copy it again or train it again") from error
    if not shapes:
        raise AdapterError(f"{file} is empty; train the adapter again")
    return shapes


def layer_names(shapes: Iterable[str]) -> list[str]:
    """Names of the layers that weights belong to, as peft matches them."""
    return list(dict.fromkeys(_MATRIX.sub("", name.removeprefix("base_model.model.")) for name in shapes))


def check_layer_patterns(folder: Path, config: Any, names: Sequence[str]) -> None:
    """Make sure that matching a base's layers with an adapter's patterns ends.

    Args:
        folder: of the adapter, for messages.
        config: a mapping of settings, or peft's configuration.
        names: of the layers.

    Raises:
        AdapterError: a pattern is no regular expression, or matching takes too long.
    """
    settings = config if isinstance(config, Mapping) else vars(config)
    whole = [settings.get(name) for name in ("target_modules", "exclude_modules", "target_parameters")]
    ends = [key for name in ("rank_pattern", "alpha_pattern") for key in settings.get(name) or ()]
    layers = settings.get("layers_pattern") or []
    if not isinstance(layers, (str, list)):
        raise AdapterError(f"{folder / CONFIG_FILE}: layers_pattern must name layers, not {layers!r:.40}; correct it")
    patterns = [
        *(pattern for pattern in whole if isinstance(pattern, str)),
        *(rf"(.*\.)?({pattern})$" for pattern in ends if isinstance(pattern, str)),
        *(rf".*\.{pattern}\.(\d+)\." for pattern in ([layers] if isinstance(layers, str) else layers)),
    ]
    try:
        check_patterns(patterns, names)
    except InputError as error:
        raise AdapterError(f"{folder / CONFIG_FILE}: {error}; name the layers in a simpler way") from error


def _check_place(folder: Path, file: Path) -> None:
    """Raise AdapterError for a link that leads out of the folder; those of the Hub's cache lead to its blobs."""
    if not file.is_symlink():
        return
    target, own = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    is_cached = own.parent.name == "snapshots" and target.parent == own.parent.parent / "blobs"
    if not (target.is_relative_to(own) or is_cached):
        raise AdapterError(f"{file} is a link to {target}, outside the adapter's folder; copy the file into it")


def _check_values(file: Path, settings: Mapping[str, Any], shapes: Shapes) -> None:
    dimensions = [size for shape in shapes.values() if math.prod(shape) for size in shape]
    largest = max(dimensions, default=0)
    ranks = settings.get("rank_pattern") or {}
    if not isinstance(ranks, Mapping) or not isinstance(settings.get("alpha_pattern") or {}, Mapping):
        raise AdapterError(f"{file}: rank_pattern and alpha_pattern must map layers to numbers; correct it")
    sizes = {name: settings[name] for name in (*RANKS, *SIZES) if settings.get(name) is not None}
    sizes |= {f"rank_pattern of {name}": rank for name, rank in ranks.items() if not isinstance(rank, list)}
    for name, size in sizes.items():
        limit = max(largest, _MODEST) if name in SIZES else largest
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= limit:
            raise AdapterError(
                f"{file}: {name:.80} is {size!r:.40}, but the largest dimension of the saved weights is {largest:,}; "
                "copy the adapter again or correct it"
            )
    for name in ("r", "lora_alpha", "alpha"):
        if name in settings and settings[name] is None:
            raise AdapterError(f"{file}: {name} is null, not a number; copy the adapter again or correct it")
    if settings.get("r") == 0 and "lora_alpha" in settings:
        raise AdapterError(f"{file}: r is 0; copy the adapter again or correct it")
    scales = {name: settings[name] for name in SCALES if settings.get(name) is not None}
    scales |= {f"alpha_pattern of {name}": alpha for name, alpha in (settings.get("alpha_pattern") or {}).items()}
    for name, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise AdapterError(
                f"{file}: {name:.80} is {scale!r:.40}, not a number; copy the adapter again or correct it"
            )
    if settings.get("megatron_config") is not None:
        raise AdapterError(f"{file}: megatron_config makes peft import any module; remove it")
