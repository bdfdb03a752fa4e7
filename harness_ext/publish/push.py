"""Publish an adapter on the Hub: `harness-ext push ADAPTER hub:USER/NAME`.

```
adapter folder ──> files that belong to it ──> no path of this machine in them ──> one commit
results        ──> copies without such paths ─┘
```
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    EvalResultEntry,
    HfApi,
    ModelCard,
    eval_result_entries_to_yaml,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from harness_ext.errors import CardError, HubError, InputError
from harness_ext.metrics.statistic import SHARE
from harness_ext.models.adapter_input import CONFIG_FILE, read_settings
from harness_ext.models.adapters import ADAPTER_FILES, check_adapter
from harness_ext.models.card import CARD_FILE, read_card
from harness_ext.names import clean_name
from harness_ext.publish.card import README, base_of, names_text, read_readme
from harness_ext.publish.claims import Claim, claims_in
from harness_ext.publish.front_matter import check, metadata_of
from harness_ext.publish.hub import explained
from harness_ext.publish.places import place_in, without_places
from harness_ext.reading.files import read_text
from harness_ext.reading.yaml_input import read_yaml
from harness_ext.regions import find_regions, with_regions
from harness_ext.results.file import DATE, parse_run, read_payload
from harness_ext.training.model_card import HUB_ID, sections

RESULTS, REPORT = "results", "report.html"
BENCHMARK_FILE = "eval.yaml"  # of a data set that is a benchmark, see https://huggingface.co/docs/hub/eval-results
_TEXTS = (README, CONFIG_FILE, CARD_FILE, "tokenizer_config.json", "special_tokens_map.json")
_NOT_IN_A_NAME = re.compile(r"[^\w.-]")
_MAY_BE_IN_A_NEW_REPOSITORY = {".gitattributes", "README.md", "LICENSE"}


@dataclass(frozen=True)
class Upload:
    """A file of the commit."""

    path: str  # in the repository
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Published:
    """A commit on the Hub."""

    url: str  # of the pull request, or of the commit
    files: tuple[str, ...]


def uploads_of(
    adapter: str | Path, repository: str, *, results: str | Path | None = None, report: str | Path | None = None
) -> list[Upload]:
    """The files to send, none of which names a place on this machine. Nothing is asked of the Hub.

    Args:
        adapter: folder of the adapter.
        repository: Hub id, by which the commands of the card call the adapter.
        results: folder of its results, to be sent along.
        report: file of a report, to be sent along.

    Raises:
        AdapterError: the folder holds no whole adapter.
        CardError: it has no README, or its metadata are none that the Hub reads.
        HubError: a file names a place on this machine, or what is to be sent along is not there.
    """
    folder = Path(adapter).expanduser()
    check_adapter(folder)
    readme = _readme_for(folder, repository)
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in ADAPTER_FILES)]
    uploads = [Upload(README, readme.encode())]
    uploads += [Upload(name, folder / name) for name in chosen if name != README]
    for upload in uploads:
        if upload.path in _TEXTS:
            _check_names_no_place(upload, folder)
    if results is not None:
        uploads += list(_results_uploads(Path(results).expanduser()))
    if report is not None:
        file = Path(report).expanduser()
        if not file.is_file():
            raise HubError(f"there is no report {file}; write one, or leave it out of --with")
        uploads.append(Upload(REPORT, file))
    return uploads


def _readme_for(folder: Path, repository: str) -> str:
    """The README, in which commands call the adapter by its Hub id, unless somebody has edited them."""
    place = str(folder / README)
    text = read_readme(folder)
    if text is None:
        raise CardError(f"{folder} has no {README}; write it with `harness-ext card {folder} RESULTS`")
    metadata = metadata_of(text, place)
    check(metadata, place)
    base_model = metadata.get("base_model")
    names = base_model if isinstance(base_model, list) else [base_model]
    if not all(isinstance(name, str) and HUB_ID.fullmatch(name) for name in names):
        raise CardError(
            f"{place}: base_model is {base_model!r:.80}, and not the Hub id of the base, so that nobody can use the "
            "adapter; correct it"
        )
    claims, card = claims_in(metadata, place), read_card(folder)
    base, hub = base_of(card, read_settings(folder))
    regions = find_regions(text, place)
    if claims:
        include_path = (card.recipe.get("include_path") if card else None) or ()
        named = names_text(claims, repository, base, hub or base, include_path)
    elif card is not None:
        written = sections(card, repository.rpartition("/")[2], adapter=repository)
        named = {name: written[name] for name in ("use", "repeat")}
    else:
        named = {}
    ours = {name: content for name, content in named.items() if name in regions and not regions[name].is_edited}
    return with_regions(text, ours, place)


def _check_names_no_place(upload: Upload, folder: Path) -> None:
    text = upload.content.decode() if isinstance(upload.content, bytes) else read_text(upload.content)
    if found := place_in(text, strict=upload.path != README):
        raise HubError(
            f"{folder / upload.path} names {found}, a path of this machine; write what others can use instead, such as "
            "the Hub id of the base, then push again"
        )


# -- results ---------------------------------------------------------------------------------------------------------


def _results_uploads(folder: Path) -> Iterator[Upload]:
    """Results files without paths of this machine, and their samples, in a folder for each run."""
    files = sorted(folder.rglob("results_*.json")) if folder.is_dir() else []
    if not files:
        raise HubError(f"there are no results in {folder}; name their folder: --with results=DIR")
    for file in files:
        payload = read_payload(file)
        if not isinstance(payload.get("results"), Mapping):
            continue
        target = f"{RESULTS}/{_NOT_IN_A_NAME.sub('_', parse_run(file, payload).name)}"
        text = json.dumps(without_places(payload), indent=2, ensure_ascii=False)
        yield Upload(f"{target}/{file.name}", text.encode("utf-8", "replace"))
        date = DATE.search(file.stem)
        for samples in sorted(file.parent.glob(f"samples_*{date.group() if date else ''}.jsonl")):
            yield Upload(f"{target}/{samples.name}", samples)


# -- benchmarks ------------------------------------------------------------------------------------------------------


def benchmark_uploads(adapter: str | Path) -> list[Upload]:
    """`.eval_results/*.yaml` for each claim on a whole split of a data set that is a registered benchmark.

    A data set is one if its repository has an `eval.yaml`; the Hub is asked for it.

    Raises:
        HubError: the Hub cannot be reached.
    """
    folder = Path(adapter).expanduser()
    text = read_readme(folder) or ""
    claims = claims_in(metadata_of(text, str(folder / README)), str(folder / README))
    uploads = []
    for claim in claims:
        if claim.dataset is None or not claim.dataset.is_on_hub or claim.is_sample or "limit" in claim.settings:
            continue
        task_id = _benchmark_task(claim)
        if task_id is not None:
            text = yaml.safe_dump(eval_result_entries_to_yaml([_entry(claim, task_id)]), sort_keys=False)
            uploads.append(Upload(f".eval_results/{claim.task}.yaml", text.encode()))
    return uploads


def _benchmark_task(claim: Claim) -> str | None:
    """The task of a benchmark that has a claim's config and split; None if the data set is no benchmark."""
    dataset = claim.dataset
    assert dataset is not None
    with explained(dataset.name):
        try:
            file = hf_hub_download(dataset.name, BENCHMARK_FILE, repo_type="dataset")
        except (EntryNotFoundError, RepositoryNotFoundError):
            return None
    try:
        declared = read_yaml(file)
    except InputError:
        return None
    tasks = declared.get("tasks") if isinstance(declared, dict) else None
    found = [
        task["id"]
        for task in (tasks if isinstance(tasks, list) else [])
        if isinstance(task, dict)
        and isinstance(task.get("id"), str)
        and task.get("config", "default") == (dataset.config or "default")
        and task.get("split") == dataset.split
    ]
    return found[0] if len(found) == 1 else None


def _entry(claim: Claim, task_id: str) -> EvalResultEntry:
    assert claim.dataset is not None
    shots = claim.settings.get("num_fewshot") or 0
    return EvalResultEntry(
        dataset_id=claim.dataset.name,
        task_id=task_id,
        value=round(100 * claim.value if claim.unit == SHARE else claim.value, 4),
        dataset_revision=claim.dataset.revision,
        notes=f"lm-eval task {claim.task}, {claim.metric}, {shots}-shot",
    )


# -- sending ---------------------------------------------------------------------------------------------------------


def push(uploads: Sequence[Upload], repository: str, *, pull_request: bool = False, private: bool = False) -> Published:
    """Send files to a repository in one commit; it is created if it does not exist.

    Args:
        uploads: the files.
        repository: Hub id.
        pull_request: open a pull request to an existing repository instead.
        private: of a new repository.

    Raises:
        HubError: there is no token, it may not write there, the name is taken by something else, or the Hub cannot be
            reached.
    """
    if get_token() is None:
        raise HubError("there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    operations = [CommitOperationAdd(upload.path, _content(upload)) for upload in uploads]
    with explained(repository):
        api.whoami()
        there = _files_there(api, repository)
        if there is None and pull_request:
            raise HubError(f"the Hub has no {repository} to open a pull request to; leave out --pr to create it")
        if there is not None and not pull_request:
            _check_holds_an_adapter(there, repository)
        for upload in uploads:
            if upload.path == README and isinstance(upload.content, bytes):
                ModelCard(upload.content.decode()).validate()  # by the Hub, before anything is created
        if there is None:
            api.create_repo(repository, private=private or None)
        done = api.create_commit(repository, operations, commit_message="Add LoRA adapter", create_pr=pull_request)
    return Published(str(done.pr_url or done.commit_url), tuple(upload.path for upload in uploads))


def _content(upload: Upload) -> str | bytes:
    return upload.content if isinstance(upload.content, bytes) else str(upload.content)


def _files_there(api: HfApi, repository: str) -> set[str] | None:
    """The files of a repository; None if there is none."""
    try:
        return set(api.list_repo_files(repository))
    except RepositoryNotFoundError:
        return None


def _check_holds_an_adapter(there: set[str], repository: str) -> None:
    others = sorted(there - _MAY_BE_IN_A_NEW_REPOSITORY)
    if others and CONFIG_FILE not in there:
        raise HubError(f"{repository} is taken: it holds {clean_name(others[0])} and no adapter; choose another name")
