"""Renders documents to the exact text and token ids, for evaluation and for training, with lm-eval's own code.

Training uses the same prompts as evaluation, plus the answer and one end token:

```
evaluation   [context ids]                                 or, for a forced choice, [context ids][continuation ids]
training     [context ids][continuation ids][end token]
```
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness_ext.errors import HarnessExtError, ModelError, TaskError, described
from harness_ext.protocol.fewshot import DEFAULT_SEED
from harness_ext.protocol.lm_eval_api import (
    HFLM,
    ConfigurableTask,
    Instance,
    Task,
    choices_of,
    gen_prefix,
    input_choice,
    maybe_delimit,
    requests_for,
    target_of,
)
from harness_ext.protocol.tasks import load_task, load_tasks, task_manager

__all__ = ["Encoded", "PromptSettings", "Rendered", "apply_settings", "check_askable", "check_chat_template", "encode",
           "load_task", "load_tasks", "no_example_of_itself", "prompts", "render", "requests", "task_manager",
           "training_docs"]  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSettings:
    """Prompt settings from the command line, named as in `lm_eval run`."""

    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    fewshot_seed: int = DEFAULT_SEED

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples are separate chat turns; by default they are if a chat template is applied."""
        if self.fewshot_as_multiturn is None:
            return bool(self.apply_chat_template)
        return self.fewshot_as_multiturn


class Rendered(NamedTuple):
    """A document as text."""

    context: str
    continuation: str  # the delimiter and the gold answer


class Encoded(NamedTuple):
    """A document as token ids, without the end token."""

    context: list[int]
    continuation: list[int]


def apply_settings(task: ConfigurableTask, settings: PromptSettings) -> int:
    """Seed the task's few-shot sampler and return the number of shots, as `lm_eval.simple_evaluate` does."""
    task.set_fewshot_seed(seed=settings.fewshot_seed)
    return _num_fewshot(task, settings)


def _num_fewshot(task: Task, settings: PromptSettings) -> int:
    own = task.get_config("num_fewshot")
    if settings.num_fewshot is None or own == 0:
        return own or 0
    return settings.num_fewshot


def check_askable(task: Task, settings: PromptSettings, lm: HFLM | None = None) -> None:
    """Raise TaskError if a task has no documents, too few few-shot examples, or a prompt without tokens.

    Looks at all documents and at the requests that lm-eval has built; call it after a task has failed, to find out why.
    """
    split = task.get_config("test_split") or task.get_config("validation_split")
    if split is None:
        raise TaskError(f"task {task.task_name!r} has no split to evaluate; add test_split: to its YAML")
    if not len(task.eval_docs):
        raise TaskError(f"task {task.task_name!r} has no documents in {split!r}; check its data and process_docs")
    _check_shots(task, _num_fewshot(task, settings), leaves_out=_draws_from_evaluated(task))
    if lm is not None:
        _check_contexts(task, lm)


def _check_contexts(task: Task, lm: HFLM) -> None:
    for request in task.instances or ():
        context, scored = request.args[0], request.request_type == "loglikelihood"
        if request.request_type == "loglikelihood_rolling" or context.strip() or (scored and not context):
            continue  # lm-eval replaces an empty context by a token of its own
        _check_context(task, context, lm.tok_encode(context.rstrip() if scored else context))


def _draws_from_evaluated(task: Task) -> bool:
    """Whether lm-eval excludes a document when it draws that document's few-shot examples."""
    return isinstance(task, ConfigurableTask) and task.config.fewshot_config.split == task.config.test_split


def _check_shots(task: Task, num_fewshot: int, *, leaves_out: bool) -> None:
    """Raise TaskError if there are too few few-shot examples; `leaves_out`: one of them is the document itself."""
    if not num_fewshot or not hasattr(task, "sampler"):
        return
    available = max(0, len(task.sampler.fewshot_docs()) - leaves_out)
    if num_fewshot > available:
        raise TaskError(
            f"task {task.task_name!r} has {available} few-shot examples for a document, but num_fewshot is "
            f"{num_fewshot}; lower num_fewshot"
        )


def check_chat_template(lm: HFLM, template: bool | str) -> None:
    """Raise ModelError if the requested chat template is not in the model's tokenizer; a chat server has its own."""
    if not template or lm.tokenizer is None:
        return
    own = getattr(lm.tokenizer, "chat_template", None)
    base = getattr(lm.tokenizer, "name_or_path", "") or "this model"
    if not own:
        raise ModelError(
            f"the tokenizer of {base} has no chat template; omit apply_chat_template, or use an instruction-tuned model"
        )
    if isinstance(own, dict) and (name := template if isinstance(template, str) else "default") not in own:
        raise ModelError(
            f"the tokenizer of {base} has no chat template {name!r}; set apply_chat_template to one of "
            f"{', '.join(sorted(own))}"
        )


def training_docs(task: ConfigurableTask) -> Any:
    """The documents of the task's training split.

    Raises:
        TaskError: the task has none.
    """
    if not task.has_training_docs():
        raise TaskError(f"task {task.task_name!r} has no training split; add `training_split:` to its YAML")
    split = task.config.training_split
    if split not in task.dataset:
        raise TaskError(
            f"the data of task {task.task_name!r} have no training split {split!r}, only {', '.join(task.dataset)}; "
            "add it to the data, or correct `training_split:` in the task's YAML"
        )
    if split == task.config.test_split or (not task.has_test_docs() and split == task.config.validation_split):
        raise TaskError(
            f"task {task.task_name!r} would train on {split!r}, which is also its evaluation split; "
            "change `training_split:` in its YAML"
        )
    return task.training_docs()


def render(
    task: ConfigurableTask, docs: Iterable[Mapping[str, Any]], settings: PromptSettings, lm: HFLM
) -> Iterator[Rendered]:
    """Render documents as lm-eval would for evaluation, with the gold answer as continuation.

    Args:
        task: a loaded task.
        docs: documents of any of its splits.
        settings: few-shot, chat template, system instruction.
        lm: provides the chat template; its model is not run.

    Raises:
        TaskError: a template fails on a document, there are too few few-shot examples, or there is no gold answer.
        ModelError: a chat template is requested, but the tokenizer has none.
    """
    for number, (doc, requests) in enumerate(_with_requests(task, docs, settings, lm)):
        try:
            yield _with_gold(task, doc, requests, bool(settings.apply_chat_template))
        except HarnessExtError:
            raise
        except Exception as error:  # whatever templates and hooks raise
            raise _cannot_render(task, number, error) from error


def prompts(
    task: ConfigurableTask, docs: Iterable[Mapping[str, Any]], settings: PromptSettings, lm: HFLM
) -> Iterator[str]:
    """The prompt of each document: the context, or the whole text for a task that scores whole texts.

    Also works for tasks without a gold answer. Arguments and errors are those of `render`.
    """
    for _, requests in _with_requests(task, docs, settings, lm):
        scores_text = requests[0].request_type == "loglikelihood_rolling"
        yield str(requests[0].args[-1 if scores_text else 0])


def requests(
    task: ConfigurableTask, docs: Iterable[Mapping[str, Any]], settings: PromptSettings, lm: HFLM
) -> Iterator[list[Instance]]:
    """lm-eval's requests for each document, in its order; arguments and errors are those of `render`."""
    for _, asked in _with_requests(task, docs, settings, lm):
        yield asked


def _with_requests(
    task: ConfigurableTask, docs: Iterable[Mapping[str, Any]], settings: PromptSettings, lm: HFLM
) -> Iterator[tuple[Mapping[str, Any], list[Instance]]]:
    """Documents with lm-eval's requests for them.

    A document must not be among its own few-shot examples, since its answer would be in the prompt. lm-eval ensures
    this only if the few-shot split is the test split, but training documents usually come from the few-shot split.
    """
    check_chat_template(lm, settings.apply_chat_template)
    num_fewshot = apply_settings(task, settings)
    chat_template = lm.apply_chat_template if settings.apply_chat_template else None
    for number, doc in enumerate(docs):
        try:
            with no_example_of_itself(task, doc) if num_fewshot else contextlib.nullcontext():
                context = task.fewshot_context(
                    doc,
                    num_fewshot=num_fewshot,
                    system_instruction=settings.system_instruction,
                    apply_chat_template=bool(settings.apply_chat_template),
                    fewshot_as_multiturn=settings.multiturn,
                    chat_template=chat_template,
                    gen_prefix=gen_prefix(task, doc),
                )
            requests = requests_for(task, doc, context, number=number, chat_template=chat_template)
        except HarnessExtError:
            raise
        except Exception as error:  # whatever templates and hooks raise
            if num_fewshot:
                _check_shots(task, num_fewshot, leaves_out=_draws_from_evaluated(task) or doc in task.sampler.df)
            raise _cannot_render(task, number, error) from error
        yield doc, requests


def _cannot_render(task: ConfigurableTask, number: int, error: Exception) -> TaskError:
    return TaskError(
        f"task {task.task_name!r} cannot render document {number}: {described(error)}; "
        "check doc_to_text, doc_to_target and doc_to_choice"
    )


@contextlib.contextmanager
def no_example_of_itself(task: ConfigurableTask, doc: Mapping[str, Any]) -> Iterator[None]:
    """Draw a document's few-shot examples again if it is one of them; all other draws are lm-eval's."""
    sampler = task.sampler

    def sample(n: int, eval_doc: Mapping[str, Any] | None = None, **options: Any) -> Any:
        drawn = type(sampler).sample(sampler, n, eval_doc=eval_doc, **options)
        if doc in drawn:
            drawn = type(sampler).sample(sampler, n, eval_doc=doc, **options)
        if doc in drawn:  # `first_n` of lm-eval 0.5 does not leave it out
            drawn = [each for each in type(sampler).sample(sampler, n + 1, **options) if each != doc][:n]
        return drawn

    sampler.sample = sample
    try:
        yield
    finally:
        del sampler.sample


def _with_gold(task: ConfigurableTask, doc: Mapping[str, Any], requests: Sequence[Instance], chat: bool) -> Rendered:
    """Context and gold answer: the request of the gold choice, or for generation the prompt and the target."""
    if task.OUTPUT_TYPE == "multiple_choice":
        number = input_choice(task, doc)
        gold = target_of(task, doc) if number is None else number
        gold = gold[0] if isinstance(gold, list) else gold
        gold = choices_of(task, doc).index(gold) if isinstance(gold, str) else gold
        choices = len(choices_of(task, doc))  # acc_mutual_info makes twice as many requests
        if not 0 <= gold < choices:
            raise IndexError(f"label {gold} is outside its {choices} choices")
        return Rendered(*requests[gold].args)
    if task.OUTPUT_TYPE == "loglikelihood":
        return Rendered(*requests[0].args)
    if task.OUTPUT_TYPE == "generate_until":
        # A task class of `protocol.requests` may add requests after the generation.
        return Rendered(requests[0].args[0], _delimited_answer(task, doc, chat))
    raise TaskError(f"task {task.task_name!r} ({task.OUTPUT_TYPE}) has no answer to train on")


def _answer(task: ConfigurableTask, doc: Mapping[str, Any]) -> str:
    target = target_of(task, doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        return str(choices_of(task, doc)[target])
    return str(target[0]) if isinstance(target, list) else str(target)


def _delimited_answer(task: ConfigurableTask, doc: Mapping[str, Any], chat: bool) -> str:
    """The gold answer with its delimiter, as lm-eval writes it in few-shot examples."""
    answer = _answer(task, doc)
    if prefix := gen_prefix(task, doc):
        return maybe_delimit(prefix, answer)[len(prefix) :]
    return answer if chat else f"{task.config.target_delimiter}{answer}"


def encode(task: ConfigurableTask, rendered: Rendered, lm: HFLM) -> Encoded:
    """Token ids of a rendered document, split at the same place as in evaluation.

    For a scored continuation lm-eval's `_encode_pair` moves trailing spaces of the context into the continuation. For
    a generated answer the context keeps the ids that it has in generation.

    Raises:
        TaskError: the context has no tokens.
    """
    context, continuation = rendered
    if task.OUTPUT_TYPE != "generate_until":
        if not context:
            ids = lm.tok_encode(continuation, add_special_tokens=False)
            return Encoded(ids[:1], ids[1:]) if ids[:1] == [lm.prefix_token_id] else Encoded([lm.prefix_token_id], ids)
        pair = Encoded(*lm._encode_pair(context, continuation))
        _check_context(task, context, pair.context)
        return pair
    context_ids = lm.tok_encode(context)
    _check_context(task, context, context_ids)
    whole = lm.tok_encode(context + continuation)
    if whole[: len(context_ids)] == context_ids:
        return Encoded(context_ids, whole[len(context_ids) :])
    return Encoded(context_ids, lm.tok_encode(continuation, add_special_tokens=False))


def _check_context(task: Task, context: str, ids: list[int]) -> None:
    if not ids:
        raise TaskError(
            f"task {task.task_name!r} has a prompt without tokens: its text is {context!r:.40}, and the tokenizer adds "
            "no BOS token; add text to doc_to_text or description"
        )
