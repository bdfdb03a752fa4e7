"""`hf-tree`: lm-eval's `hf` model with shared prefixes computed once. The same answers, several times sooner."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from harness_ext.cpu.fast_paths import use_fast_paths
from harness_ext.engine.answer_hook import AnswerHook, GenerationRecord, RequestKey
from harness_ext.engine.decoding import (
    OwnGenerateError,
    Preparation,
    StopRule,
    TokenChoice,
    look_at_rows,
    prepare,
    why_not_in_a_tree,
)
from harness_ext.engine.generated_answers import GeneratedAnswers, NotConfirmedError
from harness_ext.engine.generation import TreeDecoder
from harness_ext.engine.scoring import NanLogits, ScoredContinuation, score_continuations
from harness_ext.errors import ModelError, described, first_line
from harness_ext.models.adapters import adapter_folder
from harness_ext.models.attach import attach
from harness_ext.protocol.lm_eval_api import (
    HFLM,
    Instance,
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    register_model,
)
from harness_ext.trees.layout import PACK_TOKENS
from harness_ext.trees.packs import TokenPair, layout
from harness_ext.trees.support import LOW_PRECISION_TOLERANCE, SUPPORT_TOLERANCE, why_no_trees

logger = logging.getLogger(__name__)

CACHE_TOKENS = 8192

DELTA_WITH_ADAPTER = "delta= cannot be combined with an adapter; save the model with its delta and name it as the base"

Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("hf-tree")
class TreeLM(HFLM):
    """Drop-in for `hf`: takes its arguments, gives its answers at batch size 1.

    What a prefix tree cannot honour (a model, an adapter, a generation setting) takes `hf`'s own path, and one warning
    says so. The first requests of each kind are checked against a plain forward pass.

    Args:
        pack_tokens: pack size, tokens per forward pass.
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
        peft: str | None = None,
        **kwargs: Any,
    ) -> None:
        if peft is not None and kwargs.get("delta"):
            raise ModelError(DELTA_WITH_ADAPTER)
        super().__init__(*args, **kwargs)
        self._model.requires_grad_(False)
        use_fast_paths(self.model)
        self.merge = merge
        self.pack_tokens = int(pack_tokens)
        self.cache_tokens = int(cache_tokens)
        self.generation_records: dict[RequestKey, list[GenerationRecord]] = {}  # one for each repeat
        self._reasons: dict[str, str | None] = {}  # why the model as it stands takes no trees
        self._longest_checked: dict[str, int] = {}  # tokens: a longer sequence may be longer than a sliding window
        self._warnings: set[str] = set()
        if peft is not None:  # `hf` would tie weights again afterwards, and lose a trained head
            revision = kwargs.get("revision")
            attached = attach(
                self._model,
                adapter_folder(peft, revision=revision),
                base=str(self.pretrained),
                revision=revision,
                tokenizer=self.tokenizer,
                merge=merge,
            )
            self._model, self.peft = attached.model, peft

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            logger.warning("%s", message)

    # -- scoring -------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
        known: Mapping[int, ScoredContinuation] = MappingProxyType({}),
    ) -> list[tuple[float, bool]]:
        """Score requests; those that are known already, by number, are laid out with the others, but not computed."""
        if self.backend != "causal" or not requests or self._asks_for_other_numbers():
            return self._score_plainly(requests, disable_tqdm, override_bs, known)
        pairs = [self._cut(request) for request in requests]
        if not self.takes_trees(pairs):
            return self._score_plainly(requests, disable_tqdm, override_bs, known)
        scores = dict(known)
        lengths = [len(pair.context) + len(pair.continuation) for pair in pairs]
        bar = self._progress_bar(sum(lengths), disable_tqdm, "Running loglikelihood requests")
        bar.update(sum(lengths[number] for number in known))
        try:
            for pack in score_continuations(self.model, pairs, max_tokens=self.pack_tokens, known=known.keys()):
                scores |= pack
                for number, score in pack.items():
                    if (text := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", text, score)
                    bar.update(lengths[number])
                self._batch_done()
        except NanLogits as error:
            text = requests[error.sequence][0]
            raise ModelError(
                f"the model's logits are NaN for {(text or ('', ''))[0][-80:]!r}; try dtype=float32"
            ) from error
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            self._warn_once(
                f"prefix trees are disabled for scoring by {self._label}: a tree is refused ({described(error):.160})"
            )
            return self._score_plainly(requests, disable_tqdm, override_bs, known)
        finally:
            bar.close()
        return [scores[number] for number in range(len(requests))]

    def packs_of(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests that are scored together, in the order in which packs run."""
        pairs = [self._cut(request) for request in requests]
        trees = layout(pairs, max_tokens=self.pack_tokens, carry=True)
        return [[leaf.sequence for leaf in tree.leaves] for tree in trees]

    def _score_plainly(
        self,
        requests: list[Request],
        disable_tqdm: bool,
        override_bs: int | None,
        known: Mapping[int, ScoredContinuation],
    ) -> list[tuple[float, bool]]:
        """The scores of `hf` for what is not known."""
        others = [number for number in range(len(requests)) if number not in known]
        scores = super()._loglikelihood_tokens([requests[number] for number in others], disable_tqdm, override_bs)
        every = {**known, **dict(zip(others, scores, strict=True))}
        return [every[number] for number in range(len(requests))]

    def _batch_done(self) -> None:
        if isinstance(self.cache_hook, AnswerHook):
            self.cache_hook.batch_done()

    def _progress_bar(self, tokens: int, disabled: bool, description: str) -> Any:
        return tqdm(
            total=tokens,
            disable=disabled or self.rank != 0,
            desc=description,
            unit="tok",
            unit_scale=True,
            mininterval=1,
        )

    def _asks_for_other_numbers(self) -> bool:
        """Whether the passes are to be computed in another precision than the model's, which is left to `hf`."""
        softmax = self.softmax_dtype not in (None, torch.float32)
        for name in ["mixed_precision_dtype"] * bool(self.mixed_precision_dtype) + ["softmax_dtype"] * softmax:
            self._warn_once(f"prefix trees are disabled: {name}={getattr(self, name)} is applied by `hf`'s own path")
        return softmax or self.mixed_precision_dtype is not None

    def _cut(self, request: Request) -> TokenPair:
        """Context and continuation, the context shortened on the left as `hf` does."""
        text, context, continuation = request
        if not context:
            raise ModelError(
                f"the prompt before {(text or ('', ''))[1]!r:.60} has no tokens; give it some text or a prefix_token_id"
            )
        if not continuation:
            raise ModelError(f"the continuation {(text or ('', ''))[1]!r} has no tokens; give every choice some text")
        if len(continuation) > self.max_length:
            raise ModelError(
                f"a continuation of {len(continuation)} tokens is longer than the model ({self.max_length})"
            )
        whole = [*context, *continuation][-(self.max_length + 1) :]
        self._check_ids(whole)
        return TokenPair(whole[: len(whole) - len(continuation)], continuation)

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raise ModelError for a token that the model has no embedding for."""
        if (highest := max(ids)) >= (rows := self.model.get_input_embeddings().weight.shape[0]):
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise ModelError(
                f"the tokenizer gives {token!r} the id {highest}, and the model has {rows} embeddings; leave out "
                "tokenizer=, an adapter that brings tokens brings its tokenizer, too"
            )

    def takes_trees(self, pairs: Sequence[TokenPair], *, new_tokens: int = 0) -> bool:
        """Whether the model, with the adapter it has now, takes trees; decided on the first requests.

        Args:
            pairs: prompts and continuations to come.
            new_tokens: how many more tokens may follow each of them.
        """
        key = str(self.peft)
        longest = max(len(pair.context) + len(pair.continuation) for pair in pairs) + new_tokens
        if key not in self._reasons or (self._reasons[key] is None and longest > self._longest_checked[key]):
            self._longest_checked[key] = longest
            proven = None in self._reasons.values()  # with another adapter, or with shorter sequences
            self._reasons[key] = why_no_trees(self.model, pairs, longest=longest, proven=proven)
        if self._reasons[key] is not None:
            self._warn_once(f"prefix trees are disabled for {self._label}: {self._reasons[key]}")
        return self._reasons[key] is None

    @property
    def _label(self) -> str:
        return f"{self.pretrained}" + (f" with {self.peft}" if self.peft else "")

    # -- generation ----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate for each request until a stop string, an end token or the token limit."""
        if self.backend != "causal" or self._asks_for_other_numbers():
            return super().generate_until(requests, disable_tqdm)
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
        answers: list[str] = [""] * len(requests)
        for numbers in groups.values():
            group = [requests[number] for number in numbers]
            for number, answer in zip(numbers, self._generate_alike(group, disable_tqdm), strict=True):
                answers[number] = answer
        return answers

    def _generate_alike(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """Generate for requests that share their generation settings."""
        settings = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        prompts = self._prompt_ids([request.args[0] for request in requests], settings["max_gen_toks"])
        prepared = self._prepare(prompts, settings)
        if prepared is None:
            return super().generate_until(requests, disable_tqdm)
        rule = StopRule.of(prepared[0], self.tokenizer)
        pairs = [TokenPair(ids[:-1], ids[-1:]) for ids in prompts if len(ids) > 1]
        if not pairs or rule.max_new_tokens < 1 or not self.takes_trees(pairs, new_tokens=rule.max_new_tokens):
            return super().generate_until(requests, disable_tqdm)
        choice, stops = TokenChoice.of(prepared), self._stop_strings(settings)
        answers = GeneratedAnswers(
            requests,
            prompts,
            text_of=lambda tokens: self._text(tokens, stops),
            gap=None if choice.do_sample else lambda ids, tokens: self._replay_gap(ids, tokens, settings),
            tolerance=SUPPORT_TOLERANCE if self.model.dtype == torch.float32 else LOW_PRECISION_TOLERANCE,
            hook=self.cache_hook,
        )
        if not self._decode_all(answers, choice, rule, disable_tqdm):
            return super().generate_until(requests, disable_tqdm)
        finished = answers.finished()
        for request, (_, record) in zip(requests, finished, strict=True):
            self.generation_records.setdefault(RequestKey.of(request), []).append(record)
        return [answer for answer, _ in finished]

    def _stop_strings(self, settings: Any) -> list[str]:
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        return list(handle_stop_sequences(list(settings["until"]), eos=eos))

    def _prepare(self, prompts: Sequence[Sequence[int]], settings: Any) -> list[Preparation] | None:
        """What `generate` prepares for each prompt; one preparation for all where it does not depend on the prompt.

        Returns:
            None when `hf` has to generate by itself.
        """
        if "max_length" in settings or f"generation {self.peft}" in self._reasons:
            return None
        try:
            first = self._preparation(prompts[0], settings)
        except OwnGenerateError:
            self._warn_once(
                f"prefix trees are disabled for generation by {self._label}: it has a `generate` of its own"
            )
            return None
        if reason := why_not_in_a_tree(first):
            self._warn_once(f"prefix trees are disabled for generation with {reason}")
            return None
        if not look_at_rows(first.processors):
            return [first] * len(prompts)
        return [first, *(self._preparation(prompt, settings) for prompt in prompts[1:])]

    def _preparation(self, prompt: Sequence[int], settings: Any) -> Preparation:
        others = {name: value for name, value in settings.items() if name not in ("until", "max_gen_toks")}
        limit = len(prompt) + settings["max_gen_toks"]

        def generate(context: torch.Tensor, **how: Any) -> Any:
            how = {**others, **how}
            return self._model_generate(context, max_length=limit, stop=self._stop_strings(settings), **how)

        try:
            return prepare(generate, prompt, device=self.device)
        except (ValueError, TypeError) as error:
            reason = first_line(error)
            raise ModelError(
                f"transformers cannot generate with these settings ({reason:.200}); check --gen_kwargs, the task's "
                "generation_kwargs and the model's generation_config.json"
            ) from error

    @torch.no_grad()
    def _decode_all(self, answers: GeneratedAnswers, choice: TokenChoice, rule: StopRule, disable_tqdm: bool) -> bool:
        """Generate all answers; False when the model or its adapter refuses the decoder's passes, or fails a check."""
        prompts = answers.prompts
        tokens = sum(map(len, prompts)) + len(prompts) * rule.max_new_tokens
        bar = self._progress_bar(tokens, disable_tqdm, "Running generate_until requests")
        decoder = TreeDecoder(self.model, choice=choice, rule=rule, cache_tokens=self.cache_tokens, progress=bar.update)
        try:
            for number, generated in decoder.run(prompts, prefill_tokens=self.pack_tokens):
                answers.add(number, generated)
            answers.confirm()
        except NotConfirmedError as error:
            self._generate_plainly(str(error))
            return False
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            self._generate_plainly(f"a tree with a cache is refused ({described(error):.160})")
            return False
        finally:
            bar.close()
        return True

    def _generate_plainly(self, reason: str) -> None:
        """Leave all generation by this model, with the adapter it has now, to `hf`."""
        if isinstance(self.cache_hook, AnswerHook):
            self.cache_hook.retract()
        self._reasons[f"generation {self.peft}"] = reason
        self._warn_once(f"prefix trees are disabled for generation by {self._label}: {reason}")

    @torch.no_grad()
    def _replay_gap(self, ids: list[int], tokens: list[int], settings: Any) -> float:
        """How far the scores of generated tokens lie below the best ones in a plain pass over prompt and answer.

        Processors are prepared for this prompt anew and see one row at a time, so a mix-up of rows shows, too.
        """
        processors = self._preparation(ids, settings).processors
        whole = torch.tensor([ids + tokens], device=self.device)
        logits = self.model(whole[:, :-1]).logits[0, len(ids) - 1 :].float()  # (tokens, V)
        rows = [processors(whole[:, : len(ids) + n], logits[n : n + 1]) for n in range(len(tokens))]
        scores = torch.cat(rows)
        taken = scores.gather(1, whole[0, len(ids) :, None])[:, 0]
        return float((scores.amax(dim=-1) - taken).nan_to_num(nan=torch.inf).max())

    def _prompt_ids(self, contexts: list[str], max_gen_toks: int) -> list[list[int]]:
        """Encode prompts as `hf` does for generation, each by itself, shortened on the left."""
        if (longest := self.max_length - max_gen_toks) <= 0:
            raise ModelError(f"max_gen_toks leaves no room for a prompt in {self.max_length} tokens; lower it")
        prompts = []
        for context in contexts:
            ids = self.tok_batch_encode([context], left_truncate_len=longest, truncation=bool(self.truncation))[0]
            prompts.append([int(token) for token in ids[0].tolist()])
            if not prompts[-1]:
                raise ModelError(f"the prompt {context!r:.60} has no tokens; give it some text")
            self._check_ids(prompts[-1])
        return prompts

    def _text(self, tokens: list[int], stops: list[str]) -> str:
        """Turn an answer's tokens into text as `hf` does."""
        think = self.think_end_token
        if isinstance(think, int) and think in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(think) :]
        text = self.tok_decode(tokens)
        answer: str = postprocess_generated_text(
            text.lstrip() if isinstance(think, int) else text,
            stop=stops,
            think_end_token=think if isinstance(think, str) else None,
        )
        return answer
