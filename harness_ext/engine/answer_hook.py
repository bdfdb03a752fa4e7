"""How a model hands over its answers while it still computes others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness_ext.protocol.lm_eval_api import Instance


class GenerationRecord(NamedTuple):
    """What lm-eval does not keep of a generation."""

    finish_reason: str  # stop or length
    input_tokens: int
    output_tokens: int


class RequestKey(NamedTuple):
    """Identifies a request of a task; its repeats share it."""

    task: str
    doc_id: int
    idx: int

    @classmethod
    def of(cls, request: Instance) -> RequestKey:
        """The key of a request."""
        return cls(str(request.task_name), int(request.doc_id or 0), request.idx)


class AnswerHook:
    """lm-eval's cache hook, which is told more: records, when a batch is done, and what turned out to be wrong."""

    def add_partial(self, attr: str, req: Sequence[Any], res: Any) -> None:
        """What lm-eval's models call for each answer."""
        self.add(attr, req, res)

    def add(self, kind: str, args: Sequence[Any], answer: Any, record: GenerationRecord | None = None) -> None:
        """Take an answer.

        Args:
            kind: of the request, as lm-eval names it.
            args: of the request: two texts, or a text and the generation settings.
            answer: as lm-eval gets it.
            record: of a generation, where it is known.
        """
        raise NotImplementedError

    def is_due(self) -> bool:
        """Whether answers should be handed over now; it takes a moment."""
        raise NotImplementedError

    def batch_done(self) -> None:
        """Called when all answers of a batch have been added, before the next is computed."""
        raise NotImplementedError

    def retract(self) -> None:
        """Called when the answers of this call are not to be trusted, and will be computed in another way."""
        raise NotImplementedError
