"""What `harness-ext doctor --format json` wrote, read back to be shown in a report, such as proofs by asking again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from harness_ext.doctor.diagnosis import Decomposition, Diagnosis, Examination
from harness_ext.errors import HarnessExtError, InputError
from harness_ext.findings import CATALOGUE, Finding, Level
from harness_ext.names import clean_name, visible
from harness_ext.reading.files import LINE_SIZE, shown
from harness_ext.reading.json_input import read_json

_REMEDY = "write it with `harness-ext doctor RESULTS --format json > FILE`"
_SAME = 1e-9  # scores of the same outputs


def read_diagnoses(file: str | Path) -> tuple[list[Diagnosis], list[Examination]]:
    """The diagnoses of results, and the examinations of adapters and trainings, that a file holds.

    Raises:
        HarnessExtError: it cannot be read, or the doctor did not write it.
    """
    try:
        content = read_json(file, limit=LINE_SIZE)
    except InputError as error:
        raise HarnessExtError(f"{error}; {_REMEDY}") from error
    entries = content if isinstance(content, list) else [content]
    try:
        diagnoses = [_diagnosis(entry) for entry in entries if "subject" not in entry]
        return diagnoses, [_examination(entry) for entry in entries if "subject" in entry]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HarnessExtError(f"{shown(file)}: was not written by the doctor; {_REMEDY}") from error


def with_saved(own: Sequence[Diagnosis], saved: Sequence[Diagnosis], file: str | Path) -> list[Diagnosis]:
    """The diagnoses of a report, those of the same outputs replaced by saved ones, which may have asked again.

    Raises:
        HarnessExtError: the saved ones are of other outputs.
    """
    known = {(each.task, each.run): each for each in own}
    fitting = {(each.task, each.run): each for each in saved if (each.task, each.run) in known}
    if saved and not fitting:
        raise HarnessExtError(
            f"{shown(file)}: is about {saved[0].task}, {saved[0].run}, which is not compared here; {_REMEDY}"
        )
    for where, each in fitting.items():
        if not _is_of_the_same_outputs(each, known[where]):
            raise HarnessExtError(
                f"{shown(file)}: the outputs of {each.run} on {each.task} were others when examined; {_REMEDY}"
            )
    return [fitting.get((each.task, each.run), each) for each in own]


def _is_of_the_same_outputs(saved: Diagnosis, own: Diagnosis) -> bool:
    if (saved.n, saved.metric) != (own.n, own.metric):
        return False
    scores = [each.decomposition.score for each in (saved, own) if each.decomposition is not None]
    return len(scores) != 1 and (not scores or abs(scores[0] - scores[1]) <= _SAME)


def _diagnosis(entry: Mapping[str, Any]) -> Diagnosis:
    factors = entry["decomposition"]
    return Diagnosis(
        task=clean_name(entry["task"]),
        run=clean_name(entry["run"]),
        metric=clean_name(entry["metric"]),
        n=int(entry["n"]),
        decomposition=None
        if factors is None
        else Decomposition(**{name: _share(each) for name, each in factors.items()}),
        findings=_findings(entry),
        notes=_texts(entry["notes"]),
    )


def _examination(entry: Mapping[str, Any]) -> Examination:
    facts = {clean_name(name): str(value) for name, value in entry["facts"].items()}
    return Examination(visible(str(entry["subject"])), facts, _findings(entry), _texts(entry["notes"]))


def _share(value: Any) -> Any:
    return None if value is None else float(value)


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list):
        raise TypeError("notes are not a list")
    return [str(value) for value in values]


def _findings(entry: Mapping[str, Any]) -> list[Finding]:
    return [_finding(each) for each in entry["findings"]]


def _finding(entry: Mapping[str, Any]) -> Finding:
    id, level, numbers, step = entry["id"], entry["level"], entry["numbers"], entry["next_step"]
    if id not in CATALOGUE or level not in get_args(Level) or not isinstance(numbers, dict):
        raise ValueError("no such finding")
    return Finding(
        id, level, visible(str(entry["where"])), str(entry["text"]), numbers, None if step is None else str(step)
    )
