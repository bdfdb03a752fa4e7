"""What results say, without what differs from run to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOLATILE = {"date", "seconds", "start_time", "end_time", "total_evaluation_time_seconds", "answers_from_store"}


def content(folder: Path) -> dict[str, Any]:
    """What results say, without dates and times: the newest file of each name."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.json*")):
        name = str(file.relative_to(folder)).rsplit("_", 1)[0]
        if file.suffix == ".json":
            found[name] = _steady(json.loads(file.read_text()))
        else:
            found[name] = file.read_text()
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(part) for key, part in value.items() if key not in VOLATILE}
    return value
