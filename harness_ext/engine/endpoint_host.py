"""An OpenAI-compatible server whose model names are the base and its adapters: vLLM, SGLang, llama-server, Ollama, TGI.

```
--adapters sst2=adapters/sst2 ──> variant sst2 ──> requests with {"model": "sst2"}
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import requests

from harness_ext.engine.hosts import SCORED_KINDS, Selected, probe_prompts, prompt_settings
from harness_ext.engine.proof import Answer, Proof
from harness_ext.engine.variants import Variant
from harness_ext.errors import AdapterError, HarnessExtError, ModelError, first_line, suggest
from harness_ext.models.adapters import is_adapter
from harness_ext.models.snapshot import AdapterSnapshot, snapshot
from harness_ext.protocol.lm_eval_api import LM, EvaluatorConfig, Task, get_model

logger = logging.getLogger(__name__)

CHAT = "local-chat-completions"
TOO_MANY = 429  # requests
REFUSED = (400, 404, 422, 501)  # a request that a server does not take
MOST_STOPS = 4  # stop strings that lm-eval sends to a chat endpoint; it drops the others without a word
PATIENCE = 30.0  # seconds for the first answer
LONGEST_WAIT = 60.0  # seconds, if a server says when to ask again
PROBED_TOKENS = 24  # generated behind each probe


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
        self._check_replies(lm)
        scoring = [task for task in tasks if task.OUTPUT_TYPE in SCORED_KINDS]
        if scoring:
            self._check_scores(str(scoring[0].task_name))
        if any(variant.adapter for variant in self.variants):
            settings = prompt_settings(config)
            if config.model == CHAT:
                settings = replace(settings, apply_chat_template=False, fewshot_as_multiturn=False)
            self._prompts = probe_prompts(tasks, settings, lm)
            self._proof = Proof(self._url, self._answers)

    def _check_replies(self, lm: Any) -> None:
        """Let a reply that is no answer, or not all of the answers, be an error instead of a wrong score."""
        lm.model_call = partial(self._ask, lm.model_call)
        lm.amodel_call = partial(self._ask_concurrently, lm.amodel_call)
        lm.parse_generations = partial(_complete, lm.parse_generations, self._url)
        lm.parse_logprobs = partial(_aligned, lm.parse_logprobs, self._url)

    def _ask(self, ask: Callable[..., Any], messages: Sequence[Any], **options: Any) -> Any:
        try:
            reply = ask(messages, **options)
        except requests.RequestException as error:
            time.sleep(_asked_to_wait(error))
            raise self._no_answer(error) from error
        choices = reply.get("choices") if isinstance(reply, Mapping) else None
        if not isinstance(choices, list):
            raise ModelError(f"{self._url} answers {reply!s:.120}, which is no completion; look at its messages")
        self._check_number(len(choices), len(messages))
        return reply

    async def _ask_concurrently(self, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            answers = await ask(*arguments, **options)
        except HarnessExtError:
            raise
        except Exception as error:  # whatever aiohttp raises, and what lm-eval does not find in a reply
            await asyncio.sleep(_asked_to_wait(error))
            raise self._no_answer(error) from error
        self._check_number(len(answers), len(options["messages"]))
        return answers

    def _check_number(self, answers: int, prompts: int) -> None:
        if answers != prompts:
            raise ModelError(
                f"{self._url} gives {answers} answers to {prompts} prompts; use a smaller --batch_size (with --store, "
                "what it has answered is kept)"
            )

    def _no_answer(self, error: Exception) -> ModelError:
        """Why the server does not answer, and what to do."""
        status = _status(error)
        if status == TOO_MANY:
            why = "limits the rate of requests (429); lower num_concurrent, or raise max_retries"
        elif isinstance(error, (requests.Timeout, TimeoutError, asyncio.TimeoutError)):
            lm: Any = self.lm
            why = f"does not answer within {lm.timeout} s; raise timeout= in --model_args, or lower num_concurrent"
        else:
            why = f"does not answer ({_reason(error)}); look at its messages"
        return ModelError(f"{self._url} {why}; with --store, what it has answered is kept")

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
        except (requests.RequestException, ModelError, LookupError, TypeError, ValueError, AssertionError) as error:
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

    def _answers(self) -> list[Answer]:
        """Greedy continuations of the probes, with their log-probabilities where the server gives them."""
        try:
            return [self._answer(prompt) for prompt in self._prompts]
        except requests.RequestException as error:
            raise self._no_answer(error) from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{self._url} gives no completions ({_reason(error)}); check base_url") from error

    def _answer(self, prompt: str) -> Answer:
        lm: Any = self.lm
        is_chat = self._config.model == CHAT
        message = [{"role": "user", "content": prompt}] if is_chat else prompt
        settings = {"max_gen_toks": PROBED_TOKENS, "until": []}
        payload = lm._create_payload(message, generate=True, gen_kwargs=settings)
        try:
            outputs = _post(self._url, {**payload, "logprobs": True if is_chat else 1}, lm.header)
        except requests.HTTPError as error:
            if _status(error) not in REFUSED:
                raise
            outputs = _post(self._url, payload, lm.header)  # a server that gives no log-probabilities
        (text,) = lm.parse_generations(outputs=outputs)
        return Answer(text, _logprob(outputs))

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
                lm.model = self._served(variant)
                if variant.adapter is not None:
                    self._proof.check_applied(variant.name, "look at the server's messages and its LoRA settings")
                yield {}
            finally:
                self.snapshot, lm.model = None, self.base

    def about(self) -> Mapping[str, Any]:
        """Nobody can tell what runs on the server."""
        return {}

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


def _aligned(
    parse: Callable[..., list[Any]], url: str, outputs: Any, tokens: Sequence[Sequence[int]], **options: Any
) -> list[Any]:
    """Log-probabilities of a reply; where they are of other tokens than were sent, a score would be another one's."""
    for reply in outputs if isinstance(outputs, list) else [outputs]:
        for choice, ids in zip(reply["choices"], tokens, strict=False):
            scores = choice["logprobs"]["token_logprobs"]
            if len(scores) != len(ids) + 1:  # one is generated
                raise ModelError(
                    f"{url} gives {len(scores)} log-probabilities for {len(ids)} tokens and a new one; does it use "
                    "another tokenizer, or a shorter context? set tokenizer= and max_length= in --model_args"
                )
    return parse(outputs=outputs, tokens=tokens, **options)


def _logprob(outputs: Any) -> float | None:
    """Log-probability of a generated text, in the form of completions or of chats; None where a reply has none."""
    given = outputs["choices"][0].get("logprobs")
    if not isinstance(given, Mapping):
        return None
    listed = given.get("token_logprobs")
    if listed is None:
        listed = [each.get("logprob") for each in given.get("content") or ()]
    numbers = [float(each) for each in listed if each is not None]
    return sum(numbers) if numbers else None


def _status(error: BaseException) -> int | None:
    """The status of a reply that was an error, of requests or aiohttp."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) if response is None else response.status_code
    return None if status is None else int(status)


def _asked_to_wait(error: BaseException) -> float:
    """Seconds that a server asks to wait for, within reason."""
    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    try:
        return min(LONGEST_WAIT, max(0.0, float(headers.get("Retry-After", 0))))
    except (TypeError, ValueError):  # a date
        return 0.0


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error):.150}"
