"""Results on disk, in lm-eval's format: every file is whole or not there, and samples come before the results.

A results file therefore means that the samples of its date are complete. What cannot be written of one task leaves the
others' files whole.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import FunctionType
from typing import Any

from harness_ext.atomic import creating_folder, write_chunks, write_text
from harness_ext.engine.isolation import Failures, one_line
from harness_ext.errors import TaskError, WriteError
from harness_ext.protocol.lm_eval_api import EvaluationTracker, handle_non_serializable, hash_string, sanitize_list
from harness_ext.protocol.sample_files import samples_file

logger = logging.getLogger(__name__)

_NOT_JSON = (TypeError, ValueError, RecursionError)
_LONGEST_FOLDER = 200  # bytes of a folder's name that lm-eval makes of a model's


def write_results(
    tracker: EvaluationTracker, results: Mapping[str, Any], failures: Failures, *, log_samples: bool
) -> Path:
    """Write the files that lm-eval would write; returns their folder.

    Args:
        tracker: knows the output path.
        results: of one variant, with the samples under `samples`.
        failures: takes the tasks that could not be written.
        log_samples: whether samples are written, too.

    Raises:
        WriteError: a file cannot be written: no results file of this variant is there.
        TaskError: the results cannot be written as JSON.
    """
    tracker.general_config_tracker.log_end_time()
    _shorten(tracker)
    written = _writable(results, failures)
    samples = {
        name: rows for name, rows in results.get("samples", {}).items() if log_samples and name in written["configs"]
    }
    date = datetime.now().isoformat().replace(":", "-")
    file = _results_file(tracker, date)
    hashes: dict[str, str] = {}
    with creating_folder(file.parent), _removed_on_failure() as made:
        for name, rows in samples.items():
            with failures.catching(name, "its samples could not be written: ", but=(WriteError,)):
                made.append(file.parent / samples_file(name, date))
                write_chunks(made[-1], _lines(rows))
                hashes[name] = _hash_of_samples(rows)
        written["task_hashes"] = hashes
        written.update(asdict(tracker.general_config_tracker))
        write_text(file, _json(written, indent=2))
    _push(tracker, written, samples)
    return file.parent


def why_not_writable(path: Path) -> str | None:
    """Why files could not be made at a path, before anything is computed for them; None where they can."""
    parent = path.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() and not (parent.is_file() and path.suffix == ".json"):
        return f"{parent} is a file"
    return None if os.access(parent, os.W_OK) else f"{parent} cannot be written to"


@contextlib.contextmanager
def _removed_on_failure() -> Iterator[list[Path]]:
    """A list for the files that are made in the block; samples without results would look like a killed run."""
    made: list[Path] = []
    try:
        yield made
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        raise


def _results_file(tracker: EvaluationTracker, date: str) -> Path:
    """Where lm-eval would write the results: in a folder named by the model, or beside a given `NAME.json`."""
    path = Path(tracker.output_path)
    if path.suffix == ".json":
        return path.with_name(f"{path.stem}_{date}.json")
    return path / str(tracker.general_config_tracker.model_name_sanitized) / f"results_{date}.json"


def _shorten(tracker: EvaluationTracker) -> None:
    """Cut a folder's name that no file system can hold: lm-eval makes it of the whole path of a model."""
    general = tracker.general_config_tracker
    name = str(general.model_name_sanitized)
    if len(name.encode()) > _LONGEST_FOLDER:
        tail = name.encode()[-_LONGEST_FOLDER + 20 :].decode(errors="ignore")
        general.model_name_sanitized = f"{hash_string(name)[:16]}__{tail}"


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
    _json(value).encode("utf-8")


def _json(value: Any, **options: Any) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False, **options)


def _plain(value: Any) -> Any:
    """What JSON can hold of a value; of a function its name, without the address that differs in every process."""
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return handle_non_serializable(value)


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """Logged samples as lm-eval writes them, one line each."""
    for row in rows:
        arguments = {
            f"gen_args_{number}": {f"arg_{place}": argument for place, argument in enumerate(request)}
            for number, request in enumerate(row["arguments"])
        }
        as_text = {name: sanitize_list(row[name]) for name in ("resps", "filtered_resps")}
        line = {**row, **as_text, "arguments": arguments, "target": str(row["target"])}
        yield (_json(line) + "\n").encode("utf-8")


def _hash_of_samples(rows: Sequence[Mapping[str, Any]]) -> str:
    return hash_string("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))


def _push(tracker: EvaluationTracker, results: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    """Let lm-eval push to the Hub where `--hf_hub_log_args` asks for it; it pushes only what it writes itself."""
    if not tracker.api or not (tracker.push_results_to_hub or tracker.push_samples_to_hub):
        return
    output_path = tracker.output_path
    with tempfile.TemporaryDirectory() as scratch:
        tracker.output_path = scratch
        try:
            tracker.save_results_aggregated(results=dict(results), samples=dict(samples))
            for name, rows in samples.items():
                tracker.save_results_samples(task_name=name, samples=copy.deepcopy(list(rows)))
        finally:
            tracker.output_path = output_path
