"""Adapters on disk: the folder, its card, and the base it belongs to.

```
adapters/sst2/
├── adapter_model.safetensors   what peft saves
├── adapter_config.json
├── card.json                   base, weights, task, protocol, recipe, data: what `AdapterCard` holds
└── README.md                   model card that the Hub renders
```
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file

from harness_ext.atomic import write_text
from harness_ext.errors import AdapterError, first_line
from harness_ext.models.adapter_input import (
    CONFIG_FILE as CONFIG_FILE,
)
from harness_ext.models.adapter_input import (
    WEIGHTS_FILE as WEIGHTS_FILE,
)
from harness_ext.models.adapter_input import (
    check_layer_patterns,
    layer_names,
    read_settings,
    saved_shapes,
)
from harness_ext.models.card import CARD_FILE, AdapterCard, hub_name, read_card
from harness_ext.models.sources import FETCHABLE, packaged_model_folder, weights_sha256
from harness_ext.reading.json_input import read_json_object

logger = logging.getLogger(__name__)

PICKLE_FILE = "adapter_model.bin"
HUB_ADAPTER = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
ADAPTER_FILES = (  # of a repository on the Hub: the adapter and its tokenizer, never a pickle
    WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, "README.md", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "chat_template*", "spiece.model",
)  # fmt: skip


def expand_adapters(names: Iterable[str | Path]) -> list[str]:
    """Replace glob patterns by the adapter folders they match, in alphabetical order.

    Raises:
        AdapterError: a pattern matches no adapter.
    """
    expanded: list[str] = []
    for name in map(str, names):
        if not glob.has_magic(name) or Path(name).expanduser().is_dir():
            expanded.append(name.rstrip("/") or name)
            continue
        matches = sorted(glob.glob(str(Path(name).expanduser())))  # noqa: PTH207 (absolute patterns, too)
        folders = [match for match in matches if (Path(match) / CONFIG_FILE).is_file()]
        if not folders:
            raise AdapterError(f"no adapter folder matches {name!r}; check the pattern (an adapter has {CONFIG_FILE})")
        expanded += folders
    return expanded


def adapter_folder(adapter: str | Path, *, revision: str | None = None) -> Path:
    """The local folder of an adapter: a folder as it is, or a Hub id (`org/name@revision`), downloaded once.

    Args:
        adapter: folder or Hub id.
        revision: of a Hub id that names none.

    Raises:
        AdapterError: there is no such folder, and the Hub has no such adapter or cannot be reached.
    """
    folder = Path(adapter).expanduser()
    hub_id = HUB_ADAPTER.fullmatch(str(adapter))
    if folder.is_dir() or hub_id is None or folder.parent.is_dir():
        return folder
    try:
        revision = hub_id["revision"] or revision
        return Path(snapshot_download(hub_id["repo"], revision=revision, allow_patterns=[*ADAPTER_FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError, ValueError) as error:
        raise AdapterError(
            f"there is no adapter folder {adapter}, and the Hub gives no adapter of this name at {revision or 'main'} "
            f"({type(error).__name__}: {first_line(error):.120}); check the name and the network"
        ) from error


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, be it damaged."""
    return (folder / CONFIG_FILE).is_file()


def check_adapter(adapter: str | Path) -> PeftConfig:
    """Read an adapter's configuration and make sure its weights are there and whole.

    Raises:
        AdapterError: no such folder, no adapter in it, or weights that are truncated or no safetensors.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        raise AdapterError(f"no adapter folder {folder}; train one with `harness-ext train TASK --output {folder}`")
    if not os.path.lexists(folder / CONFIG_FILE):
        raise AdapterError(f"{folder} holds no {CONFIG_FILE}; name the folder that `harness-ext train` or peft wrote")
    if not (folder / WEIGHTS_FILE).exists() and (folder / PICKLE_FILE).exists():
        raise AdapterError(
            f"{folder} holds {PICKLE_FILE}, a pickle, which may run code when it is read; if you trust it, convert it "
            f"to safetensors: {_conversion_command(folder)}"
        )
    settings = read_settings(folder)
    _check_kind(folder, settings)
    check_layer_patterns(folder, settings, layer_names(saved_shapes(folder)))
    try:
        return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # each method of peft checks its settings in its own way
        raise AdapterError(
            f"{folder} is damaged ({first_line(error):.160}); copy it again or train it again"
        ) from error


def _check_kind(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise AdapterError for a method that the installed peft cannot load."""
    kind = settings.get("peft_type")
    if kind is None:
        raise AdapterError(f"{folder / CONFIG_FILE} names no peft_type; copy the adapter again or train it again")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(
            f"{folder} is of the kind {kind!r:.80}, which peft {peft.__version__} does not know; update it: "
            "pip install -U peft"
        )


def _conversion_command(folder: Path) -> str:
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"s.save_file(torch.load('{folder / PICKLE_FILE}', weights_only=True), '{folder / WEIGHTS_FILE}')\""
    )


def find_base(adapter: str | Path) -> str:
    """The base model an adapter belongs to, as something that can be loaded here.

    Raises:
        AdapterError: it names no base, or a folder that is not on this machine.
    """
    config = check_adapter(adapter)
    card = read_card(adapter)
    base = card.base if card else config.base_model_name_or_path
    remedy = f"name its base: --model_args pretrained=BASE (and peft={adapter} or --adapters {adapter})"
    if not base or not isinstance(base, str):
        raise AdapterError(f"{adapter} does not say which base it belongs to; {remedy}")
    if (packaged := packaged_model_folder(base)) is not None:
        return str(packaged)
    if base in FETCHABLE or Path(base).is_dir() or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base, re.ASCII):
        return str(base)
    raise AdapterError(f"{adapter} was trained on {base!r}, a folder that is not on this machine; {remedy}")


def check_base_weights(adapter: str | Path, base: str, *, revision: str | None = None) -> None:
    """Warn when a base's weights are not the ones the adapter was trained on."""
    card = read_card(adapter)
    if card is None or card.base_sha256 is None:
        return
    found = weights_sha256(base, revision=revision)
    if found is not None and found != card.base_sha256:
        logger.warning(
            "%s was trained on other weights of %s (sha256 %s…, here %s…): its scores will differ from its card's",
            adapter, card.base, card.base_sha256[:12], found[:12],
        )  # fmt: skip


def save_adapter(
    model: PeftModel,
    folder: Path,
    *,
    card: AdapterCard,
    readme: str,
    dtype: torch.dtype | None,
    initial: Path | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write an adapter, its card and its model card into an existing folder.

    Args:
        model: holds one trained adapter.
        folder: where to write.
        card: where it comes from.
        readme: the model card in Markdown.
        dtype: of the saved weights; None keeps that of training.
        initial: the adapter as training began, for one whose start changed the base (PiSSA, OLoRA): it is saved as the
            difference, an ordinary LoRA of twice the rank for the unchanged base.
        weights: of the model, by name, where it holds only a part of them itself.
    """
    conversion: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    if initial is not None:  # peft writes into that folder, and a run that is resumed needs it as it was
        copied = folder / initial.name
        shutil.copytree(initial, copied)
        conversion["path_initial_model_for_weight_conversion"] = str(copied)
    model.save_pretrained(str(folder), save_embedding_layers=False, **conversion)
    if initial is not None:
        shutil.rmtree(copied)
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = read_json_object(folder / CONFIG_FILE)
    config["base_model_name_or_path"] = hub_name(card.base)
    if isinstance(config.get("target_modules"), list):  # peft keeps it as a set, in an order of the process's own
        config["target_modules"].sort()
    _write_json(folder / CONFIG_FILE, dict(sorted(config.items())))
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors lets only the owner read
    _write_json(folder / CARD_FILE, asdict(card))
    write_text(folder / "README.md", readme)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
