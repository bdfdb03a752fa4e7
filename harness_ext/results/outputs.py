"""What a model answered to each document, from logged samples: prompt, output or choices, reference, scores."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness_ext.results.run import TaskResult


@dataclass(frozen=True)
class Output:
    """One document, what the model was asked, and what it answered."""

    doc_id: int
    doc_hash: str
    doc: Mapping[str, Any]
    prompt: str
    text: str | None  # the generated text, before any filter; None for a choice between log-probabilities
    choices: tuple[float, ...]  # log-probabilities of the choices; empty for a generated text
    target: str
    logged: Mapping[str, Any] = field(repr=False)  # the whole sample: metrics, finish reason, token counts

    @property
    def references(self) -> tuple[str, ...]:
        """The reference answers; lm-eval logs a list of them as text."""
        if self.target.startswith("[") and self.target.endswith("]"):
            try:
                listed = ast.literal_eval(self.target)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return (self.target,)
            return tuple(str(answer) for answer in listed)
        return (self.target,)

    @property
    def is_unanswerable(self) -> bool:
        """Whether the question has no answer, by its scores or by its empty list of answers."""
        answers = self.doc.get("answers")
        texts = answers.get("text") if isinstance(answers, Mapping) else answers
        return "NoAns_exact" in self.logged or (texts is not None and len(texts) == 0)


def iter_outputs(result: TaskResult, filter: str) -> Iterator[Output]:
    """Yield the logged samples of one filter, in the order of the file.

    Raises:
        ResultsError: the samples file is incomplete.
    """
    if result.samples_path is None:
        return
    is_generated = result.config.get("output_type", "generate_until") == "generate_until"
    for number, sample in enumerate(result.logged_samples()):
        if sample.get("filter", filter) == filter:
            yield _output(sample, number, is_generated=is_generated)


def _output(sample: Mapping[str, Any], number: int, *, is_generated: bool) -> Output:
    requests = _requests(sample.get("arguments"))
    responses = [_first(response) for response in sample.get("resps") or []]
    text = next((response for response in responses if isinstance(response, str)), None) if is_generated else None
    choices = [] if is_generated else [logged_number(response) for response in responses]
    doc = sample.get("doc")
    return Output(
        doc_id=int(sample.get("doc_id", number)),
        doc_hash=str(sample.get("doc_hash", "")),
        doc=doc if isinstance(doc, Mapping) else {},
        prompt=requests[0] if requests else "",
        text=text,
        choices=tuple(choices) if len(choices) > 1 else (),
        target=str(sample.get("target", "")),
        logged=sample,
    )


def _requests(arguments: Any) -> list[str]:
    """The prompts of a sample's requests; lm-eval writes lists as `{"gen_args_0": {"arg_0": ...}}`."""
    entries = arguments.values() if isinstance(arguments, Mapping) else arguments or []
    prompts = [entry.get("arg_0") if isinstance(entry, Mapping) else _first(entry) for entry in entries]
    return [prompt for prompt in prompts if isinstance(prompt, str)]


def _first(value: Any) -> Any:
    """The first item of nested lists: a response is `[text]`, `[[log-probability, is greedy]]` or without the lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value


def logged_number(value: Any) -> float:
    """A logged number, which may be text; NaN for anything else."""
    if isinstance(value, (bool, int, float)):
        return float(value)
    try:
        return float(value)  # lm-eval writes log-probabilities as text
    except (TypeError, ValueError):
        return float("nan")
