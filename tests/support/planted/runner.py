"""Runs a case: plants its defect, asks the doctor layer by layer, and says what was found first."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils import collect_env

from harness_ext.doctor.diagnose import diagnose
from harness_ext.doctor.preflight.adapter import examine_adapter
from harness_ext.doctor.preflight.run import examine_task
from harness_ext.doctor.replay.replay import diagnose_by_replay
from harness_ext.engine.evaluate import evaluate
from harness_ext.findings import Finding
from harness_ext.protocol.documents import DATA_VARIABLE, SAMPLE_FOLDER
from harness_ext.protocol.render import PromptSettings
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.results.load import load_runs
from planted import trainers, world
from planted.spoken import SPOKEN, Script, spoken
from planted.trainers import Training

LOGGED, BEFORE, REPLAY = LAYERS = ("logged outputs", "examples and adapter", "replay")

ENVIRONMENT = functools.cache(collect_env.get_pretty_env_info)

Report = tuple[str, Sequence[Finding]]  # layer, and what it found
Plant = Callable[["World", Path], Iterator[Report]]


@dataclass(frozen=True)
class Case:
    """One planted defect."""

    name: str
    expected: tuple[str, ...]  # ids, any of which names the cause
    plant: Plant = field(repr=False)
    trainer: str | None = None  # None: nothing is trained


@dataclass(frozen=True)
class Outcome:
    """What the doctor said about a case."""

    case: Case
    layer: str | None  # in which the cause was named; None: it was not
    ids: tuple[str, ...]  # of that layer, or else of the last, in the order in which they are reported
    errors: tuple[str, ...]  # those that are errors, of all layers

    @property
    def is_found(self) -> bool:
        """Whether the cause is among the findings."""
        return self.layer is not None

    @property
    def is_first(self) -> bool:
        """Whether the cause is the first finding."""
        return bool(self.ids) and self.ids[0] in self.case.expected


def run(case: Case, place: World, folder: Path) -> Outcome:
    """Plant the defect of a case and ask the doctor, the cheapest layer first, until the cause is named."""
    folder.mkdir(parents=True, exist_ok=True)
    errors: list[str] = []
    with place.data():
        for layer, findings in case.plant(place, folder):
            ids = tuple(finding.id for finding in findings)
            errors += [finding.id for finding in findings if finding.level == "error"]
            if {*ids} & {*case.expected}:
                return Outcome(case, layer, ids, tuple(errors))
    return Outcome(case, None, ids, tuple(errors))


@dataclass
class World:
    """Base, documents, and the adapters that were trained so far."""

    folder: Path
    base: Path = field(init=False)
    trained: dict[tuple[str, Training], Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        documents = self.folder / "data"
        world.save_documents(documents)
        shutil.copytree(SAMPLE_FOLDER / "squad_v2", documents / "squad_v2")
        self.base = world.save_base(self.folder / "base")

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Let tasks read the world's documents; lm-eval lists the installed packages only once."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(DATA_VARIABLE, str(self.folder / "data"))
            patch.setattr(collect_env, "get_pretty_env_info", ENVIRONMENT)
            yield

    def adapter(self, trainer: str, training: Training) -> Path:
        """An adapter as trained; do not change it."""
        if (trainer, training) not in self.trained:
            folder = self.folder / "adapters" / f"{trainer}-{len(self.trained)}"
            folder.parent.mkdir(exist_ok=True)
            self.trained[trainer, training] = trainers.train(trainer, training, self.base, folder)
        return self.trained[trainer, training]

    def copy(self, trainer: str, training: Training, folder: Path) -> Path:
        """A copy of an adapter, to spoil."""
        return Path(shutil.copytree(self.adapter(trainer, training), folder / "mine"))


# -- how a defect is planted, and what the doctor is asked -----------------------------------------------------------


def task(folder: Path, name: str, **settings: Any) -> str:
    """The path of a task that is a bundled one with some settings changed."""
    kind = "sst2" if name.startswith("sst2") else "squad"
    for file in (tasks_path() / kind).glob("*.yaml"):
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    (folder / "planted.yaml").write_text(yaml.safe_dump({"include": f"{name}.yaml", "task": "planted", **settings}))
    return str(folder / "planted.yaml")


def logged(
    place: World, folder: Path, task: str, *, adapter: Path | None = None, script: Script | None = None,
    run: str = "mine", limit: int = 100, model_args: Mapping[str, Any] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Evaluate the base or an adapter, and log its outputs; returns the folder of all runs."""
    arguments = {**({"peft": str(adapter)} if adapter else {}), **(model_args or {})}
    if script is None:
        _evaluate(place, folder / "out" / run, task, "hf-tree", arguments, limit, settings)
    else:
        with spoken(script):
            _evaluate(place, folder / "out" / run, task, SPOKEN, arguments, limit, settings)
    return folder / "out"


def _evaluate(place: World, out: Path, task: str, model: str, arguments: Any, limit: int, settings: Any) -> None:
    evaluate(
        str(place.base), tasks=[task], model=model, model_args=arguments, limit=limit, log_samples=True,
        output_path=str(out), **settings,
    )  # fmt: skip


def from_log(results: Path, folder: Path) -> Report:
    """What the first layer says of the last run."""
    return LOGGED, diagnose(load_runs(results), include_path=[str(folder)])[-1].findings


def by_replay(results: Path, folder: Path, script: Script | None = None) -> Report:
    """What the third layer says of the last run."""
    if script is not None:
        with spoken(script):
            return by_replay(results, folder)
    return REPLAY, diagnose_by_replay(load_runs(results), include_path=[str(folder)])[-1].findings


def of_adapter(place: World, adapter: Path) -> Report:
    """What is said of an adapter's weights."""
    return BEFORE, examine_adapter(adapter, base=str(place.base)).findings


def of_task(place: World, task: str, settings: PromptSettings | None = None) -> Report:
    """What is said of our own training on a task."""
    return BEFORE, examine_task(task, str(place.base), settings=settings).findings


def of_batches(place: World, trainer: str, training: Training, folder: Path, **settings: Any) -> Report:
    """What is said of the examples that a trainer trains on."""
    asked = PromptSettings(**settings)
    return BEFORE, trainers.examined(trainer, training, place.base, folder / "examined", asked).findings


def change_weights(adapter: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Replace each tensor of an adapter; None leaves it out."""
    file = adapter / "adapter_model.safetensors"
    changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file({name: t for name, t in changed.items() if t is not None}, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
