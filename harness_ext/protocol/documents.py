"""Where documents come from: explicit files, a local folder, the Hub, the bundled sample.

A task names a document set and leaves the place to this module:

```yaml
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: sst2
  choices: [negative, positive]
```

The first of these that is set wins:

1. `data_files` or `data_dir` in the task's `dataset_kwargs` (or in `--metadata`); a relative path is looked for beside
   the YAML, then in the working folder, so that a task's folder can be moved;
2. the environment variable `HARNESS_EXT_DATA`: a folder holding `sst2/train.parquet`, ... (parquet, jsonl, json,
   csv, tsv), or the word `sample` for the small sample that comes with this package;
3. the Hugging Face Hub, at a pinned revision.

`dataset` may also be the id of any Hub data set, `org/name[:config][@revision]`: it is loaded from the Hub, or from
`org/name/` in the folder of `HARNESS_EXT_DATA` where that is there.

The sample is never used unasked: a number on it is no benchmark.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import huggingface_hub

from harness_ext.errors import DatasetError, suggest
from harness_ext.protocol.absent_splits import DocumentSplits
from harness_ext.protocol.document_shape import DocumentShape
from harness_ext.protocol.local_files import existing_folder, files_in, load_files

logger = logging.getLogger(__name__)

DATA_VARIABLE = "HARNESS_EXT_DATA"
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"
HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub, pinned to a commit where one is known."""

    path: str
    revision: str | None
    config: str | None = None  # of a dataset that holds several

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{self.path}{config}" + (f"@{self.revision}" if self.revision else "")


HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)


# GLUE's sets share a repository; so do those of SuperGLUE.
_GLUE = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")

CATALOGUE: Mapping[str, HubDataset] = {
    "ag_news": HubDataset("fancyzhx/ag_news", "eb185aade064a813bc0b7f42de02595523103ca4"),
    "boolq": HubDataset("aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646", "boolq"),
    "imdb": HubDataset("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"),
    "mnli": HubDataset(*_GLUE, "mnli"),
    "rte": HubDataset(*_GLUE, "rte"),
    "sst2": HubDataset("stanfordnlp/sst2", "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"),
    "squad_v1": HubDataset("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f"),
    "squad_v2": HubDataset("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
    "trivia_qa": HubDataset("mandarjoshi/trivia_qa", "0f7faf33a3908546c6fd5b73a660e0f8ff173c2f", "rc.nocontext"),
}


def hub_dataset(dataset: str) -> HubDataset | None:
    """The Hub data set of a name: one of the catalogue, or an id.

    >>> hub_dataset("acme/topics:short@v2")
    HubDataset(path='acme/topics', revision='v2', config='short')
    >>> hub_dataset("tickets")
    """
    if dataset in CATALOGUE:
        return CATALOGUE[dataset]
    match = HUB_ID.fullmatch(dataset)
    return HubDataset(**match.groupdict()) if match else None


@dataclass(frozen=True)
class Source:
    """Where a document set is read from."""

    kind: Literal["files", "folder", "hub", "sample"]
    location: str

    @property
    def is_sample(self) -> bool:
        """Whether these are the bundled sample documents."""
        return self.kind == "sample"


def resolve_source(
    dataset: str,
    *,
    data_files: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    beside: str | Path | None = None,
) -> Source:
    """Say where `dataset` will be read from, without reading it.

    Args:
        dataset: name in the catalogue, or of a folder under `HARNESS_EXT_DATA`.
        data_files: split name to file.
        data_dir: a folder with a file for each split.
        beside: the task's YAML file; relative paths are looked for in its folder first.

    Raises:
        DatasetError: the named folder does not exist, or nothing is known under that name.
    """
    if data_files:
        return Source("files", ", ".join(data_files.values()))
    if data_dir:
        return Source("folder", str(existing_folder(_beside(data_dir, beside), "dataset_kwargs: data_dir")))
    hub = hub_dataset(dataset)
    if root := os.environ.get(DATA_VARIABLE):
        if dataset in CATALOGUE or hub is None:
            if root == SAMPLE:
                return Source("sample", str(_sample_folder(dataset)))
            return Source("folder", str(existing_folder(Path(root).expanduser() / dataset, DATA_VARIABLE)))
        if (copy := Path(root).expanduser() / hub.path).is_dir():
            return Source("folder", str(copy))
    if hub is None:
        raise DatasetError(
            f"document set {dataset!r} is not in the catalogue ({', '.join(CATALOGUE)}); name its files with "
            f"dataset_kwargs: data_files, or set {DATA_VARIABLE} to a folder that holds {dataset}/"
            f"{suggest(dataset, CATALOGUE)}"
        )
    return Source("hub", str(hub))


def is_available(dataset: str) -> bool:
    """Whether a document set can be loaded here, without the bundled sample: from a named folder, or from the Hub."""
    if os.environ.get(DATA_VARIABLE):
        return resolve_source(dataset).kind == "folder"
    try:
        load_documents(dataset=dataset)
    except DatasetError:
        return False
    return True


def is_sample(
    custom_dataset: Any, dataset_kwargs: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None = None
) -> bool:
    """Whether a task with this `custom_dataset`, `dataset_kwargs` and `metadata` reads the bundled sample."""
    if custom_dataset is not load_documents:
        return False
    kwargs = {**(metadata or {}), **(dataset_kwargs or {})}  # as lm-eval merges them
    return resolve_source(
        kwargs["dataset"],
        data_files=kwargs.get("data_files"),
        data_dir=kwargs.get("data_dir"),
        beside=kwargs.get("config_source"),
    ).is_sample


def load_documents(
    *,
    dataset: str,
    choices: Sequence[str] | None = None,
    label: str = "label",
    data_files: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_values: Sequence[Any] | None = None,
    answers: str | None = None,
    required: Sequence[str] | None = None,
    config_source: str | None = None,
    **_unused: Any,
) -> datasets.DatasetDict:
    """Load a document set for an lm-eval task (its `custom_dataset`).

    Args:
        dataset: name in the catalogue, of a folder under `HARNESS_EXT_DATA`, or `org/name[:config][@revision]`.
        choices: for classification, the label words in label order; added to every document as the column `choices`.
        label: the column that holds the index into `choices`, or one of `label_values`.
        data_files: split name to file; wins over everything else.
        data_dir: a folder holding `{split}.parquet` (or .jsonl, .json, .csv, .tsv).
        columns: name in the task to name in the data, of columns to rename; the arguments below use the new names.
        label_values: labels as the data write them, in the order of `choices`; the index becomes the column `label`.
        answers: the column of gold answers, in any of the usual shapes; becomes the column `answers`, a list of texts.
        required: columns; rows without a value in one of them are left out.
        config_source: the task's YAML file, which lm-eval passes along; relative paths start from its folder.
        _unused: lm-eval passes the task's metadata and the model arguments along.

    Returns:
        The splits; one that is not there raises a DatasetError when its documents are read, not before.

    Raises:
        DatasetError: nothing there, unreadable, empty, or a label that is missing or outside the choices.
    """
    shape = DocumentShape(columns, answers, label, label_values, required, choices)
    source = resolve_source(dataset, data_files=data_files, data_dir=data_dir, beside=config_source)
    hub = hub_dataset(dataset)
    if source.kind == "hub" and hub is not None:
        loaded: Mapping[str, datasets.Dataset] = load_from_hub(hub, dataset)
        names = dict.fromkeys(loaded, source.location)
    else:
        files = {split: _beside(file, config_source) for split, file in (data_files or {}).items()}
        files = files or files_in(Path(source.location))
        loaded = load_files(files, label=(columns or {}).get(label, label))
        names = {split: str(file) for split, file in files.items()}
    for split, rows in loaded.items():
        if not len(rows):
            raise DatasetError(f"{names[split]}: split {split!r} has no documents; put at least one there")
    documents = DocumentSplits(
        {split: shape.applied_to(rows, f"{names[split]} ({split})") for split, rows in loaded.items()}
    )
    documents.location = source.location
    return documents


def _beside(path: str, yaml_file: str | Path | None) -> Path:
    """A path of a task: as it stands beside the YAML when it is there, else from the working folder."""
    given = Path(path).expanduser()
    if yaml_file is None or given.is_absolute():
        return given
    near = Path(yaml_file).parent / given
    return near if near.exists() else given


def _sample_folder(dataset: str) -> Path:
    # SQuAD v1 is SQuAD v2 without its unanswerable questions; the sample has files of its own for both.
    folder = SAMPLE_FOLDER / dataset
    if not folder.is_dir():
        known = sorted(child.name for child in SAMPLE_FOLDER.iterdir() if child.is_dir())
        raise DatasetError(
            f"the bundled sample has no {dataset!r} (it has {', '.join(known)}); "
            f"set {DATA_VARIABLE} to a folder that does"
        )
    return folder


def load_from_hub(hub: HubDataset, name: str) -> datasets.DatasetDict:
    """Load a data set; when the Hub does not answer, its copy in the local cache, if there is one.

    Raises:
        DatasetError: it is neither on the Hub nor in the cache, or cannot be read.
    """
    with hub_or_cache() as reached:
        try:
            return datasets.load_dataset(hub.path, name=hub.config, revision=hub.revision)
        # ConnectionError and the Hub's own errors are OSErrors; RuntimeError: a data set that is a script
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            problem = "cannot be loaded from" if reached else "cannot be reached on"
            reason = f" ({' '.join(str(error).split()).rstrip('.'):.200})" if reached else ""
            raise DatasetError(
                f"{hub} {problem} the Hub and is not in the local cache{reason}; either {_other_places(name, hub)}"
            ) from error


def _other_places(name: str, hub: HubDataset) -> str:
    ways = [
        "connect, or point HF_ENDPOINT at a mirror",
        f"set {DATA_VARIABLE} to a folder that holds {name if name in CATALOGUE else hub.path}/",
        "name files under dataset_kwargs: data_files",
    ]
    if name in CATALOGUE:
        ways.append(f"set {DATA_VARIABLE}={SAMPLE} for the bundled sample")
    numbered = [f"({number}) {way}" for number, way in enumerate(ways, start=1)]
    return f"{', '.join(numbered[:-1])}, or {numbered[-1]}"


@contextlib.contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Use the Hub where it answers, its local cache alone where it does not; yields whether it answers."""
    reached = _hub_answers()
    with contextlib.nullcontext() if reached else _offline():
        yield reached


def _hub_answers() -> bool:
    """Whether the Hub answers within `HUB_TIMEOUT_SECONDS`; asked first: its client retries for half a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: HF_ENDPOINT is no URL
        logger.info("the Hub does not answer: %s", error)
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Make the Hub's client answer from its cache alone."""
    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
