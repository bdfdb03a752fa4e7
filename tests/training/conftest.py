"""A recipe for the tiny model on the bundled sample: a run takes about a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.training.recipe import Recipe


@pytest.fixture
def recipe_for(tiny_model_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe of a few steps; any field can be set."""

    def make(**values: Any) -> Recipe:
        known: dict[str, Any] = {
            "task": "sst2_choice", "model": str(tiny_model_folder), "output": str(tmp_path / "adapters" / "made"),
            "lora_rank": 4, "limit": 48, "validation_size": 12, "batch_size": 8, "learning_rate": 1e-2,
            "logging_steps": 1, "max_tokens": 400, "dtype": "float32",
        }  # fmt: skip
        return Recipe(**{**known, **values})

    return make
