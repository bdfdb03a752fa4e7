"""Where documents come from, and the errors when they cannot be loaded."""

from __future__ import annotations

import csv
import io
import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from lm_eval.tasks import TaskManager
from scripted import run

from harness_ext.errors import DatasetError, HarnessExtError, TaskError
from harness_ext.protocol import documents
from harness_ext.protocol.documents import CATALOGUE, DATA_VARIABLE, SAMPLE, SAMPLE_FOLDER, HubDataset, load_documents
from harness_ext.protocol.render import training_docs
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task

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
    monkeypatch.setattr(documents, "_hub_answers", lambda: True)
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
def test_hub_revisions_are_commits(dataset: documents.HubDataset) -> None:
    assert len(dataset.revision) == 40
    assert set(dataset.revision) <= set("0123456789abcdef")


def test_the_sample_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD)
    kwargs = {"dataset": "sst2"}
    assert documents.is_sample(load_documents, kwargs)
    assert not documents.is_sample(load_documents, {**kwargs, "data_dir": str(tmp_path)})
    assert not documents.is_sample(load_documents, kwargs, {"data_dir": str(tmp_path)})  # --metadata
    assert not documents.is_sample(None, kwargs)


def test_choices_become_a_column_and_hidden_labels_pass(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text("sentence,label\nfine,1\nhidden,-1\n")
    rows = load_documents(dataset="mine", choices=CHOICES, data_files={"test": str(file)})["test"]
    assert rows[0] == {"sentence": "fine", "label": 1, "choices": list(CHOICES)}
    assert rows[1]["label"] == -1


# -- what is written is what is read -------------------------------------------------------------------------------

# Oracle: the file itself. A reader that infers types would change each of these: to a missing value, a number, a
# boolean or a date.
LOOKALIKES = ("NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "#N/A", "-", "", " ", "00501", "+49 30", "1e5",
              "1.0", "1,5", "0x1F", "inf", "TRUE", "no", "2020-01-31", "2020-01-31 10:00:00", "10:30")  # fmt: skip


def csv_of(rows: Sequence[Sequence[str]], **style: Any) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", **style).writerows(rows)
    return stream.getvalue().encode()


TEXTS = [["sentence", "code"], *([f"text {number}", text] for number, text in enumerate(LOOKALIKES))]
TEXT_FILES = {
    "csv": ("test.csv", csv_of(TEXTS)),
    "csv, all quoted": ("test.csv", csv_of(TEXTS, quoting=csv.QUOTE_ALL)),
    "semicolons": ("test.csv", csv_of(TEXTS, delimiter=";")),
    "byte order mark": ("test.csv", b"\xef\xbb\xbf" + csv_of(TEXTS)),
    "tabs": ("test.tsv", csv_of(TEXTS, delimiter="\t")),
    "JSON lines": ("test.jsonl", "".join(json.dumps({"sentence": a, "code": b}) + "\n" for a, b in TEXTS[1:]).encode()),
    "JSON list": ("test.json", json.dumps([{"sentence": a, "code": b} for a, b in TEXTS[1:]]).encode()),
}


@pytest.mark.parametrize(("name", "content"), TEXT_FILES.values(), ids=TEXT_FILES)
def test_text_stays_as_it_is_written(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    rows = load_documents(dataset="mine", data_dir=str(tmp_path))["test"]
    assert tuple(rows["code"][:]) == LOOKALIKES


@pytest.mark.parametrize("text", LOOKALIKES)
def test_a_column_of_one_kind_stays_text(text: str, tmp_path: Path) -> None:
    """All cells are equal, so a reader that looks at a whole column would convert them."""
    (tmp_path / "test.csv").write_bytes(csv_of([["sentence", "code"], *([["x", text]] * 3)]))
    assert load_documents(dataset="mine", data_dir=str(tmp_path))["test"]["code"][:] == [text] * 3


def test_json_values_keep_the_type_json_gives_them(tmp_path: Path) -> None:
    rows = [{"n": 7, "f": 1.5, "b": True, "t": "7", "l": ["NA", "2020-01-31"], "m": {"at": [3]}, "late": None}] * 3000
    rows[-1] = {**rows[-1], "n": None, "late": "NA"}  # a type that appears only in the last row
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = load_documents(dataset="mine", data_dir=str(tmp_path))["test"]
    assert (read[0], read[2999]) == (rows[0], rows[-1])
    assert [type(value) for value in read[0].values()] == [int, float, bool, str, list, dict, type(None)]


LABEL_CELLS: dict[str, tuple[tuple[str, ...], list[Any]]] = {
    "numbers": (("0", "1", "-1"), [0, 1, -1]),
    "blanks around": ((" 0", "1 "), [0, 1]),
    "codes": (("00", "01"), ["00", "01"]),  # as numbers they would lose their zeros
    "words": (("NA", "null"), ["NA", "null"]),
    "mixed": (("0", "x"), ["0", "x"]),
    "an empty one": (("0", ""), [0, None]),
    "all empty": (("", ""), ["", ""]),
}


@pytest.mark.parametrize(("cells", "labels"), LABEL_CELLS.values(), ids=LABEL_CELLS)
def test_the_label_column_of_a_csv(cells: tuple[str, ...], labels: list[Any], tmp_path: Path) -> None:
    """A task without `choices` in its dataset_kwargs also reads labels, which lm-eval requires to be numbers."""
    (tmp_path / "test.csv").write_bytes(csv_of([["sentence", "label"], *(["x", cell] for cell in cells)]))
    assert load_documents(dataset="mine", data_dir=str(tmp_path))["test"]["label"][:] == labels


def test_a_single_column_is_enough_for_documents(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("page\nNA\n00501\n")
    assert load_documents(dataset="mine", data_dir=str(tmp_path))["test"]["page"][:] == ["NA", "00501"]


# -- what a task makes of the columns of its data ------------------------------------------------------------------


def shaped(tmp_path: Path, rows: list[dict[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    return list(load_documents(dataset="mine", data_dir=str(tmp_path), **kwargs)["test"])


def test_labels_by_their_values(tmp_path: Path) -> None:
    rows = [{"My Text": "a", "topic": "NA"}, {"My Text": "b", "topic": " World "}, {"My Text": None, "topic": "NA"}]
    assert shaped(
        tmp_path, rows, columns={"text": "My Text"}, label="topic", label_values=["World", "NA"],
        required=["text"], choices=["world", "none"],
    ) == [
        {"text": "a", "label": 1, "choices": ["world", "none"]}, {"text": "b", "label": 0, "choices": ["world", "none"]}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "written", "ending"),
    [
        ([False, True], ["True", "False"], "csv"), ([False, True], ["TRUE", "FALSE"], "csv"),
        ([False, True], ["true", "false"], "csv"), (["False", "True"], [True, False], "jsonl"),
        (["no", "yes"], ["yes", "no"], "csv"), ([0, 1], ["1.0", "0.0"], "csv"), ([0, 1], [1.0, 0.0], "jsonl"),
        (["0", "1"], [1, 0], "jsonl"), ([0, 1], ["1", "0"], "jsonl"),
    ],
)  # fmt: skip
def test_label_values_as_files_write_them(values: list[Any], written: list[Any], ending: str, tmp_path: Path) -> None:
    rows = [{"sentence": "a", "label": label} for label in written]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if ending == "csv":
        text = "sentence,label\n" + "".join(f"a,{label}\n" for label in written)
    (tmp_path / f"test.{ending}").write_text(text)
    loaded = load_documents(dataset="mine", data_dir=str(tmp_path), choices=["n", "y"], label_values=values)
    assert loaded["test"]["label"][:] == [1, 0]


@pytest.mark.parametrize("label", ["00501", "1.00", "TruE", 1.5])
def test_other_spellings_are_other_labels(label: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="label_values"):
        shaped(
            tmp_path,
            [{"text": "a", "label": label}],
            choices=["a", "b"],
            label_values=[501 if label == "00501" else 1, True],
        )


def test_hidden_labels_are_no_class(tmp_path: Path) -> None:
    """Like SNLI: -1 if annotators did not agree."""
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": -1}]
    assert [row["label"] for row in shaped(tmp_path, rows, choices=["x", "y"])] == [1, -1]
    assert [row["label"] for row in shaped(tmp_path, rows, choices=["x", "y"], required=["label"])] == [1]
    sentiment = shaped(tmp_path, rows, choices=["bad", "good"], label_values=[-1, 1])
    assert [row["label"] for row in sentiment] == [1, 0]


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("Paris", ["Paris"]), ("", []), (["a", "b"], ["a", "b"]), ({"text": ["a"], "answer_start": [0]}, ["a"]),
        ({"value": "a", "aliases": ["b"]}, ["a", "b"]),
    ],
)  # fmt: skip
def test_answers_in_every_shape(cell: Any, answers: list[str], tmp_path: Path) -> None:
    assert shaped(tmp_path, [{"question": "?", "reply": cell}], answers="reply") == [
        {"question": "?", "answers": answers}
    ]


SHAPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "label value unknown": (
        {"label_values": ["x"], "choices": ["x"]}, ("test.parquet", "row 2", "'y'", "label_values (x)")
    ),
    "renamed column missing": ({"columns": {"text": "txet"}}, ("'txet'", "did you mean 'text'?")),
    "answer column missing": ({"answers": "reply"}, ("'reply'", "dataset_kwargs: answers")),
    "required column missing": ({"required": ["reply"]}, ("'reply'", "dataset_kwargs: required")),
}  # fmt: skip


@pytest.mark.parametrize(("kwargs", "expected_parts"), SHAPES.values(), ids=SHAPES)
def test_shapes_that_do_not_fit(kwargs: dict[str, Any], expected_parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        shaped(tmp_path, [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], **kwargs)
    assert_one_line(caught.value, expected_parts)


# -- splits that are not there -------------------------------------------------------------------------------------


def one_split_only(root: Path, split: str) -> None:
    for name in ("sst2", "squad_v2"):
        (root / name).mkdir()
        for file in (SAMPLE_FOLDER / name).glob(f"{split}.*"):
            (root / name / file.name).write_bytes(file.read_bytes())


def gold(doc: dict[str, Any]) -> str:
    return str((doc["answers"]["text"] or ["unanswerable"])[0] if "answers" in doc else doc["choices"][doc["label"]])


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


# squad_v2_answerable filters its documents with a process_docs
@pytest.mark.parametrize("task", ["sst2_choice", "squad_v2_generate", "squad_v2_answerable"])
def test_a_validation_file_is_enough_to_evaluate(
    task: str, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_split_only(tmp_path, "validation")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    scores = run(manager, gold, task, limit=5)[task]
    assert scores.get("acc", scores.get("exact", 0) / 100) == 1.0
    missing = (str(tmp_path), "no split 'train'", "available: validation")
    with pytest.raises(DatasetError) as caught:
        run(manager, gold, task, limit=5, num_fewshot=2)
    assert_one_line(caught.value, missing)
    with pytest.raises(TaskError) as untrainable:
        training_docs(load_task(task))
    assert_one_line(untrainable.value, ("'train'", "validation", "training_split"))


@pytest.mark.parametrize("task", ["sst2_choice_5shot", "squad_v2_1shot"])
def test_few_shot_from_a_split_that_is_missing(
    task: str, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_split_only(tmp_path, "validation")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        run(manager, gold, task, limit=5)
    assert_one_line(caught.value, ("no split 'train'", "available: validation"))


@pytest.mark.parametrize("task", ["sst2_choice", "squad_v2_generate", "squad_v2_answerable"])
def test_a_training_file_is_enough_to_train(
    task: str, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = training_docs(load_task(task))
    one_split_only(tmp_path, "train")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert list(training_docs(load_task(task))) == list(both)
    with pytest.raises(DatasetError) as caught:
        run(manager, gold, task, limit=5)
    assert_one_line(caught.value, (str(tmp_path), "no split 'validation'", "available: train"))


# -- any data set of the Hub ---------------------------------------------------------------------------------------

HUB_IDS = {
    "acme/topics": HubDataset("acme/topics", None),
    "acme/topics@v2": HubDataset("acme/topics", "v2"),
    "acme/topics:short": HubDataset("acme/topics", None, "short"),
    "acme/topics:short@0a1b": HubDataset("acme/topics", "0a1b", "short"),
    "sst2": CATALOGUE["sst2"],
    "tickets": None,
}


@pytest.mark.parametrize(("name", "hub"), HUB_IDS.items(), ids=HUB_IDS)
def test_hub_ids(name: str, hub: HubDataset | None) -> None:
    assert documents.hub_dataset(name) == hub


def test_a_hub_id_is_loaded_from_the_hub_or_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(path: str, *, name: str | None, revision: str | None) -> hf_datasets.DatasetDict:
        assert (path, name, revision) == ("acme/topics", "short", "v2")
        return hf_datasets.DatasetDict(test=hf_datasets.Dataset.from_list([{"text": "hub"}]))

    def text() -> str:
        return str(load_documents(dataset="acme/topics:short@v2")["test"][0]["text"])

    monkeypatch.setattr(documents, "_hub_answers", lambda: True)
    monkeypatch.setattr(hf_datasets, "load_dataset", from_hub)
    assert text() == "hub"  # the bundled sample is selected, but does not contain this data set
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert text() == "hub"
    (tmp_path / "acme" / "topics").mkdir(parents=True)
    (tmp_path / "acme" / "topics" / "test.csv").write_text("text,label\ncopy,0\n")
    assert text() == "copy"


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(documents, "_hub_answers", lambda: True)
    monkeypatch.setattr(hf_datasets, "load_dataset", fail)
    with pytest.raises(DatasetError) as caught:
        load_documents(dataset="acme/topics@v2")
    assert_one_line(caught.value, ("acme/topics@v2", "cannot be loaded", "['a', 'b']", "HF_ENDPOINT", "data_files"))
    assert SAMPLE not in str(caught.value)


# -- bad input ---------------------------------------------------------------------------------------------------

BAD_FILES = {
    "empty file": (
        {"train_jsonl": GOOD, "validation_jsonl": ""},
        DatasetError,
        ("validation.jsonl", "empty"),
    ),
    "blank lines only": (
        {"train_jsonl": GOOD, "validation_jsonl": "\n\n"},
        DatasetError,
        ("validation.jsonl", "no documents", "add"),
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
        ("validation.jsonl", "row 3 (line 3)", "cannot be read as JSON"),
    ),
    "binary rubbish": (
        {"train_jsonl": GOOD, "validation_jsonl": b"\xff\xfe\x00\x01"},
        DatasetError,
        ("validation.jsonl", "is not UTF-8 text"),
    ),
    "label too high": (
        {"train_jsonl": GOOD, "validation_jsonl": GOOD + '{"sentence": "c", "label": 2}\n'},
        DatasetError,
        ("validation.jsonl", "row 3", "label 2", "outside the 2 choices", "correct"),
    ),
    "label as a word": (
        {"train_jsonl": '{"sentence": "c", "label": "positive"}\n', "validation_jsonl": GOOD},
        DatasetError,
        ("train.jsonl", "row 1", "'positive'", "outside the 2 choices"),
    ),
    "label a number in quotes": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"sentence": "c", "label": "1"}\n'},
        DatasetError,
        ("validation.jsonl", "row 1", "'1', which is text", "label_values"),
    ),
    "label no whole number": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"sentence": "c", "label": 1.0}\n'},
        DatasetError,
        ("validation.jsonl", "row 1", "1.0, which is a decimal number", "label_values"),
    ),
    "label missing": (
        {"train_jsonl": GOOD, "validation_jsonl": '{"sentence": "c", "label": null}\n'},
        DatasetError,
        ("validation.jsonl", "row 1", "no label", "'label'"),
    ),
    "label cell empty": (
        {"train_jsonl": GOOD, "validation_csv": 'sentence,label\n"two\nlines",1\n\na,0\nb,\n'},
        DatasetError,
        ("validation.csv", "row 3", "no label", "'label'"),
    ),
    "label cell no number": (
        {"train_jsonl": GOOD, "validation_csv": "sentence,label\na,0\nb,NA\n"},
        DatasetError,
        ("validation.csv", "row 2", "'NA'", "outside the 2 choices"),
    ),
    "short row": (
        {"train_jsonl": GOOD, "validation_csv": 'sentence,label\n"two\nlines",1\nb\n'},
        DatasetError,
        ("validation.csv", "row 2 (line 4)", "1 cell,", "header has 2", "correct"),
    ),
    "long row": (
        {"train_jsonl": GOOD, "validation_csv": 'sentence,label\n"two\nlines",1\nb,or c,0\n'},
        DatasetError,
        ("validation.csv", "row 2 (line 4)", "3 cells,", "header has 2", "correct"),
    ),
    "open quote": (
        {"train_jsonl": GOOD, "validation_csv": 'sentence,label\na,1\n"b,0\nc,0\n'},
        DatasetError,
        ("validation.csv", "row 2 (line 3)", "never closed", "correct"),
    ),
    "column twice": (
        {"train_jsonl": GOOD, "validation_csv": "sentence,label,label\na,1,0\n"},
        DatasetError,
        ("validation.csv", "'label' twice", "rename"),
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
        ("'choices'", "dataset_kwargs"),
    ),
    "no readable file": ({"train_txt": GOOD}, DatasetError, ("sst2", ".parquet", "add one file")),
}


@pytest.mark.parametrize(("files", "error", "expected_parts"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(
    files: dict[str, str | bytes],
    error: type[HarnessExtError],
    expected_parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(folder(tmp_path, **files)))
    with pytest.raises(HarnessExtError) as caught:
        load_task("sst2_choice")
    assert type(caught.value) is error
    assert_one_line(caught.value, expected_parts)
    assert "Failed to" not in capfd.readouterr().err  # only our own error is shown


def assert_one_line(error: BaseException, expected_parts: tuple[str, ...]) -> None:
    message = str(error)
    assert "\n" not in message
    assert not [part for part in expected_parts if part not in message], message
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
    "choices that YAML reads as no text": (
        lambda: load_documents(dataset="sst2", choices=["yes", None]),
        DatasetError,
        ("None", "not text", "quotes"),
    ),
    "no such YAML": (lambda: load_task("nowhere/task.yaml"), TaskError, ("nowhere/task.yaml", "check the path")),
    "several tasks": (lambda: load_task("sst2_*"), TaskError, ("'sst2_*'", "more than one task")),
}


@pytest.mark.parametrize(("ask", "error", "expected_parts"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_requests(ask: Any, error: type[HarnessExtError], expected_parts: tuple[str, ...]) -> None:
    with pytest.raises(HarnessExtError) as caught:
        ask()
    assert type(caught.value) is error
    assert_one_line(caught.value, expected_parts)


@pytest.mark.slow  # lm-eval's own tasks are indexed before a name is reported as unknown
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
        ("'mine'", "'validation'", "evaluation split", "training_split"),
    ),
    "the reported test split": (
        "training_split: train\ntest_split: train",
        ("'mine'", "'train'", "evaluation split", "training_split"),
    ),
}


@pytest.mark.parametrize(("more", "expected_parts"), UNTRAINABLE.values(), ids=UNTRAINABLE)
def test_untrainable_tasks(more: str, expected_parts: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TASK_YAML.format(more=more + "\nfewshot_split: train"))
    with pytest.raises(TaskError) as caught:
        training_docs(load_task(str(file)))
    assert_one_line(caught.value, expected_parts)


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


@pytest.mark.parametrize(("more", "expected_parts"), BROKEN_YAML.values(), ids=BROKEN_YAML)
def test_broken_yaml(
    more: str, expected_parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    file = tmp_path / "mine.yaml"
    file.write_text(TASK_YAML.format(more="") + "\n")
    lines = [line for line in file.read_text().splitlines() if line.split(":")[0] not in more]
    file.write_text("\n".join([*lines, more]))
    with pytest.raises(HarnessExtError) as caught:
        load_task(str(file))
    assert_one_line(caught.value, expected_parts)


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
    assert not documents.is_available("sst2")


def test_hub_answers_but_does_not_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("gateway\ntimed out")

    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.setattr(documents, "_hub_answers", lambda: True)
    monkeypatch.setattr(hf_datasets, "load_dataset", fail)
    with pytest.raises(DatasetError) as caught:
        load_documents(dataset="squad_v2")
    assert_one_line(caught.value, ("rajpurkar/squad_v2", "cannot be loaded", f"{DATA_VARIABLE}={SAMPLE}"))


@pytest.mark.parametrize("endpoint", ["no url", "http://127.0.0.1:9"])
def test_a_wrong_endpoint_is_no_answer(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert not documents._hub_answers()


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
    # Negated and contrasting sentences occur in both classes, so no single word determines the label.
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
