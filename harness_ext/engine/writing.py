"""Results on disk, by lm-eval's own writer: what cannot be written of one task leaves the others' files whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext.engine.isolation import Failures, one_line
from harness_ext.errors import TaskError
from harness_ext.protocol.lm_eval_api import EvaluationTracker, handle_non_serializable

_NOT_JSON = (TypeError, ValueError, RecursionError)


def write_results(
    tracker: EvaluationTracker, results: Mapping[str, Any], failures: Failures, *, log_samples: bool
) -> Path:
    """Let lm-eval write its files; returns their folder.

    Args:
        tracker: knows the output path.
        results: of one variant, with the samples under `samples`.
        failures: takes the tasks that could not be written.
        log_samples: whether samples are written, too.

    Raises:
        TaskError: nothing could be written.
    """
    written = _writable(results, failures)  # lm-eval swallows whatever goes wrong in writing
    samples = {name: rows for name, rows in results.get("samples", {}).items() if log_samples}
    tracker.save_results_aggregated(
        results=written, samples={n: r for n, r in samples.items() if n in written["configs"]}
    )
    path = Path(tracker.output_path)
    in_one_file = path.suffix == ".json"
    folder = path.parent if in_one_file else path / str(tracker.general_config_tracker.model_name_sanitized)
    date = getattr(tracker, "date_id", None)
    if date is None or not any(folder.glob(f"*{date}.json" if in_one_file else f"results_{date}.json")):
        raise TaskError(f"results could not be written to {folder}; check permissions and disk space")
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
        with failures.catching(name, "its samples could not be written: "):
            _check_samples(folder / f"samples_{name}_{date}.jsonl", rows)
    return folder


def why_not_writable(path: Path) -> str | None:
    """Why files could not be made at a path, before anything is computed for them; None where they can."""
    parent = path.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() and not (parent.is_file() and path.suffix == ".json"):
        return f"{parent} is a file"
    return None if os.access(parent, os.W_OK) else f"{parent} cannot be written to"


def _writable(results: Mapping[str, Any], failures: Failures) -> dict[str, Any]:
    """A results file's content, without the tasks that JSON cannot hold."""
    written = {
        name: dict(part) if isinstance(part, Mapping) else part for name, part in results.items() if name != "samples"
    }
    with contextlib.suppress(*_NOT_JSON):
        _check_json(written)
        return written
    by_task = [part for name, part in written.items() if isinstance(part, dict) and name != "config"]
    for task in results["configs"]:
        try:
            _check_json([part[task] for part in by_task if task in part])
        except _NOT_JSON as error:
            failures.setdefault(task, f"its results cannot be written as JSON: {one_line(error)}")
            for part in by_task:
                part.pop(task, None)
    try:
        _check_json(written)
    except _NOT_JSON as error:
        raise TaskError(f"the results cannot be written as JSON: {one_line(error)}; check --metadata") from error
    return written


def _check_json(value: Any) -> None:
    json.dumps(value, default=handle_non_serializable, ensure_ascii=False).encode("utf-8")


def _check_samples(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise, and leave no part of a file, unless every sample has its line."""
    if file.is_file() and _lines(file) == len(rows):
        return
    file.unlink(missing_ok=True)
    for row in rows:
        _check_json(row)  # says what it is about
    raise TaskError(f"{file} was not complete and is deleted; check permissions and disk space")


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
