"""`llama-cpp`: a GGUF model in this process, by `llama-cpp-python`, as a model of lm-eval.

```
requests ──token ids──> sorted, so that neighbours share prefixes ──> LlamaEngine ──logits──> scores, greedy answers
                                                                        └─ one sequence, whose cache keeps the prefix
```
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tqdm import tqdm
from transformers.utils.chat_template_utils import render_jinja_template

from harness_ext.engine.answer_hook import AnswerHook, GenerationRecord, RequestKey
from harness_ext.engine.decoding import StopRule, StopString
from harness_ext.engine.generation import Generated
from harness_ext.engine.scoring import ScoredContinuation
from harness_ext.errors import AdapterError, ModelError, first_line, suggest
from harness_ext.models.gguf_file import GgufFile, check_config, check_tokenizer, read_gguf
from harness_ext.protocol.lm_eval_api import (
    Instance,
    TemplateLM,
    get_rolling_token_windows,
    handle_stop_sequences,
    make_disjoint_window,
    normalize_gen_kwargs,
    postprocess_generated_text,
    register_model,
)
from harness_ext.protocol.token_settings import check_appends_nothing
from harness_ext.reading.json_input import read_json_object
from harness_ext.trees.layout import shared_prefix_length

logger = logging.getLogger(__name__)

LONGEST = 8192  # tokens of a context, unless max_length says otherwise; its cache is reserved at once
SET_BY_US = ("model_path", "lora_path", "logits_all", "embedding", "draft_model", "tokenizer", "n_ctx", "vocab_only")
WITHOUT_SAMPLING = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p"}


class LlamaEngine:
    """A GGUF model in llama.cpp, and one sequence: what the next one shares with it is not computed again.

    Args:
        path: of the GGUF file.
        n_ctx: tokens that a sequence may have.
        options: of `llama_cpp.Llama`, such as `n_threads`, `n_gpu_layers` or `flash_attn`.

    Raises:
        ModelError: llama-cpp-python is not installed, an option is unknown, or llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, n_ctx: int, **options: Any) -> None:
        self._llama = llama = _llama_cpp()
        known = [name for name in inspect.signature(llama.Llama.__init__).parameters if name not in SET_BY_US]
        for name in options:
            if name not in known or name in ("self", "kwargs"):
                raise ModelError(f"--model llama-cpp takes no argument {name!r}{suggest(name, known)}")
        try:
            self._model = llama.Llama(str(path), n_ctx=n_ctx, verbose=False, **options)
        except Exception as error:  # whatever the binding raises of a file, an argument or memory
            raise ModelError(
                f"llama.cpp cannot load {path} ({type(error).__name__}: {first_line(error):.160}); its architecture "
                "may need a newer llama-cpp-python, or its context too much memory (max_length=)"
            ) from error
        if llama.llama_model_has_encoder(self._model.model):
            raise ModelError(f"{path} is an encoder, or has one; --model llama-cpp evaluates decoders")
        self._vocab = llama.llama_model_get_vocab(self._model.model)
        self._memory = llama.llama_get_memory(self._model.ctx)
        self._batch = llama.llama_batch_init(self._model.n_batch, 0, 1)
        self._loras: dict[str, Any] = {}
        self._cached: list[int] = []
        self.vocabulary: int = self._model.n_vocab()
        self.end_ids = frozenset(
            token for token in range(self.vocabulary) if llama.llama_vocab_is_eog(self._vocab, token)
        )

    def use(self, lora: str | None) -> None:
        """Put a LoRA adapter on the model, or take it off.

        Raises:
            AdapterError: llama.cpp refuses it.
        """
        llama = self._llama
        if lora is not None and lora not in self._loras:
            self._loras[lora] = llama.llama_adapter_lora_init(self._model.model, lora.encode())
            if not self._loras[lora]:
                del self._loras[lora]
                raise AdapterError(f"llama.cpp cannot load {lora}; convert the adapter again, on this base")
        chosen = [] if lora is None else [self._loras[lora]]
        adapters = (llama.llama_adapter_lora_p_ctypes * max(1, len(chosen)))(*chosen)
        scales = (ctypes.c_float * max(1, len(chosen)))(*[1.0] * len(chosen))
        if llama.llama_set_adapters_lora(self._model.ctx, adapters, len(chosen), scales):
            raise AdapterError(f"llama.cpp cannot put {lora or 'no adapter'} on the model")
        self._forget()

    def _forget(self) -> None:
        self._cached = []
        self._llama.llama_memory_clear(self._memory, True)

    def logits(self, ids: Sequence[int], count: int) -> Iterator[np.ndarray]:
        """Logits (V,) in float32 behind each of the last tokens; each is valid until the next.

        Args:
            ids: tokens of the sequence, at least one.
            count: of how many of the last ones.

        Raises:
            ModelError: llama.cpp fails.
        """
        llama, batch = self._llama, self._batch
        kept = min(shared_prefix_length(self._cached, list(ids)), len(ids) - count)
        if not llama.llama_memory_seq_rm(self._memory, 0, kept, -1):  # a recurrent model cannot go back
            kept = 0
            self._forget()
        self._cached = list(ids[:kept])
        for start in range(kept, len(ids), self._model.n_batch):
            part = ids[start : start + self._model.n_batch]
            batch.n_tokens = len(part)
            for place, token in enumerate(part):
                batch.token[place], batch.pos[place] = token, start + place
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                batch.logits[place] = start + place >= len(ids) - count
            if code := llama.llama_decode(self._model.ctx, batch):
                self._forget()
                raise ModelError(f"llama.cpp cannot compute {len(ids)} tokens (llama_decode returns {code})")
            self._cached += part
            for place in range(max(0, len(ids) - count - start), len(part)):
                row = llama.llama_get_logits_ith(self._model.ctx, place)
                yield np.ctypeslib.as_array(row, shape=(self.vocabulary,))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids by the GGUF's own tokenizer."""
        tokens: list[int] = self._model.tokenize(text.encode(), add_bos=add_special, special=True)
        return tokens

    def detokenize(self, ids: Sequence[int], *, special: bool) -> str:
        """Text of tokens."""
        return str(self._model.detokenize(list(ids), special=special).decode("utf-8", "replace"))

    def token_id(self, name: str) -> int | None:
        """Id of a special token: bos or eos; None where the vocabulary has none."""
        token = int(getattr(self._llama, f"llama_vocab_{name}")(self._vocab))
        return token if token >= 0 else None


class GgufTokenizer:
    """A GGUF's own tokenizer and chat template, with the interface that lm-eval uses of transformers' tokenizers."""

    def __init__(self, engine: LlamaEngine, file: GgufFile) -> None:
        self._engine = engine
        self.name_or_path = str(file.path)
        self.chat_template = file.metadata.get("tokenizer.chat_template")
        self.bos_token_id, self.eos_token_id = engine.token_id("bos"), engine.token_id("eos")
        self.unk_token_id = file.metadata.get("tokenizer.ggml.unknown_token_id")
        self.all_special_ids = [each for each in (self.bos_token_id, *sorted(engine.end_ids)) if each is not None]
        self._tokens = file.tokens

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; special tokens as the GGUF says."""
        return self._engine.tokenize(text, add_special=add_special_tokens)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """As transformers' tokenizers."""
        return {"input_ids": self.encode(text, add_special_tokens)}

    def decode(self, ids: Sequence[int] | int, skip_special_tokens: bool = False) -> str:
        """Text of tokens."""
        return self._engine.detokenize([ids] if isinstance(ids, int) else ids, special=not skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary writes them."""
        return [self._tokens[token] for token in ids]

    def apply_chat_template(self, chat: Any, *, tokenize: bool = False, **options: Any) -> str:
        """A chat as text."""
        assert not tokenize
        ends = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        named = {name: "" if token is None else self._tokens[token] for name, token in ends.items()}
        texts, _ = render_jinja_template(conversations=[chat], chat_template=self.chat_template, **options, **named)
        return str(texts[0])


@register_model("llama-cpp")
class LlamaCppLM(TemplateLM):
    """A GGUF model in llama.cpp: scores continuations, and generates greedily.

    Args:
        pretrained: the GGUF file.
        tokenizer: folder or Hub id that encodes requests; the GGUF's own tokenizer, if left out.
        max_length: tokens of prompt and answer; what the model was trained on, but at most 8192, if left out.
        max_gen_toks: of an answer, where its task does not say.
        add_bos_token: as in lm-eval's `hf`.
        prefix_token_id: in front of a continuation without context.
        trust_remote_code: of the tokenizer.
        options: of `llama_cpp.Llama`.

    Raises:
        ModelError: the file is an adapter or cannot be loaded, or the tokenizer is that of another model.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        tokenizer: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        trust_remote_code: bool = False,
        batch_size: Any = 1,  # noqa: ARG002  it takes one sequence at a time
        max_batch_size: Any = None,  # noqa: ARG002
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.file = read_gguf(Path(pretrained).expanduser())
        if self.file.is_adapter:
            raise ModelError(f"{pretrained} is a LoRA adapter; name its base here, and the adapter with --adapters")
        options.setdefault("n_gpu_layers", 0 if str(device or "cpu").startswith("cpu") else -1)
        trained = self.file.metadata.get(f"{self.file.architecture}.context_length", LONGEST)
        self.max_length = int(max_length or min(int(trained), LONGEST))
        self.engine = LlamaEngine(self.file.path, n_ctx=self.max_length, **options)
        self.tokenizer = self._tokenizer(tokenizer, trust_remote_code)
        self.add_bos_token = add_bos_token
        self.max_gen_toks = int(max_gen_toks)
        self._prefix_token_id = prefix_token_id
        self.generation_records: dict[RequestKey, list[GenerationRecord]] = {}  # one for each repeat
        check_appends_nothing(self.tokenizer, str(tokenizer or pretrained), add_bos_token=add_bos_token)

    def _tokenizer(self, named: str | None, trusts: bool) -> Any:
        if named is None:
            return GgufTokenizer(self.engine, self.file)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(named, trust_remote_code=trusts)
        except Exception as error:  # whatever transformers raises of a folder or a name
            raise ModelError(f"tokenizer={named} cannot be loaded ({first_line(error):.160})") from error
        check_tokenizer(self.file, tokenizer, named)
        if (config := Path(named).expanduser() / "config.json").is_file():
            check_config(self.file, read_json_object(config), named)
        return tokenizer

    def get_model_info(self) -> dict[str, Any]:
        """For the results, under the names that lm-eval's `hf` uses."""
        parameters = sum(int(np.prod(shape)) for shape in self.file.shapes.values())
        return {
            "model_num_parameters": parameters,
            "model_dtype": self.file.quantisation,
            "model_sha": self.file.sha256(),
        }

    # -- text and tokens -----------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """In front of a continuation without context: the begin token, else the end token, as in `hf`."""
        if self._prefix_token_id is not None:
            return int(self._prefix_token_id)
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with special tokens as in `hf`: none are added to a text that begins with the begin token."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        add = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return list(self.tokenizer.encode(string, **({} if add is None else {"add_special_tokens": add})))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, by the tokenizer's template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # -- scoring -------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        scores: dict[int, ScoredContinuation] = {}
        order = sorted(range(len(requests)), key=lambda number: requests[number][1] + requests[number][2])
        for number in tqdm(order, disable=disable_tqdm, desc="Running loglikelihood requests"):
            text, context, continuation = requests[number]
            scores[number] = self.score(context, continuation)
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, scores[number])
        return [scores[number] for number in range(len(requests))]

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> ScoredContinuation:
        """Log-probability of a continuation; the context is shortened on the left as in `hf`."""
        if not context or not continuation:
            raise ModelError("a prompt or a choice has no tokens; give it some text")
        if len(continuation) > self.max_length:
            raise ModelError(
                f"a continuation of {len(continuation)} tokens is longer than the model ({self.max_length})"
            )
        ids = [*context, *continuation][-(self.max_length + 1) :]
        logprob, is_greedy = 0.0, True
        for row, token in zip(self.engine.logits(ids[:-1], len(continuation)), continuation, strict=True):
            best = float(row.max())
            logprob += float(row[token]) - best - float(np.log(np.exp(row - best, dtype=np.float64).sum()))
            is_greedy = is_greedy and int(row.argmax()) == token
        if np.isnan(logprob):
            raise ModelError(f"the logits of {self.file.path} are NaN; convert the model again")
        return ScoredContinuation(logprob, is_greedy)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in windows of `max_length`."""
        scores = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Running loglikelihood_rolling requests"):
            (text,) = request.args[-1:]
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            asked = [(None, *make_disjoint_window(window)) for window in windows]
            scores.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(asked, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), scores[-1])
        return scores

    # -- generation ----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each until a stop string, an end token or the token limit."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        answers: dict[int, str] = {}
        records: dict[int, GenerationRecord] = {}
        order = sorted(range(len(requests)), key=prompts.__getitem__)
        for number in tqdm(order, disable=disable_tqdm, desc="Running generate_until requests"):
            args = requests[number].args
            answers[number], records[number] = self._answer(prompts[number], args[1])
            if isinstance(self.cache_hook, AnswerHook):
                self.cache_hook.add("generate_until", args, answers[number], records[number])
            else:
                self.cache_hook.add_partial("generate_until", args, answers[number])
        for number, request in enumerate(requests):
            self.generation_records.setdefault(RequestKey.of(request), []).append(records[number])
        return [answers[number] for number in range(len(requests))]

    def _answer(self, prompt: list[int], settings: Mapping[str, Any]) -> tuple[str, GenerationRecord]:
        how = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        if (setting := unsupported_setting(how)) is not None:
            raise ModelError(unsupported_message(setting))
        if (longest := self.max_length - how["max_gen_toks"]) <= 0:
            raise ModelError(f"max_gen_toks leaves no room for a prompt in {self.max_length} tokens; lower it")
        prompt = prompt[-longest:]
        if not prompt:
            raise ModelError("a prompt has no tokens; give it some text")
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stops = list(handle_stop_sequences(list(how["until"]), eos=eos))
        generated = self.generate(prompt, stops, how["max_gen_toks"])
        text = self.tokenizer.decode(generated.tokens, skip_special_tokens=True)
        answer = postprocess_generated_text(generation=text, stop=stops, think_end_token=None)
        return answer, GenerationRecord(generated.finish_reason, len(prompt), len(generated.tokens))

    def generate(self, prompt: Sequence[int], stops: Sequence[str], max_new_tokens: int) -> Generated:
        """Greedy tokens behind a prompt, with what ended them; stop strings are found where `hf` finds them."""
        rule = StopRule(
            self.engine.end_ids | {self.eot_token_id},
            tuple(StopString(stop, len(self.tokenizer.encode(stop, add_special_tokens=False)) + 2) for stop in stops),
            max_new_tokens,
            self.tokenizer.decode,
        )
        tokens: list[int] = []
        while True:
            (row,) = self.engine.logits([*prompt, *tokens], 1)
            tokens.append(int(row.argmax()))
            if not np.isfinite(row[tokens[-1]]):
                raise ModelError(f"the logits of {self.file.path} are not finite; convert the model again")
            if (reason := rule.reason(tokens)) is not None:
                return Generated(tokens, reason)


def unsupported_setting(settings: Mapping[str, Any]) -> str | None:
    """A generation setting that only sampling or another decoder could honour; None where there is none."""
    if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
        return "do_sample"
    neutral = {"num_beams": 1, "repetition_penalty": 1, "num_return_sequences": 1, "frequency_penalty": 0}
    others = (name for name in settings if name not in WITHOUT_SAMPLING)
    return next((name for name in others if settings[name] not in (None, neutral.get(name))), None)


def unsupported_message(setting: str) -> str:
    """What to say of such a setting."""
    return f"--model llama-cpp generates greedily and does not honour {setting}; leave it out, or use hf-tree"


def _llama_cpp() -> Any:
    try:
        return importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:  # the binding raises them for a library that does not load
        raise ModelError(
            f"--model llama-cpp needs llama-cpp-python, which cannot be imported ({first_line(error):.120}); install "
            "it with `pip install 'harness-ext[llama-cpp]'`"
        ) from error
