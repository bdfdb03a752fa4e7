"""Where this package keeps its own files."""

from __future__ import annotations

from pathlib import Path


def tasks_path() -> Path:
    """The folder of the tasks that come with this package: what stock lm-eval takes as `--include_path`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"
