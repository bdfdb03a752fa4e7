"""`hf-tree`: lm-eval's `hf` model with shared prefixes computed once. The same answers, several times sooner."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from tqdm import tqdm
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from harness_ext.engine.generation import Generated, Sampler, StopRule, TreeDecoder
from harness_ext.engine.scoring import NanLogits, ScoredContinuation, score_continuations
from harness_ext.errors import ModelError
from harness_ext.models.adapters import AdapterSwitch
from harness_ext.models.fast_paths import use_fast_paths
from harness_ext.models.forward import LOW_PRECISION_TOLERANCE, SUPPORT_TOLERANCE, TokenPair, why_no_trees

logger = logging.getLogger(__name__)

PACK_TOKENS = 1024
CACHE_TOKENS = 8192
WARPERS = {"temperature", "top_k", "top_p", "min_p"}
GENERATION_KEYS = WARPERS | {"do_sample", "until", "max_gen_toks"}

Request = tuple[tuple[str, str] | None, list[int], list[int]]


class GenerationRecord(NamedTuple):
    """What lm-eval does not keep of a generation."""

    finish_reason: str  # stop or length
    input_tokens: int
    output_tokens: int


@register_model("hf-tree")
class TreeLM(HFLM):
    """Drop-in for `hf`: takes its arguments, gives its answers.

    A model that cannot take prefix trees, and generation settings beyond greedy and plain sampling, go the way of `hf`;
    this is said once. The first requests of each kind are checked against a plain forward pass.

    Args:
        pack_tokens: tokens of one forward pass.
        cache_tokens: slots of the KV cache in generation.
        merge: add an adapter into the base's weights while it is evaluated: faster, and equal up to rounding.
    """

    _model: Any

    def __init__(
        self,
        *args: Any,
        pack_tokens: int = PACK_TOKENS,
        cache_tokens: int = CACHE_TOKENS,
        merge: bool = False,
        **kwargs: Any,
    ) -> None:
        self.merge = merge  # loading the model asks for it
        super().__init__(*args, **kwargs)
        use_fast_paths(self.model)
        self.pack_tokens = int(pack_tokens)
        self.cache_tokens = int(cache_tokens)
        self.generation_records: dict[str, GenerationRecord] = {}
        self._reasons: dict[str, str | None] = {}  # why the model as it stands takes no trees
        self._longest_checked = 0  # tokens: a longer sequence may be longer than a sliding window

    def _create_model(self, *args: Any, peft: str | None = None, **kwargs: Any) -> None:
        """Load the base as `hf` does, and put the adapter on it without resizing the base's embedding."""
        super()._create_model(*args, **kwargs)
        self._model.requires_grad_(False)
        if peft is not None:
            switch = AdapterSwitch(self._model, merge=self.merge)
            switch.attach(peft, base=str(args[0] if args else kwargs["pretrained"]))
            switch.activate(peft)
            self._model = switch.model

    # -- scoring -------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(request) for request in requests]
        if not pairs or not self._takes_trees(pairs):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        scores: list[ScoredContinuation | None] = [None] * len(pairs)
        bar = tqdm(total=len(pairs), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")
        try:
            for number, score in score_continuations(self.model, pairs, max_tokens=self.pack_tokens):
                scores[number] = score
                if (text := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", text, score)
                bar.update()
        except NanLogits as error:
            text = requests[error.sequence][0]
            raise ModelError(
                f"the model's logits are NaN for {(text or ('', ''))[0][-80:]!r}; try dtype=float32"
            ) from error
        bar.close()
        return [score for score in scores if score is not None]

    def _cut(self, request: Request) -> TokenPair:
        """Context and continuation, the context shortened on the left as `hf` does."""
        text, context, continuation = request
        if not continuation:
            raise ModelError(f"the continuation {(text or ('', ''))[1]!r} has no tokens; give every choice some text")
        if len(continuation) > self.max_length:
            raise ModelError(
                f"a continuation of {len(continuation)} tokens is longer than the model ({self.max_length})"
            )
        whole = [*context, *continuation][-(self.max_length + 1) :]
        return TokenPair(whole[: len(whole) - len(continuation)], continuation)

    def _takes_trees(self, pairs: Sequence[TokenPair]) -> bool:
        """Whether the model, with the adapter it has now, takes trees; found out on the first requests."""
        key = str(self.peft)
        longest = max((len(pair.context) + len(pair.continuation) for pair in pairs), default=0)
        if key not in self._reasons or (self._reasons[key] is None and longest > self._longest_checked):
            self._longest_checked = max(self._longest_checked, longest)
            proven = None in self._reasons.values()  # with another adapter, or with shorter sequences
            self._reasons[key] = why_no_trees(self.model, pairs, proven=proven)
            if self._reasons[key] is not None:
                logger.warning("%s goes without prefix trees: %s", self.pretrained, self._reasons[key])
        return self._reasons[key] is None

    # -- generation ----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate for each request until a stop string, an end token or the token limit."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
        answers: list[str] = [""] * len(requests)
        for numbers in groups.values():
            chosen = [requests[number] for number in numbers]
            for number, answer in zip(numbers, self._generate_alike(chosen, disable_tqdm), strict=True):
                answers[number] = answer
        return answers

    def _generate_alike(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """Generate for requests that share their generation settings."""
        settings = requests[0].args[1]
        kwargs = normalize_gen_kwargs(settings, self.max_gen_toks)
        if unknown := kwargs.keys() - GENERATION_KEYS:
            logger.warning("generation with %s goes without prefix trees", ", ".join(sorted(unknown)))
            return self._generate_plainly(requests, disable_tqdm)
        stops = handle_stop_sequences(
            kwargs["until"], eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        limit = kwargs["max_gen_toks"]
        prompts = self._prompt_ids([request.args[0] for request in requests], self.max_length - limit)
        pairs = [TokenPair(ids[:-1], ids[-1:]) for ids in prompts if len(ids) > 1]
        if not pairs or not self._takes_trees(pairs) or self._reasons.get(f"generation {self.peft}") is not None:
            return self._generate_plainly(requests, disable_tqdm)
        rule = StopRule(self._end_ids(), tuple(stop for stop in stops if stop), limit, self._decode_text)
        decoder = TreeDecoder(self.model, sampler=_sampler(kwargs), rule=rule, cache_tokens=self.cache_tokens)
        answers = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        for number, generated in decoder.run(prompts, prefill_tokens=self.pack_tokens):
            if not kwargs.get("do_sample") and not self._confirmed(prompts[number], generated):
                bar.close()
                return self._generate_plainly(requests, disable_tqdm)
            answers[number] = self._answer(generated, stops)
            self._keep_record(requests[number], len(prompts[number]), generated)
            self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
            bar.update()
        bar.close()
        return answers

    def _generate_plainly(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        return super().generate_until(requests, disable_tqdm)

    def _confirmed(self, prompt: list[int], generated: Generated) -> bool:
        """Whether a plain pass over the first greedy answer of this model (and adapter) chooses the same tokens."""
        key = f"generation {self.peft}"
        if key not in self._reasons:
            ids = torch.tensor([prompt + generated.tokens], device=self.device)
            with torch.no_grad():
                logits = self.model(ids[:, :-1]).logits[0, len(prompt) - 1 :].float()  # (tokens, V)
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            gap = float((logits.amax(dim=-1) - chosen).max())
            tolerance = SUPPORT_TOLERANCE if self.model.dtype == torch.float32 else LOW_PRECISION_TOLERANCE
            self._reasons[key] = None if gap <= tolerance else f"its cached answers differ ({gap:.2g} nats)"
            if self._reasons[key] is not None:
                logger.warning("%s generates without prefix trees: %s", self.pretrained, self._reasons[key])
        return self._reasons[key] is None

    def _prompt_ids(self, contexts: list[str], longest: int) -> list[list[int]]:
        """Encode prompts as `hf` does for generation, shortened on the left."""
        if longest <= 0:
            raise ModelError(f"max_gen_toks leaves no room for a prompt in {self.max_length} tokens; lower it")
        special: dict[str, bool] = {}
        if has_bos_prefix(contexts[0], getattr(self.tokenizer, "bos_token", None)):
            special = {"add_special_tokens": False}
        elif self.add_bos_token is not None:
            special = {"add_special_tokens": self.add_bos_token}
        ids: list[list[int]] = self.tokenizer(contexts, **special)["input_ids"]
        return [each[-longest:] for each in ids]

    def _end_ids(self) -> frozenset[int]:
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return frozenset(token for token in [*listed, self.tokenizer.eos_token_id] if token is not None)

    def _decode_text(self, tokens: list[int]) -> str:
        text: str = self.tok_decode(tokens)
        return text

    def _answer(self, generated: Generated, stops: list[str]) -> str:
        think = self.think_end_token
        text = self._decode_text(generated.tokens)
        answer: str = postprocess_generated_text(
            text, stop=stops, think_end_token=think if isinstance(think, str) else None
        )
        return answer

    def _keep_record(self, request: Instance, input_tokens: int, generated: Generated) -> None:
        record = GenerationRecord(generated.finish_reason, input_tokens, len(generated.tokens))
        self.generation_records[record_key(*request.args)] = record


def record_key(context: str, settings: Any) -> str:
    """Identify a generation request by its arguments."""
    return json.dumps([context, settings], sort_keys=True, default=str)


def _sampler(kwargs: dict[str, Any]) -> Sampler:
    """Greedy choice, or sampling by transformers' own warpers."""
    if not kwargs.get("do_sample"):
        return lambda logits: logits.argmax(dim=-1)
    makers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    warpers = LogitsProcessorList([make(kwargs[name]) for name, make in makers.items() if kwargs.get(name) is not None])

    def sample(logits: torch.Tensor) -> torch.Tensor:
        probabilities = warpers(None, logits.float()).softmax(dim=-1)
        return torch.multinomial(probabilities, 1)[:, 0]

    return sample
