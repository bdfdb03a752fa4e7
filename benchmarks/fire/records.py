"""What was measured so far: one JSON line for each case, in a file for each part, so that a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records:
    """The lines of one part.

    Args:
        folder: where the files of all parts are.
        part: name of the part.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self._file = folder / f"{part}.jsonl"

    def all(self) -> list[Record]:
        """What is there; a line that was cut short by a kill is left out."""
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, record: Record) -> None:
        """Append a line, and show it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
        print(line, flush=True)

    def clear(self) -> None:
        """Begin again."""
        self._file.unlink(missing_ok=True)
