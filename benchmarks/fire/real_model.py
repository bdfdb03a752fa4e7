"""On SmolLM2-135M-Instruct: how long an evaluation takes that was killed at 90 %, and what the response store costs.

HARNESS_EXT_DATA has to name a folder with SST-2 and SQuAD v2, or the Hub has to be there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from records import Records
from victims import Child

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "models" / "smollm2-135m-instruct")
ADAPTERS = ["sst2", "squad_v2"]
TASKS = ["sst2_choice", "sst2_generate", "squad_v2_generate"]
LIMIT = 800  # documents of each task
PAIRS = 6
PAIR_LIMIT = 100
KILLED_AT = 0.9  # of the time of an uninterrupted run


def run(work: Path, records: Records) -> None:
    """Measure what is not recorded yet."""
    work.mkdir(parents=True, exist_ok=True)
    done = records.all()
    if not any(record["what"] == "killed" for record in done):
        records.add({"what": "killed", **_killed(work)})
    for number in range(sum(record["what"] == "pair" for record in done), PAIRS):
        records.add({"what": "pair", **_pair(work, number)})


# -- killed at 90 % ------------------------------------------------------------------------------------------------


def _killed(work: Path) -> dict[str, Any]:
    """Seconds of whole commands, with what it takes to start Python and load the model."""
    for name in ("whole", "killed"):
        shutil.rmtree(work / name, ignore_errors=True)
    course: list[tuple[float, int]] = []  # (seconds, stored answers)
    whole = _finished(_command(work / "whole"), lambda seconds: course.append((seconds, _stored(work / "whole"))))
    again = _finished(_command(work / "whole"))  # everything is in the store
    answers = course[-1][1]
    enough = next(stored for seconds, stored in course if seconds >= KILLED_AT * whole["wall"])
    started = time.monotonic()
    victim = subprocess.Popen(_command(work / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while _stored(work / "killed") < enough and victim.poll() is None:
        time.sleep(0.05)
    until_kill = time.monotonic() - started
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    stored = _stored(work / "killed")
    rest = _finished(_command(work / "killed"))
    from eval_kills import content

    return {
        "documents": LIMIT, "tasks": TASKS, "adapters": ADAPTERS, "answers": answers, "stored": stored,
        "whole": whole, "until_kill": round(until_kill, 2), "killed_at": KILLED_AT, "rest": rest, "all_stored": again,
        "identical": content(work / "whole") == content(work / "killed"),
    }  # fmt: skip


def _command(output: Path) -> list[str]:
    return [
        sys.executable, "-m", "harness_ext.cli", "eval", "--model_args", f"pretrained={MODEL},dtype=float32",
        "--adapters", *(str(ROOT / "adapters" / name) for name in ADAPTERS), "--tasks", ",".join(TASKS),
        "--limit", str(LIMIT), "--log_samples",
        "--output_path", str(output),
    ]  # fmt: skip


def _finished(command: Sequence[str], watch: Callable[[float], None] = lambda _: None) -> dict[str, float]:
    """Run a command; its seconds on the clock and of the processor. `watch` gets the seconds so far, over and over."""
    before, started = os.times(), time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        watch(time.monotonic() - started)
        time.sleep(0.05)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {running.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": round(time.monotonic() - started, 2), "cpu": round(cpu, 2)}


def _stored(output: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{output / 'responses.sqlite'}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM responses").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:  # not there yet
        return 0


# -- what the store costs ------------------------------------------------------------------------------------------


def _pair(work: Path, number: int) -> dict[str, Any]:
    """An evaluation with and one without a store, each in a process of its own; the order changes."""
    sides = {}
    for stores in (True, False) if number % 2 else (False, True):
        answer = work / "side.json"
        log = work / "side.log"
        if Child(lambda stores=stores, answer=answer: _side(work, stores=stores, answer=answer), log).wait():
            raise SystemExit(log.read_text(encoding="utf-8"))
        sides["with" if stores else "without"] = json.loads(answer.read_text(encoding="utf-8"))
    return {"documents": PAIR_LIMIT, **sides}


def _side(work: Path, *, stores: bool, answer: Path) -> int:
    """Evaluate; notes the seconds of `evaluate`, and those that were spent in the store's own functions."""
    from harness_ext.engine import asking
    from harness_ext.engine.evaluate import evaluate
    from harness_ext.engine.store import ResponseStore

    spent = [0.0]

    def timed(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            before = time.monotonic()
            try:
                return original(*arguments, **options)
            finally:
                spent[0] += time.monotonic() - before

        setattr(owner, name, wrapped)

    for name in ("__init__", "get", "add", "close", "add_model"):
        timed(ResponseStore, name)
    timed(asking.Answering, "_key")
    output = work / "side"
    shutil.rmtree(output, ignore_errors=True)
    cpu, wall = time.process_time(), time.monotonic()
    evaluate(
        MODEL, tasks=["sst2_choice"], adapters=[str(ROOT / "adapters" / "sst2")], limit=PAIR_LIMIT, log_samples=True,
        model_args={"dtype": "float32"}, output_path=str(output), store=None if stores else False,
    )  # fmt: skip
    seconds = {
        "cpu": round(time.process_time() - cpu, 3),
        "wall": round(time.monotonic() - wall, 3),
        "store": round(spent[0], 4),
    }  # fmt: skip
    answer.write_text(json.dumps(seconds), encoding="utf-8")
    return 0
