"""What the doctor looks at: one task of one run, its logged outputs, and the same task of the baseline."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.doctor.rescoring import Rescorer
from harness_ext.results.run import MetricValue, Run, TaskResult

MAX_EXAMPLES = 3


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


@dataclass(frozen=True)
class Case:
    """One task of one run."""

    run: Run
    result: TaskResult
    metric: MetricValue  # the primary one
    outputs: Sequence[Output]
    base: Case | None = None  # the same task of the baseline; None for the baseline itself
    rescorer: Rescorer | None = None  # scores other texts with the task's own metric; None if the task is not installed

    @property
    def where(self) -> str:
        """Task and run, as findings name them."""
        return f"{self.result.task}, {self.run.name}"

    @property
    def is_generated(self) -> bool:
        """Whether the model wrote its answers."""
        return any(output.text is not None for output in self.outputs)

    @cached_property
    def factor(self) -> float:
        """From logged values to shares: 0.01 for a metric on 0-100."""
        return 0.01 if self.metric.value > 1 or self.result.metadata.get("metric_scale") == 100 else 1.0

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The primary metric of each document as a share, (n,); NaN where it was not logged."""
        return self.column(self.metric.metric) * self.factor

    def column(self, metric: str) -> NDArray[np.float64]:
        """A logged number of each document, (n,); NaN where there is none."""
        return np.array([_number(output.logged.get(metric)) for output in self.outputs], dtype=float)

    def value(self, metric: str) -> float | None:
        """A logged aggregate, as logged."""
        logged = self.result.metrics.get(metric)
        return None if logged is None else logged.value

    def labels(self) -> list[tuple[int, int | None]]:
        """(gold, predicted) of each document that logged a pair of labels; None for an output that did not parse."""
        pairs = (output.logged.get("macro_f1") for output in self.outputs)
        return [(int(pair[0]), pair[1]) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]

    def examples(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Up to three documents, complete, as evidence of a finding."""
        return [
            {
                "doc_id": self.outputs[index].doc_id,
                "prompt": self.outputs[index].prompt,
                "output": self.outputs[index].text,
                "target": " / ".join(dict.fromkeys(self.outputs[index].references)),
            }
            for index in list(indices)[:MAX_EXAMPLES]
        ]


def read_outputs(result: TaskResult, filter: str) -> list[Output]:
    """The logged samples of one filter, ordered by document.

    Raises:
        ResultsError: the samples file is incomplete.
    """
    if result.samples_path is None:
        return []
    is_generated = result.config.get("output_type", "generate_until") == "generate_until"
    outputs = [
        _output(sample, number, is_generated=is_generated)
        for number, sample in enumerate(result.logged_samples())
        if sample.get("filter", filter) == filter
    ]
    return sorted(outputs, key=lambda output: output.doc_id)


def _output(sample: Mapping[str, Any], number: int, *, is_generated: bool) -> Output:
    requests = _requests(sample.get("arguments"))
    responses = [_first(response) for response in sample.get("resps") or []]
    text = next((response for response in responses if isinstance(response, str)), None) if is_generated else None
    choices = [] if is_generated else [_number(response) for response in responses]
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


def _number(value: Any) -> float:
    if isinstance(value, (bool, int, float)):
        return float(value)
    try:
        return float(value)  # lm-eval writes log-probabilities as text
    except (TypeError, ValueError):
        return float("nan")
