"""What a tournament has done so far, in one file that is written after each scoring.

```
adapters/.best.tournament/
├── lock               held by the tournament that runs
├── tournament.json    design: entries, rungs, documents; scores of each entry at each rung; score of the winner
├── entry-1/           checkpoints of an entry that is still in it, see `training.workspace`
└── entry-4/
```

All decisions follow from this file, so a tournament that was killed decides as it would have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.atomic import write_text
from harness_ext.errors import InputError, TrainingError
from harness_ext.models.card import hub_name
from harness_ext.reading.json_input import parse_json, read_json_object
from harness_ext.stats.intervals import Mean, describe_mean
from harness_ext.training.evaluator import EvaluatedMetric, Evaluator, HeldOutDocuments
from harness_ext.training.recipe import flag, recorded
from harness_ext.training.workspace import FREE_TO_CHANGE
from harness_ext.tuning.entries import Entry

FILE = "tournament.json"
VERSION = 1


def folder_of(output: str) -> Path:
    """The folder for the state of a tournament whose winner is written to `output`."""
    folder = Path(output).expanduser().absolute()
    return folder.with_name(f".{folder.name}.tournament")


def design_of(entries: Sequence[Entry], first_rung: float) -> dict[str, Any]:
    """What has to stay the same when a tournament is resumed, as plain JSON."""
    base = entries[0].recipe
    design = {
        "version": VERSION,
        "model": Path(base.model).name if Path(base.model).is_dir() else hub_name(base.model),
        "first_rung": first_rung,
        "entries": [{"name": entry.name, "recipe": entry.recipe.for_card()} for entry in entries],
    }
    plain: dict[str, Any] = parse_json(json.dumps(design), place="design")
    return plain


@dataclass(frozen=True)
class Scored:
    """An entry at a rung, or the winner at its end."""

    step: int
    planned_steps: int
    examples: int  # that the whole training sees
    parameters: int  # that are trained
    scores: list[float]  # of each document
    training_seconds: float  # until here
    scoring_seconds: float

    @property
    def cost(self) -> tuple[int, int]:
        """What the training costs, compared with others: examples first, then parameters."""
        return self.examples, self.parameters


@dataclass(frozen=True)
class Documents:
    """What is scored, the same for all entries."""

    data_sha256: str
    units: list[int] | None  # (n,) passage of each document for the rungs; None: every document is independent
    units_again: list[int] | None  # (n,) of each document for the winner
    metric: EvaluatedMetric

    @property
    def clusters(self) -> NDArray[Any] | None:
        """Passages of the documents for the rungs."""
        return None if self.units is None else np.array(self.units)

    @property
    def clusters_again(self) -> NDArray[Any] | None:
        """Passages of the documents for the winner."""
        return None if self.units_again is None else np.array(self.units_again)

    def mean(self, scores: Sequence[float], clusters: NDArray[Any] | None) -> Mean:
        """The mean of the scores (n,) with its 95 % interval."""
        return describe_mean(scores, clusters, limits=self.metric.limits)

    def shown(self, scores: Sequence[float], clusters: NDArray[Any] | None) -> str:
        """The mean with its interval and the number of documents, as text."""
        mean = self.mean(scores, clusters)
        return (
            f"{self.metric.described(mean.value, mean.interval.low, mean.interval.high)} on {len(scores):,} documents"
        )


@dataclass
class Record:
    """The state of a tournament, in its folder."""

    folder: Path
    design: Mapping[str, Any]
    documents: Documents | None = None  # known after the first start of an entry
    rungs: list[dict[int, Scored]] = field(default_factory=list)  # of each rung: entry -> its scores
    winner: Scored | None = None  # at its end, on other documents

    @property
    def digest(self) -> str:
        """Names the tournament in the winner's card."""
        return _sha256(self.design)

    def write(self) -> None:
        """Write the file, completely or not at all.

        Raises:
            WriteError: it cannot be written.
        """
        content = {
            "design": self.design,
            "documents": None if self.documents is None else asdict(self.documents),
            "rungs": [{str(entry): asdict(scored) for entry, scored in rung.items()} for rung in self.rungs],
            "winner": None if self.winner is None else asdict(self.winner),
        }
        write_text(self.folder / FILE, json.dumps({"sha256": _sha256(content), "state": content}) + "\n")

    def describe(self, documents: Documents) -> None:
        """Note what is scored, or make sure that it is still the same.

        Raises:
            TrainingError: the documents have changed.
        """
        if self.documents is None:
            self.documents = documents
        elif self.documents != documents:
            raise TrainingError(
                f"the documents or the metric of {self.folder.name} have changed since the tournament began; bring "
                "them back, or start again with --overwrite"
            )


def _sha256(value: Any) -> str:
    """Hash of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def documents_of(evaluator: Evaluator) -> Documents:
    """What an evaluator scores."""
    for_rungs, for_winner = _codes(evaluator.for_choice), _codes(evaluator.for_report)
    return Documents(evaluator.data_sha256, for_rungs, for_winner, evaluator.metric)


def _codes(documents: HeldOutDocuments) -> list[int] | None:
    if documents.units is None:
        return None
    codes: list[int] = np.unique(documents.units, return_inverse=True)[1].reshape(-1).tolist()
    return codes


def read_record(folder: Path, design: Mapping[str, Any], output: str) -> Record | None:
    """The state of a tournament that is to be resumed; None if there is none.

    Args:
        folder: of the tournament.
        design: of the tournament that is to go on.
        output: folder of the winner, for messages.

    Raises:
        TrainingError: the state is damaged, or of another tournament.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        sealed = read_json_object(file)
        content = sealed["state"]
        if sealed["sha256"] != _sha256(content):
            raise ValueError("another checksum")
        record = Record(
            folder,
            content["design"],
            None if content["documents"] is None else _documents(content["documents"]),
            [{int(entry): Scored(**scored) for entry, scored in rung.items()} for rung in content["rungs"]],
            None if content["winner"] is None else Scored(**content["winner"]),
        )
        differing = _differing(record.design, design)
    except (InputError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TrainingError(
            f"the state of the tournament of {output} is damaged ({file.name}); start again with --overwrite"
        ) from error
    if differing:
        raise TrainingError(
            f"{output} holds the state of another tournament ({'; '.join(differing[:3])}); resume it with the original "
            "settings, start again with --overwrite, or choose another --output"
        )
    return dataclasses.replace(record, design=design)


def _documents(values: Mapping[str, Any]) -> Documents:
    metric = EvaluatedMetric(**values["metric"])
    low, high = metric.limits
    return Documents(**{**values, "metric": dataclasses.replace(metric, limits=(low, high))})


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two designs, by field."""
    differing = [
        f"{name} was {before[name]!r:.60}, is {now[name]!r:.60}" for name in ("model", "first_rung", "version")
        if before[name] != now[name]
    ]  # fmt: skip
    old, new = before["entries"], now["entries"]
    if len(old) != len(new):
        return [*differing, f"it has {len(old)} entries, not {len(new)}"]
    for number, (one, other) in enumerate(zip(old, new, strict=True), start=1):
        differing += [
            f"{flag(name)} of entry {number} was {recorded(one['recipe'], name)!r:.60}, is {value!r:.60}"
            for name, value in other["recipe"].items()
            if name not in FREE_TO_CHANGE and recorded(one["recipe"], name) != value
        ]
    return differing
