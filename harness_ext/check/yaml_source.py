"""A task YAML as its author wrote it: values, and the file and line of each, through `include:`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness_ext.errors import first_line
from harness_ext.findings import Finding, Level

Path_ = tuple["str | int", ...]  # ("metric_list", 0, "metric")


class Place(NamedTuple):
    """A line of a file."""

    file: Path
    line: int  # 1 for the first

    def __str__(self) -> str:
        """`file:line`, from the working directory where the file is below it."""
        file = self.file.relative_to(Path.cwd()) if self.file.is_relative_to(Path.cwd()) else self.file
        return f"{file}:{self.line}"


class FunctionName(str):
    """What stands after `!function`, unresolved."""


class _Loader(yaml.SafeLoader):
    pass


def _function_name(loader: _Loader, node: yaml.ScalarNode) -> FunctionName:
    return FunctionName(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function_name)


@dataclass
class TaskSource:
    """Values of a YAML with its includes, and what is wrong with the text of it."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)  # as lm-eval merges them; functions by name
    places: dict[Path_, Place] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def place(self, *path: str | int) -> Place:
        """Line of a value, or of what it stands in."""
        for length in range(len(path), 0, -1):
            if found := self.places.get(tuple(path[:length])):
                return found
        return Place(self.file, 1)

    def add(self, id: str, level: Level, message: str, *path: str | int) -> None:
        """Note a finding at a value."""
        self.add_at(id, level, message, self.place(*path))

    def add_at(self, id: str, level: Level, message: str, place: Place) -> None:
        """Note a finding at a line."""
        numbers = {"file": str(place.file), "line": place.line}
        self.findings.append(Finding(id, level, str(place), " ".join(message.split()), numbers))

    def functions(self) -> Iterator[tuple[Path_, FunctionName]]:
        """Every `!function`, with its path."""
        yield from _functions(self.values, ())

    @property
    def readable(self) -> bool:
        """Whether there is a mapping to look into."""
        return bool(self.values)


def read_source(file: Path) -> TaskSource:
    """Read a YAML and what it includes; whatever is wrong with the text becomes a finding."""
    source = TaskSource(file)
    values, places = _read(file, source, seen=())
    source.values, source.places = values, places
    return source


def _read(file: Path, source: TaskSource, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Path_, Place]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=_Loader)
        values = _Loader(text).get_single_data()
    except UnicodeDecodeError as error:
        source.add_at("C01", "error", f"is not UTF-8 ({error.reason}); save it as UTF-8", Place(file, 1))
        return {}, {}
    except OSError as error:
        source.add_at("C01", "error", f"cannot be read ({error.strerror}); check the path", Place(file, 1))
        return {}, {}
    except yaml.YAMLError as error:
        source.add_at("C01", "error", _why_unreadable(error, text), _where(error, file))
        return {}, {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, dict) or not values:
        kind = "empty" if values in (None, {}) else f"a {type(values).__name__}"
        source.add_at("C02", "error", f"is {kind}, no mapping; write `key: value` lines", Place(file, 1))
        return {}, {}
    places: dict[Path_, Place] = {}
    _walk(node, (), file, places, source)
    return _with_includes(file, values, places, source, seen)


def _with_includes(
    file: Path, values: dict[str, Any], places: dict[Path_, Place], source: TaskSource, seen: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[Path_, Place]]:
    if "include" not in values:
        return values, places
    included = values.pop("include")
    merged: dict[str, Any] = {}
    merged_places: dict[Path_, Place] = {}
    for name in included if isinstance(included, list) else [included]:
        other = (file.parent / str(name)).resolve()
        if other == file.resolve() or other in seen:
            source.add_at("C05", "error", f"include {name!r} leads back to itself; drop it", places[("include",)])
        elif not other.is_file():
            source.add_at("C05", "error", f"include {name!r} is no file in {file.parent}; correct the name",
                          places[("include",)])  # fmt: skip
        else:
            inner, inner_places = _read(other, source, (*seen, file.resolve()))
            _override(merged, merged_places, inner, inner_places)
    _override(merged, merged_places, values, places)
    return merged, merged_places


def _override(
    merged: dict[str, Any], places: dict[Path_, Place], later: Mapping[str, Any], later_places: Mapping[Path_, Place]
) -> None:
    """Later top-level keys win whole, as in lm-eval."""
    for path in [path for path in places if path[0] in later]:
        del places[path]
    merged.update(later)
    places.update(later_places)


def _walk(node: yaml.Node, path: Path_, file: Path, places: dict[Path_, Place], source: TaskSource) -> None:
    """Note the line of every value, and keys that stand twice."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            inner: Path_ = (*path, number)
            places[inner] = Place(file, item.start_mark.line + 1)
            _walk(item, inner, file, places, source)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            place = Place(file, key.start_mark.line + 1)
            if inner in places:
                source.add_at("C03", "error", f"key {key.value!r} stands here and on line {places[inner].line}; YAML "
                              "keeps the last and says nothing: drop one", place)  # fmt: skip
            places[inner] = place
            _walk(value, inner, file, places, source)


def _functions(value: Any, path: Path_) -> Iterator[tuple[Path_, FunctionName]]:
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
        return "is indented with a tab, which YAML forbids; use blanks"
    if "could not determine a constructor" in problem:
        return f"has an unknown tag ({problem.split('tag ')[-1]}); lm-eval knows !function only"
    if "mapping values are not allowed" in problem:
        return "has a ':' inside an unquoted text; put the text into quotes"
    return f"cannot be read as YAML ({problem}); correct this line"
