"""What code the tasks of a folder would run: found in their YAML alone, before any of it runs.

The tasks of this package and of lm-eval are not examined: whoever installs them trusts them. Of other tasks, code is
what `!function` names (hooks, metrics, filters, `class`), and metrics that Hugging Face Evaluate downloads as Python.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness_ext.errors import InputError, TaskError
from harness_ext.names import visible
from harness_ext.protocol.lm_eval_api import TaskManager, guard_yaml, names_like, task_index
from harness_ext.protocol.task_folders import own_task_folders, tasks_path
from harness_ext.reading.yaml_input import LimitedLoader, read_yaml

_TRUSTED = ("harness_ext", "lm_eval")  # packages
_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True, order=True)
class CodeUse:
    """Code that a task names."""

    yaml: Path  # that names it
    place: str  # the Python file, or "module NAME"
    function: str

    def __str__(self) -> str:
        """The file and the function."""
        return f"{self.place} ({self.function})"


class _Function(str):
    """The name after `!function`."""


class _Loader(LimitedLoader):
    """Reads the tag of lm-eval as a name."""


def _function(loader: _Loader, node: yaml.ScalarNode) -> _Function:
    return _Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def code_of(names: Sequence[str], include_path: Sequence[str | Path] = ()) -> list[CodeUse]:
    """The code that tasks outside this package and lm-eval would run, without running any.

    Args:
        names: of tasks, groups and tags, patterns, YAML files, or folders of them.
        include_path: further folders of tasks.

    Raises:
        TaskError: a YAML that is needed cannot be read.
    """
    uses: dict[CodeUse, None] = {}
    try:
        for file in _files(names, include_path):
            uses.update(dict.fromkeys(_uses(file, ())))
    except InputError as error:
        raise TaskError(f"{error}; correct the task") from error
    return sorted(uses)


def _files(names: Sequence[str], include_path: Sequence[str | Path]) -> list[Path]:
    """YAML files that the names lead to, outside the trusted folders."""
    files: dict[Path, None] = {}
    folders = [*map(Path, include_path), *own_task_folders(names)]
    index: Mapping[str, Any] = {}
    manager = None
    if folders:
        guard_yaml()
        manager = TaskManager(include_path=list(map(str, folders)), include_defaults=False)
        index = task_index(manager)
    queue, seen = list(names), set()
    while queue:
        name = queue.pop(0)
        if name in seen:
            continue
        seen.add(name)
        path = Path(name)
        if path.is_dir():
            queue += [str(file) for file in sorted(path.rglob("*")) if file.suffix in _ENDINGS]
        elif path.suffix in _ENDINGS:
            if path.is_file() and not _is_trusted(path):
                files[path.absolute()] = None
                queue += _members(path)
        else:
            for match in names_like(manager, name) if manager else ():
                entry = index[match]
                queue += [str(entry.yaml_path)] if entry.yaml_path else sorted(entry.tags or ())
    return list(files)


def _members(file: Path) -> list[str]:
    """Names of the members of a group."""
    values = read_yaml(file, loader=_Loader)
    items = values.get("task") if isinstance(values, dict) else None
    listed = [item.get("task") if isinstance(item, dict) else item for item in items] if isinstance(items, list) else []
    return [item for item in listed if isinstance(item, str)]


def _is_trusted(file: Path) -> bool:
    """Whether a file belongs to this package or to the installed lm-eval."""
    found = importlib.util.find_spec("lm_eval")
    homes = [tasks_path(), *map(Path, (found.submodule_search_locations or []) if found else [])]
    return any(file.resolve().is_relative_to(home.resolve()) for home in homes)


def _uses(file: Path, seen: tuple[Path, ...]) -> Iterator[CodeUse]:
    if file in seen:
        return
    values = read_yaml(file, loader=_Loader)
    if not isinstance(values, dict):
        return
    for function in _functions(values):
        module, _, name = function.rpartition(".")
        local = (file.parent / f"{module.replace('.', '/')}.py").resolve()
        if local.exists():
            yield CodeUse(file, visible(str(local)), visible(name))
        elif module.split(".")[0] not in _TRUSTED:
            yield CodeUse(file, f"module {visible(module)}", visible(name))
    metrics = values.get("metric_list")
    for entry in metrics if isinstance(metrics, list) else ():
        if isinstance(entry, dict) and entry.get("hf_evaluate") is True:
            yield CodeUse(file, "Hugging Face Evaluate", visible(str(entry.get("metric"))))
    included = values.get("include") or []
    for name in included if isinstance(included, list) else [included]:
        other = file.parent / str(name)
        if not _is_trusted(other):
            yield from _uses(other, (*seen, file))


def _functions(value: Any) -> Iterator[str]:
    if isinstance(value, _Function):
        yield str(value)
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _functions(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _functions(item)
