"""`harness-ext check`: what is wrong with a task, told before any model is loaded.

```
names, files, folders ──> YAMLs ──source, settings──> lm-eval's Task ──documents, templates, leaks, dry score──> Report
```
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness_ext.check import documents, dry_score, leaks, settings, templates, tokens
from harness_ext.check.dry_score import silent
from harness_ext.check.report import Report
from harness_ext.check.tokens import Encode
from harness_ext.check.yaml_source import Place, TaskSource, read_source
from harness_ext.errors import DatasetError, TaskError, described, suggest
from harness_ext.protocol import render
from harness_ext.protocol.documents import hub_or_cache
from harness_ext.protocol.lm_eval_api import (
    ConfigurableTask,
    Group,
    Task,
    is_plain,
    jinja_environment,
    names_like,
    task_index,
)

YAML_ENDINGS = (".yaml", ".yml")


def check_tasks(
    names: Sequence[str], *, include_path: Sequence[str | Path] = (), encode: Encode | None = None
) -> list[Report]:
    """Check tasks, groups, tags, YAML files and folders of them.

    Args:
        names: names that lm-eval knows or finds under `include_path`, YAML files, or folders.
        include_path: more folders of tasks.
        encode: text to token ids of the model to be used; without it, nothing is said of tokens.

    Raises:
        TaskError: there is nothing under one of the names.
    """
    with silent(), _templates_compiled_once():
        files = _files_of(names, include_path)
        sources = [read_source(file) for file in files]
        _check_names(sources)
        with _hub(sources) as hub_answers:
            return [
                report
                for source in sources
                for report in _check_source(source, sources, include_path, encode, hub_answers=hub_answers)
            ]


@contextlib.contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """lm-eval compiles a template anew for every document; three quarters of a check's time without this."""
    env = jinja_environment()
    with contextlib.ExitStack() as undo:
        undo.callback(vars(env).pop, "from_string")
        vars(env)["from_string"] = functools.lru_cache(maxsize=256)(env.from_string)
        yield


@contextlib.contextmanager
def _hub(sources: Sequence[TaskSource]) -> Iterator[bool]:
    """Ask once whether the Hub answers, and only if a task needs it."""
    named = {str(source.values.get("task")) for source in sources}
    if not any(documents.asks_hub(source) or _members_elsewhere(source, named) for source in sources):
        yield False
        return
    with hub_or_cache() as reached:
        yield reached


# -- what to check -----------------------------------------------------------------------------------------------


def _files_of(names: Sequence[str], include_path: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in YAML_ENDINGS and _is_task(file))
            if not found:
                raise TaskError(f"folder {path} holds no task (*.yaml that does not begin with _); check the path")
        elif path.suffix in YAML_ENDINGS:
            if not path.is_file():
                raise TaskError(f"there is no task file {path}; check the path")
            found = [path]
        else:
            found = _files_of_name(name, include_path)
        files += [file.absolute() for file in found]
    return list(dict.fromkeys(files))


def _is_task(file: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts if part not in (".", ".."))
    return not file.name.startswith("_") and not hidden


def _files_of_name(name: str, include_path: Sequence[str | Path]) -> list[Path]:
    """YAML files of a task, a group (with its members) or a tag."""
    manager = render.task_manager([name], include_path=include_path)
    matches = names_like(manager, name)
    if not matches:
        raise TaskError(
            f"unknown task {name!r}, and there is no such folder (`lm_eval ls tasks --include_path "
            f"$(harness-ext tasks-path)` lists all){suggest(name, manager.all_tasks)}"
        )
    found: list[Path] = []
    for match in matches:
        entry = task_index(manager)[match]
        if entry.yaml_path is not None:
            found.append(Path(entry.yaml_path))
        else:  # a tag
            found += [Path(task_index(manager)[member].yaml_path) for member in sorted(entry.tags)]
    return found


def _check_names(sources: Sequence[TaskSource]) -> None:
    """lm-eval takes the first file of a name and skips the others with a warning."""
    first: dict[str, TaskSource] = {}
    for source in sources:
        name = source.values.get("task")
        if source.file.suffix == ".yml":
            source.add_at("C40", "warning", "lm-eval looks for *.yaml under --include_path, not *.yml; rename it",
                          Place(source.file, 1))  # fmt: skip
        if not isinstance(name, str) or "group" in source.values:
            continue
        if name in first:
            source.add("C06", "error", f"task name {name!r} is taken by {first[name].place('task')}; lm-eval skips one "
                       "of them: choose another name", "task")  # fmt: skip
        first.setdefault(name, source)


# -- one YAML ----------------------------------------------------------------------------------------------------


def _check_source(
    source: TaskSource,
    sources: Sequence[TaskSource],
    include_path: Sequence[str | Path],
    encode: Encode | None,
    *,
    hub_answers: bool,
) -> list[Report]:
    name = str(source.values.get("task") if isinstance(source.values.get("task"), str) else source.file.stem)
    if source.readable:
        settings.check_settings(source)
    if "group" in source.values and not isinstance(source.values.get("task"), str):
        return _check_group(source, sources, include_path, encode, hub_answers=hub_answers)
    verified = None
    if source.readable and not _has(source, "C01", "C02", "C05", "C07", "C08"):
        verified = _check_task_file(source, include_path, encode, hub_answers=hub_answers)
    return [_report(name, source, verified)]


def _has(source: TaskSource, *ids: str) -> bool:
    return any(finding.id in ids and finding.level == "error" for finding in source.findings)


def _broken(source: TaskSource) -> bool:
    return any(finding.level == "error" for finding in source.findings)


def _report(name: str, source: TaskSource, verified: str | None) -> Report:
    """The findings in the order of lines, those of included files last."""
    own = str(source.file)
    findings = sorted(
        dict.fromkeys(source.findings),
        key=lambda finding: (finding.numbers["file"] != own, finding.numbers["line"]),
    )
    return Report(name, tuple(findings), None if _broken(source) else verified)


def _check_task_file(
    source: TaskSource, include_path: Sequence[str | Path], encode: Encode | None, *, hub_answers: bool
) -> str | None:
    """Load a task and look into its documents; when it cannot be built, say why from its parts."""
    if not _broken(source):
        try:
            _, loaded = render.load_tasks([str(source.file)], include_path=[source.file.parent, *include_path])
            return check_loaded(source, loaded[0], encode)
        except Exception as error:  # whatever lm-eval, datasets or the task's own code raises
            failure: Exception = error
            if "class" in source.values:
                _note_failed_class(source, error, hub_answers=hub_answers)
                return None
    else:
        failure = TaskError("")
        if any(finding.id == "C04" and "dataset_kwargs" in finding.text for finding in source.findings):
            return None  # other documents would be loaded than are meant
    task = documents.bare_task(source, hub_answers=hub_answers)
    if task is not None and documents.check_splits(source, task):
        _check_documents(source, task)
    if not _broken(source) and all(finding.id != "C38" for finding in source.findings):
        source.add("C39", "error", f"cannot be built: {described(failure)}", "task")
    return None


def _note_failed_class(source: TaskSource, error: Exception, *, hub_answers: bool) -> None:
    if isinstance(error, DatasetError):
        documents.note_unloaded(source, error, hub_answers=hub_answers)
    elif not hub_answers and isinstance(error.__cause__ or error, OSError):
        source.add("C38", "note", "not verified: documents out of reach (connect to the Hub)", "class")
    else:
        source.add("C39", "error", f"cannot be built: {described(error)}", "class")


def _check_documents(source: TaskSource, task: ConfigurableTask) -> documents.Sampled | None:
    """Columns, templates and choices; the sample when documents can be rendered and are sound."""
    try:
        sampled = documents.sample_of(task)
        columns = documents.columns_of(task)
    except Exception as error:  # process_docs is the task's own code
        source.add("C18", "error", f"process_docs fails: {described(error)}; correct it", "process_docs")
        return None
    task.features = columns
    if not templates.check_templates(source, task, columns, sampled):
        return None
    return sampled if templates.check_choices(source, task, sampled) else None


def check_loaded(source: TaskSource, task: Any, encode: Encode | None) -> str | None:
    """Check a task that lm-eval has built; returns what was verified, in words."""
    if not isinstance(task, ConfigurableTask):
        return f"loads ({type(task).__name__}: written in Python, its documents and scores were not looked into)"
    own_splits = is_plain(task) or task.config.validation_split or task.config.test_split
    if own_splits and not documents.check_splits(source, task):
        return None
    sampled = _check_documents(source, task)
    if sampled is None:
        return None
    prompted = not documents.scores_whole_texts(task)
    trainable = (leaks.check_overlap(source, task, task.features) if prompted else None) or "nothing to train on"
    templates.check_white_space(source, task, sampled)
    templates.check_targets(source, task, sampled)
    if prompted:
        leaks.check_fewshot(source, task, sampled)
    tokens.check_stops(source, task, sampled)
    if encode is not None:
        tokens.check_lengths(source, task, sampled, encode)
        tokens.check_label_tokens(source, task, sampled, encode)
    scores = dry_score.check_scores(source, task, sampled)
    return f"{sampled.total:,} documents of {sampled.split}, {trainable}; dry score: {scores or 'none'}"


# -- groups ------------------------------------------------------------------------------------------------------


def _members_elsewhere(group: TaskSource, named: Collection[str]) -> list[str]:
    """Members of a group that are not among the tasks checked by themselves, or that it gives settings of its own."""
    items = group.values.get("task")
    if "group" not in group.values or not isinstance(items, list):
        return []
    if group.values.keys() - settings.GROUP_KEYS - {"tag"}:
        return [str(item) for item in items]  # the group's settings are put over its members'
    return [str(item) for item in items if not isinstance(item, str) or item not in named]


def _check_group(
    source: TaskSource,
    sources: Sequence[TaskSource],
    include_path: Sequence[str | Path],
    encode: Encode | None,
    *,
    hub_answers: bool,
) -> list[Report]:
    """Check a group's members that are not checked by themselves: those of other folders, or with other settings."""
    name = str(source.values["group"])
    named = {str(each.values.get("task")) for each in sources if "group" not in each.values}
    elsewhere = _members_elsewhere(source, named)
    if _broken(source) or not elsewhere:
        return [_report(name, source, "its members are checked by themselves")]
    folders = [*include_path, *_topmost(each.file.parent for each in sources)]
    try:
        _, loaded = render.load_tasks([name], include_path=folders)  # by name: lm-eval loads no group by its path
    except Exception as error:  # whatever lm-eval, datasets or a task's own code raises
        _note_failed_group(source, error, hub_answers=hub_answers)
        return [_report(name, source, None)]
    reports = []
    for task in (task for group in loaded if isinstance(group, Group) for task in group.get_all_tasks()):
        if task.task_name not in named or any(task.task_name in item for item in elsewhere):
            member = _member_source(task, source)
            reports.append(_report(f"{name}: {task.task_name}", member, check_loaded(member, task, encode)))
    return [_report(name, source, f"{len(reports)} members are checked here"), *reports]


def _topmost(folders: Iterable[Path]) -> list[Path]:
    """Folders without those that lie in another one."""
    unique = set(folders)
    return sorted(folder for folder in unique if not unique & set(folder.parents))


def _note_failed_group(source: TaskSource, error: Exception, *, hub_answers: bool) -> None:
    reason = described(error)
    if isinstance(error, DatasetError) or (not hub_answers and isinstance(error.__cause__, OSError)):
        source.add("C38", "note", f"not verified: documents of a member are out of reach ({reason})", "task")
    else:
        source.add("C13", "error", f"members cannot be built: {reason}", "task")


def _member_source(task: Task, group: TaskSource) -> TaskSource:
    """Where a member's settings stand: its own YAML, or the group's."""
    own = (task.config.metadata or {}).get("config_source")
    return read_source(Path(own)) if own and Path(own).is_file() else TaskSource(group.file, places=group.places)
