"""What `compare` makes of forty formats, beside what it made of them before: a change of a number is never unseen.

After an intended change: `python tests/comparison/test_golden.py` writes the new values; the diff belongs into the
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

    made = compare_runs(load_runs(str(write_formats(folder, stock_formats())))).to_json()
    rows = {row.pop("task"): {k: v for k, v in row.items() if v is not None} for row in made["rows"]}
    return {"rows": rows, "warnings": made["warnings"]}


def test_forty_formats_are_compared_as_before(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = json.loads(json.dumps(compared(tmp_path / "out")))
    assert len(found["rows"]) >= 40
    before, now = flat(expected["rows"]), flat(found["rows"])
    different = {name: (before.get(name), now.get(name)) for name in {**before, **now} if not same(before, now, name)}
    assert not different
    assert found["warnings"] == expected["warnings"]


def same(before: dict[str, Any], now: dict[str, Any], name: str) -> bool:
    """Whether a value is the one recorded, numbers up to rounding."""
    one, other = before.get(name), now.get(name)
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested value as one level."""
    if isinstance(value, dict):
        return {key: each for inner in value for key, each in flat(value[inner], f"{name}.{inner}").items()}
    return {name: json.dumps(value) if isinstance(value, list) else value}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(
            json.dumps(compared(Path(scratch) / "out"), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    print(f"wrote {GOLDEN}")  # noqa: T201
