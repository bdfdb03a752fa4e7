"""Draw hostile input for every reader until the time is up; `make fuzz` runs it after the differential test.

```
python tests/hostile/run.py --minutes 10            # all readers in turn
python tests/hostile/run.py --reader adapter --minutes 5 --keep
```

A case that finds something is shortened by hypothesis and printed as a line for `seeds.jsonl`; `--keep` adds it there.
Exit code 1 if anything but `HarnessExtError` came out of a reader.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.errors import Flaky  # noqa: E402

from harness_ext.errors import HarnessExtError  # noqa: E402
from hostile.changes import KINDS, Change  # noqa: E402
from hostile.readers import READERS, outcome  # noqa: E402

SEEDS = Path(__file__).with_name("seeds.jsonl")
CHANGES = st.lists(
    st.builds(Change, st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 400), st.integers(0, 99)),
    min_size=1,
    max_size=3,
)
BATCH = 50  # cases between two looks at the clock
GRACE = 30.0  # seconds after the deadline, to shorten a case


class Found(Exception):
    """Something came out of a reader that is not an error of ours."""


def fuzz(reader: str, deadline: float, first_seed: int, counts: Counter[str]) -> list[tuple[list[Change], str]]:
    """Draw cases for a reader until the deadline; returns those that found something, shortened."""
    failures: list[tuple[list[Change], str]] = []
    number = first_seed
    while time.monotonic() < deadline:
        known = {problem for _, problem in failures}
        if failure := batch(reader, number, deadline, known, counts):
            failures.append(failure)
            print(f"FOUND {reader}: {failure[1]}\n  {as_line(reader, failure[0])}", flush=True)
        number += 1
    return failures


def batch(
    reader: str, number: int, deadline: float, known: set[str], counts: Counter[str]
) -> tuple[list[Change], str] | None:
    """Draw `BATCH` cases from one seed; the first problem that is not known, with its shortest case."""
    last: dict[str, list[Change]] = {}

    @seed(number)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(CHANGES)
    def one(changes: list[Change]) -> None:
        if time.monotonic() > deadline + GRACE:
            return
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                said = outcome(reader, changes, Path(folder))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                if _kind(error) in known:
                    counts[f"{reader}: known problem"] += 1
                    return
                last[_kind(error)] = changes
                raise Found(_kind(error)) from error
            counts[f"{reader}: {'read' if said == 'read' else 'refused'}"] += 1

    try:
        one()
    except (Found, Flaky):  # flaky: it depends on more than the case, such as a cache of a library
        problem, changes = next(reversed(last.items()))
        return changes, problem
    return None


def _import(reader: str) -> None:
    """Read an undamaged file, so that the time for imports is in no case's."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(HarnessExtError):
        READERS[reader].write(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            READERS[reader].read(Path(folder))


def _kind(error: BaseException) -> str:
    """Type and place of an error, which tell one problem from another."""
    frame, place = error.__traceback__, ""
    while frame is not None:
        file = Path(frame.tb_frame.f_code.co_filename)
        if file.is_relative_to(ROOT / "harness_ext"):
            place = f"{file.relative_to(ROOT)}:{frame.tb_lineno}"
        frame = frame.tb_next
    return f"{type(error).__name__} at {place}: {str(error).splitlines()[0] if str(error) else ''}"[:220]


def as_line(reader: str, changes: list[Change]) -> str:
    """A case as a line of `seeds.jsonl`."""
    return json.dumps({"reader": reader, "changes": [list(change) for change in changes]})


def main() -> int:
    """Run the readers in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="in all (default: 10)")
    parser.add_argument("--reader", choices=list(READERS), action="append", help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first batch (default: the time)")
    parser.add_argument("--keep", action="store_true", help="add what is found to seeds.jsonl")
    options = parser.parse_args()
    readers = options.reader or list(READERS)
    counts: Counter[str] = Counter()
    found: list[str] = []
    started = time.monotonic()
    for number, reader in enumerate(readers):
        _import(reader)
        deadline = started + 60 * options.minutes * (number + 1) / len(readers)
        found += [as_line(reader, changes) for changes, _ in fuzz(reader, deadline, options.seed, counts)]
    if options.keep and found:
        with SEEDS.open("a", encoding="utf-8") as kept:
            kept.writelines(f"{line}\n" for line in found)
    for name, count in sorted(counts.items()):
        print(f"{name}: {count:,}")
    minutes = (time.monotonic() - started) / 60
    print(f"{sum(counts.values()):,} cases in {minutes:.1f} minutes from seed {options.seed}; {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
