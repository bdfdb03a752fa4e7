"""`harness-ext check`: finds what is wrong with a task before any model is loaded.

```
names, files, folders ──> YAMLs ──source, settings──> lm-eval's Task ──documents, templates, leaks, dry score──> Report
```
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
    sandboxed_templates,
    task_index,
)

YAML_ENDINGS = (".yaml", ".yml")


def check_tasks(
    names: Sequence[str], *, include_path: Sequence[str | Path] = (), encode: Encode | None = None
) -> list[Report]:
    """Check tasks, groups, tags, YAML files and folders of them.

    Args:
        names: task names that lm-eval knows or finds under `include_path`, YAML files, or folders.
        include_path: more folders of tasks.
        encode: turns text into token ids of the model to be used; without it, no token lengths are checked.

    Raises:
        TaskError: one of the names is unknown.
    """
    checked = check_files(files_of(names, include_path), include_path=include_path, encode=encode)
    return [report for _, reports in checked for report in reports]


def check_files(
    files: Sequence[Path],
    *,
    include_path: Sequence[str | Path] = (),
    encode: Encode | None = None,
    skip: Collection[Path] = (),
    before: Callable[[Path], None] = lambda _: None,
) -> Iterator[tuple[Path, list[Report]]]:
    """Check YAML files one by one; templates are rendered in Jinja's sandbox.

    Args:
        files: of tasks and groups.
        include_path: more folders of tasks.
        encode: turns text into token ids.
        skip: files that are only compared with the others.
        before: called with each file before any of its code runs.
    """
    with silent(), sandboxed_templates(), _templates_compiled_once():
        sources = [read_source(file) for file in files]
        _check_names(sources)
        with _hub(sources) as hub_answers:
            for source in sources:
                if source.file in skip:
                    continue
                before(source.file)
                try:
                    reports = _check_source(source, sources, include_path, encode, hub_answers=hub_answers)
                except SystemExit as error:
                    source.add("C41", "error", f"its code ended the process (exit code {error.code or 0}) while it was "
                               "checked; remove that from its hooks", "task")  # fmt: skip
                    reports = [_report(source.file.stem, source, None)]
                yield source.file, reports


@contextlib.contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Cache compiled templates: lm-eval compiles them for every document, three quarters of the time of a check."""
    env = jinja_environment()
    with contextlib.ExitStack() as undo:
        undo.callback(vars(env).pop, "from_string")
        vars(env)["from_string"] = functools.lru_cache(maxsize=256)(env.from_string)
        yield


@contextlib.contextmanager
def _hub(sources: Sequence[TaskSource]) -> Iterator[bool]:
    """Test once whether the Hub answers, and only if a task needs it."""
    checked = {str(source.values.get("task")) for source in sources}
    if not any(documents.needs_hub(source) or _members_elsewhere(source, checked) for source in sources):
        yield False
        return
    with hub_or_cache() as reached:
        yield reached


# -- what to check -----------------------------------------------------------------------------------------------


def files_of(names: Sequence[str], include_path: Sequence[str | Path]) -> list[Path]:
    """YAML files of tasks, groups, tags, files and folders.

    Raises:
        TaskError: one of the names is unknown.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            tasks = sorted(file for file in path.rglob("*") if file.suffix in YAML_ENDINGS and _is_task(file))
            if not tasks:
                raise TaskError(f"folder {path} contains no task (*.yaml not beginning with _); check the path")
            files += tasks
        elif path.suffix in YAML_ENDINGS:
            if not path.is_file():
                raise TaskError(f"there is no task file {path}; check the path")
            files.append(path)
        else:
            files += _files_of_name(name, include_path)
    return list(dict.fromkeys(file.absolute() for file in files))


def _is_task(file: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts if part not in (".", ".."))
    return not file.name.startswith("_") and not hidden


def _files_of_name(name: str, include_path: Sequence[str | Path]) -> list[Path]:
    """YAML files of a task, a group (with its members) or a tag."""
    manager = render.task_manager([name], include_path=include_path)
    matches = names_like(manager, name)
    if not matches:
        raise TaskError(
            f"unknown task or folder {name!r} (`lm_eval ls tasks --include_path $(harness-ext tasks-path)` lists all "
            f"tasks){suggest(name, manager.all_tasks)}"
        )
    files: list[Path] = []
    for match in matches:
        entry = task_index(manager)[match]
        if entry.yaml_path is not None:
            files.append(Path(entry.yaml_path))
        else:  # a tag
            files += [Path(task_index(manager)[member].yaml_path) for member in sorted(entry.tags)]
    return files


def _check_names(sources: Sequence[TaskSource]) -> None:
    """Note repeated names: lm-eval takes the first file and skips the others with a warning."""
    first: dict[str, TaskSource] = {}
    for source in sources:
        name = source.values.get("task")
        if source.file.suffix == ".yml":
            source.add_at("C40", "warning", "lm-eval looks for *.yaml under --include_path, not *.yml; rename it",
                          Place(source.file, 1))  # fmt: skip
        if not isinstance(name, str) or "group" in source.values:
            continue
        if name in first:
            source.add("C06", "error", f"task name {name!r} is also used at {first[name].place('task')}, and lm-eval "
                       "skips one of the two; choose another name", "task")  # fmt: skip
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
    """The findings sorted by line, those of included files last."""
    own = str(source.file)
    findings = sorted(
        dict.fromkeys(source.findings),
        key=lambda finding: (finding.numbers["file"] != own, finding.numbers["line"]),
    )
    return Report(name, tuple(findings), None if _broken(source) else verified)


def _check_task_file(
    source: TaskSource, include_path: Sequence[str | Path], encode: Encode | None, *, hub_answers: bool
) -> str | None:
    """Load a task and check its documents; if it cannot be built, look for the cause in its parts."""
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
            return None  # a mistyped key may load the wrong documents
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
    """Check columns, templates and choices; returns the sampled documents if they can be rendered and scored."""
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
        return f"loads ({type(task).__name__} is written in Python; its documents and scores were not checked)"
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


def _members_elsewhere(group: TaskSource, checked: Collection[str]) -> list[str]:
    """Members of a group that are not in `checked`, or whose settings the group overrides."""
    items = group.values.get("task")
    if "group" not in group.values or not isinstance(items, list):
        return []
    if group.values.keys() - settings.GROUP_KEYS - {"tag"}:
        return [str(item) for item in items]  # the group overrides settings of all its members
    return [str(item) for item in items if not isinstance(item, str) or item not in checked]


def _check_group(
    source: TaskSource,
    sources: Sequence[TaskSource],
    include_path: Sequence[str | Path],
    encode: Encode | None,
    *,
    hub_answers: bool,
) -> list[Report]:
    """Check members of a group that are not checked on their own: from other folders, or with other settings."""
    name = str(source.values["group"])
    checked = {str(task.values.get("task")) for task in sources if "group" not in task.values}
    elsewhere = _members_elsewhere(source, checked)
    if _broken(source) or not elsewhere:
        return [_report(name, source, "its members are checked on their own")]
    folders = [*include_path, *_topmost(task.file.parent for task in sources)]
    try:
        _, loaded = render.load_tasks([name], include_path=folders)  # by name: lm-eval loads no group by its path
    except Exception as error:  # whatever lm-eval, datasets or a task's own code raises
        _note_failed_group(source, error, hub_answers=hub_answers)
        return [_report(name, source, None)]
    reports = []
    for task in (task for group in loaded if isinstance(group, Group) for task in group.get_all_tasks()):
        if task.task_name not in checked or any(task.task_name in item for item in elsewhere):
            member = _member_source(task, source)
            reports.append(_report(f"{name}: {task.task_name}", member, check_loaded(member, task, encode)))
    return [_report(name, source, f"{len(reports)} members are checked here"), *reports]


def _topmost(folders: Iterable[Path]) -> list[Path]:
    """Folders that are not inside another of them."""
    unique = set(folders)
    return sorted(folder for folder in unique if not unique & set(folder.parents))


def _note_failed_group(source: TaskSource, error: Exception, *, hub_answers: bool) -> None:
    reason = described(error)
    if isinstance(error, DatasetError) or (not hub_answers and isinstance(error.__cause__, OSError)):
        source.add("C38", "note", f"not verified: documents of a member are out of reach ({reason})", "task")
    else:
        source.add("C13", "error", f"members cannot be built: {reason}", "task")


def _member_source(task: Task, group: TaskSource) -> TaskSource:
    """The YAML with a member's settings: its own, or the group's."""
    own = (task.config.metadata or {}).get("config_source")
    return read_source(Path(own)) if own and Path(own).is_file() else TaskSource(group.file, places=group.places)
