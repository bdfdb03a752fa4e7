"""Generated answers, confirmed by plain passes before they are handed over."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from harness_ext.engine.answer_hook import AnswerHook, GenerationRecord
from harness_ext.engine.generation import Generated
from harness_ext.protocol.lm_eval_api import Instance

REPLAY_TOKENS = 2048  # of the longest answer, with its prompt, that a plain pass repeats


class NotConfirmedError(Exception):
    """A plain pass chooses other tokens than the tree did."""


class GeneratedAnswers:
    """Answers to requests that share their settings, in the order in which they finish.

    Args:
        requests: in the order of the prompts.
        prompts: token ids.
        text_of: the answer that new tokens stand for.
        gap: nats between the tokens generated for a prompt and those of a plain pass; None where no pass can tell, as
            with sampled tokens.
        tolerance: nats.
        hook: takes answers before all of them are there; lm-eval's own takes them at the end.
    """

    def __init__(
        self,
        requests: Sequence[Instance],
        prompts: list[list[int]],
        *,
        text_of: Callable[[list[int]], str],
        gap: Callable[[list[int], list[int]], float] | None,
        tolerance: float,
        hook: Any,
    ) -> None:
        self.prompts = prompts
        self._requests = requests
        self._text_of = text_of
        self._gap = gap
        self._tolerance = tolerance
        self._hook = hook
        self._generated: dict[int, Generated] = {}
        self._handed_over: dict[int, tuple[str, GenerationRecord]] = {}
        self._confirmed: set[str] = set()  # tasks

    def add(self, number: int, generated: Generated) -> None:
        """Take what was generated for a prompt.

        Raises:
            NotConfirmedError: as `confirm`.
        """
        self._generated[number] = generated
        if isinstance(self._hook, AnswerHook) and self._hook.is_due():
            self._hand_over()

    def confirm(self) -> None:
        """Let plain passes choose the tokens of the longest and a random answer of each task.

        Raises:
            NotConfirmedError: they choose others.
        """
        for task, numbers in self._by_task(self._generated).items():
            for number in {self._longest(numbers), random.Random(len(numbers)).choice(numbers)}:
                self._replay(number)
            self._confirmed.add(task)

    def finished(self) -> list[tuple[str, GenerationRecord]]:
        """All answers and their records, in the order of the requests."""
        self._hand_over()
        return [self._handed_over[number] for number in range(len(self._requests))]

    def _hand_over(self) -> None:
        """Hand over what has not been handed over yet; of a task that is new, one answer is confirmed first."""
        newest = [number for number in self._generated if number not in self._handed_over]
        for task, numbers in self._by_task(newest).items():
            if task not in self._confirmed:
                self._replay(self._longest(numbers))
                self._confirmed.add(task)
        for number in newest:
            generated, args = self._generated[number], self._requests[number].args
            answer = self._text_of(list(generated.tokens))
            record = GenerationRecord(generated.finish_reason, len(self.prompts[number]), len(generated.tokens))
            self._handed_over[number] = answer, record
            if isinstance(self._hook, AnswerHook):
                self._hook.add("generate_until", args, answer, record)
            else:
                self._hook.add_partial("generate_until", args, answer)
        if isinstance(self._hook, AnswerHook):
            self._hook.batch_done()

    def _by_task(self, numbers: Iterable[int]) -> dict[str, list[int]]:
        """Those of the answers that a plain pass can repeat."""
        by_task: dict[str, list[int]] = defaultdict(list)
        for number in sorted(numbers):
            if self._gap is not None and self._tokens(number) <= REPLAY_TOKENS:
                by_task[str(self._requests[number].task_name)].append(number)
        return by_task

    def _longest(self, numbers: Sequence[int]) -> int:
        return max(numbers, key=self._tokens)

    def _tokens(self, number: int) -> int:
        return len(self.prompts[number]) + len(self._generated[number].tokens)

    def _replay(self, number: int) -> None:
        assert self._gap is not None
        gap = self._gap(self.prompts[number], list(self._generated[number].tokens))
        if gap > self._tolerance:
            raise NotConfirmedError(f"a plain pass answers differently by {gap:.2g} nats")
