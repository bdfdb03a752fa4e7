"""Training examples as they are collated, beside what the evaluator asks about the same documents.

```
documents ── build_examples, Collator ──> context and supervised tokens    what training uses
          └─ build_all_requests, lm ────> token ids of each request        what evaluation uses
```
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.doctor.diagnosis import MarkedExample
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask, Instance
from harness_ext.protocol.render import PromptSettings, apply_settings, encode, no_example_of_itself, render
from harness_ext.training.batches import Collator, ExampleSet, build_examples
from harness_ext.trees.packs import TokenPair

SHOWN = 3  # decoded examples
PACK_TOKENS = 4096  # of the packs that are looked at


@dataclass(frozen=True)
class Request:
    """What the evaluator asks of one document."""

    context: list[int]
    continuation: list[int]  # empty for an answer that is generated


@dataclass(frozen=True)
class Example:
    """One document in training and in evaluation."""

    document: int  # number in the training split
    doc: Mapping[str, Any]
    prompt: str
    context: list[int]  # read in training
    supervised: list[int]  # the targets of the collated batch
    answer: str  # the reference with the delimiter before it
    answer_ids: list[int]  # of the reference, without an end token
    requests: Sequence[Request]  # in the order in which the task asks them

    @property
    def whole(self) -> list[int]:
        """All tokens of the training example that are read or learned."""
        return [*self.context, *self.supervised]

    @property
    def asked(self) -> list[int]:
        """The context of the first request."""
        return self.requests[0].context


@dataclass(frozen=True)
class TrainingCase:
    """A task, a tokenizer and some of the examples that training uses."""

    task: ConfigurableTask
    settings: PromptSettings
    lm: HFLM
    max_length: int
    examples: Sequence[Example]

    @property
    def where(self) -> str:
        """The task's name, as findings give it."""
        return str(self.task.task_name)

    @property
    def is_generated(self) -> bool:
        """Whether the evaluator lets the model write its answers."""
        return str(self.task.OUTPUT_TYPE) == "generate_until"

    @property
    def pairs(self) -> list[TokenPair]:
        """The examples as training uses them."""
        return [TokenPair(example.context, example.supervised) for example in self.examples]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self.lm.tokenizer.decode(list(ids), skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token."""
        return [self.decode([token]) for token in ids]

    def marked(self) -> list[MarkedExample]:
        """The first examples as text."""
        return [
            MarkedExample(example.document, self.decode(example.context), self.decode(example.supervised))
            for example in self.examples[:SHOWN]
        ]

    def examples_of(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Up to three examples, complete, as evidence of a finding."""
        return [
            {
                "doc_id": example.document,
                "prompt": self.decode(example.context),
                "output": self.decode(example.supervised),
                "target": example.answer,
            }
            for example in examples[:SHOWN]
        ]


def read_training(
    task: ConfigurableTask,
    docs: Any,
    settings: PromptSettings,
    lm: HFLM,
    *,
    limit: int | None,
    max_length: int,
    seed: int,
    trees: bool = True,
) -> TrainingCase:
    """Build training examples as `train` does, and the evaluator's requests for the same documents.

    Args:
        task: a loaded task; it is left as it is.
        docs: its training documents.
        settings: few-shot, chat template, system instruction; of training and evaluation.
        lm: gives the tokenizer; its model is not run.
        limit: documents to look at, drawn as in training; None: all.
        max_length: tokens of the longest example.
        seed: of the draw.
        trees: collate prefix trees, not padded rows.

    Raises:
        TaskError: a template fails on a document.
        TrainingError: an answer is empty or does not fit, or there are no documents.
    """
    built = build_examples(
        task, docs, settings, lm, limit=limit, validation_size=0, max_length=max_length, seed=seed
    )  # fmt: skip
    supervised = collated(built, lm, trees=trees)
    pairs = [
        TokenPair([*context, *continuation][: len(context) + len(continuation) - len(targets)], targets)
        for (context, continuation), targets in zip(built.training, supervised, strict=True)
    ]
    return case_of(task, docs, settings, lm, numbers=built.documents, pairs=pairs, max_length=max_length)


def case_of(
    task: ConfigurableTask,
    docs: Any,
    settings: PromptSettings,
    lm: HFLM,
    *,
    numbers: Sequence[int],
    pairs: Sequence[TokenPair],
    max_length: int,
) -> TrainingCase:
    """Examples that were read back from batches, beside the evaluator's requests for their documents.

    Args:
        task: a loaded task; it is left as it is.
        docs: its training documents.
        settings: few-shot, chat template, system instruction of the evaluation.
        lm: gives the tokenizer; its model is not run.
        numbers: the document of each example.
        pairs: what each example reads, and the tokens that its loss is computed on.
        max_length: tokens of the longest example.
    """
    chosen = [docs[number] for number in numbers]
    rendered = list(render(task, chosen, settings, lm))
    answers = [_without_end(encode(task, each, lm).continuation, lm) for each in rendered]
    requests = requests_of(asking(task, chosen, settings), settings, lm, max_length=max_length)
    examples = [
        Example(
            document=number,
            doc=doc,
            prompt=text.context,
            context=list(context),
            supervised=list(supervised),
            answer=text.continuation,
            answer_ids=ids,
            requests=requests[place],
        )
        for place, (number, doc, (context, supervised), text, ids) in enumerate(
            zip(numbers, chosen, pairs, rendered, answers, strict=True)
        )
    ]
    return TrainingCase(task, settings, lm, max_length, examples)


def _without_end(ids: list[int], lm: HFLM) -> list[int]:
    """Without the end tokens that a tokenizer or a template may add; training adds one of its own."""
    while ids[-1:] == [lm.tokenizer.eos_token_id]:
        ids = ids[:-1]
    return ids


def collated(built: ExampleSet, lm: HFLM, *, trees: bool) -> list[list[int]]:
    """The target tokens of each training example, read back from collated batches."""
    collate = Collator(trees, max_tokens=PACK_TOKENS, pad_token_id=padding_token(lm))
    packs = collate(built.training)["packs"]
    targets: list[list[int]] = [[] for _ in built.training]
    for pack in packs:
        for sequence, part in zip(pack.sequences, pack.targets.split(list(pack.counts)), strict=True):
            targets[sequence] = part.tolist()
    return targets


def padding_token(lm: HFLM) -> int:
    """Any token will do: nothing attends to it."""
    return next((token for token in (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id) if token is not None), 0)


# -- evaluation ----------------------------------------------------------------------------------------------------


def asking(task: ConfigurableTask, docs: Sequence[Mapping[str, Any]], settings: PromptSettings) -> ConfigurableTask:
    """A copy of a task that evaluates these documents; a document is never among its own examples."""
    probe: ConfigurableTask = copy.copy(task)
    probe._config = copy.copy(task.config)
    probe._instances = None
    probe.set_config("num_fewshot", apply_settings(task, settings))

    def fewshot_context(doc: Any, *args: Any, **options: Any) -> Any:
        has_examples = bool(probe.config.num_fewshot)
        with no_example_of_itself(probe, doc) if has_examples else contextlib.nullcontext():
            return type(task).fewshot_context(probe, doc, *args, **options)

    replaced = {"has_test_docs": lambda: True, "test_docs": lambda: list(docs), "fewshot_context": fewshot_context}
    vars(probe).update(replaced)
    return probe


def requests_of(
    probe: ConfigurableTask, settings: PromptSettings, lm: HFLM, *, max_length: int
) -> dict[int, list[Request]]:
    """Token ids of the requests that lm-eval builds for each document of a task."""
    apply_settings(probe, settings)
    with quiet():
        probe.build_all_requests(
            system_instruction=settings.system_instruction,
            apply_chat_template=bool(settings.apply_chat_template),
            fewshot_as_multiturn=settings.multiturn,
            chat_template=lm.apply_chat_template if settings.apply_chat_template else None,
        )
        scored = [request for request in probe.instances if request.request_type == "loglikelihood"]
        ids = _scored_ids(scored, lm)
    found: dict[int, list[Request]] = defaultdict(list)
    for request in sorted(probe.instances, key=lambda request: request.idx):
        if request.request_type == "generate_until":
            room = max_length - int(request.args[1].get("max_gen_toks", lm.max_gen_toks))
            whole = lm.tok_batch_encode([request.args[0]], left_truncate_len=max(room, 1))[0][0].tolist()
            found[request.doc_id].append(Request(whole, []))
        elif request.request_type == "loglikelihood":
            found[request.doc_id].append(ids[id(request)])
    return found


def _scored_ids(requests: Sequence[Instance], lm: HFLM) -> dict[int, Request]:
    """Context and continuation ids, as lm-eval's `loglikelihood` encodes them."""
    recorder: Any = copy.copy(lm)
    seen: list[Request] = []

    def record(pairs: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        seen.extend(Request(list(context), list(continuation)) for _, context, continuation in pairs)
        return [(0.0, False)] * len(pairs)

    recorder._loglikelihood_tokens = record
    if requests:
        recorder.loglikelihood(list(requests), disable_tqdm=True)
    return {id(request): ids for request, ids in zip(requests, seen, strict=True)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
