"""Say what code a task folder would run, or refuse it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness_ext.errors import TaskError

_NAMED = 8  # functions listed in the message


@contextlib.contextmanager
def task_code(names: Sequence[str], include_path: Sequence[str | Path], *, no_code: bool) -> Iterator[None]:
    """Print once what code tasks outside this package and lm-eval would run; with `no_code`, refuse it.

    With `no_code`, templates are rendered in Jinja's sandbox within the block.

    Raises:
        TaskError: a task brings code, and `no_code` refuses it; or its YAML cannot be read.
    """
    from harness_ext.protocol.task_code import code_of

    uses = code_of(names, include_path)
    listed = ", ".join(map(str, dict.fromkeys(map(str, uses[:_NAMED]))))
    more = f" and {len(uses) - _NAMED} more" if len(uses) > _NAMED else ""
    if uses and no_code:
        raise TaskError(f"--no-code refuses {uses[0].yaml}: it would run {listed}{more}; read the code, then leave "
                        "--no-code out if you trust it")  # fmt: skip
    if uses:
        print(f"harness-ext: these tasks run code of their own: {listed}{more}; --no-code refuses it", file=sys.stderr)
    if not no_code:
        yield
        return
    from harness_ext.protocol.lm_eval_api import sandboxed_templates

    with sandboxed_templates():
        yield
