"""Check tasks in a process of its own: their code may end the process, never end, or take all memory.

```
parent ── request ──> child: check_files ──> lines of JSON in a file ──> parent
```

A task whose code ends the child gets the finding C41, and the other tasks are checked in a new child.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import harness_ext.errors
from harness_ext.check.report import Report
from harness_ext.errors import HarnessExtError, TaskError, first_line
from harness_ext.findings import Finding

TASK_SECONDS = 1800.0  # for one task, with its downloads
START_SECONDS = 300.0  # until the first task
_POLL_SECONDS = 0.05


def check_in_child(
    names: Sequence[str],
    *,
    include_path: Sequence[str | Path] = (),
    model: str | None = None,
    task_seconds: float = TASK_SECONDS,
) -> list[Report]:
    """As `check_tasks`, but whatever a task's code does becomes a finding.

    Args:
        names: tasks, files and folders.
        include_path: more folders of tasks.
        model: folder or Hub id, whose tokenizer measures answers and labels.
        task_seconds: limit for one task; one that takes longer is broken.

    Raises:
        TaskError: one of the names is unknown.
        ModelError: the model has no tokenizer.
    """
    reports: list[Report] = []
    done: list[str] = []
    while True:
        request = {
            "names": list(map(str, names)), "include_path": list(map(str, include_path)), "model": model, "skip": done,
        }  # fmt: skip
        child = _run(request, task_seconds)
        reports += child.reports
        done += child.done
        if child.finished:
            return reports
        if child.checking is None:
            raise TaskError(f"the check cannot start: {child.ending}; run it again with --verbosity debug")
        reports.append(_broken_report(Path(child.checking), child.ending))
        done.append(child.checking)


def _broken_report(file: Path, ending: str) -> Report:
    text = f"its code {ending} while it was checked; remove that from its hooks"
    finding = Finding("C41", "error", f"{file}:1", text, {"file": str(file), "line": 1})
    return Report(file.stem, (finding,), None)


# -- the parent --------------------------------------------------------------------------------------------------


class _Child:
    """What a child has told so far."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.done: list[str] = []  # files
        self.checking: str | None = None  # file
        self.finished = False
        self.ending = ""

    def hear(self, line: str) -> None:
        """Take in one line of the child.

        Raises:
            HarnessExtError: the child could not begin, for this reason.
        """
        try:
            message = json.loads(line)
        except ValueError:  # the child ended while it wrote
            return
        if "checking" in message:
            self.checking = message["checking"]
        elif "reports" in message:
            self.reports += map(_report, message["reports"])
            self.done.append(message["file"])
            self.checking = None
        elif "error" in message:
            kind = getattr(harness_ext.errors, message["error"], HarnessExtError)
            raise kind(message["message"])
        else:
            self.finished = True


def _report(values: dict[str, Any]) -> Report:
    return Report(values["name"], tuple(Finding(**finding) for finding in values["findings"]), values["verified"])


def _run(request: dict[str, Any], task_seconds: float) -> _Child:
    child = _Child()
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told.jsonl")
        told.touch()
        process = _processes().Process(target=_main, args=(str(told), request, dict(os.environ), str(Path.cwd())))
        process.start()
        try:
            with told.open(encoding="utf-8") as lines:
                child.ending = _listen(process, lines, child, task_seconds)
        finally:
            _kill(process)
    return child


def _processes() -> Any:
    """Processes that begin with the imports done where the system can fork, else anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["harness_ext.check.run", "harness_ext.check.tokens"])
    return processes


def _listen(process: BaseProcess, lines: Any, child: _Child, task_seconds: float) -> str:
    """Follow a child until it ends or is too slow; returns how it ended, in words."""
    since, partial = time.monotonic(), ""
    while True:
        ended = not process.is_alive()
        if text := lines.read():
            since = time.monotonic()
            *complete, partial = (partial + text).split("\n")
            for line in complete:
                child.hear(line)
        if child.finished:
            return "ended"
        if ended:
            return f"ended the process ({_how(process.exitcode or 0)})"
        limit = START_SECONDS if child.checking is None and not child.done else task_seconds
        if time.monotonic() - since > limit:
            return f"took more than {limit:,.0f} s"
        time.sleep(_POLL_SECONDS)


def _how(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"signal {-exitcode}"


def _kill(process: BaseProcess) -> None:
    """End a child with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg") and process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


# -- the child ---------------------------------------------------------------------------------------------------


def _main(told_file: str, request: dict[str, Any], environment: dict[str, str], folder: str) -> None:
    """Check what the request names, and write what is found to a file."""
    told = os.open(told_file, os.O_WRONLY | os.O_APPEND)
    _be_alone()
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        _check(request, told)
    except HarnessExtError as error:
        _tell(told, {"error": type(error).__name__, "message": str(error)})
    except Exception as error:  # ours: a task's own exceptions are findings
        _tell(
            told, {"error": "TaskError", "message": f"the check failed ({type(error).__name__}: {first_line(error)})"}
        )


def _be_alone() -> None:
    """Write to nowhere, in a session of its own, with no more memory than the machine has, and no core dump."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):  # not on Windows
        import resource

        os.setsid()
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (total, total))


def _check(request: dict[str, Any], told: int) -> None:
    from harness_ext.check.run import check_files, files_of
    from harness_ext.check.tokens import encoder

    encode = encoder(request["model"]) if request["model"] else None
    files = files_of(request["names"], request["include_path"])
    skip = {Path(file) for file in request["skip"]}
    for file, reports in check_files(
        files, include_path=request["include_path"], encode=encode, skip=skip,
        before=lambda file: _tell(told, {"checking": str(file)}),
    ):  # fmt: skip
        values = [
            {
                "name": report.name,
                "findings": [asdict(finding) for finding in report.findings],
                "verified": report.verified,
            }
            for report in reports
        ]
        _tell(told, {"file": str(file), "reports": values})
    _tell(told, {"finished": True})


def _tell(told: int, message: dict[str, Any]) -> None:
    os.write(told, (json.dumps(message, default=str) + "\n").encode())
