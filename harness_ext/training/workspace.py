"""The folder for checkpoints during training, next to the adapter's folder; it is removed at the end.

```
adapters/.sst2.training/
├── lock               held by the training that runs
├── recipe.json        settings that the run was started with
├── initial/           the adapter before training, if its initialisation changes the base
├── evaluated/         states of the adapter that were scored, see `evaluated_states`
└── checkpoint-350/    checkpoint of transformers' Trainer
```
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel

from harness_ext.atomic import replacing_folder, why_not_written, write_text
from harness_ext.errors import TrainingError
from harness_ext.models.devices import choose_device
from harness_ext.training.batches import ExampleSet
from harness_ext.training.checkpoints import damaged_checkpoint, last_checkpoint
from harness_ext.training.lock import OutputLock
from harness_ext.training.recipe import Recipe, flag, recorded

RECIPE_FILE = "recipe.json"  # settings that the run was started with
INITIAL_FOLDER = "initial"  # the adapter before training, if its initialisation changes the base
FREE_TO_CHANGE = (  # recipe fields that may differ when a run is resumed
    "include_path", "prefix_trees", "max_tokens", "save_dtype", "gradient_checkpointing", "save_steps", "logging_steps",
)  # fmt: skip
BYTES_PER_PARAMETER = 28  # trainable, float32: the adapter, and two checkpoints of weights and Adam's moments
EVALUATED_STATES, STATE_BYTES = 10, 4  # of the adapter alone
SPARE_BYTES = 20e6


def workspace_of(output: str) -> Path:
    """The folder for checkpoints of an adapter that is written to `output`."""
    folder = Path(output).expanduser().absolute()
    return folder.with_name(f".{folder.name}.training")


@dataclass(frozen=True)
class Claim:
    """The right to train in a workspace and to write to an output folder."""

    output: str  # folder of the adapter
    workspace: Path  # for checkpoints
    lock: OutputLock | None  # held; None in all but the first of several processes
    resume: bool  # an earlier run is continued
    overwrite: bool  # an adapter may be replaced


@contextlib.contextmanager
def claimed(
    output: str, *, resume: bool = False, overwrite: bool = False, workspace: Path | None = None
) -> Iterator[Claim]:
    """Hold the lock of an output folder; if no run is resumed, the remains of earlier runs are removed.

    Args:
        output: folder of the adapter.
        resume: whether an earlier run is continued.
        overwrite: whether an adapter or a checkpoint may be replaced.
        workspace: folder for checkpoints; None: the hidden one beside the output.

    Raises:
        TrainingError: the output folder or a checkpoint exists and must not be replaced, none exists to resume, or
            another training writes there.
    """
    place = workspace_of(output) if workspace is None else workspace
    processes = PartialState(cpu=choose_device().type == "cpu")  # for `accelerate launch`; also selects this one's GPU
    with contextlib.ExitStack() as stack:
        lock = None
        if processes.is_main_process:
            lock = stack.enter_context(OutputLock(place, output).held())
        with processes.main_process_first():
            claim = Claim(output, place, lock, resume, overwrite)
            _check(claim)
        yield claim


def _check(claim: Claim) -> None:
    """Make sure that nothing is in the way; if no run is resumed, remove the remains of earlier runs."""
    output, overwrite = claim.output, claim.overwrite
    check_output(output, overwrite=overwrite)
    checkpoint = last_checkpoint(claim.workspace)
    damaged = damaged_checkpoint(claim.workspace)
    if claim.resume and checkpoint is None and damaged:
        raise TrainingError(f"{output} cannot be resumed: {damaged}; start again without --resume")
    if claim.resume and checkpoint is None:
        raise TrainingError(f"there is no checkpoint of {output} to resume; start without --resume")
    if not claim.resume and checkpoint is not None and not overwrite:
        raise TrainingError(f"{output} has a checkpoint; continue with --resume, or start again with --overwrite")
    if not claim.resume and claim.lock is not None:
        claim.lock.clear_workspace()


def check_output(output: str, *, overwrite: bool) -> None:
    """Make sure that an adapter may be written to a folder.

    Raises:
        TrainingError: it is a file, or contains something that must not be replaced.
    """
    folder = Path(output).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{output} is a file; choose another --output")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise TrainingError(
            f"{output} already contains an adapter; replace it with --overwrite, or choose another --output"
        )


def has_checkpoint(workspace: Path) -> bool:
    """Whether a run can be resumed, or has a checkpoint that is damaged, which `claimed` refuses."""
    return bool(last_checkpoint(workspace) or damaged_checkpoint(workspace))


@contextlib.contextmanager
def kept_only_with_checkpoint(claim: Claim) -> Iterator[None]:
    """Empty the workspace if the block fails before there is a checkpoint to resume."""
    try:
        yield
    except BaseException:
        if claim.lock is not None and last_checkpoint(claim.workspace) is None:
            claim.lock.clear_workspace()
        raise


def prepare(
    claim: Claim, model: PeftModel, recipe: Recipe, examples: ExampleSet, *, held_out: str | None = None
) -> None:
    """Create the workspace, or check that a resumed run has the same settings.

    Args:
        claim: of the workspace.
        model: gives the size of checkpoints.
        recipe: of the run.
        examples: that are trained on.
        held_out: hash of the documents that the model is scored on, if it is.

    Raises:
        TrainingError: there is not enough disk space, the folder cannot be written, or settings or data have changed.
    """
    workspace = claim.workspace
    state = {"recipe": recipe.for_card(), "data": examples.data_sha256, "held_out": held_out}
    file = workspace / RECIPE_FILE
    if claim.resume and file.is_file():
        _require_same(json.loads(file.read_text(encoding="utf-8")), state, recipe.output)
        return
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(workspace).free, _bytes_per_parameter(recipe) * parameters + SPARE_BYTES
        if free < needed:
            raise TrainingError(
                f"not enough disk space for {recipe.output}: its checkpoints need {needed / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free; free some space, or choose another --output"
            )
        write_text(file, json.dumps(state, indent=2))
        if recipe.changes_base:
            with replacing_folder(workspace / INITIAL_FOLDER) as initial:
                model.save_pretrained(str(initial))
    except OSError as error:
        raise TrainingError(why_not_written(recipe.output, error)) from error


def _bytes_per_parameter(recipe: Recipe) -> float:
    """Of a run's checkpoints, and of a few states if some are evaluated: how many is not known before the run."""
    return BYTES_PER_PARAMETER + (0 if recipe.evaluate_every is None else EVALUATED_STATES * STATE_BYTES)


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], output: str) -> None:
    differing = [
        f"{flag(name)} was {recorded(before['recipe'], name)!r}, is {value!r}"
        for name, value in now["recipe"].items()
        if name not in FREE_TO_CHANGE and recorded(before["recipe"], name) != value
    ]
    if not differing and before["data"] != now["data"]:
        differing = ["the training documents have changed"]
    if not differing and before.get("held_out") != now["held_out"]:
        differing = ["the documents for --evaluate-every have changed"]
    if differing:
        raise TrainingError(
            f"{output} was started with different settings ({'; '.join(differing)}); "
            "resume it with the original settings, or start again with --overwrite"
        )
