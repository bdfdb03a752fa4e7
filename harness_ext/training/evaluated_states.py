"""States of the adapter that were scored in training, kept until one of them is chosen.

```
.sst2.training/evaluated/step-50/
├── adapter_model.safetensors, adapter_config.json
├── state.json         {"step": 50, "scores": […], "seconds": …, "next_step": 100, "weights_sha256": …}
└── manifest.json      checksums of these
```
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from harness_ext.atomic import replacing_folder, write_text
from harness_ext.errors import InputError, TrainingError
from harness_ext.reading.json_input import read_json_object
from harness_ext.training.checkpoints import why_not_whole, write_manifest

FOLDER = "evaluated"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class EvaluatedState:
    """A state of the adapter and its scores."""

    step: int  # optimiser steps that led to it
    scores: list[float]  # of each document
    seconds: float  # that the evaluation took
    next_step: int  # at which the next evaluation is due
    weights_sha256: str


class EvaluatedStates:
    """The scored states of a run, in its workspace.

    Args:
        workspace: folder for checkpoints of the run.
    """

    def __init__(self, workspace: Path) -> None:
        self._folder = workspace / FOLDER

    def folder(self, step: int) -> Path:
        """Where a state's weights are."""
        return self._folder / f"step-{step}"

    def save(self, state: EvaluatedState, model: PeftModel) -> None:
        """Write a state with the weights of the model, completely or not at all.

        Raises:
            WriteError: it cannot be written.
        """
        with replacing_folder(self.folder(state.step)) as partial:
            model.save_pretrained(str(partial), save_embedding_layers=False)
            write_text(partial / STATE_FILE, json.dumps(asdict(state)) + "\n")
            write_manifest(partial)

    def read(self, *, until: int) -> list[EvaluatedState]:
        """The states that led to a checkpoint, in the order of training.

        Args:
            until: step of the checkpoint.

        Raises:
            TrainingError: one of them is damaged.
        """
        steps = [step for step in self._steps() if step <= until]
        for step in steps:
            self.check(step)
        return [self._state(step) for step in steps]

    def check(self, step: int) -> None:
        """Raise TrainingError if a state is not what was written."""
        if reason := why_not_whole(self.folder(step)):
            raise TrainingError(
                f"the evaluated state of step {step} is damaged ({reason}); start again with --overwrite"
            )

    def made_before(self, step: int, weights: str) -> EvaluatedState | None:
        """A state that this run reached before it was interrupted, if it has the same weights."""
        folder = self.folder(step)
        if not folder.is_dir() or why_not_whole(folder):
            return None
        state = self._state(step)
        return state if state.weights_sha256 == weights else None

    def remove_after(self, step: int) -> None:
        """Remove the states of later steps."""
        for later in self._steps():
            if later > step:
                shutil.rmtree(self.folder(later), ignore_errors=True)

    def _steps(self) -> list[int]:
        names = [folder.name.removeprefix("step-") for folder in self._folder.glob("step-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def _state(self, step: int) -> EvaluatedState:
        try:
            values: Mapping[str, Any] = read_json_object(self.folder(step) / STATE_FILE)
            return EvaluatedState(**values)
        except (InputError, TypeError) as error:
            raise TrainingError(
                f"the state of step {step} was written by another version of harness_ext; start again with --overwrite"
            ) from error


def trained_sha256(model: PeftModel) -> str:
    """Hash of the weights that are being trained."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
