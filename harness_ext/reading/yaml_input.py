"""YAML from outside, with limits: size, depth, time, and what aliases expand to.

`&a`/`*a` let a few lines stand for billions of values. The limit is on the expanded size, so ordinary aliases work.
Integers beyond 64 bits and lone surrogates are made harmless as in JSON (see `json_input`).
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import yaml

from harness_ext.errors import InputError, first_line
from harness_ext.names import visible
from harness_ext.reading.files import TASK_SIZE, read_text, shown
from harness_ext.reading.json_input import harmless

MAX_DEPTH = 100  # sequences and mappings inside each other
MAX_VALUES = 200_000  # with aliases expanded
MAX_SECONDS = 30.0
_INDENTED = re.compile(rf"^[ \t?:-]{{{MAX_DEPTH},}}", re.MULTILINE)  # block collections need a character a level
_SMALL = 2**16  # characters that any parser reads in moments


class LimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits; it raises `yaml.YAMLError` and nothing else."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._deadline = time.monotonic() + MAX_SECONDS
        self._sizes: dict[int, int] = {}  # id of a node -> values in it, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node within the limits."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        self._require(self._depth <= MAX_DEPTH, f"is nested more than {MAX_DEPTH} levels deep", event)
        self._require(time.monotonic() < self._deadline, f"takes more than {MAX_SECONDS:.0f} s to read", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            self._require(id(node) in self._sizes, "has an alias inside the value that it stands for", event)
        else:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        self._require(self._sizes[id(node)] <= MAX_VALUES, f"stands for more than {MAX_VALUES:,} values", event)
        return node

    def _require(self, holds: bool, problem: str, event: yaml.Event) -> None:
        if not holds:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; errors of Python's types become errors of YAML, with their place."""
        try:
            return harmless(super().construct_object(node, deep=deep))
        except (ValueError, TypeError, OverflowError, AttributeError, KeyError, IndexError) as error:
            if isinstance(error, yaml.YAMLError):
                raise
            raise yaml.constructor.ConstructorError(None, None, f"{first_line(error):.80}", node.start_mark) from error


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def read_yaml(file: str | Path, *, loader: type[LimitedLoader] = LimitedLoader) -> Any:
    """The value in a YAML file.

    Raises:
        InputError: it cannot be read, is not YAML, or breaks a limit; the message names file and line.
    """
    return parse_yaml(read_text(file, limit=TASK_SIZE), place=shown(file), loader=loader)


def parse_yaml(text: str, *, place: str, loader: type[LimitedLoader] = LimitedLoader) -> Any:
    """The value in a YAML text.

    Args:
        text: one document.
        place: where it comes from, for messages.
        loader: with constructors for more tags.

    Raises:
        InputError: it is not YAML, or breaks a limit.
    """
    try:
        return loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise InputError(f"{place}{line_of(error)}: cannot be read as YAML ({why(error)})") from error
    except RecursionError as error:
        raise InputError(f"{place}: is nested more than {MAX_DEPTH} levels deep") from error


def line_of(error: yaml.YAMLError) -> str:
    """`:line` of an error; empty if unknown."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f":{mark.line + 1}" if mark else ""


def why(error: yaml.YAMLError) -> str:
    """What is wrong, in a few words."""
    return visible(str(getattr(error, "problem", None) or first_line(error)))


def check_yaml(file: str | Path) -> None:
    """Make sure that any parser, also one without limits, reads a file within the limits.

    Ordinary files are recognised by their text; all others are parsed.

    Raises:
        InputError: as `read_yaml`.
    """
    text = read_text(file, limit=TASK_SIZE)
    may_alias = "&" in text and "*" in text
    may_be_deep = text.count("[") + text.count("{") > MAX_DEPTH or _INDENTED.search(text) is not None
    if may_alias or may_be_deep or len(text) > _SMALL:
        try:
            LimitedLoader(text).get_single_node()
        except (yaml.YAMLError, RecursionError) as error:
            reason = why(error) if isinstance(error, yaml.YAMLError) else "nested too deeply"
            raise InputError(f"{shown(file)}: cannot be read as YAML ({reason})") from error
