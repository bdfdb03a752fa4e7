"""`new-task` makes valid, portable, trainable tasks; invalid data give a one-line error and leave nothing behind."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets as hf_datasets
import huggingface_hub
import pyarrow.parquet
import pytest
import yaml
from lm_eval.tasks import TaskManager
from scripted import run

from harness_ext.check.run import check_tasks
from harness_ext.errors import HarnessExtError
from harness_ext.new_task.make import NewTask, new_task
from harness_ext.protocol.documents import SAMPLE_FOLDER
from harness_ext.protocol.render import training_docs
from harness_ext.protocol.tasks import load_task
from harness_ext.selection.train import train_adapter
from harness_ext.training.recipe import Recipe

TOPICS = ("World", "Sports", "Business", "Science")


def news(count: int = 80, **more: Any) -> list[dict[str, Any]]:
    return [
        {"headline": f"What happened on day {n}, part {n * 7 % 11}", "topic": TOPICS[n % 4], **more}
        for n in range(count)
    ]


def faq(count: int = 40) -> list[dict[str, Any]]:
    return [{"question": f"How many is {n} and {n}?", "answer": f"It is {2 * n}"} for n in range(count)]


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def documents(folder: Path, split: str) -> list[dict[str, Any]]:
    return list(pyarrow.parquet.read_table(folder / "data" / f"{split}.parquet").to_pylist())


def is_clean(folder: Path) -> bool:
    (report,) = check_tasks([str(folder)])
    assert [str(each) for each in report.findings if each.level == "error"] == []
    return bool(report.verified)


# -- the files of a task ------------------------------------------------------------------------------------------


def test_a_choice() -> None:
    created = new_task("news", "choice", write(Path("news.jsonl"), news()))
    assert created.folder == Path("tasks/news")
    assert created.choices == tuple(sorted(TOPICS))
    assert dict(created.counts) == {"train": 64, "validation": 16}
    assert {file.name for file in created.folder.iterdir()} == {"news.yaml", "README.md", "test_news.py", "data"}
    rows = documents(created.folder, "validation")
    assert sorted(row["label"] for row in rows) == sorted([0, 1, 2, 3] * 4)  # classes keep their shares
    assert is_clean(created.folder)
    assert not [child for child in Path("tasks").iterdir() if child.name != "news"]


def test_generation_with_a_passage() -> None:
    rows = [
        {"passage": f"Passage {n // 3}.", "question": f"Q {n}?", "answers": {"text": [f"a{n}", f"b{n}"]}}
        for n in range(60)
    ]
    created = new_task("reading", "generate", write(Path("qa.jsonl"), rows))
    train, validation = (documents(created.folder, split) for split in ("train", "validation"))
    assert not {row["passage"] for row in train} & {row["passage"] for row in validation}
    assert validation[0]["answers"][0].startswith("a")
    assert is_clean(created.folder)


@pytest.mark.parametrize(("kind", "rows"), [("choice", news()), ("generate", faq())], ids=["choice", "generate"])
def test_stock_lm_eval_finds_it_anywhere(kind: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """The folder is self-contained: after moving it, stock lm-eval still loads it."""
    created = new_task("mine", kind, write(Path("a.jsonl"), rows))
    moved = shutil.move(created.folder, tmp_path / "elsewhere")
    task = TaskManager(include_path=str(moved), include_defaults=False).load(["mine"])["tasks"]["mine"]
    assert len(task.eval_docs) == created.counts["validation"]
    assert len(training_docs(load_task("mine", include_path=[moved]))) == created.counts["train"]


def test_the_same_seed_the_same_folder() -> None:
    file = write(Path("a.jsonl"), news())
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        new_task("news", "choice", file, output=name, seed=seed)
    one, two, three = (documents(Path(name), "validation") for name in ("one", "two", "three"))
    assert one == two != three


def test_test_split_is_what_is_evaluated() -> None:
    created = new_task("news", "choice", write(Path("a.jsonl"), news()), test=0.25)
    assert dict(created.counts) == {"train": 44, "validation": 16, "test": 20}
    assert "test_split: test" in (created.folder / "news.yaml").read_text()
    assert is_clean(created.folder)


LABELS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "words": (lambda n: ("no", "yes")[n % 2], None, ("no", "yes")),
    "numbers": (lambda n: n % 3 + 8, None, ("8", "9", "10")),
    "numbers with names": (lambda n: n % 2, {"0": "bad", "1": "good"}, ("bad", "good")),
    "booleans": (lambda n: n % 2 == 0, None, ("false", "true")),
    "other scripts": (lambda n: ("да", "いいえ")[n % 2], None, ("да", "いいえ")),
    "blanks around": (lambda n: (" no", "yes ")[n % 2], None, ("no", "yes")),
}


@pytest.mark.parametrize(("label", "words", "choices"), LABELS.values(), ids=LABELS)
def test_labels(label: Any, words: Any, choices: tuple[str, ...]) -> None:
    rows = [{"text": f"Ein Satz, größer als {n}", "label": label(n)} for n in range(60)]
    created = new_task("mine", "choice", write(Path("a.jsonl"), rows), labels=words)
    assert created.choices == choices
    assert is_clean(created.folder)


def test_awkward_columns() -> None:
    rows = [{"Review Text": f"t {n}", "choices": "x", "self": 1, "Is it good?": n % 2} for n in range(20)]
    created = new_task(
        "mine", "choice", write(Path("a.jsonl"), rows), columns={"label": "Is it good?", "text": "Review Text"}
    )
    assert documents(created.folder, "train")[0].keys() == {"Review_Text", "choices_", "self_", "label"}
    assert is_clean(created.folder)


def test_missing_values_repeats_and_conflicts_are_told() -> None:
    rows = news(40, id=7)
    rows += [
        {**rows[0], "topic": "Sports"},
        {**rows[1]},
        {"headline": None, "topic": "World"},
        {"headline": "x", "topic": ""},
    ]
    created = new_task("news", "choice", write(Path("a.jsonl"), rows))
    notes = "\n".join(created.notes)
    assert "1 rows without 'headline' are dropped (first: row 43)" in notes
    assert "1 rows without 'topic' are dropped (first: row 44)" in notes
    assert "2 rows repeat a text" in notes
    assert "1 texts have two labels" in notes
    assert "repeat an earlier 'id'" in notes
    assert sum(created.counts.values()) == 42
    assert not [each for report in check_tasks([str(created.folder)]) for each in report.findings if each.id == "C27"]


def test_many_classes_are_warned_of() -> None:
    rows = [{"text": f"text {n}", "label": f"class {n % 60}"} for n in range(240)]
    assert any("60 classes" in line for line in new_task("mine", "choice", write(Path("a.jsonl"), rows)).notes)


def test_long_answers_have_room() -> None:
    rows = [{"question": f"Q {n}?", "answer": "word\n" * 30 + str(n)} for n in range(20)]
    created = new_task("mine", "generate", write(Path("a.jsonl"), rows))
    yaml = (created.folder / "mine.yaml").read_text()
    assert 'until: ["\\n\\n"]' in yaml
    assert is_clean(created.folder)


def test_its_own_test_passes() -> None:
    created = new_task("news", "choice", write(Path("a.jsonl"), news()))
    scope: dict[str, Any] = {"__file__": str(created.folder.absolute() / "test_news.py"), "__name__": "test_news"}
    exec((created.folder / "test_news.py").read_text(), scope)
    scope["test_check_finds_no_error"]()


def test_text_stays_as_it_is_written() -> None:
    """The same rows as `load_documents` reads, even if labels look like missing values."""
    file = Path("a.csv")
    labels = ("NA", "null")
    rows = [{"text": f"text {n}", "zip": f"00{n}", "label": labels[n % 2]} for n in range(20)]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    created = new_task("mine", "choice", file)
    assert created.choices == labels
    written = [row for split in ("train", "validation") for row in documents(created.folder, split)]
    assert {(row["text"], row["zip"], labels[row["label"]]) for row in written} == {tuple(row.values()) for row in rows}
    assert is_clean(created.folder)


# -- data in splits, on the Hub, and questions without an answer ---------------------------------------------------


def is_evaluated(created: NewTask, answer: Callable[[dict[str, Any]], str], metric: str) -> dict[str, float]:
    """Scores of correct answers in stock lm-eval."""
    manager = TaskManager(include_path=str(created.folder), include_defaults=False)
    scores: dict[str, float] = run(manager, answer, created.name)[created.name]
    assert scores[metric] in (1.0, 100.0)
    return scores


def is_trained(created: NewTask, model: Path) -> None:
    recipe = Recipe(
        task=created.name, include_path=str(created.folder), model=str(model), output="adapters/mine", lora_rank=2,
        max_steps=1, batch_size=4, limit=16, validation_size=4, max_tokens=4000, dtype="float32",
    )  # fmt: skip
    assert train_adapter(recipe).card.task == created.name


def label(doc: dict[str, Any]) -> str:
    return str(doc["choices"][doc["label"]])


def answer_or_abstain(doc: dict[str, Any]) -> str:
    return str((doc["answers"] or ["unanswerable"])[0])


def in_splits() -> dict[str, Path]:
    rows = news(80)
    with Path("dev.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["topic", "headline", "extra"])
        writer.writerows([row["topic"], f"Dev. {row['headline']}", "x"] for row in rows[40:64])
    return {"train": write(Path("train.jsonl"), rows[:40]), "validation": Path("dev.csv")}


def test_data_in_splits(tiny_model_folder: Path) -> None:
    created = new_task("news", "choice", in_splits())
    assert dict(created.counts) == {"train": 40, "validation": 24}
    assert documents(created.folder, "train")[0] == {"headline": news()[0]["headline"], "label": 3}
    assert documents(created.folder, "validation")[0] == {"headline": f"Dev. {news()[40]['headline']}", "label": 3}
    (note,) = created.notes
    assert note.endswith(": extra")
    assert is_clean(created.folder)
    is_evaluated(created, label, "acc")
    is_trained(created, tiny_model_folder)


def test_a_test_split_of_its_own_is_what_is_evaluated() -> None:
    rows = [{"headline": f"Test {n}", "topic": TOPICS[n % 2]} for n in range(9)]
    created = new_task("news", "choice", {**in_splits(), "test": write(Path("test.jsonl"), rows)})
    assert dict(created.counts) == {"train": 40, "validation": 24, "test": 9}
    assert len(load_task("news", include_path=[created.folder]).eval_docs) == 9
    assert is_clean(created.folder)


def test_a_folder_with_a_file_for_each_split() -> None:
    Path("data").mkdir()
    for split, file in in_splits().items():
        file.rename(Path("data") / f"{split}{file.suffix}")
    created = new_task("news", "choice", "data")
    assert dict(created.counts) == {"train": 40, "validation": 24}
    assert is_clean(created.folder)


def test_what_splits_share_and_lack_is_told() -> None:
    files = in_splits()
    shared = [*news(6), {"headline": "New", "topic": "Weather"}]
    created = new_task("news", "choice", {**files, "validation": write(Path("dev.jsonl"), shared)})
    assert any("6 of 7 texts of validation" in note for note in created.notes)
    assert any(note.startswith("labels of validation") and note.endswith(": Weather") for note in created.notes)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str | None]]:
    """A Hub that serves repositories under `hub/`; returns the requested (id, config, revision)."""
    asked = []
    load = hf_datasets.load_dataset

    def from_hub(path: str, name: str | None = None, revision: str | None = None, **options: Any) -> Any:
        if path == "parquet":
            return load(path, name, revision=revision, **options)
        asked.append((path, name, revision))
        if not (tmp_path / "hub" / path).is_dir():
            raise hf_datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.")
        return load(str(tmp_path / "hub" / path), name, **options)

    monkeypatch.setattr(hf_datasets, "load_dataset", from_hub)
    monkeypatch.setattr("harness_ext.protocol.documents._hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="0123abcd" * 5))
    return asked


def repository(name: str, **splits: hf_datasets.Dataset) -> None:
    folder = Path("hub") / name / "data"
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def on_the_hub(rows: Sequence[Mapping[str, Any]], **kinds: Any) -> hf_datasets.Dataset:
    features = hf_datasets.Dataset.from_list(list(rows)).features
    return hf_datasets.Dataset.from_list(list(rows), features=hf_datasets.Features({**features, **kinds}))


def kwargs_of(created: NewTask) -> dict[str, Any]:
    text = (created.folder / f"{created.name}.yaml").read_text().replace("!function ", "")
    return dict(yaml.safe_load(text)["dataset_kwargs"])


def test_a_hub_data_set(hub: list[Any], tiny_model_folder: Path) -> None:
    """Class names are declared, a column needs renaming for templates, and test labels are not published."""
    topic = hf_datasets.ClassLabel(names=list(TOPICS))
    rows = [{"The Headline": f"What happened on day {n}", "topic": n % 4, "choices": "x"} for n in range(60)]
    repository(
        "acme/topics",
        train=on_the_hub([*rows[:40], {**rows[0], "The Headline": None}, {**rows[1], "topic": -1}], topic=topic),
        validation=on_the_hub(rows[40:], topic=topic),
        test=on_the_hub([{**row, "topic": -1} for row in rows], topic=topic),
    )
    created = new_task("news", "choice", "acme/topics", columns={"text": "The Headline"})
    assert created.choices == TOPICS  # in the order that the data set declares
    assert dict(created.counts) == {"train": 40, "validation": 20}
    assert any("test split" in note for note in created.notes)
    assert kwargs_of(created) == {
        "dataset": f"acme/topics@{'0123abcd' * 5}",
        "columns": {"The_Headline": "The Headline", "choices_": "choices"},
        "label": "topic", "label_values": ["0", "1", "2", "3"], "required": ["The_Headline", "label"],
        "choices": list(TOPICS),
    }  # fmt: skip
    assert not (created.folder / "data").exists()
    assert is_clean(created.folder)
    task = load_task("news", include_path=[created.folder])
    assert len(training_docs(task)) == 40
    assert task.eval_docs[1] == {"The_Headline": "What happened on day 41", "choices_": "x", "label": 1,
                                 "choices": list(TOPICS)}  # fmt: skip
    assert set(hub) == {("acme/topics", None, "0123abcd" * 5)}
    is_evaluated(created, label, "acc")
    is_trained(created, tiny_model_folder)


def test_a_hub_data_set_of_words_and_other_split_names(hub: list[Any]) -> None:
    rows = news(40)
    repository("acme/topics", train=on_the_hub(rows), validation_matched=on_the_hub(rows[:8]))
    created = new_task("news", "choice", "acme/topics")
    assert kwargs_of(created)["label_values"] == sorted(TOPICS)
    assert "validation_split: validation_matched" in (created.folder / "news.yaml").read_text()
    assert is_clean(created.folder)
    is_evaluated(created, label, "acc")


def test_a_hub_data_set_as_plain_as_ours(hub: list[Any]) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    repository("acme/plain", train=on_the_hub(rows), test=on_the_hub(rows[:5]))
    created = new_task("mine", "choice", f"acme/plain@{'f' * 40}", labels={"0": "bad", "1": "good"})
    assert kwargs_of(created) == {"dataset": f"acme/plain@{'f' * 40}", "choices": ["bad", "good"]}
    assert is_clean(created.folder)
    assert len(load_task("mine", include_path=[created.folder]).eval_docs) == 5


def test_a_hub_data_set_of_questions(hub: list[Any], tiny_model_folder: Path) -> None:
    splits = {split: squad(split) for split in ("train", "validation")}
    repository("acme/squad", **{split: on_the_hub(rows) for split, rows in splits.items()})
    created = new_task("reading", "generate", "acme/squad")
    assert kwargs_of(created) == {"dataset": f"acme/squad@{'0123abcd' * 5}", "answers": "answers"}
    assert is_clean(created.folder)
    scores = is_evaluated(created, answer_or_abstain, "exact")
    assert scores["HasAns_exact"] == scores["NoAns_exact"] == scores["abstain_f1"] == 100.0
    is_trained(created, tiny_model_folder)


def test_without_the_hub_no_revision_is_pinned(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The local cache is enough to make a task; a note says that the revision is not pinned."""
    monkeypatch.setattr("harness_ext.protocol.documents._hub_answers", lambda: False)
    repository("acme/plain", train=on_the_hub(news(40)), validation=on_the_hub(news(8)))
    created = new_task("news", "choice", "acme/plain")
    assert kwargs_of(created)["dataset"] == "acme/plain"
    assert any("no revision is pinned" in line for line in created.notes)


def squad(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLE_FOLDER / "squad_v2" / f"{split}.jsonl").read_text().splitlines()]


def test_squad_is_told_by_its_columns(tiny_model_folder: Path) -> None:
    created = new_task("reading", "generate", write(Path("squad.jsonl"), squad("train")))
    assert sum(created.counts.values()) == len(squad("train"))  # none is dropped
    assert is_clean(created.folder)
    scores = is_evaluated(created, answer_or_abstain, "exact")
    assert scores["HasAns_exact"] == scores["NoAns_exact"] == scores["abstain_f1"] == 100.0
    manager = TaskManager(include_path=str(created.folder), include_defaults=False)
    always = run(manager, lambda _: "Unanswerable.", created.name)[created.name]
    assert always["NoAns_exact"] == 100.0
    assert always["exact"] == pytest.approx(always["abstain_baseline"])
    is_trained(created, tiny_model_folder)


def test_squad_v1_has_an_answer_to_every_question() -> None:
    rows = [row for row in squad("train") if row["answers"]["text"]]
    created = new_task("reading", "generate", write(Path("squad.jsonl"), rows))
    assert "score_answer" in (created.folder / "reading.yaml").read_text()
    assert is_clean(created.folder)


def test_questions_without_an_answer_in_a_csv() -> None:
    rows = [[f"How many is {n}?", f"It is {n}" if n % 3 else ""] for n in range(60)]
    with Path("faq.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["question", "answer"], *rows])
    without = new_task("faq", "generate", "faq.csv")
    assert sum(without.counts.values()) == 40
    assert any("20 rows without 'answer'" in line and "--unanswerable" in line for line in without.notes)
    created = new_task("faq", "generate", "faq.csv", unanswerable=True, overwrite=True)
    assert sum(created.counts.values()) == 60
    assert is_clean(created.folder)
    scores = is_evaluated(created, answer_or_abstain, "exact")
    assert scores["abstain_baseline"] == pytest.approx(100 / 3)


# -- what is refused ---------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, list[dict[str, Any]], dict[str, Any], str]] = {
    "one class": ("choice", [{"text": f"t{n}", "label": "x"} for n in range(9)], {}, "label ('x')"),
    "too few rows": ("choice", news(3), {}, "at least 4"),
    "all missing": (
        "choice",
        [{"text": None, "label": "x"}, {"text": "a", "label": None}],
        {},
        "no row has values for 'text' and 'label'",
    ),
    "no label column": ("choice", [{"text": f"t {n}", "note": f"n {n}"} for n in range(9)], {}, "--label-column"),
    "wrong column": ("choice", news(), {"columns": {"label": "topics"}}, "did you mean 'topic'"),
    "label of texts": (
        "choice",
        [{"t": f"{n}", "label": f"{n}"} for n in range(1200)],
        {},
        "more than 1000 different values",
    ),
    "unknown label named": ("choice", news(), {"labels": {"Wrld": "World"}}, "'Wrld'"),
    "label left out": ("choice", news(), {"labels": {"World": "Welt"}}, "'topic' is missing"),
    "same word twice": ("choice", news(), {"labels": dict.fromkeys(TOPICS, "x")}, "same word"),
    "no answer column": ("generate", [{"question": "a?", "said": "b", "more": "c"}] * 9, {}, "--answer-column"),
    "shares": ("choice", news(), {"validation": 0.7, "test": 0.4}, "--validation"),
    "same text everywhere": ("choice", [{"text": "t", "label": str(n % 2)} for n in range(20)], {}, "validation split"),
    "single column": ("choice", [{"text": f"t {n}"} for n in range(9)], {}, "single column"),
    "unanswerable choice": ("choice", news(), {"unanswerable": True}, "--kind generate"),
    "all answered": ("generate", faq(), {"unanswerable": True}, "omit --unanswerable"),
    "random name": ("choice", news(), {"name": "my news"}, "'my news'"),
}


@pytest.mark.parametrize(("kind", "rows", "options", "expected_part"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    kind: Any, rows: list[dict[str, Any]], options: dict[str, Any], expected_part: str, tmp_path: Path
) -> None:
    file = write(Path("a.jsonl"), rows)
    with pytest.raises(HarnessExtError) as caught:
        new_task(**{"name": "mine", "kind": kind, "data": file, **options})
    assert expected_part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {child.name for child in tmp_path.iterdir()} == {"a.jsonl"}


SPLITS_REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no validation": (lambda: {"train": "train.jsonl"}, {}, "--validation FILE is missing"),
    "no training": (lambda: {"validation": "dev.csv"}, {}, "--train FILE is missing"),
    "unknown split": (lambda: {**in_splits(), "tset": "dev.csv"}, {}, "did you mean 'test'"),
    "file missing": (lambda: {**in_splits(), "test": "no.csv"}, {}, "no.csv does not exist"),
    "share of a split": (in_splits, {"validation": 0.1}, "--validation and --test"),
    "other columns": (
        lambda: {**in_splits(), "test": write(Path("c.jsonl"), faq())}, {}, "c.jsonl has no column 'headline'"
    ),
    "no label": (
        lambda: {**in_splits(), "test": write(Path("c.jsonl"), [{"headline": "x", "topic": ""}])}, {}, "no row has"
    ),
    "folder without splits": (lambda: Path("tasks").mkdir() or "tasks", {}, "contains no train"),
    "folder without an evaluated split": (
        lambda: Path("d").mkdir() or str(write(Path("d/train.jsonl"), news()).parent), {}, "no split to evaluate on"
    ),
    "not on the Hub": (lambda: "acme/none", {}, "there is no file acme/none"),
    "share of a Hub data set": (
        lambda: repository("acme/a", train=on_the_hub(news()), test=on_the_hub(news())) or "acme/a", {"test": 0.1},
        "--validation and --test",
    ),
    "Hub data set with one split": (
        lambda: repository("acme/a", train=on_the_hub(news())) or "acme/a", {}, "to_parquet('rows.parquet')"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "options", "expected_part"), SPLITS_REFUSED.values(), ids=SPLITS_REFUSED)
def test_what_is_refused_of_splits(
    data: Callable[[], Any], options: dict[str, Any], expected_part: str, hub: list[Any]
) -> None:
    with pytest.raises(HarnessExtError) as caught:
        new_task("mine", "choice", data(), **options)
    assert expected_part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("tasks/mine").exists()


def test_nothing_is_half_written(tmp_path: Path) -> None:
    """A row far beyond the first block cannot be read."""
    random.seed(0)
    file = Path("a.csv")
    lines = [f"text {n} {'x' * 200},{n % 2}" for n in range(60_000)]
    file.write_text("\n".join(["text,label", *lines, "one,two,three,four"]) + "\n")
    with pytest.raises(HarnessExtError, match=r"a\.csv cannot be read"):
        new_task("mine", "choice", file)
    assert {child.name for child in tmp_path.iterdir()} == {"a.csv"}


def test_an_existing_folder() -> None:
    file = write(Path("a.jsonl"), news())
    created = new_task("news", "choice", file)
    with pytest.raises(HarnessExtError, match="--overwrite"):
        new_task("news", "choice", file)
    (created.folder / "old.txt").write_text("")
    new_task("news", "choice", file, overwrite=True)
    assert not (created.folder / "old.txt").exists()
    Path("precious").mkdir()
    with pytest.raises(HarnessExtError, match="not replaced"):
        new_task("news", "choice", file, output="precious", overwrite=True)
