"""`compare` on forty formats against recorded values, so that no number changes unnoticed.

After an intended change, `python tests/comparison/test_golden.py` records the new values; describe the diff in the
changelog.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parent))

from stock_formats import stock_formats, write_formats

GOLDEN = Path(__file__).parent / "golden" / "formats.json"
TOLERANCE = 1e-6


def compared(folder: Path) -> dict[str, Any]:
    """Rows by task, and warnings."""
    from harness_ext import compare_runs, load_runs

    result = compare_runs(load_runs(str(write_formats(folder, stock_formats())))).to_json()
    rows = {row.pop("task"): {k: v for k, v in row.items() if v is not None} for row in result["rows"]}
    return {"rows": rows, "warnings": result["warnings"]}


def test_forty_formats_are_compared_as_before(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    actual = json.loads(json.dumps(compared(tmp_path / "out")))
    assert len(actual["rows"]) >= 40
    before, now = flat(expected["rows"]), flat(actual["rows"])
    different = {name: (before.get(name), now.get(name)) for name in {**before, **now} if not same(before, now, name)}
    assert not different
    assert actual["warnings"] == expected["warnings"]


def same(before: dict[str, Any], now: dict[str, Any], name: str) -> bool:
    """Whether a value equals the recorded one, numbers up to rounding."""
    expected, actual = before.get(name), now.get(name)
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return math.isclose(expected, actual, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(expected == actual)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested value as one level."""
    if isinstance(value, dict):
        return {path: leaf for key in value for path, leaf in flat(value[key], f"{name}.{key}").items()}
    return {name: json.dumps(value) if isinstance(value, list) else value}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(
            json.dumps(compared(Path(scratch) / "out"), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    print(f"wrote {GOLDEN}")  # noqa: T201
