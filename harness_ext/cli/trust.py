"""Say what code a task folder would run, or refuse it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness_ext.errors import TaskError
from harness_ext.names import visible

_NAMED = 8  # functions listed in the message


@contextlib.contextmanager
def task_code(names: Sequence[str], include_path: Sequence[str | Path], *, no_code: bool) -> Iterator[None]:
    """Print once what code tasks outside this package and lm-eval would run; with `no_code`, refuse it.

    With `no_code`, templates are rendered in Jinja's sandbox within the block.

    Raises:
        TaskError: a task brings code, and `no_code` refuses it; or its YAML cannot be read.
    """
    from harness_ext.protocol.task_code import code_of

    for name, package in _replaced(names, include_path):
        print(f"harness-ext: {visible(name)} of --include_path has the name of a task of {package} and may replace it; "
              "rename it", file=sys.stderr)  # fmt: skip
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


def _replaced(names: Sequence[str], include_path: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """Tasks of the added folders that are named like built-in ones, with the package of these."""
    from harness_ext.protocol.task_folders import built_in_task, task_names

    added = task_names(include_path)
    for name in dict.fromkeys(names):
        if name in added and (package := built_in_task(name)) is not None:
            yield name, package
