"""The requests of a document, as they were made or with something changed, and a model that is changed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

from peft.tuners.lora.layer import LoraLayer
from transformers import GenerationConfig

from harness_ext.doctor.replay.restore import LoggedSettings
from harness_ext.doctor.replay.variants import Asking
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask, Instance
from harness_ext.protocol.render import PromptSettings, requests
from harness_ext.results.outputs import Output

GENERATION, SCORE = "generate_until", "loglikelihood"
DEFAULT_LIMIT = 256  # lm-eval's own max_gen_toks
DECODING = ("until", "max_gen_toks", "do_sample")  # all that is left of generation_kwargs in plain greedy decoding


class Request(NamedTuple):
    """One question to the model."""

    kind: str  # generate_until or loglikelihood
    context: str
    continuation: str = ""  # that is scored
    generation: Mapping[str, Any] | None = None  # generation_kwargs


class Questions:
    """What a model is asked about the documents of one task.

    Args:
        lm: answers; what cannot be changed for it is left alone.
        task: the task, installed here.
        settings: how it is asked where nothing is changed.
        own_tokenizer: another one that the model can be asked with, such as that in an adapter's folder.
    """

    def __init__(self, lm: HFLM, task: ConfigurableTask, settings: LoggedSettings, own_tokenizer: Any = None) -> None:
        self.lm, self.task, self.settings = lm, task, settings
        self._own_tokenizer = own_tokenizer

    def logged(self, output: Output) -> list[Request]:
        """The requests of a document as the run made them."""
        entries = output.logged.get("arguments") or []
        arguments = entries.values() if isinstance(entries, Mapping) else entries
        return [_request(each, self.settings.generation) for each in arguments]

    def requests(self, asking: Asking, output: Output) -> list[Request]:
        """The requests of a document with something changed."""
        if asking.same_prompts:
            asked = self.logged(output)
        else:
            asked = [self._edited(request, asking) for request in self._rendered(asking, output)]
        return [self._ended(request, asking) for request in asked]

    def _rendered(self, asking: Asking, output: Output) -> list[Request]:
        logged = self.settings.prompts
        if not asking.renders_anew or (asking.changed().keys() <= {"template"} and not logged.apply_chat_template):
            return self.logged(output)
        chat = bool(logged.apply_chat_template) if asking.chat is None else asking.chat
        chat = chat and asking.template is None
        settings = PromptSettings(
            num_fewshot=logged.num_fewshot if asking.num_fewshot is None else asking.num_fewshot,
            apply_chat_template=chat,
            fewshot_as_multiturn=logged.fewshot_as_multiturn if chat else False,
            system_instruction=logged.system_instruction if asking.system is None else asking.system or None,
            fewshot_seed=logged.fewshot_seed,
        )
        # one document at a time: its few-shot examples are then those of all others, and computed once
        (asked,) = requests(self.task, [output.doc], settings, self.lm)
        return [_request(request.args, self.settings.generation) for request in asked]

    def _edited(self, request: Request, asking: Asking) -> Request:
        """A request with the text of its prompt changed."""
        context, continuation = request.context, request.continuation
        if not context:
            return request
        if asking.template is not None:
            context = asking.template.around(context)
            continuation = asking.template.delimiter + continuation.lstrip()
        if asking.join is not None:
            context = context.rstrip() + (asking.join if request.kind == GENERATION else "")
            continuation = asking.join + continuation.lstrip()
        if asking.bos is not None and (token := self.lm.tokenizer.bos_token):
            while context.startswith(token):
                context = context.removeprefix(token)
            context = token * asking.bos + context
        return request._replace(context=context, continuation=continuation if request.kind == SCORE else "")

    def _ended(self, request: Request, asking: Asking) -> Request:
        """A generation that ends elsewhere."""
        if request.generation is None:
            return request
        settings = dict(request.generation)
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        if asking.stops is not None:
            stops = [*stops, *asking.stops] if asking.stops else []
        if asking.template is not None:
            stops.append(asking.template.end)
        settings["until"] = list(dict.fromkeys(stops))
        if asking.longer is not None:
            settings["max_gen_toks"] = asking.longer * int(settings.get("max_gen_toks", DEFAULT_LIMIT))
        if asking.generation_config is False:
            settings = {**{name: settings[name] for name in DECODING if name in settings}, "do_sample": False}
        return request._replace(generation=settings)

    @contextmanager
    def changed_model(self, asking: Asking) -> Iterator[None]:
        """Let the model be what an asking says; afterwards it is as before."""
        lm = cast("Any", self.lm)
        with ExitStack() as stack:
            if asking.tokenizer and self._own_tokenizer is not None:
                stack.enter_context(_set(lm, tokenizer=self._own_tokenizer, vocab_size=self._own_tokenizer.vocab_size))
            if asking.bos is not None:
                stack.enter_context(_set(lm, add_bos_token=False))
            if asking.whole_prompt:
                stack.enter_context(_set(lm, _max_length=None))
            if asking.generation_config is False:
                for model in _generating(lm.model):
                    stack.enter_context(_set(model, generation_config=_plain(model.generation_config)))
            if asking.scale is not None:
                stack.enter_context(_scaled(lm.model, asking.scale))
            if asking.without:
                stack.enter_context(_scaled(lm.model, 0.0, asking.without))
            yield

    def instance(self, request: Request, output: Output, idx: int) -> Instance:
        """lm-eval's form of a request."""
        second = request.continuation if request.kind == SCORE else dict(request.generation or {})
        return Instance(
            request_type=cast("Any", request.kind), doc=dict(output.doc), arguments=(request.context, second), idx=idx,
            metadata=(self.task.task_name, output.doc_id, 1),
        )  # fmt: skip


def begin_tokens(lm: HFLM, text: str) -> int:
    """How many begin tokens a model reads before a text."""
    ids, bos = lm.tok_encode(text), lm.tokenizer.bos_token_id
    return next((n for n, token in enumerate(ids) if token != bos), len(ids)) if bos is not None else 0


def lora_layers_by_name(model: Any) -> dict[str, LoraLayer]:
    """The LoRA layers of a model by name."""
    named = model.named_modules() if hasattr(model, "named_modules") else ()
    return {name: module for name, module in named if isinstance(module, LoraLayer)}


@contextmanager
def in_other_packs(lm: Any) -> Iterator[None]:
    """Let a model compute in other batches: smaller packs, or where it takes none, another batch size."""
    if isinstance(lm, TreeLM):
        smaller = {"pack_tokens": max(64, lm.pack_tokens // 2), "cache_tokens": max(128, lm.cache_tokens // 2)}
    else:
        smaller = {"batch_size_per_gpu": 3}
    with _set(lm, **smaller):
        yield


def lora_layers(model: Any) -> list[LoraLayer]:
    """The LoRA layers of a model."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _plain(config: Any) -> GenerationConfig:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return GenerationConfig(**{name: getattr(config, name, None) for name in names})


def _generating(model: Any) -> list[Any]:
    """A model and the model inside its PEFT wrapper: both have a generation_config."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [each for each in {id(one): one for one in (model, inner)}.values() if hasattr(each, "generation_config")]


@contextmanager
def _set(target: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


@contextmanager
def _scaled(model: Any, factor: float, parts: Sequence[str] | None = None) -> Iterator[None]:
    """Multiply the scale of LoRA layers: of those whose names have one of these parts, or of all."""
    named = lora_layers_by_name(model).items()
    layers = [layer for name, layer in named if parts is None or any(f".{part}." in f".{name}." for part in parts)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            for name in layer.scaling:
                layer.scaling[name] *= factor
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def _request(arguments: Any, generation: Mapping[str, Any]) -> Request:
    """A request from its arguments: as lm-eval logs them (`{"arg_0": ..., "arg_1": ...}`) or passes them."""
    values = list(arguments.values()) if isinstance(arguments, Mapping) else list(arguments)
    context: Any = values[0] if isinstance(values[0], tuple) else str(values[0])  # lm-eval's messages to a chat server
    second = values[1] if len(values) > 1 else {}
    if isinstance(second, str):
        return Request(SCORE, context, second)
    return Request(GENERATION, context, generation={**(second or {}), **generation})


def first_line(text: str) -> str:
    """The first line that is not blank."""
    return next((line for line in text.splitlines() if line.strip()), "")
