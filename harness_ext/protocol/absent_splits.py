"""A split that a task names and its data lack: an error once its documents are needed, and not before.

lm-eval looks up every split that a YAML names while it builds the task, and reads the first evaluated document. Yet a
validation file alone is enough to evaluate, and a training file alone is enough to train. So a split that is not there
is stood in for by the columns of one that is, and by documents that raise as soon as they are read:

```
build the task            features, [0]      those of another split
evaluate, few-shot, ...   iterate            documents that raise DatasetError, naming the split that is missing
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import datasets

from harness_ext.errors import DatasetError

STAND_INS = 100  # as many few-shot examples can be drawn before the sampler itself complains


class DocumentSplits(datasets.DatasetDict):
    """Splits of a document set; one that is missing is stood in for until its documents are read."""

    location: str = "the data"  # as messages name it

    def __missing__(self, split: str) -> AbsentSplit:
        if not self:
            raise KeyError(split)
        documents = next(iter(self.values()))
        return AbsentSplit(
            documents.select(range(min(STAND_INS, len(documents)))),
            f"{self.location} has no split {split!r}, whose documents are needed here (it has {', '.join(self)}); add "
            "it there, or name another split in the task's YAML",
        )


class AbsentSplit:
    """What lm-eval gets for a split that is not there."""

    def __init__(self, stand_ins: datasets.Dataset, problem: str) -> None:
        self.stand_ins = stand_ins
        self.problem = problem

    def __len__(self) -> int:
        return len(self.stand_ins)

    def __getitem__(self, key: Any) -> Any:
        return self.stand_ins[key]

    def __iter__(self) -> Iterator[AbsentDocument]:
        return (AbsentDocument(self.problem) for _ in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        """Features and columns; and what a task's `process_docs` calls, whose result stands in as well."""
        if name.startswith("__") or name == "stand_ins":
            raise AttributeError(name)
        attribute = getattr(self.stand_ins, name)
        return self._standing_in(attribute) if callable(attribute) else attribute

    def _standing_in(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            return AbsentSplit(result, self.problem) if isinstance(result, datasets.Dataset) else result

        return call


class AbsentDocument(Mapping[str, Any]):
    """A document that cannot be read, for the split it belongs to is not there."""

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
