"""Evaluation with adapter switches for an hour in one process: does memory stay flat?

Each call evaluates a base and its adapters with results, samples and a store, as the command does. Memory is that of
the process (resident set), read once a minute.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import time
from pathlib import Path

import psutil
import tiny
from records import Records

ADAPTERS = 24
WARM_UP_MINUTES = 5.0  # until caches of libraries and the allocator have what they need
SETTINGS = {
    "tasks": ["sst2_choice", "squad_v2_generate"], "limit": 4, "batch_size": 4, "log_samples": True,
}  # fmt: skip


def run(work: Path, records: Records, minutes: float) -> None:
    """Evaluate for some minutes; an earlier run is replaced."""
    base, adapters = tiny.make(work, ADAPTERS)
    from harness_ext.engine.evaluate import evaluate

    logging.disable(logging.WARNING)
    records.clear()
    process, output = psutil.Process(), work / "output"
    started = time.monotonic()
    switches, evaluations, next_look = 0, 0, 0.0
    while (now := time.monotonic() - started) < 60 * minutes:
        if now >= next_look:
            gc.collect()
            records.add({
                "minute": round(now / 60, 2), "switches": switches, "evaluations": evaluations,
                "megabytes": round(process.memory_info().rss / 2**20, 1), "files": process.num_fds(),
                "threads": process.num_threads(), "pid": os.getpid(),
            })  # fmt: skip
            next_look += 60
        shutil.rmtree(output, ignore_errors=True)  # else all answers would come from the store
        done = evaluate(str(base), adapters=[*adapters], output_path=str(output), **SETTINGS)
        assert not any(each.failures or each.error for each in done)
        switches += len(adapters)
        evaluations += len(done)
