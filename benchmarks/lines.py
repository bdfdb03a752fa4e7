"""A line of the benchmark table, and the document."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft", "trl")


@dataclass(frozen=True)
class Line:
    """One comparison. `plain` and `tree` are in one unit, where less is better."""

    what: str
    against: str
    plain: float
    tree: float
    same: str  # what was checked to be equal
    unit: str = "s"
    minimum: float | None = None  # of the ratio
    aim: float | None = None
    ratio_name: str | None = None  # for a ratio that is not plain / tree

    @property
    def ratio(self) -> float:
        """How many times less, or whatever `ratio_name` says."""
        return self.plain / self.tree

    @property
    def shown_ratio(self) -> str:
        """The ratio, with the minimum it misses."""
        shown = f"{self.ratio:.2f}×" if self.ratio_name is None else f"{100 * self.ratio:.0f} % {self.ratio_name}"
        return shown if self.minimum is None or self.ratio >= self.minimum else f"{shown} (below {self.minimum:g})"


def read_lines(file: Path) -> dict[str, list[Line]]:
    """What was measured, by letter; nothing if there is no such file."""
    lines: dict[str, list[Line]] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        fields = json.loads(text)
        lines.setdefault(fields.pop("letter"), []).append(Line(**fields))
    return lines


def write_lines(file: Path, lines: Mapping[str, Sequence[Line]]) -> None:
    """Keep what was measured, as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = (json.dumps({"letter": letter, **asdict(line)}) for letter, some in lines.items() for line in some)
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def document(model: str, lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    rows = [
        f"| {line.what} | {line.against} | {line.plain:.1f} {line.unit} | {line.tree:.1f} {line.unit} "
        f"| **{line.shown_ratio}** | {_wanted(line)} | {line.same} |"
        for line in lines
    ]
    return f"""# Benchmarks

{model}, float32, {torch.get_num_threads()} threads of {_processor()}; Python {platform.python_version()}, {versions}.
Both sides of a line ran one after the other on the same documents, each in a process of its own. Where `hf` counts with
the best of several batch sizes, `hf-tree` counts with the best of as many runs.
Made by `make bench`. Machines are noisy: read the ratios.

| what | against | that one | trees | ratio | minimum / aim | the same? |
|---|---|---:|---:|---:|---:|---|
{chr(10).join(rows)}

How it works: [prefix_trees.md](prefix_trees.md).
"""


def _wanted(line: Line) -> str:
    return "" if line.minimum is None else f"{line.minimum:g} / {line.aim:g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
