"""The engines that evaluation knows, behind one interface: which variants there are, and how each becomes active.

`PeftHost` puts adapters on a model in this process; `VllmHost` (vllm_host.py) and `EndpointHost` (endpoint_host.py)
send them with each request. `ArgumentsHost` is every other model class of lm-eval: it has the one variant that its
arguments name. A new engine is a class and a line in engines.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from harness_ext.engine.adapter_switch import AdapterSwitch, TokenizerSwitch
from harness_ext.engine.generation_records import add_generation_records
from harness_ext.engine.hf_tree import DELTA_WITH_ADAPTER
from harness_ext.engine.variants import Variant, base_and_adapters
from harness_ext.errors import AdapterError, ModelError, first_line
from harness_ext.models.adapters import find_base
from harness_ext.models.devices import choose_device, choose_dtype
from harness_ext.models.snapshot import AdapterSnapshot, snapshot
from harness_ext.models.sources import check_is_plain, resolve_model
from harness_ext.protocol.lm_eval_api import HFLM, LM, EvaluatorConfig, RemoteLM, Task, get_model
from harness_ext.protocol.render import PromptSettings, check_chat_template, render
from harness_ext.protocol.token_settings import check_appends_nothing

logger = logging.getLogger(__name__)

PROBED_TASKS, PROBED_DOCS = 2, 2
MODEL_ARGUMENTS = ("pretrained", "model", "path", "engine")  # by which lm-eval's model classes name a model
ADAPTER_ARGUMENTS = ("peft", "lora_local_path")
SCORED_KINDS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")  # that need log-probabilities of prompts


Selected = Mapping[str, Sequence[int]] | None


class Host(Protocol):
    """An engine with a base and adapters that it can put on and take off."""

    base: str  # name of the base
    weights: str | None  # folder or Hub id whose weights answer; None where they are not on this machine
    variants: Sequence[Variant]  # in the order of evaluation
    lm: LM  # lm-eval's model; there after `load`
    hf: HFLM | None  # the same where it renders prompts with a tokenizer in this process
    takes_shards: bool  # whether several processes can each answer some of the requests

    def load(self, tasks: Sequence[Task]) -> None:
        """Load the base. The tasks give the prompts on which variants are told apart."""

    def model_args(self, variant: Variant) -> dict[str, Any]:
        """The arguments with which stock lm-eval would evaluate this variant."""

    @property
    def is_intact(self) -> bool:
        """Whether the base is what it was when it was loaded."""

    @property
    def snapshot(self) -> AdapterSnapshot | None:
        """What the active variant's adapter folder held when it was attached; None without a folder."""

    def why_not(self, variant: Variant) -> str | None:
        """Why a variant cannot be asked; None when it can."""

    def active(self, variant: Variant) -> AbstractContextManager[Mapping[str, str]]:
        """Let the model answer as this variant; gives what a reader should know of its tokenizer."""

    def about(self) -> Mapping[str, Any]:
        """What the results should say of the engine: its version, and what identifies its files."""

    def check(self) -> None:
        """Raise for settings that the active variant could not be evaluated with."""

    def add_records(self, samples: Mapping[str, list[dict[str, Any]]], selected: Selected) -> None:
        """Put what is known of each generation, such as its finish reason, into the logged samples.

        Args:
            samples: by task, as logged.
            selected: numbers of the documents that were chosen, by task; None if all were.
        """


class ArgumentsHost:
    """Any model class of lm-eval: one model, with the adapter that its arguments name, if any."""

    hf: HFLM | None = None
    snapshot: AdapterSnapshot | None = None
    takes_shards = False  # its model class knows of processes itself
    is_intact = True

    def __init__(self, config: EvaluatorConfig) -> None:
        self._config = config
        arguments = config.model_args
        self.base = str(next((arguments[name] for name in MODEL_ARGUMENTS if arguments.get(name)), config.model))
        adapter = next((str(arguments[name]) for name in ADAPTER_ARGUMENTS if arguments.get(name)), None)
        folder = Path(adapter).expanduser() if adapter and Path(adapter).expanduser().is_dir() else None
        answers_elsewhere = "base_url" in arguments or issubclass(get_model(config.model), RemoteLM)
        named = None if answers_elsewhere or (adapter and not folder) else arguments.get("pretrained")
        self.weights: str | None = None if named is None else str(named)
        self.variants: Sequence[Variant] = [Variant(Path(adapter or self.base).name or config.model, adapter, folder)]

    def load(self, _tasks: Sequence[Task]) -> None:
        """Create the model as lm-eval does."""
        config = self._config
        options = {name: getattr(config, name) for name in ("batch_size", "max_batch_size", "device")}
        folder = self.variants[0].folder
        with snapshot(folder) if folder else nullcontext() as self.snapshot:
            self.lm: LM = get_model(config.model).create_from_arg_obj(config.model_args, options)

    def model_args(self, _variant: Variant) -> dict[str, Any]:
        """As given."""
        return dict(self._config.model_args)

    def why_not(self, _variant: Variant) -> str | None:
        """Nothing is known beforehand."""
        return None

    @contextmanager
    def active(self, _variant: Variant) -> Iterator[Mapping[str, str]]:
        """The only variant always is."""
        yield {}

    def about(self) -> Mapping[str, Any]:
        """Nothing that lm-eval does not say."""
        return {}

    def check(self) -> None:
        """Nothing is known beforehand."""

    def add_records(self, _samples: Mapping[str, list[dict[str, Any]]], _selected: Selected) -> None:
        """Such a model keeps none."""


class PeftHost:
    """A Hugging Face model in this process; PEFT puts each adapter on and takes it off.

    Args:
        config: of `hf` or `hf-tree`. With `peft` among its model arguments only that adapter is evaluated, as in stock
            lm-eval, unless more adapters are named.
        adapters: folders, glob patterns or Hub ids.
    """

    def __init__(self, config: EvaluatorConfig, adapters: Sequence[str | Path] = ()) -> None:
        self._config = config
        self.variants: Sequence[Variant] = base_and_adapters(
            adapters, only=config.model_args.pop("peft", None), revision=config.model_args.get("revision")
        )
        if config.model_args.get("delta") and self.variants[-1].adapter:
            raise ModelError(DELTA_WITH_ADAPTER)
        self.takes_shards = not config.model_args.get("tp_plan")  # which divides the model among the processes
        self.base = resolve_base(config.model_args, [variant for variant in self.variants if variant.adapter])
        self.weights: str | None = self.base

    def load(self, tasks: Sequence[Task]) -> None:
        """Load the base once, and keep proof of its weights and answers."""
        config = self._config
        self.hf = self.lm = lm = load_base(get_model(config.model), config, self.base)
        check_is_plain(lm.model, self.base)
        if lm.backend == "causal":
            check_appends_nothing(lm.tokenizer, self.base, add_bos_token=lm.add_bos_token)
        self._use_switch(
            AdapterSwitch(
                lm,
                self.base,
                prompts=probe_prompts(tasks, prompt_settings(config), lm),
                model_args=config.model_args,
                uses_chat_template=bool(config.apply_chat_template),
            )
        )

    def _use_switch(self, switch: TokenizerSwitch) -> None:
        self._switch = switch
        lacking = [variant for variant in self.variants if self._lacks_chat_template(variant)]
        self._without_template = lacking if len(lacking) < len(self.variants) else []

    def _lacks_chat_template(self, variant: Variant) -> bool:
        try:
            return self._switch.lacks_chat_template(variant)
        except AdapterError:  # its tokenizer cannot be read, which its turn will say
            return False

    def model_args(self, variant: Variant) -> dict[str, Any]:
        """As given, with the variant's adapter as `peft`."""
        return {**self._config.model_args, **({"peft": variant.adapter} if variant.adapter else {})}

    def why_not(self, variant: Variant) -> str | None:
        """A chat template is asked for, others have one, and this variant does not."""
        if variant not in self._without_template:
            return None
        return f"the tokenizer of {variant.adapter or self.base} has no chat template"

    @property
    def is_intact(self) -> bool:
        """See `AdapterSwitch.is_intact`."""
        return self._switch.is_intact

    @property
    def snapshot(self) -> AdapterSnapshot | None:
        """See `AdapterSwitch.snapshot`."""
        return self._switch.snapshot

    def active(self, variant: Variant) -> AbstractContextManager[Mapping[str, str]]:
        """See `AdapterSwitch.active`."""
        return self._switch.active(variant)

    def about(self) -> Mapping[str, Any]:
        """Nothing that lm-eval does not say."""
        return {}

    def check(self) -> None:
        """Raise for a chat template that the tokenizer does not have."""
        check_chat_template(self.lm, self._config.apply_chat_template)

    def add_records(self, samples: Mapping[str, list[dict[str, Any]]], selected: Selected) -> None:
        """Finish reason and token counts; see `generation_records`."""
        add_generation_records(samples, self.lm, selected)


def prompt_settings(config: EvaluatorConfig) -> PromptSettings:
    """How an evaluation's config asks for prompts."""
    return PromptSettings(
        num_fewshot=config.num_fewshot,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        system_instruction=config.system_instruction,
        **({"fewshot_seed": config.seed[3]} if config.seed else {}),
    )


def resolve_base(model_args: Mapping[str, Any], adapters: Sequence[Variant]) -> str:
    """The base that is named, or that the adapters name.

    Raises:
        ModelError: none is named.
        AdapterError: the adapters belong to different bases.
    """
    if named := model_args.get("pretrained"):
        return resolve_model(str(named))
    if not adapters:
        raise ModelError("no model is named; add --model_args pretrained=MODEL (or peft=ADAPTER)")
    bases: dict[str, str] = {}
    for variant in adapters:
        try:
            bases[str(variant.adapter)] = find_base(variant.folder or str(variant.adapter))
        except AdapterError:
            if variant is adapters[-1] and not bases:
                raise
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{adapter} on {base}" for adapter, base in bases.items())
        raise AdapterError(f"these adapters belong to different bases: {listed}; evaluate them in separate runs")
    return resolve_model(next(iter(bases.values())))


def load_base(model_class: type[HFLM], config: EvaluatorConfig, base: str) -> HFLM:
    """Load the base once; `auto` means a dtype that this device is fast at."""
    device = choose_device(config.device)
    dtype = choose_dtype(str(config.model_args.get("dtype", "auto")).removeprefix("torch."), device)
    config.model_args.update(pretrained=base, dtype=str(dtype).removeprefix("torch."))
    arguments = {**config.model_args, "device": str(device), "dtype": dtype}
    for name in ("batch_size", "max_batch_size"):
        if (value := getattr(config, name)) is not None:
            arguments[name] = value
    try:
        return model_class(**arguments)
    except TypeError as error:
        raise ModelError(f"--model_args: {error}; see the arguments of --model {config.model}") from error
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = first_line(error)
        raise ModelError(f"{base} cannot be loaded: {reason:.200}; check --model_args") from error


def probe_prompts(tasks: Sequence[Task], settings: PromptSettings, lm: HFLM) -> list[str]:
    """Texts of the first documents of the first tasks that can be rendered, each prompt with its answer.

    Where a chat template is asked for that the base does not have, an adapter may bring it: they go without.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        settings = replace(settings, apply_chat_template=False, fewshot_as_multiturn=False)
    probed: list[list[str]] = []
    for task in tasks:
        try:
            probed.append(_first_prompts(task, settings, lm))
        except Exception as error:  # whatever a task's own code raises: evaluating it says what is wrong
            logger.debug("%s gives no prompts to compare adapters on", task.task_name, exc_info=error)
        if len(probed) == PROBED_TASKS:
            break
    return [prompt for prompts in probed for prompt in prompts]


def _first_prompts(task: Task, settings: PromptSettings, lm: HFLM) -> list[str]:
    docs = list(islice(task.eval_docs, PROBED_DOCS))
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return [str(task.doc_to_target(doc)) for doc in docs]
    return [each.context + each.continuation for each in render(task, docs, settings, lm)]
