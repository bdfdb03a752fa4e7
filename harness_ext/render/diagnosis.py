"""A diagnosis on a terminal: the score taken apart, then each finding with an example and the next step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.text import Text

from harness_ext.doctor.diagnosis import Diagnosis, Examination, MarkedExample
from harness_ext.findings import Finding
from harness_ext.names import visible

_STYLES = {"error": "bold red", "warning": "yellow", "note": "blue"}
_FACTORS = {  # of a decomposition, in the order of reading
    "parsed_rate": "parsed",
    "score_parsed": "right among parsed",
    "has_answer": "with an answer",
    "no_answer": "without an answer",
    "share_no_answer": "documents without an answer",
    "at_token_limit": "ended at the token limit",
    "empty": "empty",
}
_SHOWN = 240  # characters of an example's output; `--format json` has all of it


def render(diagnoses: Sequence[Diagnosis], width: int) -> Iterator[Any]:
    """Yield one block per task and run."""
    for diagnosis in diagnoses:
        yield Text(f"{diagnosis.task}, {diagnosis.run}", style="bold")
        if diagnosis.decomposition is not None:
            yield Padding(_factors(diagnosis), (0, 0, 0, 2))
        for finding in diagnosis.findings:
            yield Padding(finding_text(finding, f"{diagnosis.task}, {diagnosis.run}"), (0, 0, 0, 2))
            yield from (Padding(example, (0, 0, 0, 6)) for example in _examples(finding, width))
        if not diagnosis.findings and diagnosis.decomposition is not None:
            yield Text("  nothing found", style="green")
        for note in diagnosis.notes:
            yield Padding(Text(f"note: {visible(note)}", style="dim"), (0, 0, 0, 2))
        yield Text()


def _factors(diagnosis: Diagnosis) -> Text:
    assert diagnosis.decomposition is not None
    known = diagnosis.decomposition.known()
    parts = [f"{label} {100 * known[name]:.1f} %" for name, label in _FACTORS.items() if name in known]
    score = f"{diagnosis.metric} {100 * diagnosis.decomposition.score:.1f} on {diagnosis.n:,} documents"
    return Text(": ".join([score, ", ".join(parts)]) if parts else score)


def render_examination(examination: Examination, width: int) -> Iterator[Any]:
    """Yield the facts about an adapter or a training run, marked examples, and the findings."""
    yield Text(visible(examination.subject), style="bold")
    longest = max(map(len, examination.facts), default=0)
    for name, value in examination.facts.items():
        yield Padding(Text(visible(f"{name:<{longest}}  {value}")), (0, 0, 0, 2))
    for example in examination.examples:
        yield Padding(_marked(example), (0, 0, 0, 2))
    for finding in examination.findings:
        yield Padding(finding_text(finding, finding.where), (0, 0, 0, 2))
        yield from (Padding(example, (0, 0, 0, 6)) for example in _examples(finding, width))
    if not examination.findings:
        yield Text("  nothing found", style="green")
    for note in examination.notes:
        yield Padding(Text(f"note: {visible(note)}", style="dim"), (0, 0, 0, 2))


def _marked(example: MarkedExample) -> Text:
    """The end of the prompt, and between double brackets what the loss is computed on."""
    context = example.context if len(example.context) <= _SHOWN else f"…{example.context[-_SHOWN:]}"
    line = Text(f"document {example.document}: {context!r} ", style="dim")
    return line.append(f"[[{example.supervised!r}]]", style="bold")


def finding_text(finding: Finding, subject: str = "") -> Text:
    """A finding with its level, id and next step; the subject that it begins with is left out."""
    line = Text(f"{finding.level} {finding.id} ", style=_STYLES[finding.level])
    if finding.numbers.get("proved"):
        line.append("proved ", style="bold green")
    line.append(visible(finding.text.removeprefix(f"{subject}: ")), style="default")
    if finding.next_step:
        line.append(f"\n  next: {visible(finding.next_step)}", style="cyan")
    return line


def _examples(finding: Finding, width: int) -> Iterator[Text]:
    examples: Sequence[Mapping[str, Any]] = finding.numbers.get("examples", ())
    for example in examples[:1]:
        output = str(example["output"])
        shortened = output if len(output) <= _SHOWN else f"{output[:_SHOWN]}… ({len(output):,} characters)"
        yield Text(f"document {example['doc_id']}, reference {example['target']!r:.{max(20, width // 2)}}", style="dim")
        yield Text(f"output {shortened!r}", style="dim")
