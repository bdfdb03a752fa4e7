"""Tasks that `harness-ext new-task` made in the current folder: `tasks/NAME/NAME.yaml`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

OWN_TASKS = Path("tasks")  # where `new-task` puts them unless told otherwise


def own_task_folders(names: Iterable[str]) -> list[Path]:
    """The folders of those names that `new-task` made a task of, to be searched like `--include_path`."""
    plain = [name for name in names if Path(name).name == name]  # no paths
    return [OWN_TASKS / name for name in plain if (OWN_TASKS / name / f"{name}.yaml").is_file()]
