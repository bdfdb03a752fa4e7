"""The column that names a document's unit of evidence: documents that share its value are not independent."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

# Known tasks with several questions per passage, or several hypotheses per premise.
_KNOWN: tuple[tuple[str, str], ...] = (
    ("*squad*", "context"), ("drop*", "passage"), ("boolq*", "passage"), ("super-glue-boolq*", "passage"),
    ("race*", "article"), ("mnli*", "premise"), ("coqa*", "story"), ("multirc*", "paragraph"), ("record*", "passage"),
    ("quac*", "context"), ("qasper*", "abstract"), ("pubmedqa*", "CONTEXTS"), ("logiqa*", "context"),
)  # fmt: skip
_DEFAULT = "context"  # the usual name of a passage


def cluster_column(task: str, metadata: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """The column of a task that names the unit of evidence.

    In order of precedence: `--cluster TASK=COLUMN`, the task's own `metadata: cluster:`, the table of known tasks, and
    `context`.

    Args:
        task: its name.
        metadata: of the task.
        given: column by task name or pattern, from --cluster.
    """
    for pattern, column in given.items():
        if fnmatch.fnmatchcase(task, pattern):
            return column
    if isinstance(declared := metadata.get("cluster"), str):
        return declared
    for pattern, column in _KNOWN:
        if fnmatch.fnmatchcase(task, pattern):
            return column
    return _DEFAULT
