"""Loads tasks by name, pattern or file through lm-eval's index of YAML files; each task is loaded once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError

from harness_ext.errors import HarnessExtError, TaskError, described, suggest
from harness_ext.protocol.lm_eval_api import (
    ConfigurableTask,
    Entry,
    Group,
    Task,
    TaskFactory,
    TaskManager,
    allow_hooked_metrics,
    guard_yaml,
    names_like,
    read_documents,
)
from harness_ext.protocol.task_folders import own_task_folders, tasks_path


class _TaskFactory(TaskFactory):
    """lm-eval's factory, but a task in several names or groups is built, and its documents are read, only once."""

    def __init__(self, *, meta: dict[str, Any] | None = None) -> None:
        super().__init__(meta=meta)
        self._tasks: dict[str, Task] = {}

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        # lm-eval 0.5 names a member "group::task"; with its own name it is one task in all groups, as in 0.4.
        overrides = {key: value for key, value in (overrides or {}).items() if key != "_qualified_name"}
        changes = {key: value for key, value in overrides.items() if (key, value) != ("task", entry.name)}
        file = entry.yaml_path and str(Path(entry.yaml_path).resolve())
        key = json.dumps([file, entry.name, changes], sort_keys=True, default=repr)
        if key not in self._tasks:
            self._tasks[key] = super()._build_task(entry, overrides)
        return self._tasks[key]


class _TaskManager(TaskManager):
    """lm-eval's manager, but it accepts a task that is in several groups: `load_tasks` makes it one task."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = _TaskFactory(meta=self.metadata)

    def load(self, specs: Any, *args: Any) -> Any:
        """Names and loaded tasks and groups, as `simple_evaluate` hands them over."""
        items = specs if isinstance(specs, list) else [specs]
        if not all(isinstance(item, (Task, Group)) for item in items):
            return super().load(specs, *args)
        groups = [each for item in items if isinstance(item, Group) for each in (item, *item.get_all_groups())]
        return {
            "tasks": {leaf.task_name: leaf for item in items for leaf in _leaves(item)},
            "groups": {group.name: group for group in groups},
            "group_map": {group.name: group.child_names for group in groups},
        }


def _leaves(item: Task | Group) -> list[Task]:
    return list(item.get_all_tasks()) if isinstance(item, Group) else [item]


def task_manager(
    names: Sequence[str], *, include_path: Sequence[str | Path] = (), metadata: Mapping[str, Any] | None = None
) -> TaskManager:
    """An lm-eval task manager that knows our tasks and those under `include_path`.

    lm-eval's own ten thousand tasks are indexed (which takes seconds) only if a name is not found otherwise.
    """
    allow_hooked_metrics()
    guard_yaml()
    paths = [str(tasks_path()), *map(str, own_task_folders(names)), *map(str, include_path)]
    manager = _TaskManager(include_path=paths, include_defaults=False, metadata=dict(metadata or {}))
    if all(_is_yaml(name) or names_like(manager, name) for name in names):
        return manager
    return _TaskManager(include_path=paths, metadata=dict(metadata or {}))


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def load_tasks(
    names: Sequence[str], *, include_path: Sequence[str | Path] = (), metadata: Mapping[str, Any] | None = None
) -> tuple[TaskManager, list[Task | Group]]:
    """Load tasks and groups by name, glob pattern or path of a YAML file; a task that is named twice is loaded once.

    Raises:
        TaskError: there is no such task, lm-eval cannot build it, or two different tasks have the same name.
        DatasetError: its documents cannot be found.
    """
    manager = task_manager(names, include_path=include_path, metadata=metadata)
    specs = dict.fromkeys(spec for name in names for spec in _specs(manager, name))
    return manager, _without_repeats([item for spec in specs for item in _built(manager, spec)])


def _specs(manager: TaskManager, name: str) -> list[str]:
    """Arguments for `TaskManager.load`: the task names or the path that a name, a pattern or a path stands for."""
    if _is_yaml(name):
        return [str(Path(name).absolute())]
    matches = names_like(manager, name)
    if not matches:
        raise TaskError(
            f"unknown task {name!r} (`lm_eval ls tasks --include_path $(harness-ext tasks-path)` lists all tasks)"
            f"{suggest(name, manager.all_tasks)}"
        )
    return matches


def _without_repeats(loaded: Sequence[Task | Group]) -> list[Task | Group]:
    """Tasks and groups without those that are in another of the groups; overlapping groups share their tasks."""
    by_name: dict[str, Task | Group] = {}
    outer = [_shared(item, by_name) for item in loaded]
    groups = [group for group in by_name.values() if isinstance(group, Group)]
    inner = {_name(member) for group in groups for member in group}
    return list({_name(item): item for item in outer if _name(item) not in inner}.values())


def _shared(item: Task | Group, by_name: dict[str, Task | Group]) -> Task | Group:
    """The first task or group loaded under this name, which must have the same definition; likewise for members."""
    if isinstance(item, Group):
        for member in list(item):
            item.add(_shared(member, by_name))
    first = by_name.setdefault(_name(item), item)
    if first is not item and _definition(first) != _definition(item):
        files = sorted({_file_of(first), _file_of(item)})
        where = f"{' and '.join(files)} differ" if len(files) > 1 else "a group overrides settings of its YAML"
        raise TaskError(f"two different tasks are named {_name(item)!r} ({where}); load only one, or rename one")
    return first


def _name(item: Task | Group) -> str:
    return str(item.name if isinstance(item, Group) else item.task_name)


def _file_of(item: Task | Group) -> str:
    return str((_config_of(item).get("metadata") or {}).get("config_source", f"group {_name(item)}"))


def _config_of(item: Task | Group) -> dict[str, Any]:
    return dict((item.to_dict() if isinstance(item, Group) else item.dump_config()) or {})


def _definition(item: Task | Group) -> str:
    """All settings except the path of their file; functions by their source or name."""
    config = _config_of(item)
    metadata = {name: value for name, value in (config.get("metadata") or {}).items() if name != "config_source"}
    text = json.dumps({**config, "metadata": metadata}, sort_keys=True, default=str)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _built(manager: TaskManager, spec: str) -> list[Task | Group]:
    """Build one task or group, or all tasks of a tag."""
    if _is_yaml(spec) and not Path(spec).is_file():
        raise TaskError(f"there is no task file {spec}; check the path")
    try:
        loaded = manager.load([spec])
        for task in loaded["tasks"].values():
            read_documents(task)
    except KeyError as error:
        # lm-eval looks up splits, and function references in the YAML, by name.
        raise TaskError(
            f"task {spec!r} names {error.args[0]!r}, which is neither a split nor a column of its data; "
            "add it to the data, or correct the YAML"
        ) from error
    except (DatasetsError, OSError, StopIteration) as error:
        if found_no_rows(error):
            raise TaskError(f"task {spec!r} has no documents: its files are empty; check dataset_kwargs") from error
        raise TaskError(
            f"the documents of task {spec!r} cannot be loaded: {described(error)}; connect to the Hub, or name local "
            "files in a copy of its YAML (dataset_path: parquet, dataset_kwargs: data_files)"
        ) from error
    except IndexError as error:  # lm-eval renders the templates on the first document
        raise TaskError(
            f"task {spec!r} cannot be built: it has no documents, or a template needs something that the first one "
            f"lacks ({described(error)}); check its evaluation split, process_docs and templates"
        ) from error
    except HarnessExtError:
        raise
    except Exception as error:  # whatever lm-eval or the task's own code raises
        raise TaskError(
            f"task {spec!r} cannot be built: {described(error)}; correct its YAML, or the columns of its data"
        ) from error
    groups: Mapping[str, Group] = loaded.get("groups", {})
    inner = {name for group in groups.values() for name in group.child_names}
    if outer := [group for name, group in groups.items() if name not in inner]:
        return list(outer)
    return list(loaded["tasks"].values())


def found_no_rows(error: BaseException) -> bool:
    """Whether `datasets` has read files without a row; it says so in another way since 4.8."""
    return isinstance(error, StopIteration) or type(error.__cause__).__name__ == "SchemaInferenceError"


def load_task(
    name: str, *, include_path: Sequence[str | Path] = (), metadata: Mapping[str, Any] | None = None
) -> ConfigurableTask:
    """Load exactly one task, by name or by the path of its YAML file.

    Raises:
        TaskError: there is no such task, it is a group, or lm-eval cannot build it.
        DatasetError: its documents cannot be found.
    """
    _, loaded = load_tasks([name], include_path=include_path, metadata=metadata)
    if len(loaded) != 1 or isinstance(loaded[0], Group):
        raise TaskError(f"{name!r} stands for more than one task; name a single task")
    return loaded[0]
