"""What a results file says about a sequential evaluation: its design, its looks, and where each task stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness_ext.stats.sequential.design import Design, TaskDesign
from harness_ext.stats.sequential.looks import Final, Look, Outcome
from harness_ext.stats.sequential.stagewise import final_result

_FIELDS = {"digest", "design", "baseline", "tasks"}
_TASK_FIELDS = {"documents", "looks"}


@dataclass(frozen=True)
class Record:
    """The part of a sequential evaluation that belongs to one task in one run."""

    design: Design
    task: str
    baseline: str  # name of the run that the design compares with
    documents: int  # asked of this run
    looks: tuple[Look, ...]  # of this run's row; empty for the baseline

    @property
    def planned(self) -> TaskDesign:
        """The design of the task."""
        return self.design.tasks[self.task]

    @property
    def is_stopped_early(self) -> bool:
        """Whether fewer documents were asked than planned."""
        return self.documents < self.planned.documents

    @property
    def outcome(self) -> Outcome | None:
        """How the row ended; None for the baseline, and for a row that was interrupted."""
        return self.looks[-1].outcome if self.looks else None

    @property
    def level(self) -> float:
        """Two-sided error probability of the row."""
        return self.design.alpha / self.design.family

    def final(self) -> Final:
        """The estimates after stopping.

        Raises:
            ValueError: the run has no look, because it is the baseline.
        """
        return final_result(self.looks, spending=self.design.spending, alpha=self.level)


def sequential_record(
    design: Design, looks: Mapping[str, Sequence[Look]], *, baseline: str, documents: Mapping[str, int]
) -> dict[str, Any]:
    """What to write into the results file of one run, under the key `sequential` of `harness_ext`.

    Args:
        design: of the evaluation.
        looks: this run's looks by task; empty for the baseline.
        baseline: name of the baseline's variant.
        documents: asked of this run, by task.

    Raises:
        ValueError: a task is not in the design, or more documents were asked than planned.
    """
    for task, count in documents.items():
        if task not in design.tasks or not 0 < count <= design.tasks[task].documents:
            raise ValueError(f"the design does not plan {count} documents of {task!r}")
    return {
        "digest": design.digest,
        "design": design.to_json(),
        "baseline": baseline,
        "tasks": {
            task: {"documents": count, "looks": [look.to_json() for look in looks.get(task, ())]}
            for task, count in documents.items()
        },
    }


def read_record(value: Any) -> dict[str, Record]:
    """The records by task, from what `sequential_record` wrote.

    Raises:
        ValueError: the record is not complete or contradicts itself.
    """
    if not isinstance(value, Mapping) or value.keys() != _FIELDS or not isinstance(value["tasks"], Mapping):
        raise ValueError(f"it must have the fields {', '.join(sorted(_FIELDS))}")
    design = Design.from_json(value["design"])
    if value["digest"] != design.digest:
        raise ValueError("the digest is not that of the design")
    return {str(task): _task(design, str(task), value["baseline"], part) for task, part in value["tasks"].items()}


def _task(design: Design, task: str, baseline: Any, part: Any) -> Record:
    if not isinstance(part, Mapping) or part.keys() != _TASK_FIELDS or not isinstance(part["looks"], list):
        raise ValueError(f"{task} must have the fields {', '.join(sorted(_TASK_FIELDS))}")
    if task not in design.tasks or not isinstance(baseline, str):
        raise ValueError(f"{task} is not in the design, or the baseline has no name")
    looks = tuple(Look.from_json(look) for look in part["looks"])
    sizes = [look.documents for look in looks]
    count, planned = part["documents"], design.tasks[task].documents
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= planned:
        raise ValueError(f"{task}: {count!r} documents were asked, but {planned} are planned")
    if sizes != sorted(set(sizes)) or (sizes and sizes[-1] > count):
        raise ValueError(f"{task}: its looks do not fit the {count} documents asked")
    discordant = [look.gained + look.lost for look in looks if look.gained is not None and look.lost is not None]
    if discordant != sorted(discordant):
        raise ValueError(f"{task}: a later look has fewer documents gained and lost")
    if any(abs(look.fraction - look.documents / planned) > 1e-9 for look in looks):
        raise ValueError(f"{task}: a look's information fraction is not its share of the documents")
    return Record(design, task, baseline, count, looks)
