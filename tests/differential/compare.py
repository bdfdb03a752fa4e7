"""Compare one variant's samples, ours against those of `hf`, and say what differs without a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text

from differential.cases import Case, TaskCase
from differential.stock import Generation, RecordingHF, StockRun

Sample = Mapping[str, Any]


def tolerance(case: Case, value: float) -> float:
    """How far a log-probability may be off, in nats."""
    if case.loose:
        return 0.2 + 0.03 * abs(value)
    return (2e-3 if case.merged else 1e-3) + 1e-5 * abs(value)


def compare_task(case: Case, number: int, stock: StockRun, ours: Mapping[str, Any]) -> list[str]:
    """What is different between one task's results under `hf` and ours, a line for each."""
    name, task = f"task_{number}", case.tasks[number]
    comparison = _TaskComparison(case, task, stock.lm)
    problems = list(comparison.problems(stock.samples[name], ours["samples"][name]))
    if not problems and not comparison.excused:
        problems = list(_aggregates(case, stock.results[name], ours["results"][name]))
    return [f"{name} ({task.kind}): {problem}" for problem in problems]


class _TaskComparison:
    """The samples of one task; remembers whether a near tie excused anything."""

    def __init__(self, case: Case, task: TaskCase, lm: RecordingHF | None) -> None:
        self.case, self.task, self.lm = case, task, lm
        self.excused = False
        settings = {**task.generation, **case.gen_kwargs}
        self.sampled = bool(settings.get("do_sample", settings.get("temperature", 0) > 0))
        self.sampled = self.sampled and settings.get("top_k") != 1

    def problems(self, stock: Sequence[Sample], ours: Sequence[Sample]) -> Iterator[str]:
        pairs = {(sample["doc_id"], sample["filter"]): sample for sample in ours}
        if len(pairs) != len(stock):
            yield f"{len(stock)} samples, ours {len(pairs)}"
            return
        for sample in stock:
            other = pairs[sample["doc_id"], sample["filter"]]
            where = f"document {sample['doc_id']}"
            if _texts(sample) != _texts(other):
                yield f"{where}: prompt {_texts(sample)!r:.300}, ours {_texts(other)!r:.300}"
                continue
            before, self.near = self.excused, False
            found = list(self._responses(sample, other)) + list(self._records(sample, other))
            yield from (f"{where}: {problem}" for problem in found)
            if not found and not self.near and not self.sampled:
                yield from (f"{where}: {problem}" for problem in self._metrics(sample, other))
            self.excused = before or self.near or self.sampled

    def _responses(self, stock: Sample, ours: Sample) -> Iterator[str]:
        for number, (left, right) in enumerate(zip(stock["resps"], ours["resps"], strict=True)):
            if len(left) != len(right):
                yield f"{len(left)} responses, ours {len(right)}"
            for one, other in zip(left, right, strict=False):
                if self.task.kind == "generate_until":
                    yield from self._text(stock["arguments"][0][0], one, other)
                else:
                    yield from self._score(stock["arguments"][number], one, other)

    # -- log-probabilities ---------------------------------------------------------------------------------------

    def _score(self, arguments: Sequence[str], stock: Any, ours: Any) -> Iterator[str]:
        ours = _number(ours)
        if self.task.kind == "loglikelihood_rolling":
            stock, ours = (stock, None), (ours, None)
        if not _close(stock[0], ours[0], tolerance(self.case, stock[0])):
            yield f"log-probability of {arguments[-1]!r:.60} {stock[0]:.5f}, ours {ours[0]:.5f}"
        elif stock[1] != ours[1]:
            if self._greedy_gap(*arguments) < tolerance(self.case, 0.0):
                self.near = True
            else:
                yield f"is_greedy of {arguments[-1]!r:.60} {stock[1]}, ours {ours[1]}"

    def _greedy_gap(self, context: str, continuation: str) -> float:
        """The smallest distance between the best and the second best token along a continuation."""
        lm = self.lm
        if lm is None or lm.backend != "causal":
            return math.inf
        ids, target = [lm.prefix_token_id], lm.tok_encode(continuation)
        if context:
            ids, target = lm._encode_pair(context, continuation)
        whole = torch.tensor([[*ids, *target][-(lm.max_length + 1) :][:-1]])
        best = lm._model_call(whole)[0, -len(target) :].float().topk(2, dim=-1).values
        return float((best[:, 0] - best[:, 1]).min())

    # -- texts ---------------------------------------------------------------------------------------------------

    def _text(self, prompt: str, stock: str, ours: str) -> Iterator[str]:
        if self.sampled:
            yield from self._support(prompt, ours)
        elif stock != ours:
            if self._explained(prompt, stock, ours):
                self.near = True
            else:
                yield f"text {stock!r}, ours {ours!r}"

    def _generations(self, prompt: str, text: str) -> list[Generation]:
        """Those of a prompt that end in a given text."""
        if self.lm is None:
            return []
        ends = [generation for generation in self.lm.generations[prompt] if self._leads_to(generation, text)]
        return ends or self.lm.generations[prompt]

    def _leads_to(self, generation: Generation, text: str) -> bool:
        assert self.lm is not None
        decoded = self.lm.tok_decode(generation.tokens)
        return text in decoded or postprocess_generated_text(decoded, [], None) == text

    def _explained(self, prompt: str, stock: str, ours: str) -> bool:
        """Whether two scores were as good as equal at or before the first token that differs."""
        differing = (number for number, (a, b) in enumerate(zip(stock, ours, strict=False)) if a != b)
        common = next(differing, min(len(stock), len(ours)))
        for generation in self._generations(prompt, stock):
            last = self._tokens_within(generation, common)
            if self.lm is not None and self.lm.think_end_token is not None:
                last = len(generation.gaps)
            if min(generation.gaps[:last], default=math.inf) < tolerance(self.case, 0.0):
                return True
        return False

    def _tokens_within(self, generation: Generation, characters: int) -> int:
        assert self.lm is not None
        for count in range(1, len(generation.tokens) + 1):
            if len(self.lm.tok_decode(generation.tokens[:count]).rstrip("\ufffd")) > characters:
                return count
        return len(generation.tokens)

    def _support(self, prompt: str, ours: str) -> Iterator[str]:
        """A sampled text has to begin with a token that `hf` could have drawn."""
        lm = self.lm
        if lm is None or lm.think_end_token is not None or not lm.generations[prompt]:
            return
        allowed = {token for generation in lm.generations[prompt] for token in generation.first_tokens}
        starts = {lm.tok_decode([token]).rstrip("\ufffd").strip() for token in allowed}
        text = ours.strip()
        if not any(text.startswith(start) or start.startswith(text) for start in starts):
            yield f"sampled text {ours!r} begins with none of the {len(allowed)} tokens that hf samples from"

    def _records(self, stock: Sample, ours: Sample) -> Iterator[str]:
        """Token counts that we add to samples belong to the response that was scored."""
        if self.task.kind != "generate_until" or self.sampled or self.near or self.lm is None:
            return
        if self.lm.backend != "causal" or "output_tokens" not in ours:
            return
        prompt, text = stock["arguments"][0][0], stock["resps"][0][0]
        generations = [each for each in self.lm.generations[prompt] if self._leads_to(each, text)]
        for name in ("input_tokens", "output_tokens"):
            counts = ours[name] if isinstance(ours[name], list) else [ours[name]]
            right = {each.input_tokens if name == "input_tokens" else len(each.tokens) for each in generations}
            if generations and not set(counts) <= right:
                yield f"{name} {sorted(right)}, ours {ours[name]}"

    # -- metrics -------------------------------------------------------------------------------------------------

    def _metrics(self, stock: Sample, ours: Sample) -> Iterator[str]:
        for name in stock["metrics"]:
            one, other = stock[name], ours.get(name)
            if _close(one, other, 10 * tolerance(self.case, _size(one))):
                continue
            if self.task.kind == "multiple_choice" and self._choices_tie(stock):
                self.near = True
                continue
            yield f"{name} {one}, ours {other}"

    def _choices_tie(self, stock: Sample) -> bool:
        """Whether two choices are as good as equally likely, by sum, by character or given the question alone."""
        scores = [responses[0][0] for responses in stock["resps"]]
        count = len(scores) // 2 if len({_context(stock, n) for n in range(len(scores))}) > 1 else len(scores)
        choices = [stock["arguments"][number][1] for number in range(count)]
        sums = scores[:count]
        by_length = [score / max(len(choice), 1) for score, choice in zip(sums, choices, strict=True)]
        mutual = [a - b for a, b in zip(sums, scores[count:], strict=False)]
        limit = 2 * tolerance(self.case, max(map(abs, scores)))
        return any(_gap(values) < limit for values in (sums, by_length, mutual))


def _gap(values: Sequence[float]) -> float:
    ordered = sorted(values, reverse=True)
    return ordered[0] - ordered[1] if len(ordered) > 1 else math.inf


def _context(sample: Sample, number: int) -> str:
    return str(sample["arguments"][number][0])


def _texts(sample: Sample) -> list[list[str]]:
    """Prompts and continuations; lm-eval's tracker turns the arguments into dictionaries when it writes samples."""
    arguments = sample["arguments"]
    if isinstance(arguments, dict):
        arguments = [list(each.values()) for each in arguments.values()]
    return [[part for part in parts if isinstance(part, str)] for parts in arguments]


def _number(value: Any) -> Any:
    """A score that lm-eval's tracker may have turned into text."""
    if isinstance(value, (list, tuple)):
        return [_number(each) for each in value]
    return value == "True" if value in ("True", "False") else float(value)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _size(value: Any) -> float:
    value = _plain(value)
    if isinstance(value, (list, tuple)):
        return max(map(_size, value), default=0.0)
    return abs(float(value)) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _close(one: Any, other: Any, limit: float) -> bool:
    one, other = _plain(one), _plain(other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_close(a, b, limit) for a, b in zip(one, other, strict=True))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other or abs(one - other) <= limit or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _aggregates(case: Case, stock: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    if case.loose:  # a perplexity is exponential in what is compared above
        return
    for name, value in stock.items():
        if not isinstance(value, (int, float)) or "stderr" in name:
            continue
        if not _close(value, ours.get(name), 1e-2 + 3e-3 * _size(value)):
            yield f"{name} {value}, ours {ours.get(name)}"
