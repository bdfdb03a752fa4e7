"""Cases that once found something, and a slice of fresh ones for every reader; `make fuzz` draws many more."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from hostile.changes import PLACES, Change
from hostile.readers import READERS, outcome
from hostile.run import SEEDS, fuzz

KEPT = [json.loads(line) for line in SEEDS.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: f"{case['reader']}-{case['changes']}")
def test_kept_cases_give_our_own_errors_only(tmp_path: Path, case: dict) -> None:
    assert outcome(case["reader"], [Change(*change) for change in case["changes"]], tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_unchanged_files_are_read(tmp_path: Path, reader: str) -> None:
    assert outcome(reader, [], tmp_path) == "read"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_noticed(tmp_path: Path, reader: str, place: str) -> None:
    """In the place of the first file of each kind."""
    assert outcome(reader, [Change("place", 0, 0, PLACES.index(place))], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS)
def test_a_slice_of_fresh_cases(reader: str) -> None:
    assert fuzz(reader, time.monotonic() + 5, 0, Counter()) == []
