"""A file becomes a task: sound, portable, trainable; or one line says why not, and nothing is left behind."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from lm_eval.tasks import TaskManager

from harness_ext.errors import HarnessExtError
from harness_ext.protocol.check import check_tasks
from harness_ext.protocol.render import load_task, training_docs
from harness_ext.protocol.scaffold import new_task

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


# -- what is made ------------------------------------------------------------------------------------------------


def test_a_choice() -> None:
    made = new_task("news", "choice", write(Path("news.jsonl"), news()))
    assert made.folder == Path("tasks/news")
    assert made.choices == tuple(sorted(TOPICS))
    assert dict(made.counts) == {"train": 64, "validation": 16}
    assert {file.name for file in made.folder.iterdir()} == {"news.yaml", "README.md", "test_news.py", "data"}
    rows = documents(made.folder, "validation")
    assert sorted(row["label"] for row in rows) == sorted([0, 1, 2, 3] * 4)  # classes keep their shares
    assert is_clean(made.folder)
    assert not [child for child in Path("tasks").iterdir() if child.name != "news"]


def test_generation_with_a_passage() -> None:
    rows = [
        {"passage": f"Passage {n // 3}.", "question": f"Q {n}?", "answers": {"text": [f"a{n}", f"b{n}"]}}
        for n in range(60)
    ]
    made = new_task("reading", "generate", write(Path("qa.jsonl"), rows))
    train, validation = (documents(made.folder, split) for split in ("train", "validation"))
    assert not {row["passage"] for row in train} & {row["passage"] for row in validation}
    assert validation[0]["answers"][0].startswith("a")
    assert is_clean(made.folder)


@pytest.mark.parametrize(("kind", "rows"), [("choice", news()), ("generate", faq())], ids=["choice", "generate"])
def test_stock_lm_eval_finds_it_anywhere(kind: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """The folder holds all there is: moved elsewhere, it loads in an unmodified lm-eval."""
    made = new_task("mine", kind, write(Path("a.jsonl"), rows))
    moved = shutil.move(made.folder, tmp_path / "elsewhere")
    task = TaskManager(include_path=str(moved), include_defaults=False).load(["mine"])["tasks"]["mine"]
    assert len(task.eval_docs) == made.counts["validation"]
    assert len(training_docs(load_task("mine", include_path=[moved]))) == made.counts["train"]


def test_the_same_seed_the_same_folder() -> None:
    file = write(Path("a.jsonl"), news())
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        new_task("news", "choice", file, output=name, seed=seed)
    one, two, three = (documents(Path(name), "validation") for name in ("one", "two", "three"))
    assert one == two != three


def test_test_split_is_what_is_evaluated() -> None:
    made = new_task("news", "choice", write(Path("a.jsonl"), news()), test=0.25)
    assert dict(made.counts) == {"train": 44, "validation": 16, "test": 20}
    assert "test_split: test" in (made.folder / "news.yaml").read_text()
    assert is_clean(made.folder)


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
    made = new_task("mine", "choice", write(Path("a.jsonl"), rows), labels=words)
    assert made.choices == choices
    assert is_clean(made.folder)


def test_awkward_columns() -> None:
    rows = [{"Review Text": f"t {n}", "choices": "x", "self": 1, "Is it good?": n % 2} for n in range(20)]
    made = new_task(
        "mine", "choice", write(Path("a.jsonl"), rows), columns={"label": "Is it good?", "text": "Review Text"}
    )
    assert documents(made.folder, "train")[0].keys() == {"Review_Text", "choices_", "self_", "label"}
    assert is_clean(made.folder)


def test_missing_values_repeats_and_conflicts_are_told() -> None:
    rows = news(40, id=7)
    rows += [
        {**rows[0], "topic": "Sports"},
        {**rows[1]},
        {"headline": None, "topic": "World"},
        {"headline": "x", "topic": ""},
    ]
    made = new_task("news", "choice", write(Path("a.jsonl"), rows))
    said = "\n".join(made.said)
    assert "1 rows without 'headline' are left out (first: row 43)" in said
    assert "1 rows without 'topic' are left out (first: row 44)" in said
    assert "2 rows repeat a text" in said
    assert "1 texts have two labels" in said
    assert "'id' that came before" in said
    assert sum(made.counts.values()) == 42
    assert not [each for report in check_tasks([str(made.folder)]) for each in report.findings if each.id == "C27"]


def test_many_classes_are_warned_of() -> None:
    rows = [{"text": f"text {n}", "label": f"class {n % 60}"} for n in range(240)]
    assert any("60 classes" in line for line in new_task("mine", "choice", write(Path("a.jsonl"), rows)).said)


def test_long_answers_have_room() -> None:
    rows = [{"question": f"Q {n}?", "answer": "word\n" * 30 + str(n)} for n in range(20)]
    made = new_task("mine", "generate", write(Path("a.jsonl"), rows))
    yaml = (made.folder / "mine.yaml").read_text()
    assert 'until: ["\\n\\n"]' in yaml
    assert is_clean(made.folder)


def test_its_own_test_passes() -> None:
    made = new_task("news", "choice", write(Path("a.jsonl"), news()))
    scope: dict[str, Any] = {"__file__": str(made.folder.absolute() / "test_news.py"), "__name__": "test_news"}
    exec((made.folder / "test_news.py").read_text(), scope)
    scope["test_check_finds_no_error"]()


# -- what is refused ---------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, list[dict[str, Any]], dict[str, Any], str]] = {
    "one class": ("choice", [{"text": f"t{n}", "label": "x"} for n in range(9)], {}, "one label only"),
    "too few rows": ("choice", news(3), {}, "at least 4"),
    "all missing": ("choice", [{"text": None, "label": "x"}, {"text": "a", "label": None}], {}, "no row has both"),
    "no label column": ("choice", [{"text": f"t {n}", "note": f"n {n}"} for n in range(9)], {}, "--label-column"),
    "wrong column": ("choice", news(), {"columns": {"label": "topics"}}, "did you mean 'topic'"),
    "label of texts": ("choice", [{"t": f"{n}", "label": f"{n}"} for n in range(1200)], {}, "it is no label"),
    "unknown label named": ("choice", news(), {"labels": {"Wrld": "World"}}, "'Wrld'"),
    "label left out": ("choice", news(), {"labels": {"World": "Welt"}}, "leaves out"),
    "same word twice": ("choice", news(), {"labels": dict.fromkeys(TOPICS, "x")}, "same word"),
    "no answer column": ("generate", [{"question": "a?", "said": "b", "more": "c"}] * 9, {}, "--answer-column"),
    "shares": ("choice", news(), {"validation": 0.7, "test": 0.4}, "--validation"),
    "same text everywhere": ("choice", [{"text": "t", "label": str(n % 2)} for n in range(20)], {}, "validation split"),
    "random name": ("choice", news(), {"name": "my news"}, "cannot name a task"),
}


@pytest.mark.parametrize(("kind", "rows", "options", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    kind: Any, rows: list[dict[str, Any]], options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    file = write(Path("a.jsonl"), rows)
    with pytest.raises(HarnessExtError) as caught:
        new_task(**{"name": "mine", "kind": kind, "data": file, **options})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {child.name for child in tmp_path.iterdir()} == {"a.jsonl"}


def test_nothing_is_half_written(tmp_path: Path) -> None:
    """A row that cannot be read far behind the first block."""
    random.seed(0)
    file = Path("a.csv")
    lines = [f"text {n} {'x' * 200},{n % 2}" for n in range(60_000)]
    file.write_text("\n".join(["text,label", *lines, "one,two,three,four"]) + "\n")
    with pytest.raises(HarnessExtError, match=r"a\.csv cannot be read"):
        new_task("mine", "choice", file)
    assert {child.name for child in tmp_path.iterdir()} == {"a.csv"}


def test_an_existing_folder() -> None:
    file = write(Path("a.jsonl"), news())
    made = new_task("news", "choice", file)
    with pytest.raises(HarnessExtError, match="--overwrite"):
        new_task("news", "choice", file)
    (made.folder / "old.txt").write_text("")
    new_task("news", "choice", file, overwrite=True)
    assert not (made.folder / "old.txt").exists()
    Path("precious").mkdir()
    with pytest.raises(HarnessExtError, match="not replaced"):
        new_task("news", "choice", file, output="precious", overwrite=True)
