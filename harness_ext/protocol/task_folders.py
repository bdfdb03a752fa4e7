"""Task folders besides lm-eval's own: this package's, and those that `new-task` made in the working directory."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from harness_ext.errors import InputError
from harness_ext.reading.files import TASK_SIZE, read_text

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


def built_in_task(name: str) -> str | None:
    """The package whose tasks already have this name: "harness_ext" or "lm-eval"; None if neither.

    Tasks, groups and tags are looked for by the text of their YAML, which is much quicker than lm-eval's index.
    """
    found = importlib.util.find_spec("lm_eval")
    folders = {"harness_ext": [tasks_path()]}
    places = found.submodule_search_locations if found else None
    folders["lm-eval"] = [Path(place) / "tasks" for place in places or []]
    for package, homes in folders.items():
        if any(name in _names_in(home) for home in homes):
            return package
    return None


@cache
def _names_in(home: Path) -> frozenset[str]:
    return frozenset(task_names([home]))


def task_names(folders: Iterable[str | Path]) -> set[str]:
    """Names of tasks, groups and tags in folders, by the text of their YAML."""
    line = re.compile(r"^(?:task|group|tag)\s*:\s*[\"']?([^\s\"'#]+)", re.MULTILINE)
    names: set[str] = set()
    for file in (file for folder in folders for file in Path(folder).rglob("*.yaml")):
        with contextlib.suppress(InputError):
            names.update(line.findall(read_text(file, limit=TASK_SIZE)))
    return names
