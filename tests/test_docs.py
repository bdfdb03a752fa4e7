"""docs/tasks.md from top to bottom: every command is run, every file in it is written as it stands there."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest

from harness_ext import cli

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
MODEL = "smollm2-135m-instruct"
TOPICS = {
    "World": ("minister", "treaty", "border", "embassy"),
    "Sports": ("goal", "match", "season", "coach"),
    "Business": ("shares", "profit", "market", "bank"),
    "Science": ("cell", "planet", "laser", "atom"),
}
SMALL = ("--max-steps", "2", "--validation-size", "0")  # training on the tiny model is not the point


def blocks() -> list[tuple[str, str]]:
    """Language and content of the page's fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def write_news(header: str) -> None:
    """A file with the page's columns, of 120 rows."""
    draw = random.Random(0)
    rows = [
        f"The {draw.choice(TOPICS[topic])} and the {draw.choice(TOPICS[topic])} on day {number},{topic}"
        for number, topic in enumerate(list(TOPICS) * 30)
    ]
    Path("news.csv").write_text("\n".join([header, *rows]) + "\n")


def run(line: str, model: str) -> None:
    words = [word.replace(MODEL, model) for word in shlex.split(line)]
    assert words[0] == "harness-ext"
    if words[1] == "train":
        words += SMALL
    if words[1] == "eval":
        words += ["--device", "cpu"]
    assert cli.main(words[1:]) == 0, line


def walk_through(model: str) -> int:
    """Follow the page; returns how many commands were run."""
    commands = 0
    for language, content in blocks():
        if language == "csv":
            write_news(content.splitlines()[0])
        elif language == "python":
            Path("tasks/news/scoring.py").write_text(content)
        elif language == "yaml":
            add_metric(Path("tasks/news/news.yaml"), content)
        elif not language:
            for line in content.splitlines():
                run(line, model)
                commands += 1
    return commands


def add_metric(file: Path, shown: str) -> None:
    """Make the changes that the page shows: another hook, and one more metric at the head of the list."""
    hook, _, metric = shown.partition("metric_list:\n")
    text = re.sub(r"process_results: .*\n", lambda _: hook, file.read_text())
    file.write_text(text.replace("metric_list:\n", f"metric_list:\n{metric}"))


@pytest.mark.slow
def test_the_page_works(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = walk_through(str(tiny_model_folder))
    shown = capsys.readouterr().out
    assert commands == PAGE.read_text(encoding="utf-8").count("\nharness-ext ")
    assert "next: harness-ext check tasks/news" in shown
    assert "news: ok, 24 documents of validation, 96 to train on" in shown
    assert "world_recall" in Path("tasks/news/news.yaml").read_text()
    assert re.search(r"^ majority( 25\.0|.*\n 25\.0)", shown, re.MULTILINE)  # of the comparison; may be folded
    assert "1 task: no errors" in shown
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_every_finding_is_explained() -> None:
    from harness_ext.catalogue import CATALOGUE

    explained = set(re.findall(r"\bC\d\d\b", PAGE.read_text(encoding="utf-8")))
    assert explained == {id for id in CATALOGUE if id.startswith("C")}
