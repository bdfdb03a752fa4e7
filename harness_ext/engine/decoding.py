"""How transformers' `generate` would choose and stop for a prompt, taken from `generate` itself.

`generate` reads the model's generation_config.json, merges it with a task's settings, and builds logits processors and
stopping criteria. It then hands them to a decoding method, which a caller may supply (`custom_generate`). The one here
generates nothing: it returns what it was handed. So the tree decodes with the processors, criteria and limits that
`hf` decodes with, whatever the model and the transformers release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import EosTokenCriteria, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode, MaxLengthCriteria

from harness_ext.engine.finite import check_logits
from harness_ext.protocol.lm_eval_api import MultiTokenEOSCriteria

# They look at the scores of one step alone: one list serves all rows.
SCORE_PROCESSORS = frozenset(
    {
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinPLogitsWarper",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopHLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    }
)
# They also look at the tokens of their own row or at the length of its prompt: each row has its own list.
ROW_PROCESSORS = frozenset(
    {
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
    }
)
PLAIN_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class Preparation(NamedTuple):
    """What `generate` hands to its decoding method."""

    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig  # the model's, with the task's settings merged in
    prompt_tokens: int


class OwnGenerateError(Exception):
    """A model's own `generate` does not call the decoding method that it is given."""


def prepare(generate: Callable[..., Any], prompt: Sequence[int], *, device: torch.device) -> Preparation:
    """Let `generate` prepare itself for one prompt, without generating.

    Args:
        generate: calls the model's `generate` with `input_ids`, `attention_mask` and `custom_generate` as given.
        prompt: token ids, not empty.
        device: of the model.

    Raises:
        OwnGenerateError: the model has a `generate` of its own, which hands nothing over.
        ValueError, TypeError: as `generate` itself, for settings that it refuses.
    """
    prepared: list[Preparation] = []

    def record(
        model: Any,  # noqa: ARG001
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,  # noqa: ARG001
    ) -> Tensor:
        prepared.append(Preparation(logits_processor, stopping_criteria, generation_config, input_ids.shape[1]))
        return input_ids

    context = torch.tensor([list(prompt)], device=device)
    generate(context, attention_mask=torch.ones_like(context), custom_generate=record)
    if not prepared:
        raise OwnGenerateError
    return prepared[0]


def why_not_in_a_tree(preparation: Preparation) -> str | None:
    """Name what the tree decoder cannot honour of a preparation, or None when it honours all of it."""
    processors = [type(processor).__name__ for processor in preparation.processors]
    criteria = [type(criterion) for criterion in preparation.criteria]
    config = preparation.config
    others = [name for name in processors if name not in SCORE_PROCESSORS | ROW_PROCESSORS]
    others += [
        kind.__name__ for kind in criteria if kind not in (EosTokenCriteria, MaxLengthCriteria, MultiTokenEOSCriteria)
    ]
    mode = config.get_generation_mode()
    if others:
        return ", ".join(others)
    if mode not in PLAIN_MODES:
        return str(mode.value)
    if (config.num_return_sequences or 1) > 1 or config.return_dict_in_generate or config.token_healing:
        return "num_return_sequences, return_dict_in_generate or token_healing"
    if config.cache_implementation not in (None, "dynamic") or config.use_cache is False:
        return f"cache_implementation={config.cache_implementation}"
    return None


def look_at_rows(processors: LogitsProcessorList) -> bool:
    """Whether a processor looks at the tokens of its row, so that each prompt needs a preparation of its own."""
    return any(type(processor).__name__ in ROW_PROCESSORS for processor in processors)


@dataclass(frozen=True)
class TokenChoice:
    """Chooses each row's next token as transformers' `generate` does.

    Args:
        processors: of each prompt; the same list for all of them unless it looks at rows.
        do_sample: draw from the processed scores instead of taking the best.
    """

    processors: Sequence[LogitsProcessorList]
    do_sample: bool

    @classmethod
    def of(cls, preparations: Sequence[Preparation]) -> TokenChoice:
        """Choose as prepared, with one preparation for each prompt."""
        return cls([each.processors for each in preparations], bool(preparations[0].config.do_sample))

    def scores(self, logits: Tensor, prompts: Sequence[int], ids: Iterable[Sequence[int]]) -> Tensor:
        """Process logits (B, V) of B rows; returns scores (B, V) in float32.

        Args:
            logits: of each row's next token.
            prompts: number of each row's prompt.
            ids: tokens of each row so far, its prompt first.
        """
        raw = logits.to(copy=True, dtype=torch.float32)
        if not look_at_rows(self.processors[0]):
            scores: Tensor = self.processors[0](None, raw)  # one that looks at token ids after all cannot go unnoticed
            return scores
        rows = [
            self.processors[prompt](torch.tensor([list(row)], device=raw.device), raw[number : number + 1])
            for number, (prompt, row) in enumerate(zip(prompts, ids, strict=True))
        ]
        return torch.cat(rows)

    def __call__(self, logits: Tensor, prompts: Sequence[int], ids: Iterable[Sequence[int]]) -> Tensor:
        """Token ids (B,) from logits (B, V); the arguments are those of `scores`.

        Raises:
            ModelError: the scores are not finite numbers.
        """
        scores = self.scores(logits, prompts, ids)
        largest, best = scores.max(dim=-1)
        check_logits(largest)
        return torch.multinomial(scores.softmax(dim=-1), 1)[:, 0] if self.do_sample else best


class StopString(NamedTuple):
    """A stop string, and how many of the newest tokens lm-eval searches for it."""

    text: str
    lookback: int


@dataclass(frozen=True)
class StopRule:
    """When a row is finished: the criteria of `hf` for a batch of one."""

    end_ids: frozenset[int]
    stop_strings: tuple[StopString, ...]
    max_new_tokens: int
    decode: Callable[[Sequence[int]], str]  # with special tokens

    @classmethod
    def of(cls, preparation: Preparation, tokenizer: transformers.PreTrainedTokenizerBase) -> StopRule:
        """Read a preparation's criteria."""
        ends: set[int] = set()
        strings: list[StopString] = []
        for criterion in preparation.criteria:
            if isinstance(criterion, EosTokenCriteria):
                ends.update(criterion.eos_token_id.flatten().tolist())
            elif isinstance(criterion, MultiTokenEOSCriteria):
                strings.append(StopString(criterion.sequence, criterion.sequence_id_len))
        limit = preparation.config.max_length - preparation.prompt_tokens
        return cls(frozenset(ends), tuple(strings), limit, tokenizer.decode)

    def reason(self, tokens: Sequence[int]) -> Literal["stop", "length"] | None:
        """Why a row ends after these new tokens, or None when it goes on."""
        if tokens[-1] in self.end_ids or self._has_stop_string(tokens):
            return "stop"
        return "length" if len(tokens) >= self.max_new_tokens else None

    def _has_stop_string(self, tokens: Sequence[int]) -> bool:
        tails: dict[int, str] = {}
        for text, lookback in self.stop_strings:
            if lookback not in tails:
                tails[lookback] = self.decode(tokens[-lookback:])
            if text in tails[lookback]:
                return True
        return False
