"""An OpenAI-compatible server whose model names are the base and its adapters: vLLM, SGLang, llama-server, Ollama, TGI.

```
--adapters sst2=adapters/sst2 ──> variant sst2 ──> requests with {"model": "sst2"}
```
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests

from harness_ext.engine.hosts import SCORED_KINDS, Selected
from harness_ext.engine.variants import Variant
from harness_ext.errors import AdapterError, ModelError, NotAppliedError, first_line, suggest
from harness_ext.models.adapters import is_adapter
from harness_ext.models.snapshot import AdapterSnapshot, snapshot
from harness_ext.protocol.lm_eval_api import LM, EvaluatorConfig, Task, get_model

logger = logging.getLogger(__name__)

CHAT = "local-chat-completions"
MOST_STOPS = 4  # stop strings that lm-eval sends to a chat endpoint; it drops the others without a word
PATIENCE = 30.0  # seconds for the first answer
PROBES = 4  # prompts on which base and adapter are told apart
PROBED_TOKENS = 24


class EndpointHost:
    """A server that serves a base and its adapters under names.

    Args:
        config: of one of lm-eval's model classes for an API.
        adapters: names of served models; a folder stands for the name of the folder, NAME=FOLDER for another one.

    Raises:
        ModelError: the arguments name no server or no model.
        AdapterError: a folder is no adapter, or a name is given twice.
    """

    hf: None = None
    weights: str | None = None  # on another machine
    takes_shards = False
    is_intact = True

    def __init__(self, config: EvaluatorConfig, adapters: Sequence[str | Path]) -> None:
        self._config = config
        arguments = config.model_args
        self.base = str(arguments.get("model") or arguments.get("pretrained") or "")
        self._url = str(arguments.get("base_url") or "")
        if not self.base or not self._url:
            raise ModelError(
                f"--model {config.model} needs the server and the name of the base; add --model_args "
                "model=NAME,base_url=http://HOST:PORT/v1/completions"
            )
        self.variants: Sequence[Variant] = [Variant("base"), *map(_variant, map(str, adapters))]
        names = [variant.name for variant in self.variants]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise AdapterError(f"the name {repeated!r} is given twice; name each model of the server once")
        self.snapshot: AdapterSnapshot | None = None

    def _served(self, variant: Variant) -> str:
        return self.base if variant.adapter is None else variant.name

    def load(self, tasks: Sequence[Task]) -> None:
        """Ask the server what it serves, and whether it can answer what the tasks ask.

        Raises:
            ModelError: it cannot be reached, serves no model of a name, or cannot do what a task needs.
        """
        config = self._config
        self._check_served()
        self._check_tasks(tasks)
        options = {name: getattr(config, name) for name in ("batch_size", "max_batch_size", "device")}
        try:
            self.lm: LM = get_model(config.model).create_from_arg_obj(config.model_args, options)
        except Exception as error:  # a tokenizer that is not there, an argument that is unknown
            raise ModelError(f"--model {config.model}: {first_line(error):.200}; check --model_args") from error
        lm: Any = self.lm
        self._begin_as_hf(lm)
        lm.parse_generations = partial(_complete, lm.parse_generations, self._url)
        scoring = [task for task in tasks if task.OUTPUT_TYPE in SCORED_KINDS]
        self._gives_scores = bool(scoring)
        if scoring:
            self._check_scores(str(scoring[0].task_name))
        self._prompts = [
            str(task.doc_to_text(doc)) for task in tasks[:2] for doc in list(task.eval_docs)[: PROBES // 2]
        ]

    def _check_served(self) -> None:
        url = re.sub(r"/(chat/)?completions/?$", "", self._url) + "/models"
        try:
            reply = requests.get(url, timeout=PATIENCE, headers=self._headers())
        except requests.RequestException as error:
            raise ModelError(f"{self._url} cannot be reached ({_reason(error)}); start the server") from error
        if reply.status_code in (401, 403):
            raise ModelError(f"{url} refuses the key ({reply.status_code}); set OPENAI_API_KEY")
        names: list[str] = []
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            names = [str(model["id"]) for model in reply.json()["data"]]
        if not names:
            logger.warning("%s does not say which models it serves", url)
            return
        for variant in self.variants:
            if (name := self._served(variant)) not in names:
                raise ModelError(
                    f"{self._url} serves no model {name!r}{suggest(name, names)}; it serves {', '.join(names[:20])}"
                )

    def _begin_as_hf(self, lm: Any) -> None:
        """Send the begin token that the tokenizer adds: `hf` does, and lm-eval's API models do not."""
        if "add_bos_token" in self._config.model_args or lm.tokenizer_backend != "huggingface":
            return
        begin = lm.tokenizer.bos_token_id
        if begin is not None and lm.tokenizer("a")["input_ids"][:1] == [begin]:
            lm.add_bos_token = self._config.model_args["add_bos_token"] = True
            logger.info("the begin token of %s is sent, as hf does", self.base)

    def _headers(self) -> dict[str, str]:
        key = os.environ.get("OPENAI_API_KEY", "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _check_tasks(self, tasks: Sequence[Task]) -> None:
        """Refuse by name what a chat endpoint cannot do."""
        if self._config.model != CHAT:
            return
        for task in tasks:
            if task.OUTPUT_TYPE in SCORED_KINDS:
                raise ModelError(
                    f"{task.task_name} compares log-probabilities, and a chat endpoint gives none; use --model "
                    "local-completions, or a task that generates"
                )
            stops = (task.config.generation_kwargs or {}).get("until") or []
            if not isinstance(stops, str) and len(stops) > MOST_STOPS:
                raise ModelError(
                    f"{task.task_name} has {len(stops)} stop strings, and only {MOST_STOPS} are sent to a chat "
                    "endpoint; use --model local-completions"
                )

    def _check_scores(self, task: str) -> None:
        """Refuse a server that gives no log-probabilities of prompts."""
        try:
            scores = self._scores(["The sky is blue today."])
        except (requests.RequestException, LookupError, TypeError, ValueError, AssertionError) as error:
            raise ModelError(
                f"{self._url} gives no log-probabilities of prompts (echo with logprobs: {_reason(error)}), which "
                f"{task} needs; use a task that generates, or an engine that gives them (docs/engines.md)"
            ) from error
        if not all(score < 0 for score in scores):
            raise ModelError(f"{self._url} answers echo with logprobs by {scores}, which are no log-probabilities")

    def _scores(self, prompts: Sequence[str]) -> list[float]:
        """Log-probabilities of prompts behind their first token."""
        lm: Any = self.lm
        scores = []
        for prompt in prompts:
            ids = list(lm.tok_encode(prompt))
            ask = [ids] if lm.tokenized_requests else [prompt]
            outputs = _post(self._url, lm._create_payload(lm.create_message(ask), generate=False), lm.header)
            (answer,) = lm.parse_logprobs(outputs=outputs, tokens=[ids], ctxlens=[1])
            scores.append(float(answer[0]))
        return scores

    def _texts(self, prompts: Sequence[str]) -> list[str]:
        """Greedy continuations of prompts."""
        lm: Any = self.lm
        texts = []
        for prompt in prompts:
            is_chat = self._config.model == CHAT
            message = [{"role": "user", "content": prompt}] if is_chat else prompt
            settings = {"max_gen_toks": PROBED_TOKENS, "until": []}
            outputs = _post(self._url, lm._create_payload(message, generate=True, gen_kwargs=settings), lm.header)
            texts += lm.parse_generations(outputs=outputs)
        return texts

    def model_args(self, variant: Variant) -> dict[str, Any]:
        """With the name under which the variant is served."""
        return {**self._config.model_args, "model": self._served(variant)}

    def why_not(self, _variant: Variant) -> str | None:
        """Nothing is known beforehand."""
        return None

    @contextmanager
    def active(self, variant: Variant) -> Iterator[Mapping[str, str]]:
        """Name the variant in every request.

        Raises:
            AdapterError: the server answers as with the base.
        """
        lm: Any = self.lm
        with contextlib.ExitStack() as stack:
            if variant.folder is not None:
                self.snapshot = stack.enter_context(snapshot(variant.folder))
            try:
                if variant.adapter is not None:
                    self._prove_active(variant)
                lm.model = self._served(variant)
                yield {}
            finally:
                self.snapshot, lm.model = None, self.base

    def _prove_active(self, variant: Variant) -> None:
        lm: Any = self.lm
        base, adapter = ([*self._asked(name)] for name in (self.base, self._served(variant)))
        lm.model = self.base
        if base and base == adapter:
            what = "log-probabilities" if isinstance(base[0], float) else "greedy answers"
            raise NotAppliedError(
                f"{self._url} gives the same {what} for {variant.name} as for {self.base} on {len(base)} prompts of "
                "the tasks: it does not apply the adapter; look at the server's messages and its LoRA settings"
            )

    def _asked(self, name: str) -> Sequence[float | str]:
        lm: Any = self.lm
        lm.model = name
        try:
            return self._scores(self._prompts) if self._gives_scores else self._texts(self._prompts)
        except requests.RequestException as error:
            raise ModelError(f"{self._url} does not answer ({_reason(error)})") from error

    def check(self) -> None:
        """Nothing is known beforehand."""

    def add_records(self, _samples: Mapping[str, list[dict[str, Any]]], _selected: Selected) -> None:
        """lm-eval drops what a server says of its answers."""


def _variant(given: str) -> Variant:
    """A served model, from NAME, FOLDER, or NAME=FOLDER."""
    name, equals, place = given.partition("=")
    folder = Path(place if equals else given).expanduser()
    if equals and not is_adapter(folder):
        raise AdapterError(f"{place} holds no adapter; give the folder of the adapter that is served as {name}")
    if not folder.is_dir():
        return Variant(given, given)
    return Variant(name if equals else folder.resolve().name, str(folder), folder if is_adapter(folder) else None)


def _post(url: str, payload: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
    reply = requests.post(url, json=payload, headers=dict(headers), timeout=10 * PATIENCE)
    reply.raise_for_status()
    return reply.json()


def _complete(parse: Callable[..., list[Any]], url: str, outputs: Any, **options: Any) -> list[Any]:
    """Texts of a reply; an answer that is missing must not count as a wrong one."""
    texts = parse(outputs=outputs, **options)
    if any(text is None for text in texts):
        raise ModelError(f"{url} left an answer out; look at its messages, then evaluate again")
    return texts


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error):.150}"
