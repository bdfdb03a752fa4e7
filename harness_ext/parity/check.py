"""Is what is served what was evaluated?

```
block of documents ──> adapter by peft, twice │ base by peft │ what is served ──> as the base?  as the adapter?
        ▲                                                                              │ not sure: the next block
        └──────────────────────────────────────────────────────────────────────────────┘
                                                                neither ──> which change of peft answers as it does?
```
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness_ext.doctor.replay.questions import Questions
from harness_ext.errors import AdapterError, NotAppliedError, TaskError
from harness_ext.findings import CATALOGUE, Finding, Level
from harness_ext.models.adapters import adapter_folder, check_adapter
from harness_ext.models.card import AdapterCard, read_card
from harness_ext.parity.answers import (
    Answer,
    Form,
    Noise,
    ask,
    beyond,
    distances,
    no_numbers,
    share_beyond,
    total,
    typical,
)
from harness_ext.parity.causes import Cause, Compared, Search, ends_elsewhere
from harness_ext.parity.outcome import Document, Parity, TaskParity, Verdict
from harness_ext.parity.reference import Reference, ask_again, documents_of, questions_of, reference
from harness_ext.parity.served import Served, Target, served
from harness_ext.parity.weights import differing_weight, round_to_4_bits
from harness_ext.protocol.fingerprint import PROMPT_FIELDS, differing_fields, fingerprint
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask
from harness_ext.protocol.render import PromptSettings
from harness_ext.protocol.tasks import load_task
from harness_ext.results.outputs import Output
from harness_ext.stats.sequential import Share

logger = logging.getLogger(__name__)

DOCUMENTS = 50
BLOCK = 10  # documents between two looks
SHOWN = 5  # differing documents that are kept
CLOSER = 1 / 3  # of the distance from the adapter: what answers as the base is closer to it
AS_ROUNDED = 2.0  # times the distance that rounding to four bits makes: more is no matter of precision


def check_parity(
    adapter: str | Path,
    against: str | Target,
    *,
    tasks: Sequence[str] = (),
    base: str | None = None,
    documents: int = DOCUMENTS,
    seed: int = 0,
    device: str | None = None,
    include_path: Sequence[str | Path] = (),
    **prompts: Any,
) -> Parity:
    """Say whether what is served answers as the adapter that was evaluated.

    Args:
        adapter: folder or Hub id.
        against: what is served: see `Target`.
        tasks: names or paths of YAML files; empty: the task that the adapter's card names.
        base: of the adapter; None: the one that it declares.
        documents: ask at most so many of each task.
        seed: draws them.
        device: as for an evaluation.
        include_path: folders of further tasks.
        prompts: fields of `PromptSettings` that differ from those in the card.

    Raises:
        HarnessExtError: something is missing, damaged, or cannot be asked.
    """
    target = Target.of(against) if isinstance(against, str) else against
    if documents < 1:
        raise TaskError(f"--documents must be positive, got {documents}")
    folder = adapter_folder(adapter)
    check_adapter(folder)
    card = read_card(folder)
    loaded = [load_task(name, include_path=include_path) for name in _tasks(adapter, card, tasks)]
    settings = replace(_settings(card), **prompts)
    with ExitStack() as stack:
        evaluated = stack.enter_context(reference(str(adapter), base, loaded, settings, device))
        notes = [note for task in loaded if (note := _other_protocol(task, card, settings, evaluated))]
        try:
            there = stack.enter_context(served(target, evaluated, loaded))
        except NotAppliedError as error:
            return Parity(str(adapter), target.place, [_refused(task, str(error)) for task in loaded], notes)
        twin = stack.enter_context(evaluated.twin(there.dtype))
        found = []
        for task in loaded:
            numbers = _drawn(task, documents, seed)
            found.append(_Comparison(task, settings, evaluated, twin, there, target.place).run(numbers))
    return Parity(str(adapter), there.description, found, notes)


def _tasks(adapter: str | Path, card: AdapterCard | None, named: Sequence[str]) -> Sequence[str]:
    if named:
        return list(dict.fromkeys(named))
    if card is None:
        raise AdapterError(f"{adapter} has no card.json that names its task; add --task TASK")
    return [card.task]


def _settings(card: AdapterCard | None) -> PromptSettings:
    """How the adapter's task was asked, by its card."""
    recipe: Mapping[str, Any] = {} if card is None else card.recipe
    chat = recipe.get("apply_chat_template") or False
    return PromptSettings(
        num_fewshot=recipe.get("num_fewshot"),
        apply_chat_template=chat,
        fewshot_as_multiturn=recipe.get("fewshot_as_multiturn") if chat else None,
        system_instruction=recipe.get("system_instruction"),
    )


def _other_protocol(
    task: ConfigurableTask, card: AdapterCard | None, settings: PromptSettings, evaluated: Reference
) -> str | None:
    """In what the prompts differ from those of the adapter's training; None if in nothing, or if nobody knows."""
    if card is None or card.task != task.task_name:
        return None
    now = fingerprint(task, settings, evaluated.lm).fields
    names = differing_fields(card.fingerprint_fields, now, PROMPT_FIELDS)
    return f"{task.task_name} is prompted differently than in training: {', '.join(names)} differ" if names else None


def _drawn(task: ConfigurableTask, documents: int, seed: int) -> list[int]:
    count = len(task.eval_docs)
    if not count:
        raise TaskError(f"task {task.task_name!r} has no documents; check its data")
    return Random(seed).sample(range(count), min(documents, count))


def _refused(task: ConfigurableTask, reason: str) -> TaskParity:
    """A task of which an engine showed beforehand that it answers as the base."""
    text = f"the adapter is not applied: {reason}"
    finding = Finding("P01", "error", str(task.task_name), text, {"documents": 0}, CATALOGUE["P01"].remedy)
    return TaskParity(str(task.task_name), "as the base", "answers to its first prompts", findings=[finding])


@dataclass
class _Comparison:
    """One task: its documents so far, and all answers to them."""

    task: ConfigurableTask
    settings: PromptSettings
    evaluated: Reference
    twin: HFLM
    there: Served
    place: str
    outputs: list[Output] = field(default_factory=list)
    adapter: list[Answer] = field(default_factory=list)
    again: list[Answer] = field(default_factory=list)
    base: list[Answer] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)  # of what is served

    def __post_init__(self) -> None:
        """Prepare what each model is asked."""
        there = self.there
        self.form = Form.of(str(self.task.OUTPUT_TYPE), gives_scores=there.gives_scores)
        self.their_settings = replace(self.settings, apply_chat_template=True) if there.is_chat else self.settings
        tokenizer = None if there.local is None else there.local.tokenizer
        self.own = questions_of(self.evaluated.lm, self.task, self.settings, tokenizer)
        self.own_again = questions_of(self.twin, self.task, self.settings)
        lm: Any = there.lm
        self.theirs = questions_of(lm, self.task, self.their_settings)

    def run(self, numbers: Sequence[int]) -> TaskParity:
        """Ask block after block until both questions are answered or all documents are asked."""
        started = time.monotonic()
        for begin in range(0, len(numbers), BLOCK):
            self._ask(numbers[begin : begin + BLOCK])
            if all(self._shares()) or self._no_numbers.any():
                break
        verdict = self._verdict()
        findings = list(self._findings(verdict))
        return TaskParity(
            task=str(self.task.task_name),
            verdict=verdict,
            compared=self.form.name,
            documents=len(self.outputs),
            unit="nats" if self.form.has_scores else "share",
            to_adapter=_finite(typical(self.form, self.answers, self.adapter)),
            to_base=_finite(typical(self.form, self.answers, self.base)),
            noise=_finite(typical(self.form, self.adapter, self.again)),
            differing=self._differing(),
            findings=findings,
            seconds=time.monotonic() - started,
        )

    def _ask(self, numbers: Sequence[int]) -> None:
        """Ask the adapter, the base and the served model a block of documents."""
        outputs = documents_of(self.task, numbers, self.settings, self.evaluated.lm)
        adapter = ask(self.own, self.form, outputs)
        expected = [answer.text for answer in adapter]
        with self.evaluated.as_base():
            base = ask(self.own, self.form, outputs, expected=expected)
        lm: Any = self.there.lm
        theirs = documents_of(self.task, numbers, self.their_settings, lm) if self._renders_itself() else outputs
        self.outputs += outputs
        self.adapter += adapter
        self.base += base
        if no_numbers(adapter, [Answer(tuple(0.0 for _ in each.scores), None) for each in adapter]).any():
            raise TaskError(
                f"{self.task.task_name}: the adapter as evaluated gives log-probabilities that are not finite numbers; "
                "run harness-ext doctor on it"
            )
        self.again += ask_again(self.own_again, self.form, outputs, expected)
        self.answers += ask(self.theirs, self.form, theirs, expected=expected)

    def _renders_itself(self) -> bool:
        """Whether prompts depend on the tokenizer of what is served."""
        return bool(self.their_settings.apply_chat_template)

    # -- verdict -------------------------------------------------------------------------------------------------

    @property
    def noise(self) -> Noise:
        """What rounding alone changes."""
        return Noise(self.adapter, self.again)

    def _share_beyond(self, model: Sequence[Answer]) -> Share | None:
        """Whether the served model's answers to few or many documents differ from this model's; None: not sure."""
        return share_beyond(beyond(self.form, self.answers, model, self.noise))

    def _shares(self) -> tuple[Share | None, Share | None]:
        """Whether few or many answers differ from the adapter's, and from the base's.

        Where they are not the adapter's, they are the base's only if much closer: a coarse precision is no proof.
        """
        adapter, base = self._share_beyond(self.adapter), self._share_beyond(self.base)
        if adapter == "high" and base == "low" and self.form.has_scores:
            near, far = (total(self.form, self.answers, model) for model in (self.base, self.adapter))
            base = "low" if near <= CLOSER * far else "high"
        return adapter, base

    @property
    def _no_numbers(self) -> NDArray[np.bool_]:
        """Documents to which the served model gives no numbers, (n,)."""
        return no_numbers(self.answers, self.adapter)

    @property
    def _differs(self) -> NDArray[np.bool_]:
        """Documents whose answers differ from the adapter's, (n,)."""
        kinds = beyond(self.form, self.answers, self.adapter, self.noise)
        return np.any([self._no_numbers, *(kind.differs for kind in kinds)], axis=0)

    def _verdict(self) -> Verdict:
        if self._no_numbers.any():
            return "otherwise"
        adapter, base = self._shares()
        if adapter == "low":
            return "not told apart" if base == "low" else "as evaluated"
        if base == "low":
            return "as the base" if adapter == "high" else "undecided"
        return "otherwise" if adapter == "high" else "undecided"

    def _differing(self) -> list[Document]:
        """Documents whose answers differ from the adapter's, the farthest first."""
        differs = self._differs
        far = distances(self.answers, self.adapter) if self.form.has_scores else differs.astype(float)
        limits = self.noise.limits if self.form.has_scores else None
        order = sorted(np.flatnonzero(differs).tolist(), key=lambda number: -far[number])
        return [self._document(number, far, limits) for number in order[:SHOWN]]

    def _document(self, number: int, far: Any, limits: Any) -> Document:
        ours, theirs = self.adapter[number], self.answers[number]
        shown = [answer.scores if answer.text is None else answer.text for answer in (ours, theirs)]
        distance, limit = (None, None) if limits is None else (float(far[number]), float(limits[number]))
        return Document(self.outputs[number].doc_id, distance, limit, shown[0], shown[1])

    # -- findings ------------------------------------------------------------------------------------------------

    def _findings(self, verdict: Verdict) -> Iterator[Finding]:
        if verdict == "as the base":
            yield self._finding("P01", "error", f"the adapter is not applied: {self._distances()}")
        elif verdict == "not told apart":
            text = f"base and adapter answer these documents alike, so nothing is shown: {self._distances()}"
            yield self._finding("P09", "warning", text)
        elif verdict == "undecided":
            text = f"{len(self.outputs)} documents do not decide whether it answers as the adapter: {self._distances()}"
            yield self._finding("P10", "warning", text)
        elif verdict == "otherwise":
            yield self._cause()

    def _finding(self, id: str, level: Level, text: str, **numbers: Any) -> Finding:
        numbers = {"documents": len(self.outputs), "differing": self._count(), **numbers}
        return Finding(id, level, str(self.task.task_name), text, numbers, CATALOGUE[id].remedy)

    def _count(self) -> int:
        """How many documents have answers that differ from the adapter's."""
        return int(self._differs.sum())

    def _distances(self) -> str:
        """How far what is served is from base and adapter, in words."""
        n, form = len(self.outputs), self.form
        near, far, noise = (
            typical(form, one, other)
            for one, other in (
                (self.answers, self.base), (self.answers, self.adapter), (self.adapter, self.again),
            )
        )  # fmt: skip
        if not form.has_scores:
            return (
                f"of {n} texts {round(near * n)} differ from the base's and {round(far * n)} from the adapter's "
                f"({round(noise * n)} by rounding alone)"
            )
        return (
            f"on {n} documents it is {near:.2g} nats from the base and {far:.2g} from the adapter "
            f"(rounding alone: {noise:.2g})"
        )

    def _cause(self) -> Finding:
        """Why what is served answers neither as the base nor as the adapter."""
        if self._no_numbers.any():
            return self._overflow()
        compared = Compared(self.form, self.outputs, self.answers, self.noise)
        scores_agree = (
            self.form.has_scores and not beyond(self.form, self.answers, self.adapter, self.noise)[0].differs.any()
        )
        if (scores_agree or not self.form.has_scores) and (ends := ends_elsewhere(compared)):
            return self._finding("P08", "error", f"its answers end elsewhere: {ends}", proved=scores_agree)
        local = self.there.local
        if local is not None and (name := differing_weight(local.model, self.evaluated.lm.model)):
            text = f"its base is another one: {name} is not that of {self.evaluated.base}; {self._distances()}"
            return self._finding("P06", "error", text, weight=name, proved=True)
        search = Search(self.own, compared)
        if (cause := self._searched(search)) is not None:
            return self._proved(cause)
        return self._unexplained(search)

    def _overflow(self) -> Finding:
        """The served model gives no numbers: is it the precision?"""
        lost, by_peft = self._no_numbers, no_numbers(self.again, self.adapter)
        text = f"{int(lost.sum())} of {len(lost)} documents get log-probabilities that are not finite numbers"
        if precise := int((lost & by_peft).sum()):
            text += f"; so do {precise} of them by peft in {self._dtype()}: numbers of the model are too large for it"
        return self._finding("P11", "error", text, lost=int(lost.sum()), by_precision=precise)

    def _searched(self, search: Search) -> Cause | None:
        """The change that explains what is served, looked for where it can be."""
        ids = self._other_ids()
        cause = None if ids is False else search.prompts(has_other_tokenizer=self.there.local is not None)
        return cause or search.scale() or search.layers()

    def _other_ids(self) -> bool | None:
        """Whether what is served reads other token ids than the adapter; None where that cannot be seen."""
        local = self.there.local
        if local is None:
            return None
        lm: Any = local
        theirs = self.outputs
        if self._renders_itself():
            numbers = [output.doc_id for output in self.outputs[:2]]
            theirs = documents_of(self.task, numbers, self.their_settings, local)
        pairs = zip(_contexts(self.own, self.outputs[:2]), _contexts(self.theirs, theirs[:2]), strict=True)
        return any(self.evaluated.lm.tok_encode(ours) != lm.tok_encode(other) for ours, other in pairs)

    def _proved(self, cause: Cause) -> Finding:
        change = cause.change
        text = (
            f"{change.cause}: on {len(self.outputs)} documents it answers as the adapter does {change.name} "
            f"({100 * (1 - cause.left):.0f} % of the difference is explained)"
        )
        return self._finding(change.finding, "error", text, change=change.name, left=cause.left, proved=True)

    def _unexplained(self, search: Search) -> Finding:
        """Neither prompt, scale nor layers: the precision of the weights, or other weights."""
        if self.form.has_scores:
            far, by_rounding = total(self.form, self.answers, self.adapter), self._rounding()
            if far <= AS_ROUNDED * by_rounding:
                text = (
                    f"its answers are as damaged as by rounding the base's weights to 4 bits ({far:.2g} nats from the "
                    f"adapter; 4 bits make {by_rounding:.2g}, rounding to {self._dtype()} makes "
                    f"{total(self.form, self.adapter, self.again):.2g})"
                )
                return self._finding("P07", "error", text, distance=far, rounding=by_rounding)
        tried = ", ".join(search.tried) or "no change of the prompt"
        text = (
            f"it answers neither as the base nor as the adapter, as another base or another adapter would: "
            f"{self._distances()}; ruled out: {tried}"
        )
        return self._finding("P06", "error", text, tried=list(search.tried))

    def _dtype(self) -> str:
        return str(self.there.dtype).removeprefix("torch.")

    def _rounding(self) -> float:
        """How far the adapter is from itself on a base of 4 bits, as `total`."""
        rounded = self.evaluated.plain(torch.float32)
        round_to_4_bits(rounded.model)
        expected = [answer.text for answer in self.adapter]
        form = replace(self.form, has_texts=False)
        answers = ask(questions_of(rounded, self.task, self.settings), form, self.outputs, expected=expected)
        return total(form, answers, self.adapter)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _contexts(questions: Questions, outputs: Sequence[Output]) -> list[str]:
    return [questions.logged(output)[0].context for output in outputs]
