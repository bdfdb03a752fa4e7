"""Placeholders for splits that a task names but its data lack: an error only when the documents are read.

lm-eval looks up every split that a YAML names while it builds the task, and reads the first evaluated document. But a
validation file alone is enough to evaluate, and a training file alone is enough to train. So a missing split becomes a
placeholder: it has the columns of an existing split, and its documents raise as soon as they are read.

```
build the task            features, [0]      those of an existing split
evaluate, few-shot, ...   iterate            documents that raise DatasetError and name the missing split
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import datasets

from harness_ext.errors import DatasetError

PLACEHOLDER_ROWS = 100  # enough for few-shot sampling, so that the error is about the split and not about its size


class DocumentSplits(datasets.DatasetDict):
    """Splits of a document set; a missing one is replaced by a placeholder until its documents are read."""

    location: str = "the data"  # shown in messages

    def __missing__(self, split: str) -> AbsentSplit:
        if not self:
            raise KeyError(split)
        documents = next(iter(self.values()))
        return AbsentSplit(
            documents.select(range(min(PLACEHOLDER_ROWS, len(documents)))),
            f"{self.location} has no split {split!r}, but its documents are needed (available: {', '.join(self)}); "
            "add the split, or name another one in the task's YAML",
        )


class AbsentSplit:
    """Placeholder for a missing split."""

    def __init__(self, rows: datasets.Dataset, problem: str) -> None:
        self.rows = rows
        self.problem = problem

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return self.rows[key]

    def __iter__(self) -> Iterator[AbsentDocument]:
        return (AbsentDocument(self.problem) for _ in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        """Features, columns and methods; a data set returned by a method (for `process_docs`) is a placeholder, too."""
        if name.startswith("__") or name == "rows":
            raise AttributeError(name)
        attribute = getattr(self.rows, name)
        return self._wrapped(attribute) if callable(attribute) else attribute

    def _wrapped(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            return AbsentSplit(result, self.problem) if isinstance(result, datasets.Dataset) else result

        return call


class AbsentDocument(Mapping[str, Any]):
    """A document of a missing split: reading it raises DatasetError."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def _refuse(self) -> NoReturn:
        raise DatasetError(self.problem)

    def __getitem__(self, key: str) -> Any:
        self._refuse()

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def __len__(self) -> int:
        self._refuse()
