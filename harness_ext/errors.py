"""Everything this package raises on purpose, in one tree.

```
HarnessExtError            anything a user can mend; the command line prints it as one line and exits with 2
├── TaskError              an unknown, broken or untrainable task
├── DatasetError           documents that cannot be found, reached or read
├── MetricError            a document that a metric cannot score (no references, a label outside the choices)
├── ModelError             a model that is missing, corrupt or of a kind we cannot use
│   ├── FetchError         a model that could not be downloaded, verified or converted
│   └── AdapterError       an adapter that is missing, does not fit its base or changes nothing
├── RecipeError            a training recipe with unknown or impossible settings
├── TrainingError          training that cannot start or go on
├── ResultsError           a results folder that cannot be read
└── ComparisonError        runs that cannot be compared
```

A message says what is wrong, which thing it is, and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessExtError(Exception):
    """Base of every error that a user can mend."""


class TaskError(HarnessExtError):
    """An unknown, broken or untrainable task."""


class DatasetError(HarnessExtError):
    """Documents that cannot be found, reached or read."""


class MetricError(HarnessExtError):
    """A document that a metric cannot score."""


class ModelError(HarnessExtError):
    """A model that is missing, corrupt or of a kind we cannot use."""


class FetchError(ModelError):
    """A model that could not be downloaded, verified or converted."""


class AdapterError(ModelError):
    """An adapter that is missing, does not fit its base or changes nothing."""


class RecipeError(HarnessExtError):
    """A training recipe with unknown or impossible settings."""


class TrainingError(HarnessExtError):
    """Training that cannot start or go on."""


class ResultsError(HarnessExtError):
    """A results folder that cannot be read."""


class ComparisonError(HarnessExtError):
    """Runs that cannot be compared."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop; its type when it says nothing.

    >>> first_line(ValueError("no such file.\\nCall stack: ...")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def described(error: BaseException) -> str:
    """The first line of what an error says, with its type unless it is one of ours.

    >>> described(ValueError("too long")), described(TaskError("no such task")), described(StopIteration())
    ('ValueError: too long', 'no such task', 'StopIteration')
    """
    line, kind = first_line(error), type(error).__name__
    return line if isinstance(error, HarnessExtError) or line == kind else f"{kind}: {line}"


def suggest(unknown: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string.

    >>> suggest("sst2_choise", ["sst2_choice", "squad_v2_generate"])
    "; did you mean 'sst2_choice'?"
    >>> suggest("zebra", ["sst2_choice"])
    ''
    """
    match = difflib.get_close_matches(unknown, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""
