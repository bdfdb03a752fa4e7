"""Hostile input at random, for every reader: the counts of `tests/hostile/run.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from records import Records

SCRIPT = Path(__file__).parents[2] / "tests" / "hostile" / "run.py"
COUNT = re.compile(r"(?P<reader>\S+): (?P<what>read|refused|known problem): (?P<count>[\d,]+)")
FOUND = re.compile(r"FOUND (?P<reader>\S+): ")


def run(records: Records, minutes: float, log: Path | None) -> None:
    """Draw cases for some minutes, or take the counts of an earlier run from what it printed."""
    if records.all() and log is None:
        return
    if log is None:
        command = [sys.executable, str(SCRIPT), "--minutes", str(minutes)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    else:
        text = log.read_text(encoding="utf-8")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in text.splitlines():
        if match := COUNT.fullmatch(line):
            counts[match["reader"]][match["what"]] = int(match["count"].replace(",", ""))
        elif match := FOUND.match(line):
            counts[match["reader"]]["problems"] += 1
    if not any(of_reader["read"] for of_reader in counts.values()):
        raise SystemExit("no counts yet: tests/hostile/run.py prints them at its end")
    records.clear()
    for reader, of_reader in sorted(counts.items()):
        cases = of_reader["read"] + of_reader["refused"] + of_reader["known problem"] + of_reader["problems"]
        records.add(
            {"reader": reader, "cases": cases, "refused": of_reader["refused"], "problems": of_reader["problems"]}
        )
