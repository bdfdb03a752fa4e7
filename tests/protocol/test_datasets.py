"""Where documents come from, and what is said when they cannot be had."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import huggingface_hub
import pytest

from harness_ext.errors import DatasetError, HarnessExtError, TaskError
from harness_ext.protocol import datasets
from harness_ext.protocol.datasets import CATALOGUE, DATA_VARIABLE, SAMPLE, SAMPLE_FOLDER, load_documents
from harness_ext.protocol.render import load_task, training_docs

GOOD = '{"sentence": "a fine film", "label": 1}\n{"sentence": "a dull film", "label": 0}\n'
CHOICES = ("negative", "positive")


def folder(root: Path, **files: str | bytes) -> Path:
    """A data folder; `train_jsonl="…"` becomes sst2/train.jsonl."""
    home = root / "sst2"
    home.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = home / name.replace("_", ".")
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


# -- the order of places -----------------------------------------------------------------------------------------


def named(sentence: str) -> str:
    return json.dumps({"sentence": sentence, "label": 0}) + "\n"


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_variable = folder(tmp_path / "variable", train_jsonl=named("variable"))
    by_dir = folder(tmp_path / "dir", train_jsonl=named("dir")) / "sst2"
    by_file = tmp_path / "file.jsonl"
    by_file.write_text(named("file"))
    monkeypatch.setattr(datasets, "_hub_answers", lambda: True)
    asked = []

    def from_hub(path: str, *, name: str | None, revision: str) -> hf_datasets.DatasetDict:
        asked.append((path, name, revision))
        rows = hf_datasets.Dataset.from_list([{"sentence": "hub", "label": 0}])
        return hf_datasets.DatasetDict({"train": rows})

    def first(**kwargs: Any) -> str:
        return str(load_documents(dataset="sst2", choices=CHOICES, **kwargs)["train"][0]["sentence"])

    monkeypatch.setenv(DATA_VARIABLE, str(by_variable))
    assert first(data_files={"train": str(by_file)}, data_dir=str(by_dir)) == "file"
    assert first(data_dir=str(by_dir)) == "dir"
    assert first() == "variable"
    monkeypatch.setenv(DATA_VARIABLE, SAMPLE)
    assert first() == json.loads((SAMPLE_FOLDER / "sst2" / "train.jsonl").read_text().splitlines()[0])["sentence"]
    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.setattr(hf_datasets, "load_dataset", from_hub)
    assert first() == "hub"
    assert asked == [(CATALOGUE["sst2"].path, None, CATALOGUE["sst2"].revision)]


@pytest.mark.parametrize("dataset", CATALOGUE.values(), ids=CATALOGUE)
def test_hub_revisions_are_commits(dataset: datasets.HubDataset) -> None:
    assert len(dataset.revision) == 40
    assert set(dataset.revision) <= set("0123456789abcdef")


def test_the_sample_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD)
    kwargs = {"dataset": "sst2"}
    assert datasets.is_sample(load_documents, kwargs)
    assert not datasets.is_sample(load_documents, {**kwargs, "data_dir": str(tmp_path)})
    assert not datasets.is_sample(load_documents, kwargs, {"data_dir": str(tmp_path)})  # --metadata
    assert not datasets.is_sample(None, kwargs)


def test_choices_become_a_column_and_hidden_labels_pass(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text("sentence,label\nfine,1\nhidden,-1\n")
    rows = load_documents(dataset="mine", choices=CHOICES, data_files={"test": str(file)})["test"]
    assert rows[0] == {"sentence": "fine", "label": 1, "choices": list(CHOICES)}
    assert rows[1]["label"] == -1


# -- bad input ---------------------------------------------------------------------------------------------------

BAD_FILES = {
    "empty file": (
        {"train_jsonl": GOOD, "validation_jsonl": ""},
        DatasetError,
        ("validation.jsonl", "empty", "must hold"),
    ),
    "blank lines only": (
        {"train_jsonl": GOOD, "validation_jsonl": "\n\n"},
        DatasetError,
        ("validation.jsonl", "no documents", "put at least one"),
    ),
    "header only": (
        {"train_jsonl": GOOD, "validation_csv": "sentence,label\n"},
        DatasetError,
        ("validation.csv", "no documents"),
    ),
    "corrupt parquet": (
        {"train_jsonl": GOOD, "validation_parquet": b"PAR1 no more"},
        DatasetError,
        ("validation.parquet", "magic bytes", "write it again"),
    ),
    "truncated json line": (
        {"train_jsonl": GOOD, "validation_jsonl": GOOD + '{"sentence": "half'},
        DatasetError,
        ("validation.jsonl", "row 2", "fix that line"),
    ),
    "binary rubbish": (
        {"train_jsonl": GOOD, "validation_jsonl": b"\xff\xfe\x00\x01"},
        DatasetError,
        ("validation.jsonl", "cannot be read as json"),
    ),
    "label too high": (
        {"train_jsonl": GOOD, "validation_jsonl": GOOD + '{"sentence": "c", "label": 2}\n'},
        DatasetError,
        ("(validation)", "document 2", "label 2", "outside the 2 choices", "correct"),
    ),
    "label as a word": (
        {"train_jsonl": '{"sentence": "c", "label": "positive"}\n', "validation_jsonl": GOOD},
        DatasetError,
        ("(train)", "document 0", "'positive'", "outside the 2 choices"),
    ),
    "label missing": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"sentence": "c", "label": null}\n'},
        DatasetError,
        ("None", "outside"),
    ),
    "label column misspelt": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"sentence": "c", "lable": 1}\n'},
        DatasetError,
        ("no column 'label'", "lable", "dataset_kwargs: label"),
    ),
    "text column missing": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"text": "c", "label": 1}\n'},
        TaskError,
        ("sst2_choice", "'sentence'", "correct"),
    ),
    "choices given twice": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"sentence": "c", "label": 1, "choices": ["a", "b"]}\n'},
        DatasetError,
        ("'choices' already", "drop it"),
    ),
    "no validation split": ({"train_jsonl": GOOD}, TaskError, ("sst2_choice", "'validation'", "split", "add it")),
    "no training split": ({"validation_jsonl": GOOD}, TaskError, ("sst2_choice", "'train'", "split", "add it")),
    "no readable file": ({"train_txt": GOOD}, DatasetError, ("sst2", ".parquet", "add one file")),
}


@pytest.mark.parametrize(("files", "error", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(
    files: dict[str, str | bytes],
    error: type[HarnessExtError],
    told: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(folder(tmp_path, **files)))
    with pytest.raises(HarnessExtError) as caught:
        load_task("sst2_choice")
    assert type(caught.value) is error
    assert_one_line(caught.value, told)
    assert "Failed to" not in capfd.readouterr().err  # said once, by us


def assert_one_line(error: BaseException, told: tuple[str, ...]) -> None:
    message = str(error)
    assert "\n" not in message
    assert not [part for part in told if part not in message], message
    assert "?;" not in message
    assert ".;" not in message


BAD_REQUESTS = {
    "folder missing": (
        lambda: load_documents(dataset="sst2", data_dir="/nowhere"),
        DatasetError,
        ("/nowhere", "not a folder", "create it"),
    ),
    "file missing": (
        lambda: load_documents(dataset="x", data_files={"train": "no.csv"}),
        DatasetError,
        ("no.csv", "'train'", "check the path"),
    ),
    "kind of file": (
        lambda: load_documents(dataset="x", data_files={"train": "no.xml"}),
        DatasetError,
        ("no.xml", "'.xml'", ".jsonl"),
    ),
    "not in the sample": (
        lambda: load_documents(dataset="boolq"),
        DatasetError,
        ("'boolq'", "squad_v2, sst2", DATA_VARIABLE),
    ),
    "no such YAML": (lambda: load_task("nowhere/task.yaml"), TaskError, ("nowhere/task.yaml", "check the path")),
    "several tasks": (lambda: load_task("sst2_*"), TaskError, ("'sst2_*'", "more than one task", "name one")),
}


@pytest.mark.parametrize(("ask", "error", "told"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_requests(ask: Any, error: type[HarnessExtError], told: tuple[str, ...]) -> None:
    with pytest.raises(HarnessExtError) as caught:
        ask()
    assert type(caught.value) is error
    assert_one_line(caught.value, told)


@pytest.mark.slow  # lm-eval's own tasks are indexed before a name is called unknown
def test_unknown_task() -> None:
    with pytest.raises(TaskError) as caught:
        load_task("sst2_choise")
    assert_one_line(caught.value, ("'sst2_choise'", "did you mean 'sst2_choice'?", "lm_eval ls tasks"))


def test_unknown_document_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE)
    with pytest.raises(DatasetError) as caught:
        load_documents(dataset="sst")
    assert_one_line(caught.value, ("'sst'", "did you mean 'sst2'?", "data_files", DATA_VARIABLE))


TASK_YAML = """
task: mine
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs: {{dataset: sst2, choices: [negative, positive]}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{sentence}}}}"
doc_to_choice: choices
doc_to_target: label
{more}
"""

UNTRAINABLE = {
    "no training split": ("", ("'mine'", "no training split", "add `training_split:`")),
    "not in the data": ("training_split: dev", ("'mine'", "'dev'", "train, validation", "correct")),
    "the reported split": (
        "training_split: validation",
        ("'mine'", "'validation'", "the split it reports", "name another"),
    ),
    "the reported test split": (
        "training_split: train\ntest_split: train",
        ("'mine'", "'train'", "the split it reports", "name another"),
    ),
}


@pytest.mark.parametrize(("more", "told"), UNTRAINABLE.values(), ids=UNTRAINABLE)
def test_untrainable_tasks(more: str, told: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TASK_YAML.format(more=more + "\nfewshot_split: train"))
    with pytest.raises(TaskError) as caught:
        training_docs(load_task(str(file)))
    assert_one_line(caught.value, told)


BROKEN_YAML = {
    "unknown key": ("doc_to_txt: x", ("mine.yaml", "doc_to_txt", "correct")),
    "unknown function": (
        "process_results: !function harness_ext.hooks.score_everything",
        ("score_everything", "correct"),
    ),
    "unknown template field": ("description: '{{nothing.here}}'\ndoc_to_target: '{{lable}}'", ("'lable'", "correct")),
    "template syntax": ("doc_to_target: '{{label'", ("mine.yaml", "correct")),
    "unknown metric": ("metric_list: [{metric: acuracy}]", ("mine.yaml", "correct")),
    "unknown output type": ("output_type: choice", ("mine.yaml", "'choice'", "correct")),
    "no data set named": ("dataset_kwargs: {}", ("mine.yaml", "'dataset'", "correct")),
}


@pytest.mark.parametrize(("more", "told"), BROKEN_YAML.values(), ids=BROKEN_YAML)
def test_broken_yaml(more: str, told: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    file = tmp_path / "mine.yaml"
    file.write_text(TASK_YAML.format(more="") + "\n")
    lines = [line for line in file.read_text().splitlines() if line.split(":")[0] not in more]
    file.write_text("\n".join([*lines, more]))
    with pytest.raises(HarnessExtError) as caught:
        load_task(str(file))
    assert_one_line(caught.value, told)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.setattr(hf_datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(hf_datasets.config, "HF_MODULES_CACHE", str(tmp_path))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


def test_no_network(no_network: None) -> None:
    started = time.monotonic()
    with pytest.raises(DatasetError) as caught:
        load_task("sst2_choice")
    assert time.monotonic() - started < 2
    ways = ("HF_ENDPOINT", f"{DATA_VARIABLE} to a folder", "data_files", f"{DATA_VARIABLE}={SAMPLE}")
    assert_one_line(caught.value, ("stanfordnlp/sst2", "cannot be reached", *ways))
    assert not datasets.is_available("sst2")


def test_hub_answers_but_does_not_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("gateway\ntimed out")

    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.setattr(datasets, "_hub_answers", lambda: True)
    monkeypatch.setattr(hf_datasets, "load_dataset", fail)
    with pytest.raises(DatasetError) as caught:
        load_documents(dataset="squad_v2")
    assert_one_line(caught.value, ("rajpurkar/squad_v2", "cannot be loaded", f"{DATA_VARIABLE}={SAMPLE}"))


@pytest.mark.parametrize("endpoint", ["no url", "http://127.0.0.1:9"])
def test_a_wrong_endpoint_is_no_answer(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert not datasets._hub_answers()


# -- the bundled sample ------------------------------------------------------------------------------------------


def sample(dataset: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLE_FOLDER / dataset / f"{split}.jsonl").read_text().splitlines()]


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


@pytest.mark.parametrize(("split", "least"), [("train", 320), ("validation", 160)])
def test_sample_sentences(split: str, least: int) -> None:
    docs = sample("sst2", split)
    assert len(docs) >= least
    assert len({plain(doc["sentence"]) for doc in docs}) == len(docs)
    share = sum(doc["label"] for doc in docs) / len(docs)
    assert 0.48 <= share <= 0.52
    # Negated and contrasted sentences occur in both classes, so that no single word gives the label away.
    for word in ("not", "but"):
        assert len({doc["label"] for doc in docs if word in plain(doc["sentence"]).split()}) == 2
    assert not any(len(doc["sentence"].split()) < 4 for doc in docs)


def test_sample_questions() -> None:
    passages: Counter[str] = Counter()
    unanswerable = 0
    for split in ("train", "validation"):
        for doc in sample("squad_v2", split):
            passages[doc["context"]] += 1
            texts, starts = doc["answers"]["text"], doc["answers"]["answer_start"]
            assert len(texts) == len(starts)
            for text, start in zip(texts, starts, strict=True):
                assert text
                assert doc["context"][start : start + len(text)] == text, doc["id"]
            unanswerable += not texts
    assert len(passages) >= 40
    assert set(passages.values()) == {4}
    assert 0.28 <= unanswerable / passages.total() <= 0.38


@pytest.mark.parametrize(
    ("dataset", "column"), [("sst2", "sentence"), ("squad_v2", "context"), ("squad_v2", "question")]
)
def test_sample_splits_do_not_overlap(dataset: str, column: str) -> None:
    train, validation = ({plain(doc[column]) for doc in sample(dataset, split)} for split in ("train", "validation"))
    assert not train & validation


@pytest.mark.parametrize("dataset", ["sst2", "squad_v2"])
def test_sample_ids_are_unique(dataset: str) -> None:
    ids = [doc.get("idx", doc.get("id")) for split in ("train", "validation") for doc in sample(dataset, split)]
    assert len(set(ids)) == len(ids)
