"""What was evaluated: the adapter on its base by peft, asked once as evaluated and once in other batches and precision.

The two askings tell how far answers move by rounding alone. One of them is in float32, the other in the precision of
what is served, so that rounding an export to bfloat16 is no difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness_ext.doctor.replay.questions import Questions, in_other_packs
from harness_ext.doctor.replay.restore import LoggedSettings
from harness_ext.engine.hosts import PeftHost, load_base
from harness_ext.errors import AdapterError, first_line
from harness_ext.parity.answers import Answer, Form, ask
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask, EvaluatorConfig, get_model
from harness_ext.protocol.render import PromptSettings, requests
from harness_ext.results.outputs import Output

ENGINE = "hf-tree"
BATCH = 4  # documents, of models in this process that are not the evaluation's own


@dataclass(frozen=True)
class Reference:
    """The adapter by peft."""

    lm: HFLM  # answers as the adapter
    base: str  # folder or Hub id
    folder: Path  # of the adapter
    device: str | None

    @property
    def dtype(self) -> torch.dtype:
        """In which the adapter answers."""
        return self.lm.model.dtype

    def as_base(self) -> contextlib.AbstractContextManager[Any]:
        """Let the model answer as its base within the block."""
        disabled: contextlib.AbstractContextManager[Any] = self.lm.model.disable_adapter()
        return disabled

    @contextmanager
    def twin(self, served_dtype: torch.dtype) -> Iterator[HFLM]:
        """The model for the second asking: in the precision of what is served, or in float32 if the first is not."""
        dtype = served_dtype if self.dtype == torch.float32 else torch.float32
        yield self.lm if dtype == self.dtype else self.plain(dtype)

    def plain(self, dtype: torch.dtype, **arguments: Any) -> HFLM:
        """The adapter on its base, loaded by lm-eval's own `hf`.

        Args:
            dtype: of the base.
            arguments: further ones of `hf`.

        Raises:
            ModelError: it cannot be loaded so.
        """
        return load_plain(
            self.base, dtype, self.device, peft=str(self.folder), tokenizer=self.lm.tokenizer, **arguments
        )


def load_plain(model: str, dtype: torch.dtype, device: str | None, **arguments: Any) -> HFLM:
    """A model in this process, loaded by lm-eval's own `hf`.

    Raises:
        ModelError: it cannot be loaded.
    """
    given = {"pretrained": model, "dtype": str(dtype).removeprefix("torch."), **arguments}
    config = EvaluatorConfig(model="hf", model_args=given, device=device, batch_size=given.pop("batch_size", BATCH))
    return load_base(get_model("hf"), config, model)


@contextmanager
def reference(
    adapter: str, base: str | None, tasks: Sequence[ConfigurableTask], prompts: PromptSettings, device: str | None
) -> Iterator[Reference]:
    """Load base and adapter as an evaluation does.

    Raises:
        HarnessExtError: one of them is missing, damaged or does not fit the other.
    """
    config = EvaluatorConfig(
        model=ENGINE,
        model_args={"peft": adapter, **({"pretrained": base} if base else {})},
        tasks=[task.task_name for task in tasks],
        apply_chat_template=prompts.apply_chat_template,
        device=device,
    )
    host = PeftHost(config)
    host.load(list(tasks))
    assert host.hf is not None
    variant = host.variants[-1]
    assert variant.folder is not None
    if reason := host.why_not(variant):
        raise AdapterError(f"{adapter} cannot be asked: {reason}")
    with host.active(variant):
        yield Reference(host.hf, host.base, variant.folder, device)


def ask_again(
    questions: Questions, form: Form, outputs: Sequence[Output], expected: Sequence[str | None]
) -> list[Answer]:
    """Ask documents in another order and in other batches; arguments and answers are those of `ask`."""
    with in_other_packs(questions.lm):
        return ask(questions, form, outputs[::-1], expected=expected[::-1])[::-1]


def merged(lm: HFLM, folder: Path) -> None:
    """Merge the adapter of a model into its weights, as `merge_and_unload` of peft does, and use the merged model.

    Raises:
        AdapterError: this kind of adapter cannot be merged.
    """
    model: Any = lm.model
    try:
        lm._model = model.merge_and_unload().eval()
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise AdapterError(f"{folder} cannot be merged ({first_line(error):.160}); serve it as an adapter") from error


def documents_of(task: ConfigurableTask, numbers: Sequence[int], prompts: PromptSettings, lm: HFLM) -> list[Output]:
    """Documents with lm-eval's requests for them, as if they had been logged.

    Args:
        task: a loaded task.
        numbers: of the documents.
        prompts: few-shot, chat template, system instruction.
        lm: gives the chat template.
    """
    docs = [task.eval_docs[number] for number in numbers]
    rows = requests(task, docs, prompts, lm)
    return [
        Output(
            doc_id=number, doc_hash="", doc=doc, prompt=str(row[0].args[0]), text=None, choices=(), target="",
            logged={"arguments": [each.args for each in row]},
        )
        for number, doc, row in zip(numbers, docs, rows, strict=True)
    ]  # fmt: skip


def questions_of(lm: HFLM, task: ConfigurableTask, prompts: PromptSettings, own_tokenizer: Any = None) -> Questions:
    """What a model is asked on a task, under an evaluation's own settings."""
    return Questions(lm, task, LoggedSettings(prompts, {}, {}), own_tokenizer)
