"""Answers of a model to documents, and how far two sets of them are apart.

A task that compares choices is judged by their log-probabilities. One that generates is judged by its texts, and by the
log-probabilities of the adapter's own texts. Where an engine gives no log-probabilities, greedy texts are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.doctor.replay.questions import GENERATION, SCORE, Questions, Request
from harness_ext.doctor.replay.variants import AS_LOGGED, Asking
from harness_ext.errors import TaskError
from harness_ext.results.outputs import Output
from harness_ext.stats.sequential import Share, ShareTest

Distances = NDArray[np.float64]

TOLERANCE = 4.0  # times the noise floor: a sound export may round differently than peft does
LEAST = 1e-3  # nats: less is no difference in any precision
EMPTY = " none"  # scored in place of an answer without text
SHORT = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}  # a text behind a prompt of choices


class Answer(NamedTuple):
    """What a model answers to one document."""

    scores: tuple[float, ...]  # log-probabilities in nats; empty where none are asked
    text: str | None  # generated; None where none is


@dataclass(frozen=True)
class Form:
    """What is asked about each document of a task."""

    has_scores: bool
    has_texts: bool
    is_generated: bool  # by the task itself

    @classmethod
    def of(cls, output_type: str, *, gives_scores: bool) -> Form:
        """What a task and an engine have in common.

        Raises:
            TaskError: the task scores whole texts.
        """
        if output_type == "loglikelihood_rolling":
            raise TaskError("tasks that score whole texts have no answers to compare; name another task")
        is_generated = output_type == GENERATION
        return cls(gives_scores, is_generated or not gives_scores, is_generated)

    @property
    def name(self) -> str:
        """In words."""
        return " and ".join(["log-probabilities"] * self.has_scores + ["texts"] * self.has_texts)


def ask(
    questions: Questions,
    form: Form,
    outputs: Sequence[Output],
    *,
    asking: Asking = AS_LOGGED,
    expected: Sequence[str | None] | None = None,
) -> list[Answer]:
    """Ask documents.

    Args:
        questions: of the model.
        form: what is asked.
        outputs: n documents.
        asking: what is changed.
        expected: texts whose log-probabilities are asked where the task generates; None: the model's own.

    Returns:
        n answers, in the order of the documents.
    """
    lm: Any = questions.lm
    with questions.changed_model(asking):
        rows = [questions.requests(asking, output) for output in outputs]
        texts: list[str | None] = [None] * len(rows)
        if form.has_texts:
            asked = [questions.instance(_text_request(row), outputs[n], 0) for n, row in enumerate(rows)]
            texts = [str(text) for text in lm.generate_until(asked, disable_tqdm=True)]
        if not form.has_scores:
            return [Answer((), text) for text in texts]
        scored = _scored(rows, form, texts if expected is None else expected)
        flat = [questions.instance(each, outputs[n], i) for n, row in enumerate(scored) for i, each in enumerate(row)]
        found = iter(lm.loglikelihood(flat, disable_tqdm=True))
        scores = [tuple(float(next(found)[0]) for _ in row) for row in scored]
    return [Answer(each, text) for each, text in zip(scores, texts, strict=True)]


def _text_request(row: Sequence[Request]) -> Request:
    """The generation of a document; for choices a short one behind the first prompt."""
    first = next(request for request in row if request.context)
    return first if first.kind == GENERATION else Request(GENERATION, first.context, generation=SHORT)


def _scored(rows: Sequence[Sequence[Request]], form: Form, texts: Sequence[str | None]) -> list[list[Request]]:
    if not form.is_generated:
        return [[request for request in row if request.kind == SCORE] for row in rows]
    return [
        [Request(SCORE, row[0].context, text if text and text.strip() else EMPTY)]
        for row, text in zip(rows, texts, strict=True)
    ]


# -- distances ---------------------------------------------------------------------------------------------------


def distances(one: Sequence[Answer], other: Sequence[Answer]) -> Distances:
    """How far the log-probabilities of n documents are apart, (n,) nats: the root mean square over a document's."""
    return np.array([_distance(a.scores, b.scores) for a, b in zip(one, other, strict=True)])


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        return math.inf
    gaps = [0.0 if a == b else abs(a - b) for a, b in zip(one, other, strict=True)]
    return math.sqrt(sum(gap**2 for gap in gaps) / len(gaps)) if all(map(math.isfinite, gaps)) else math.inf


def limits(noise: Distances) -> Distances:
    """What rounding may explain, (n,) nats: some times the noise of the document, or of the middle one if more.

    Infinite where the noise is: there a precision overflows, and what rounding does is not known.
    """
    finite = noise[np.isfinite(noise)]
    middle = np.median(finite) if len(finite) else np.inf
    return np.maximum(TOLERANCE * np.maximum(noise, middle), LEAST)


def no_numbers(answers: Sequence[Answer], expected: Sequence[Answer]) -> NDArray[np.bool_]:
    """Documents that have a log-probability that is not finite where the expected one is another, (n,)."""
    return np.array([
        any(not math.isfinite(a) and a != b for a, b in zip(one.scores, other.scores, strict=False))
        for one, other in zip(answers, expected, strict=True)
    ], dtype=bool)  # fmt: skip


def other_texts(one: Sequence[Answer], other: Sequence[Answer]) -> NDArray[np.bool_]:
    """Whether the texts differ in more than white space around them, (n,)."""
    return np.array([(a.text or "").strip() != (b.text or "").strip() for a, b in zip(one, other, strict=True)])


@dataclass(frozen=True)
class Noise:
    """Two askings of the adapter by peft, which only rounding tells apart."""

    first: Sequence[Answer]  # as evaluated
    second: Sequence[Answer]  # in other batches, and in the precision of what is served

    @property
    def limits(self) -> Distances:
        """See `limits`, (n,) nats."""
        return limits(distances(self.first, self.second))

    @property
    def has_other_text(self) -> NDArray[np.bool_]:
        """Documents whose text already differs between the two, (n,)."""
        return other_texts(self.first, self.second)


@dataclass(frozen=True)
class Beyond:
    """Which of n documents differ by more than rounding explains, in one kind of answer."""

    differs: NDArray[np.bool_]  # (n,)
    tells: NDArray[np.bool_]  # (n,): rounding alone neither changes the text nor overflows

    @property
    def share(self) -> Share | None:
        """Whether few or many documents differ; None: not sure. Documents that tell nothing do not count."""
        return ShareTest().decide(int((self.differs & self.tells).sum()), int(self.tells.sum()))

    @property
    def tells_much(self) -> bool:
        """Whether at least half of the documents tell something."""
        return 2 * int(self.tells.sum()) >= len(self.tells)


def beyond(form: Form, served: Sequence[Answer], model: Sequence[Answer], noise: Noise) -> list[Beyond]:
    """Which documents differ by more than rounding explains, for each kind of answer that is compared."""
    found = []
    if form.has_scores:
        limits = noise.limits
        found.append(Beyond(distances(served, model) > limits, np.isfinite(limits)))
    if form.has_texts:
        is_told = ~noise.has_other_text
        found.append(Beyond(other_texts(served, model) & is_told, is_told))
    return found


def share_beyond(kinds: Sequence[Beyond]) -> Share | None:
    """Whether few or many documents differ, by all kinds of answers; None: not sure.

    Long texts may all change by rounding. Then the first kind, log-probabilities, decides without them.
    """
    if any(kind.share == "high" for kind in kinds):
        return "high"
    asked = [kind for n, kind in enumerate(kinds) if n == 0 or kind.tells_much]
    return "low" if all(kind.share == "low" for kind in asked) else None


def typical(form: Form, one: Sequence[Answer], other: Sequence[Answer]) -> float:
    """How far two sets of answers are apart: the median distance in nats, or the share of other texts."""
    return float(np.median(distances(one, other))) if form.has_scores else float(other_texts(one, other).mean())


def total(form: Form, one: Sequence[Answer], other: Sequence[Answer]) -> float:
    """The root mean square distance in nats, or the share of other texts; infinite distances count as 100 nats."""
    if not form.has_scores:
        return float(other_texts(one, other).mean())
    return float(np.sqrt(np.mean(np.minimum(distances(one, other), 100.0) ** 2)))
