"""The data that `new-task` reads: one file, one file per split, a folder of such files, or a data set on the Hub."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pyarrow.compute
from huggingface_hub.errors import HfHubHTTPError

from harness_ext.errors import DatasetError
from harness_ext.new_task.splits import SPLITS
from harness_ext.protocol.documents import HUB_ID, HubDataset, hub_dataset, hub_or_cache, load_documents, resolve_source
from harness_ext.protocol.local_files import ENDINGS, Rows, files_in, open_rows
from harness_ext.protocol.text_rows import BATCH_ROWS

logger = logging.getLogger(__name__)

VALIDATION_PREFIXES = ("validation", "valid", "val", "dev", "eval")  # MNLI has validation_matched
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RowSource:
    """Rows and their origin."""

    origin: str  # file names or a Hub id, for messages and the README
    whole: Rows | None = None  # one file to draw splits from
    splits: Mapping[str, Rows] = dataclasses.field(default_factory=dict)  # train, validation, test -> rows
    split_names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # train, ... -> name on the Hub
    hub: HubDataset | None = None

    @property
    def first(self) -> Rows:
        """The rows whose columns are examined."""
        return self.whole if self.whole is not None else next(iter(self.splits.values()))


def open_source(data: str | Path | Mapping[str, str | Path]) -> RowSource:
    """Open the data for a new task.

    Args:
        data: a file; a file for each of train, validation and test, or a folder with such files; or a Hub id
            `org/name[:config][@revision]`.

    Raises:
        DatasetError: a file cannot be read, the data set is not on the Hub, or there is no split to evaluate on.
    """
    if isinstance(data, Mapping):
        return _from_files({split: data[split] for split in SPLITS if split in data})
    path = Path(data).expanduser()
    if path.is_dir():
        files = files_in(path)
        return _from_files({split: files[name] for split, name in _split_names(str(path), list(files)).items()})
    hub = hub_dataset(str(data)) if HUB_ID.fullmatch(str(data)) else None
    if hub is not None and not path.exists() and path.suffix.lower() not in ENDINGS:
        return _from_hub(hub)
    return RowSource(path.name, whole=open_rows(path))


def _from_files(files: Mapping[str, str | Path]) -> RowSource:
    rows = {split: open_rows(file) for split, file in files.items()}
    return RowSource(", ".join(Path(file).name for file in files.values()), splits=rows)


# -- the Hub -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitRows:
    """Rows of one split of a Hub data set."""

    name: str
    documents: datasets.Dataset

    @property
    def schema(self) -> pyarrow.Schema:
        """Columns and their types."""
        return self.documents.features.arrow_schema

    @property
    def columns(self) -> list[str]:
        """Column names in order."""
        return list(self.documents.column_names)

    def batches(self, columns: list[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Stream the rows in order; a class label of -1 (not published) becomes a missing value."""
        documents = self.documents.select_columns(columns) if columns else self.documents
        classes = [name for name, kind in documents.features.items() if isinstance(kind, datasets.ClassLabel)]
        for table in documents.with_format("arrow").iter(batch_size=BATCH_ROWS):
            for name in classes:
                labels = table.column(name)
                hidden = pyarrow.compute.equal(labels, -1)
                published = pyarrow.compute.if_else(hidden, pyarrow.scalar(None, labels.type), labels)
                table = table.set_column(table.column_names.index(name), name, published)
            yield from table.combine_chunks().to_batches()

    def label_names(self, column: str) -> dict[str, str]:
        """Label in the data -> its name, if the data set declares names."""
        kind = self.documents.features[column]
        names = kind.names if isinstance(kind, datasets.ClassLabel) else []
        return {str(number): name for number, name in enumerate(names)}


def _from_hub(hub: HubDataset) -> RowSource:
    try:
        hub = _pinned(hub) if resolve_source(str(hub)).kind == "hub" else hub
        documents = load_documents(dataset=str(hub))
    except DatasetError as error:
        raise DatasetError(f"there is no file {hub.path}, and it cannot be loaded as a data set: {error}") from error
    names = _split_names(str(hub), list(documents))
    rows = {split: SplitRows(f"{hub} ({name})", documents[name]) for split, name in names.items()}
    return RowSource(str(hub), splits=rows, split_names=names, hub=hub)


def _pinned(hub: HubDataset) -> HubDataset:
    """The data set with its revision resolved to a commit; unchanged if the Hub cannot be reached."""
    if hub.revision is not None and COMMIT.fullmatch(hub.revision):
        return hub
    with hub_or_cache() as reached:
        if not reached:
            return hub
        try:
            commit = huggingface_hub.HfApi().dataset_info(hub.path, revision=hub.revision).sha
        except (HfHubHTTPError, OSError, ValueError) as error:
            logger.info("the commit of %s is not known: %s", hub, error)  # loading reports what is wrong
            return hub
    return dataclasses.replace(hub, revision=commit or hub.revision)


def _split_names(origin: str, names: list[str]) -> dict[str, str]:
    """Match the splits in the data to train, validation and test -> name in the data."""
    matches = {
        "train": next((name for name in names if name.startswith("train")), None),
        "validation": next((name for name in names if name.startswith(VALIDATION_PREFIXES)), None),
        "test": "test" if "test" in names else None,
    }
    known = {split: name for split, name in matches.items() if name is not None}
    if not known.keys() & {"validation", "test"}:
        raise DatasetError(
            f"{origin} has no split to evaluate on (only {', '.join(names)}); pass its rows as one file with --data, "
            "and splits are drawn from it (for a Hub data set: load_dataset(…)['train'].to_parquet('rows.parquet'))"
        )
    return known
