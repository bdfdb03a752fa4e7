"""The exceptions that this package raises.

```
HarnessExtError            an error that users can fix; the command line prints it in one line and exits with 2
├── TaskError              an unknown, broken or untrainable task
├── DatasetError           documents that cannot be found, downloaded or read
├── MetricError            a document that a metric cannot score (no references, a label outside the choices)
├── ModelError             a model that is missing, corrupt or of an unsupported kind
│   ├── FetchError         a model that could not be downloaded, verified or converted
│   └── AdapterError       an adapter that is missing, does not fit its base or has no effect
│       └── NotAppliedError  an adapter that an engine takes and then answers without
├── RecipeError            a training recipe with unknown or invalid settings
├── TrainingError          training that cannot start or continue
│   └── StoppedError       training that was stopped by a signal, after a checkpoint
├── StoreError             a response store that cannot be used
├── ResultsError           a results folder that cannot be read
│   └── CutShortError      a run that ended before all of its samples were written
├── WriteError             a file or folder that cannot be written
├── LostProcessError       another process of the same launch has ended
├── InputError             a file that is damaged, too large or too deep, or no regular file
├── ComparisonError        runs that cannot be compared
├── CardError              a model card that cannot be read or generated again
└── HubError               what the Hugging Face Hub refuses, or cannot be reached for
```

A message is one line: what is wrong, with which object, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harness_ext.names import visible


class HarnessExtError(Exception):
    """Base class of errors that users can fix; names from outside in its message become visible."""

    is_said = False  # whether another process of the same launch says it
    exit_code = 2  # of the command line

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message)))


class TaskError(HarnessExtError):
    """An unknown, broken or untrainable task."""


class DatasetError(HarnessExtError):
    """Documents that cannot be found, downloaded or read."""


class MetricError(HarnessExtError):
    """A document that a metric cannot score."""


class ModelError(HarnessExtError):
    """A model that is missing, corrupt or of an unsupported kind."""


class FetchError(ModelError):
    """A model that could not be downloaded, verified or converted."""


class AdapterError(ModelError):
    """An adapter that is missing, does not fit its base or has no effect."""


class NotAppliedError(AdapterError):
    """An adapter that an engine takes and then answers without."""


class RecipeError(HarnessExtError):
    """A training recipe with unknown or invalid settings."""


class TrainingError(HarnessExtError):
    """Training that cannot start or continue."""


class StoppedError(TrainingError):
    """Training that was stopped by a signal, after a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        return type(self), (str(self), self.exit_code - 128)


class StoreError(HarnessExtError):
    """A response store that cannot be used."""


class ResultsError(HarnessExtError):
    """A results folder that cannot be read."""


class LostProcessError(HarnessExtError):
    """Another process of the same launch has ended."""


class CutShortError(ResultsError):
    """A run that ended before all of its samples were written."""


class WriteError(HarnessExtError):
    """A file or folder that cannot be written; what was there before is as it was."""


class InputError(HarnessExtError):
    """A file that is damaged, too large or too deep, or no regular file; the readers raise it without a remedy."""


class ComparisonError(HarnessExtError):
    """Runs that cannot be compared."""


class CardError(HarnessExtError):
    """A model card that cannot be read or generated again."""


class HubError(HarnessExtError):
    """What the Hugging Face Hub refuses, or cannot be reached for."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its closing mark; its type if there is no message.

    >>> first_line(ValueError("no such file.\\nCall stack: ...")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".?!") if lines else type(error).__name__


def described(error: BaseException) -> str:
    """The first line of an error's message, preceded by its type unless it is a `HarnessExtError`.

    >>> described(ValueError("too long")), described(TaskError("no such task")), described(StopIteration())
    ('ValueError: too long', 'no such task', 'StopIteration')
    """
    if type(error.__cause__).__module__.startswith("jinja2"):  # lm-eval 0.5 puts the template in front of it
        error = error.__cause__ or error
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
