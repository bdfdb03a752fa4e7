"""Which documents a task was evaluated on, from its logged config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness_ext.names import clean_name
from harness_ext.protocol.documents import hub_dataset
from harness_ext.results.run import TaskResult


@dataclass(frozen=True)
class Dataset:
    """The documents of a task."""

    name: str  # Hub id, or a name that stands for local files
    is_on_hub: bool
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """Name, configuration and split, as far as they are known."""
        return " ".join([self.name, *(f"({part})" for part in (self.config, self.split) if part)])


def dataset_of(result: TaskResult) -> Dataset:
    """The documents of a task, from its logged config."""
    if result.is_sample:
        return Dataset(f"sample of {result.task}", False)
    config = result.config
    split = config.get("test_split") or config.get("validation_split")
    kwargs = config.get("dataset_kwargs") if isinstance(config.get("dataset_kwargs"), Mapping) else {}
    assert isinstance(kwargs, Mapping)
    split = split if isinstance(split, str) else None
    path, name = config.get("dataset_path"), kwargs.get("dataset")
    if isinstance(name, str) and not (kwargs.get("data_files") or kwargs.get("data_dir")):
        hub = hub_dataset(name)
        if hub is not None and result.local_data:
            return Dataset(f"{hub.path} (local files)", False, hub.config, split)
        if hub is not None:
            return Dataset(hub.path, True, hub.config, split, hub.revision)
    elif isinstance(path, str) and hub_dataset(path) is not None and not Path(path).exists():
        config_name, revision = config.get("dataset_name"), kwargs.get("revision")
        return Dataset(path, True, config_name if isinstance(config_name, str) else None, split,
                       revision if isinstance(revision, str) else None)  # fmt: skip
    return Dataset(clean_name(Path(str(name)).name if isinstance(name, str) else result.task), False, split=split)
