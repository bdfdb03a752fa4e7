"""Put the page together: template, style, script, and the samples compressed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from harness_ext.catalogue import CATALOGUE
from harness_ext.comparison.rows import Comparison
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.findings import Finding
from harness_ext.names import INVISIBLE
from harness_ext.render import figures, tables, verdict
from harness_ext.render.report import charts, summary
from harness_ext.render.templates import environment
from harness_ext.reporting.contents import Report, SampleSet

_LEVELS = {"error": 0, "warning": 1, "note": 2}
_PLACE_OF_SAMPLES = "<!-- samples -->"
_COMPRESSION = 9
_MOST_STEPS = 6
_LINE = 1_000  # characters of compressed data per line, for editors


def page(report: Report) -> Iterator[bytes]:
    """The file in pieces; the samples are compressed one task at a time."""
    style, script = _asset("report.css"), _asset("report.js").replace("__INVISIBLE__", _javascript_class(INVISIBLE))
    text = environment().get_template("report/page.html").render(**_context(report), style=style, script=script,
        policy=_policy(style, script))  # fmt: skip
    before, _, after = text.partition(_PLACE_OF_SAMPLES)
    yield before.encode("utf-8", "backslashreplace")
    for index, samples in enumerate(report.samples):
        yield f'<script type="application/octet-stream" id="samples-{index}">\n'.encode()
        yield from _compressed(samples)
        yield b"</script>\n"
    yield after.encode("utf-8", "backslashreplace")


def _asset(name: str) -> str:
    return (resources.files("harness_ext.render.report") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The content security policy: this style and this script, and nothing else, from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _javascript_class(characters: str) -> str:
    """A character class of a regular expression, written for JavaScript in plain ASCII."""
    return "".join("-" if each == "-" else f"\\u{{{ord(each):x}}}" for each in characters)


def _compressed(samples: SampleSet) -> Iterator[bytes]:
    """gzip and base64, the same bytes for the same samples."""
    text = json.dumps(samples.content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(text.encode("utf-8", "backslashreplace"), _COMPRESSION, mtime=0)
    for start in range(0, len(packed), _LINE * 3 // 4):
        yield base64.b64encode(packed[start : start + _LINE * 3 // 4]) + b"\n"


def _context(report: Report) -> dict[str, Any]:
    comparison = report.comparison
    findings = _findings(report)
    return {
        "report": report,
        "comparison": comparison,
        "title": _title(comparison),
        "names": list(dict.fromkeys(row.run for row in comparison.rows)),
        "sentence": verdict.sentence(comparison),
        "compared": summary.compared(report),
        "real": summary.real(comparison),
        "wrong": summary.wrong(findings),
        "main_verdict": _main_verdict(comparison),
        "counts": {level: sum(group["level"] == level for group in findings) for level in _LEVELS},
        "findings": findings,
        "grouped": _grouped(findings),
        "examined": _notes(report.diagnoses),
        "leaderboard": tables.grids_of(comparison)[0],
        "further": [grid for grid in (tables.retained(comparison.rows), tables.costs(comparison.costs)) if grid.rows],
        "gains": tables.gains(comparison.rows),
        "notes": tables.notes_of(comparison),
        "forests": figures.forests_of(comparison),
        "waterfalls": figures.waterfalls_of(comparison),
        "untested": [row for row in comparison.rows if row.paired is None],
        "tasks": [charts.task_charts(task) for task in report.tasks],
        "steps": _steps(report),
        "trains": any(run.training for run in report.runs),
        "is_sample": any(row.is_sample for row in comparison.rows),
        "sizes": {samples.task: samples for samples in report.samples},
        "marks": tables.MARKS,
    }


def _steps(report: Report) -> Sequence[str]:
    """The commands that evaluate and compare again, if they are few enough for the summary."""
    if report.evaluations and len(report.evaluations) < _MOST_STEPS:
        return [*report.evaluations, report.repeat]
    return report.commands[:1]


def _title(comparison: Comparison) -> str:
    runs = list(dict.fromkeys(row.run for row in comparison.rows))
    tasks = list(dict.fromkeys(row.task for row in comparison.rows if not row.is_group))
    who = runs[0] if len(runs) == 1 else f"{len(runs)} runs"
    return f"{who} against {comparison.baseline} on {tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}"


def _main_verdict(comparison: Comparison) -> str:
    """The verdict that colours the page's head: the common one, else `mixed`."""
    verdicts = {row.verdict or "none" for row in comparison.rows if not row.is_group}
    return verdicts.pop() if len(verdicts) == 1 else "mixed"


def _findings(report: Report) -> list[dict[str, Any]]:
    """All findings, errors and among them proved ones first, each with what the catalogue says of it."""
    listed: dict[tuple[str, str], dict[str, Any]] = {}
    for diagnosis in report.diagnoses:
        for finding in diagnosis.findings:
            listed.setdefault((finding.id, finding.text), _entry(finding, f"{diagnosis.task}, {diagnosis.run}"))
    for examination in report.examinations:
        for finding in examination.findings:
            listed.setdefault((finding.id, finding.text), _entry(finding, examination.subject))
    for finding in report.comparison.findings:
        listed.setdefault((finding.id, finding.text), _entry(finding, finding.where))
    return sorted(listed.values(), key=lambda entry: (_LEVELS[entry["level"]], entry["proof"] is None))


def _grouped(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings of one kind with one remedy under one heading, in the order of the first of each."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for each in findings:
        key = each["id"], each["level"], each["next"], "proved" if each["proof"] else ""
        groups.setdefault(key, {**each, "entries": []})["entries"].append(each)
    return [*groups.values()]


def _notes(diagnoses: Sequence[Diagnosis]) -> dict[str, list[str]]:
    """What could not be examined, each with the tasks and runs that it holds for."""
    notes: dict[str, list[str]] = {}
    for diagnosis in diagnoses:
        for note in diagnosis.notes:
            notes.setdefault(note, []).append(f"{diagnosis.task}, {diagnosis.run}")
    return notes


def _entry(finding: Finding, where: str) -> dict[str, Any]:
    rule = CATALOGUE[finding.id]
    return {
        "id": finding.id,
        "level": finding.level,
        "where": where,
        "what": rule.what,
        "why": rule.why,
        "text": finding.text.removeprefix(f"{where}: "),
        "proof": charts.proof(finding.numbers) if finding.numbers.get("proved") else None,
        "next": finding.next_step or rule.remedy,
        "examples": _examples(finding.numbers.get("examples", ())),
    }


def _examples(examples: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(example) for example in examples if isinstance(example, dict)][:2]
