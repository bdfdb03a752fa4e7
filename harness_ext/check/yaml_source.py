"""A task YAML as written: its values, including those of `include:` files, and the file and line of each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness_ext.errors import InputError, first_line
from harness_ext.findings import Finding, Level
from harness_ext.reading.files import TASK_SIZE, read_text, shown
from harness_ext.reading.yaml_input import LimitedLoader

KeyPath = tuple["str | int", ...]  # ("metric_list", 0, "metric")


class Place(NamedTuple):
    """A line of a file."""

    file: Path
    line: int  # 1 for the first

    def __str__(self) -> str:
        """`file:line`, relative to the working directory if the file is inside it."""
        file = self.file.relative_to(Path.cwd()) if self.file.is_relative_to(Path.cwd()) else self.file
        return f"{file}:{self.line}"


class FunctionName(str):
    """The name after `!function`, not imported."""


class _Loader(LimitedLoader):
    """Limits of `reading.yaml_input`, and the tag of lm-eval."""


def _function_name(loader: _Loader, node: yaml.ScalarNode) -> FunctionName:
    return FunctionName(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function_name)


@dataclass
class TaskSource:
    """Values of a YAML and its includes, where they are written, and all findings about the task."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)  # merged as in lm-eval; functions by name
    places: dict[KeyPath, Place] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def place(self, *path: str | int) -> Place:
        """Line of a value, or of the innermost value around it that is known."""
        for length in range(len(path), 0, -1):
            if place := self.places.get(tuple(path[:length])):
                return place
        return Place(self.file, 1)

    def add(self, id: str, level: Level, message: str, *path: str | int) -> None:
        """Note a finding at a value."""
        self.add_at(id, level, message, self.place(*path))

    def add_at(self, id: str, level: Level, message: str, place: Place) -> None:
        """Note a finding at a line."""
        numbers = {"file": str(place.file), "line": place.line}
        self.findings.append(Finding(id, level, str(place), " ".join(message.split()), numbers))

    def functions(self) -> Iterator[tuple[KeyPath, FunctionName]]:
        """Every `!function`, with its key path."""
        yield from _functions(self.values, ())

    @property
    def readable(self) -> bool:
        """Whether the YAML could be read and is a mapping."""
        return bool(self.values)


def read_source(file: Path) -> TaskSource:
    """Read a YAML and its includes; everything that is wrong with their text becomes a finding."""
    source = TaskSource(file)
    values, places = _read(file, source, seen=())
    source.values, source.places = values, places
    return source


def _read(file: Path, source: TaskSource, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, Place]]:
    try:
        text = read_text(file, limit=TASK_SIZE)
        node = _Loader(text).get_single_node()
        values = _Loader(text).get_single_data()
    except InputError as error:
        reason = str(error).removeprefix(f"{shown(file)}: ")
        source.add_at("C01", "error", f"{reason}; correct the file or its path", Place(file, 1))
        return {}, {}
    except yaml.YAMLError as error:
        source.add_at("C01", "error", _why_unreadable(error, text), _where(error, file))
        return {}, {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, dict) or not values:
        kind = "empty" if values in (None, {}) else f"a {type(values).__name__}"
        source.add_at("C02", "error", f"is {kind}, not a mapping; write `key: value` lines", Place(file, 1))
        return {}, {}
    places: dict[KeyPath, Place] = {}
    _walk(node, (), file, places, source)
    return _with_includes(file, values, places, source, seen)


def _with_includes(
    file: Path, values: dict[str, Any], places: dict[KeyPath, Place], source: TaskSource, seen: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[KeyPath, Place]]:
    if "include" not in values:
        return values, places
    included = values.pop("include")
    merged: dict[str, Any] = {}
    merged_places: dict[KeyPath, Place] = {}
    for name in included if isinstance(included, list) else [included]:
        other = (file.parent / str(name)).resolve()
        if other == file.resolve() or other in seen:
            source.add_at("C05", "error", f"include {name!r} leads back to this file; remove it", places[("include",)])
        elif not other.is_file():
            source.add_at("C05", "error", f"include {name!r} is not a file in {file.parent}; correct the name",
                          places[("include",)])  # fmt: skip
        else:
            inner, inner_places = _read(other, source, (*seen, file.resolve()))
            _override(merged, merged_places, inner, inner_places)
    _override(merged, merged_places, values, places)
    return merged, merged_places


def _override(
    merged: dict[str, Any],
    places: dict[KeyPath, Place],
    later: Mapping[str, Any],
    later_places: Mapping[KeyPath, Place],
) -> None:
    """A later top-level key replaces the earlier value completely, as in lm-eval."""
    for path in [path for path in places if path[0] in later]:
        del places[path]
    merged.update(later)
    places.update(later_places)


def _walk(node: yaml.Node, path: KeyPath, file: Path, places: dict[KeyPath, Place], source: TaskSource) -> None:
    """Record the line of every value, and note duplicate keys."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            inner: KeyPath = (*path, number)
            places[inner] = Place(file, item.start_mark.line + 1)
            _walk(item, inner, file, places, source)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            place = Place(file, key.start_mark.line + 1)
            if inner in places:
                source.add_at("C03", "error", f"key {key.value!r} is also on line {places[inner].line}; YAML silently "
                              "keeps only the last one: remove one", place)  # fmt: skip
            places[inner] = place
            _walk(value, inner, file, places, source)


def _functions(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, FunctionName]]:
    if isinstance(value, FunctionName):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _functions(item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _functions(item, (*path, number))


def _where(error: yaml.YAMLError, file: Path) -> Place:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return Place(file, mark.line + 1 if mark else 1)


def _why_unreadable(error: yaml.YAMLError, text: str) -> str:
    problem = getattr(error, "problem", None) or first_line(error)
    line = text.splitlines()[_where(error, Path()).line - 1 :][:1]
    if "'\\t'" in problem or (line and "\t" in line[0][: len(line[0]) - len(line[0].lstrip())]):
        return "is indented with a tab, which YAML does not allow; use spaces"
    if "could not determine a constructor" in problem:
        return f"has an unknown tag ({problem.split('tag ')[-1]}); use !function, the only tag of lm-eval"
    if "mapping values are not allowed" in problem:
        return "has a ':' inside unquoted text; put the text in quotes"
    return f"cannot be read as YAML ({problem}); correct this line"
