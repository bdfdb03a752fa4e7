"""Logits that are not numbers are refused: their argmax is a token, too, and a score of its text would mean nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from harness_ext.errors import ModelError

REMEDY = "try dtype=float32, and check the weights with harness-ext doctor"


def check_logits(largest: Tensor) -> None:
    """Refuse logits by the largest of each row, (B,).

    Raises:
        ModelError: one is NaN, or too large for its precision.
    """
    if not bool(((largest == largest) & (largest < math.inf)).all()):
        raise ModelError(f"the model's logits are not finite numbers while it generates; {REMEDY}")


def check_logprob(logprob: float) -> None:
    """Refuse a log-probability that is no number.

    Raises:
        ModelError: it is NaN.
    """
    if math.isnan(logprob):
        raise ModelError(f"the model gives NaN as a log-probability; {REMEDY}")


@contextlib.contextmanager
def finite_generation(model: Any) -> Iterator[None]:
    """Check the logits of each next token within the block, whatever `generate` of the model does with them.

    Args:
        model: of transformers or peft; one that has no output embeddings is not checked.

    Raises:
        ModelError: see `check_logits`.
    """
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None

    def check(_module: Any, _inputs: Any, logits: Any) -> None:
        if isinstance(logits, Tensor):
            check_logits(logits[..., -1, :].amax(dim=-1))  # of the prompt only the last position: others may be padding

    hook = None if head is None else head.register_forward_hook(check)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
