"""Where tasks are looked for besides lm-eval's own: those of this package, and those made in the current folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

OWN_TASKS = Path("tasks")  # where `new-task` puts them unless told otherwise


def tasks_path() -> Path:
    """The folder of the tasks that come with this package: what stock lm-eval takes as `--include_path`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"


def own_task_folders(names: Iterable[str]) -> list[Path]:
    """The folders of those names that `new-task` made a task of, to be searched like `--include_path`."""
    plain = [name for name in names if Path(name).name == name]  # no paths
    return [OWN_TASKS / name for name in plain if (OWN_TASKS / name / f"{name}.yaml").is_file()]
