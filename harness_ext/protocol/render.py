"""From a task and a document to the exact text and token ids: for evaluation and for training, by lm-eval's own code.

Loads tasks, and touches lm-eval's task internals. What a model is asked in evaluation is what an adapter is trained
on, plus the answer and one end token:

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
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from datasets.exceptions import DatasetsError
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.api.utils import maybe_delimit
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from harness_ext.errors import TaskError, suggest
from harness_ext.protocol.locations import tasks_path

logger = logging.getLogger(__name__)

DEFAULT_FEWSHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True)
class PromptSettings:
    """What the command line adds to a task's prompt; the names are those of `lm_eval run`."""

    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    fewshot_seed: int = DEFAULT_FEWSHOT_SEED

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples become turns of their own; as in lm-eval, they do with a chat template."""
        if self.fewshot_as_multiturn is None:
            return bool(self.apply_chat_template)
        return self.fewshot_as_multiturn


# What lm-eval's task code raises for a mistake in a YAML or a hook.
_BROKEN_TASK = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
    yaml.YAMLError,
)


class Rendered(NamedTuple):
    """One document as text."""

    context: str
    continuation: str  # the delimiter and the gold answer


class Encoded(NamedTuple):
    """One document as token ids, without the end token."""

    context: list[int]
    continuation: list[int]


def task_manager(
    names: Sequence[str], *, include_path: Sequence[str | Path] = (), metadata: Mapping[str, Any] | None = None
) -> TaskManager:
    """An lm-eval task manager that knows our tasks and those under `include_path`.

    lm-eval's own ten thousand tasks are indexed (which takes seconds) only when a name asks for one of them.
    """
    paths = [str(tasks_path()), *(str(path) for path in include_path)]
    ours = TaskManager(include_path=paths, include_defaults=False, metadata=dict(metadata or {}))
    if all(_is_yaml(name) or ours.match_tasks([name]) for name in names):
        return ours
    return TaskManager(include_path=paths, metadata=dict(metadata or {}))


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def load_tasks(
    names: Sequence[str], *, include_path: Sequence[str | Path] = (), metadata: Mapping[str, Any] | None = None
) -> tuple[TaskManager, list[Task | Group]]:
    """Load tasks and groups by name, glob pattern or the path of a YAML file.

    Raises:
        TaskError: there is no such task, or lm-eval cannot build it.
        DatasetError: its documents cannot be found.
    """
    manager = task_manager(names, include_path=include_path, metadata=metadata)
    loaded = []
    for name in names:
        matches = [str(Path(name).absolute())] if _is_yaml(name) else manager.match_tasks([name])
        if not matches:
            raise TaskError(
                f"unknown task {name!r} (`lm_eval ls tasks --include_path $(harness-ext tasks-path)` lists all)"
                f"{suggest(name, manager.all_tasks)}"
            )
        for match in matches:
            loaded.extend(_built(manager, match))
    return manager, loaded


def _built(manager: TaskManager, spec: str) -> list[Task | Group]:
    """Build one task or group, or all tasks of a tag."""
    if _is_yaml(spec) and not Path(spec).is_file():
        raise TaskError(f"there is no task file {spec}; check the path")
    try:
        found = manager.load([spec])
    except KeyError as error:
        # lm-eval looks up splits, and function references in the YAML, by name.
        raise TaskError(
            f"task {spec!r} names {error.args[0]!r}, which is neither a split nor a column of its data; "
            "add it to the data or correct the YAML"
        ) from error
    except (DatasetsError, OSError) as error:
        raise TaskError(
            f"the documents of task {spec!r} cannot be loaded: {_first_line(error)}; connect to the Hub, or name local "
            "files in a copy of its YAML (dataset_path: parquet, dataset_kwargs: data_files)"
        ) from error
    except _BROKEN_TASK as error:
        raise TaskError(
            f"task {spec!r} cannot be built: {_first_line(error)}; correct its YAML, or the columns of its data"
        ) from error
    groups: Mapping[str, Group] = found.get("groups", {})
    inner = {name for group in groups.values() for name in group.child_names}
    if outer := [group for name, group in groups.items() if name not in inner]:
        return list(outer)
    return list(found["tasks"].values())


def load_task(
    name: str, *, include_path: Sequence[str | Path] = (), metadata: Mapping[str, Any] | None = None
) -> ConfigurableTask:
    """Load exactly one task, by name or by the path of its YAML file.

    Raises:
        TaskError: there is no such task, it is a group, or lm-eval cannot build it.
        DatasetError: its documents cannot be found.
    """
    _, loaded = load_tasks([name], include_path=include_path, metadata=metadata)
    if len(loaded) != 1 or isinstance(loaded[0], Group):
        raise TaskError(f"{name!r} names more than one task; name one of them")
    return loaded[0]


def apply_settings(task: ConfigurableTask, settings: PromptSettings) -> int:
    """Seed the task's few-shot sampler and return the number of shots, by the rules of `lm_eval.simple_evaluate`."""
    task.set_fewshot_seed(seed=settings.fewshot_seed)
    own = task.get_config("num_fewshot")
    if settings.num_fewshot is None or own == 0:
        return own or 0
    return settings.num_fewshot


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
            f"task {task.task_name!r} names the training split {split!r}, but its data has {', '.join(task.dataset)}; "
            "correct `training_split:` in its YAML"
        )
    if split == task.config.test_split or (not task.has_test_docs() and split == task.config.validation_split):
        raise TaskError(f"task {task.task_name!r} would train on {split!r}, the split it reports; name another one")
    return task.training_docs()


def render(
    task: ConfigurableTask, docs: Iterable[Mapping[str, Any]], settings: PromptSettings, lm: HFLM
) -> Iterator[Rendered]:
    """Render documents as lm-eval would for evaluation, with the gold answer as continuation.

    A document is never among its own few-shot examples: its answer would stand in the prompt. lm-eval sees to that for
    a few-shot split that is the test split only, and training documents come from the few-shot split most of the time.

    Args:
        task: a loaded task.
        docs: documents of any of its splits.
        settings: few-shot, chat template, system instruction.
        lm: gives the chat template; its model is not run.

    Raises:
        TaskError: a template fails on a document, or the gold answer cannot be told.
    """
    num_fewshot = apply_settings(task, settings)
    chat_template = lm.apply_chat_template if settings.apply_chat_template else None
    for number, doc in enumerate(docs):
        try:
            with _no_example_of_itself(task, doc) if num_fewshot else contextlib.nullcontext():
                context = task.fewshot_context(
                    doc,
                    num_fewshot=num_fewshot,
                    system_instruction=settings.system_instruction,
                    apply_chat_template=bool(settings.apply_chat_template),
                    fewshot_as_multiturn=settings.multiturn,
                    chat_template=chat_template,
                    gen_prefix=task.doc_to_prefix(doc),
                )
            requests = task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(task.task_name, number, 1),
                apply_chat_template=bool(settings.apply_chat_template),
                chat_template=chat_template,
            )
            yield _with_gold(task, doc, requests, bool(settings.apply_chat_template))
        except _BROKEN_TASK as error:
            raise TaskError(
                f"task {task.task_name!r} cannot render document {number}: {_first_line(error)}; "
                "check doc_to_text, doc_to_target and doc_to_choice"
            ) from error


@contextlib.contextmanager
def _no_example_of_itself(task: ConfigurableTask, doc: Mapping[str, Any]) -> Iterator[None]:
    """Draw a document's few-shot examples again when it is one of them; other draws stay as lm-eval's."""
    sampler = task.sampler

    def sample(n: int, eval_doc: Mapping[str, Any] | None = None, **options: Any) -> Any:
        drawn = type(sampler).sample(sampler, n, eval_doc=eval_doc, **options)
        return type(sampler).sample(sampler, n, eval_doc=doc, **options) if doc in drawn else drawn

    sampler.sample = sample
    try:
        yield
    finally:
        del sampler.sample


def _with_gold(task: ConfigurableTask, doc: Mapping[str, Any], requests: Any, chat: bool) -> Rendered:
    """Pick the request of the gold answer, or for generation make one of context and target."""
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = gold[0] if isinstance(gold, list) else gold
        gold = task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else gold
        choices = len(task.doc_to_choice(doc))  # acc_mutual_info asks twice as many requests
        if not 0 <= gold < choices:
            raise IndexError(f"label {gold} is outside its {choices} choices")
        return Rendered(*requests[gold].args)
    if task.OUTPUT_TYPE == "loglikelihood":
        return Rendered(*requests.args)
    if task.OUTPUT_TYPE == "generate_until":
        # A task of `protocol.requests` may ask for more than the generation, which comes first.
        generation = requests[0] if isinstance(requests, list) else requests
        return Rendered(generation.args[0], _delimited_answer(task, doc, chat))
    raise TaskError(f"task {task.task_name!r} ({task.OUTPUT_TYPE}) has no answer to train on")


def _answer(task: ConfigurableTask, doc: Mapping[str, Any]) -> str:
    target = task.doc_to_target(doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        return str(task.doc_to_choice(doc)[target])
    return str(target[0]) if isinstance(target, list) else str(target)


def _delimited_answer(task: ConfigurableTask, doc: Mapping[str, Any], chat: bool) -> str:
    """What follows a context that is generated from: as in lm-eval's few-shot examples."""
    answer = _answer(task, doc)
    if prefix := task.doc_to_prefix(doc):
        return maybe_delimit(prefix, answer)[len(prefix) :]
    return answer if chat else f"{task.config.target_delimiter}{answer}"


def encode(task: ConfigurableTask, rendered: Rendered, lm: HFLM) -> Encoded:
    """Token ids of a rendered document, split where evaluation splits them.

    A scored continuation goes through lm-eval's `_encode_pair`, which moves trailing spaces of the context into the
    continuation. A generated one follows the context's ids as generation will see them.
    """
    context, continuation = rendered
    if task.OUTPUT_TYPE != "generate_until":
        if not context:
            ids = lm.tok_encode(continuation, add_special_tokens=False)
            return Encoded(ids[:1], ids[1:]) if ids[:1] == [lm.prefix_token_id] else Encoded([lm.prefix_token_id], ids)
        return Encoded(*lm._encode_pair(context, continuation))
    context_ids = lm.tok_encode(context)
    whole = lm.tok_encode(context + continuation)
    if whole[: len(context_ids)] == context_ids:
        return Encoded(context_ids, whole[len(context_ids) :])
    return Encoded(context_ids, lm.tok_encode(continuation, add_special_tokens=False))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"
