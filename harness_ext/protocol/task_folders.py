"""Task folders besides lm-eval's own: this package's, and those that `new-task` made in the working directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

OWN_TASKS = Path("tasks")  # where `new-task` writes by default


def tasks_path() -> Path:
    """The folder of the tasks in this package; pass it to stock lm-eval as `--include_path`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"


def own_task_folders(names: Iterable[str]) -> list[Path]:
    """The folders that `new-task` made for these names, to search like `--include_path`."""
    plain = [name for name in names if Path(name).name == name]  # not paths
    return [OWN_TASKS / name for name in plain if (OWN_TASKS / name / f"{name}.yaml").is_file()]
