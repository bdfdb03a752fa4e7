"""Checkpoints that can be resumed: a manifest, written last, says what each file held.

```
.sst2.training/checkpoint-350/
├── adapter_model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, trainer_state.json, …
└── manifest.json      {"files": {"optimizer.pt": sha256, …, "../recipe.json": sha256}}
```
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness_ext.atomic import sync_tree, write_text
from harness_ext.errors import InputError
from harness_ext.models.sources import files_sha256
from harness_ext.reading.json_input import read_json_object

MANIFEST = "manifest.json"


def checkpoint_folders(workspace: Path) -> list[Path]:
    """All checkpoints of a run, newest first, whether or not they can be resumed."""
    folders = [folder for folder in workspace.glob("checkpoint-*") if folder.name.split("-")[-1].isdigit()]
    return sorted(folders, key=lambda folder: -checkpoint_step(folder))


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser steps that led to a checkpoint."""
    return int(checkpoint.name.split("-")[-1])


def seal(checkpoint: Path, shared: Iterable[Path]) -> None:
    """Make a checkpoint that has been written one that can be resumed, and remove the older ones.

    Args:
        checkpoint: its folder.
        shared: files and folders beside it that a resumed run needs, too.

    Raises:
        WriteError: it cannot be written; the older ones are kept.
    """
    sync_tree(checkpoint)
    write_manifest(checkpoint, shared)
    for folder in checkpoint_folders(checkpoint.parent):
        if folder != checkpoint:
            shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, shared: Iterable[Path] = ()) -> None:
    """Write down what each file of a folder holds.

    Args:
        folder: complete.
        shared: files and folders beside it that belong to it.

    Raises:
        WriteError: it cannot be written.
    """
    files = [file for place in (folder, *shared) for file in _files_in(place)]
    hashes = {Path(os.path.relpath(file, folder)).as_posix(): files_sha256(file) for file in sorted(files)}
    write_text(folder / MANIFEST, json.dumps({"files": hashes}, indent=2) + "\n")


def _files_in(place: Path) -> list[Path]:
    return [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]


def why_not_whole(checkpoint: Path) -> str | None:
    """Why a folder with a manifest is not what was written; None if it is."""
    if not (checkpoint / MANIFEST).exists():
        return "it was not written to its end"
    try:
        hashes = dict(read_json_object(checkpoint / MANIFEST)["files"])
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, expected in hashes.items():
        try:
            found = files_sha256(checkpoint / name)
        except OSError:
            return f"{name} is missing"
        if found != expected:
            return f"{name} is not what was written"
    return None


def last_checkpoint(workspace: Path) -> Path | None:
    """The newest checkpoint that a run can be resumed from."""
    return next((folder for folder in checkpoint_folders(workspace) if why_not_whole(folder) is None), None)


def damaged_checkpoint(workspace: Path) -> str | None:
    """What is wrong with the newest checkpoint that was written to its end; None if there is none."""
    for folder in checkpoint_folders(workspace):
        if (folder / MANIFEST).exists() and (reason := why_not_whole(folder)):
            return f"{folder.name} ({reason})"
    return None
