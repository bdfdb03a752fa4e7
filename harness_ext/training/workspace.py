"""Where checkpoints lie while an adapter is made: beside its folder, gone when it is done.

```
adapters/.sst2.training/
├── recipe.json        what the run was begun with
├── initial/           the adapter before training, where its start changes the base
└── checkpoint-350/    Trainer's
```
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from harness_ext.errors import TrainingError
from harness_ext.training.batches import ExampleSet
from harness_ext.training.recipe import Recipe, flag

STATE_FILE = "trainer_state.json"  # the last file of a checkpoint that Trainer writes
RECIPE_FILE = "recipe.json"  # what the run was begun with
INITIAL_FOLDER = "initial"  # the adapter before training, where its start changes the base
FREE_TO_CHANGE = (
    "include_path", "prefix_trees", "max_tokens", "save_dtype", "gradient_checkpointing", "save_steps", "logging_steps",
)  # fmt: skip
BYTES_PER_PARAMETER = 28  # trainable: two checkpoints of weights and Adam's moments, and the adapter, in float32
SPARE_BYTES = 20e6


def claim_workspace(output: Path, shown: str, *, resume: bool, overwrite: bool) -> Path:
    """The folder for checkpoints, beside the output; removes what an earlier run left when this one starts anew."""
    workspace = output.with_name(f".{output.name}.training")
    if output.exists() and not output.is_dir():
        raise TrainingError(f"{shown} is a file; choose another --output")
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise TrainingError(
            f"{shown} holds an adapter already; add --overwrite to replace it, or choose another --output"
        )
    checkpoint = last_checkpoint(workspace)
    if resume and checkpoint is None:
        raise TrainingError(f"there is no checkpoint of {shown} to resume; start it without --resume")
    if not resume and checkpoint is not None and not overwrite:
        raise TrainingError(f"{shown} has a checkpoint; go on with --resume, or start again with --overwrite")
    if not resume:
        shutil.rmtree(workspace, ignore_errors=True)
    return workspace


def last_checkpoint(workspace: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    folders = [folder for folder in workspace.glob("checkpoint-*") if folder.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda folder: -int(folder.name.split("-")[-1])):
        with contextlib.suppress(OSError, ValueError):
            json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            return folder
    return None


@contextlib.contextmanager
def kept_only_with_checkpoint(workspace: Path) -> Iterator[None]:
    """Remove the workspace when the block fails before there is anything to resume."""
    try:
        yield
    except BaseException:
        if last_checkpoint(workspace) is None:
            shutil.rmtree(workspace, ignore_errors=True)
        raise


def prepare(workspace: Path, model: PeftModel, recipe: Recipe, examples: ExampleSet, *, resume: bool) -> None:
    """Make sure that there is room and that a resumed run is the same run; keep what the end has to know."""
    state = {"recipe": recipe.for_card(), "data": examples.data_sha256}
    file = workspace / RECIPE_FILE
    if resume and file.is_file():
        _require_same(json.loads(file.read_text(encoding="utf-8")), state, recipe.output)
        return
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(workspace).free, BYTES_PER_PARAMETER * parameters + SPARE_BYTES
        if free < needed:
            raise TrainingError(
                f"no disk space for {recipe.output}: its checkpoints take {needed / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free; make room or choose another --output"
            )
        file.write_text(json.dumps(state, indent=2), encoding="utf-8")
        if recipe.changes_base:
            model.save_pretrained(str(workspace / INITIAL_FOLDER))
    except OSError as error:
        raise TrainingError(f"{recipe.output} cannot be written ({error}); choose another --output") from error


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], shown: str) -> None:
    differing = [
        f"{flag(name)} was {before['recipe'].get(name)!r}, is {value!r}"
        for name, value in now["recipe"].items()
        if name not in FREE_TO_CHANGE and before["recipe"].get(name) != value
    ]
    if not differing and before["data"] != now["data"]:
        differing = ["the training documents are others"]
    if differing:
        raise TrainingError(
            f"{shown} was begun otherwise ({'; '.join(differing)}); "
            "resume it as it was, or start again with --overwrite"
        )
