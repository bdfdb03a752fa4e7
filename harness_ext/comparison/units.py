"""Which column of a task's documents names the unit of evidence: documents that share it are not independent."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from harness_ext.results.run import TaskResult

# Of tasks of lm-eval and ours: several questions on one passage, several hypotheses on one premise.
_KNOWN: tuple[tuple[str, str], ...] = (
    ("*squad*", "context"), ("drop*", "passage"), ("boolq*", "passage"), ("super-glue-boolq*", "passage"),
    ("race*", "article"), ("mnli*", "premise"), ("coqa*", "story"), ("multirc*", "paragraph"), ("record*", "passage"),
    ("quac*", "context"), ("qasper*", "abstract"), ("pubmedqa*", "CONTEXTS"), ("logiqa*", "context"),
)  # fmt: skip
_USUAL = "context"  # what a passage is called where nobody says


def cluster_column(result: TaskResult, given: Mapping[str, str]) -> str:
    """The column of a task.

    `--cluster TASK=COLUMN` goes before the task's own `metadata: cluster:`, this before the table of known tasks; a
    column named `context` is taken for a passage.

    Args:
        result: of the task.
        given: column by task name or pattern.
    """
    for pattern, column in given.items():
        if fnmatch.fnmatchcase(result.task, pattern):
            return column
    if isinstance(declared := result.metadata.get("cluster"), str):
        return declared
    for pattern, column in _KNOWN:
        if fnmatch.fnmatchcase(result.task, pattern):
            return column
    return _USUAL
