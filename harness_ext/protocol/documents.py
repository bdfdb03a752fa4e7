"""Where documents come from: explicit files, a local folder, the Hub, or the bundled sample.

A task names a document set, and this module decides where to load it from:

```yaml
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: sst2
  choices: [negative, positive]
```

The first of these that applies is used:

1. `data_files` or `data_dir` in the task's `dataset_kwargs` (or in `--metadata`). A relative path is looked up in the
   folder of the YAML first, then in the working directory, so a task's folder can be moved.
2. The environment variable `HARNESS_EXT_DATA`: a folder with `sst2/train.parquet`, ... (parquet, jsonl, json, csv,
   tsv), or the word `sample` for the small sample that is bundled with this package.
3. The Hugging Face Hub, at a pinned revision.

`dataset` may also be the id of any Hub data set, `org/name[:config][@revision]`. It is loaded from the Hub, or from
`org/name/` in the folder of `HARNESS_EXT_DATA` if that exists.

The sample is used only on request: a score on it is not a benchmark result.
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
from harness_ext.protocol.document_rows import DocumentRows
from harness_ext.protocol.document_shape import DocumentShape
from harness_ext.protocol.local_files import existing_folder, files_in, load_files

logger = logging.getLogger(__name__)

DATA_VARIABLE = "HARNESS_EXT_DATA"
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"
HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hub, pinned to a commit if one is known."""

    path: str
    revision: str | None
    config: str | None = None  # if the data set has several

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{self.path}{config}" + (f"@{self.revision}" if self.revision else "")


HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)


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
    """The Hub data set for a name in the catalogue or a Hub id; None for any other name.

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

    @property
    def is_local(self) -> bool:
        """Whether these are files of this machine, which may hold anything, whatever the data set is called."""
        return self.kind in ("files", "folder")


def resolve_source(
    dataset: str,
    *,
    data_files: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    yaml_file: str | Path | None = None,
) -> Source:
    """Where `dataset` will be read from; nothing is read yet.

    Args:
        dataset: name in the catalogue, name of a folder under `HARNESS_EXT_DATA`, or a Hub id.
        data_files: split name -> file.
        data_dir: a folder with one file per split.
        yaml_file: the task's YAML file; relative paths are looked up in its folder first.

    Raises:
        DatasetError: the folder does not exist, or the name is unknown.
    """
    if data_files:
        return Source("files", ", ".join(data_files.values()))
    if data_dir:
        return Source("folder", str(existing_folder(_located(data_dir, yaml_file), "dataset_kwargs: data_dir")))
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
            f"document set {dataset!r} is not in the catalogue ({', '.join(CATALOGUE)}); name its files in "
            f"dataset_kwargs: data_files, or set {DATA_VARIABLE} to a folder that contains {dataset}/"
            f"{suggest(dataset, CATALOGUE)}"
        )
    return Source("hub", str(hub))


def is_available(dataset: str) -> bool:
    """Whether a document set can be loaded from `HARNESS_EXT_DATA` or the Hub; the bundled sample does not count."""
    if os.environ.get(DATA_VARIABLE):
        return resolve_source(dataset).kind == "folder"
    try:
        load_documents(dataset=dataset)
    except DatasetError:
        return False
    return True


def source_of(
    custom_dataset: Any, dataset_kwargs: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None = None
) -> Source | None:
    """Where a task with this `custom_dataset`, `dataset_kwargs` and `metadata` reads from; None if not from here."""
    if custom_dataset is not load_documents:
        return None
    kwargs = {**(metadata or {}), **(dataset_kwargs or {})}  # as lm-eval merges them
    return resolve_source(
        kwargs["dataset"],
        data_files=kwargs.get("data_files"),
        data_dir=kwargs.get("data_dir"),
        yaml_file=kwargs.get("config_source"),
    )


def is_sample(
    custom_dataset: Any, dataset_kwargs: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None = None
) -> bool:
    """Whether a task with this `custom_dataset`, `dataset_kwargs` and `metadata` reads the bundled sample."""
    source = source_of(custom_dataset, dataset_kwargs, metadata)
    return source is not None and source.is_sample


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
        dataset: name in the catalogue, name of a folder under `HARNESS_EXT_DATA`, or `org/name[:config][@revision]`.
        choices: for classification, the label words in label order; added to every document as the column `choices`.
        label: the column with the index into `choices`, or with one of `label_values`.
        data_files: split name -> file; takes precedence over everything else.
        data_dir: a folder with `{split}.parquet` (or .jsonl, .json, .csv, .tsv).
        columns: columns to rename, name in the task -> name in the data; the arguments below use the new names.
        label_values: labels as the data write them, in the order of `choices`; the index becomes the column `label`.
        answers: the column of gold answers, in any of the usual shapes; becomes the column `answers`, a list of texts.
        required: columns that must have a value; other rows are dropped.
        config_source: the task's YAML file, passed by lm-eval; relative paths start from its folder.
        _unused: the task's other metadata and the model arguments, which lm-eval passes, too.

    Returns:
        The splits. A missing split raises DatasetError only when its documents are read.

    Raises:
        DatasetError: the data are missing, unreadable or empty, or a label is missing or outside the choices.
    """
    shape = DocumentShape(columns, answers, label, label_values, required, choices)
    source = resolve_source(dataset, data_files=data_files, data_dir=data_dir, yaml_file=config_source)
    hub = hub_dataset(dataset)
    if source.kind == "hub" and hub is not None:
        loaded: Mapping[str, datasets.Dataset] = load_from_hub(hub, dataset)
        names = dict.fromkeys(loaded, source.location)
    else:
        files = {split: _located(file, config_source) for split, file in (data_files or {}).items()}
        files = files or files_in(Path(source.location))
        loaded = load_files(files, label=(columns or {}).get(label, label))
        names = {split: str(file) for split, file in files.items()}
    for split, rows in loaded.items():
        if not len(rows):
            raise DatasetError(f"{names[split]}: split {split!r} has no documents; add at least one")
    documents = DocumentSplits(
        {split: DocumentRows.of(shape.applied_to(rows, f"{names[split]} ({split})")) for split, rows in loaded.items()}
    )
    documents.location = source.location
    return documents


def _located(path: str, yaml_file: str | Path | None) -> Path:
    """Resolve a task's path: in the folder of the YAML if it exists there, else in the working directory."""
    given = Path(path).expanduser()
    if yaml_file is None or given.is_absolute():
        return given
    near = Path(yaml_file).parent / given
    return near if near.exists() else given


def _sample_folder(dataset: str) -> Path:
    folder = SAMPLE_FOLDER / dataset
    if not folder.is_dir():
        known = sorted(child.name for child in SAMPLE_FOLDER.iterdir() if child.is_dir())
        raise DatasetError(
            f"the bundled sample does not include {dataset!r} (only {', '.join(known)}); "
            f"set {DATA_VARIABLE} to a folder that contains {dataset}/"
        )
    return folder


def load_from_hub(hub: HubDataset, name: str) -> datasets.DatasetDict:
    """Load a data set from the Hub, or from the local cache when the Hub does not answer.

    Raises:
        DatasetError: it is neither on the Hub nor in the cache, or cannot be read.
    """
    with hub_or_cache() as reached:
        try:
            return datasets.load_dataset(hub.path, name=hub.config, revision=hub.revision)
        # OSError covers ConnectionError and the Hub's own errors; RuntimeError is a data set with a loading script
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            problem = "cannot be loaded from" if reached else "cannot be reached on"
            reason = f" ({' '.join(str(error).split()).rstrip('.'):.200})" if reached else ""
            raise DatasetError(
                f"{hub} {problem} the Hub and is not in the local cache{reason}; either {_remedies(name, hub)}"
            ) from error


def _remedies(name: str, hub: HubDataset) -> str:
    remedies = [
        "connect to the internet, or set HF_ENDPOINT to a mirror",
        f"set {DATA_VARIABLE} to a folder that contains {name if name in CATALOGUE else hub.path}/",
        "name local files in dataset_kwargs: data_files",
    ]
    if name in CATALOGUE:
        remedies.append(f"set {DATA_VARIABLE}={SAMPLE} for the bundled sample")
    numbered = [f"({number}) {remedy}" for number, remedy in enumerate(remedies, start=1)]
    return f"{', '.join(numbered[:-1])}, or {numbered[-1]}"


@contextlib.contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Use the Hub if it answers, otherwise only its local cache; yields whether it answers."""
    reached = _hub_answers()
    with contextlib.nullcontext() if reached else _offline():
        yield reached


def _hub_answers() -> bool:
    """Whether the Hub answers within `HUB_TIMEOUT_SECONDS`; its own client would retry for half a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: HF_ENDPOINT is not a URL
        logger.info("the Hub does not answer: %s", error)
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Restrict the Hub's client to its cache."""
    modules: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
