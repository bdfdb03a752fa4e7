"""What the documentation says is true: its commands run, generated pages are current, and what it names is there."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from lm_eval_files import labelled

from harness_ext import cli
from harness_ext.protocol.task_folders import tasks_path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
NEW_TASK = DOCS / "new_task.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct")
TOPICS = {
    "World": ("minister", "treaty", "border", "embassy"),
    "Sports": ("goal", "match", "season", "coach"),
    "Business": ("shares", "profit", "market", "bank"),
    "Science": ("cell", "planet", "laser", "atom"),
}
SMALL = ("--max-steps", "2", "--validation-size", "0")  # training on the tiny model is not the point


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- pages that are followed from top to bottom --------------------------------------------------------------------


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of a page's fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def write_news(header: str = "headline,topic") -> None:
    """A file with the page's columns, of 120 rows."""
    draw = random.Random(0)
    rows = [
        f"The {draw.choice(TOPICS[topic])} and the {draw.choice(TOPICS[topic])} on day {number},{topic}"
        for number, topic in enumerate(list(TOPICS) * 30)
    ]
    Path("news.csv").write_text("\n".join([header, *rows]) + "\n")


def with_tiny_model(text: str, model: Path) -> str:
    for name in MODELS:
        text = text.replace(name, str(model))
    return text


def run(line: str, model: Path) -> None:
    """Run a line of a page as a shell would, with the tiny model in place of the real one."""
    line = with_tiny_model(line, model).replace("$(harness-ext tasks-path)", str(tasks_path()))
    program, *words = shlex.split(line, comments=True)
    if program == "harness-ext":
        words += {"train": SMALL, "eval": ("--device", "cpu")}.get(words[0], ())
        assert cli.main(words) == 0, line
    elif program == "lm_eval":
        command = [sys.executable, "-m", "lm_eval", *words, "--device", "cpu", "--limit", "4"]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        assert program in ("make", "pip"), line  # see test_make_targets


def walk_through(page: Path, model: Path) -> int:
    """Follow a page; returns how many of our commands were run."""
    commands = 0
    for language, content in blocks(page):
        if language == "csv":
            write_news(content.splitlines()[0])
        elif language == "python" and content.startswith("# tasks/"):  # a file, named in its first line
            Path(content.splitlines()[0].removeprefix("# ")).write_text(content)
        elif language == "python":
            exec(with_tiny_model(content, model), {})
        elif language == "yaml":
            add_metric(Path("tasks/news/news.yaml"), content)
        elif not language:
            for line in content.splitlines():
                run(line, model)
                commands += line.startswith("harness-ext ")
    return commands


def add_metric(file: Path, shown: str) -> None:
    """Make the changes that the page shows: another hook, and one more metric at the head of the list."""
    hook, _, metric = shown.partition("metric_list:\n")
    text = re.sub(r"process_results: .*\n", lambda _: hook, file.read_text())
    file.write_text(text.replace("metric_list:\n", f"metric_list:\n{metric}"))


def count_commands(page: Path) -> int:
    return page.read_text(encoding="utf-8").count("\nharness-ext ")


@pytest.mark.slow
def test_readme_works(
    tmp_path: Path, tiny_model_folder: Path, write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_news()
    for name, every, arguments in (("tiny", 3, ""), ("mine", 10, ",peft=adapters/other")):
        rows = labelled([float(number % every > 0) for number in range(300)])
        write_run(f"results/{name}", {"demo": rows}, model_args=f"pretrained=org/tiny{arguments}")
    assert walk_through(README, tiny_model_folder) == count_commands(README)
    shown = capsys.readouterr().out
    assert re.search(r"^ demo .*better", shown, re.MULTILINE)  # results that stock lm-eval wrote
    assert "news: ok, " in shown
    for written in ("adapters/mine/README.md", "adapters/python/adapter_model.safetensors"):
        assert Path(written).is_file()
    assert len(list(Path("results/python").rglob("results_*.json"))) == 2  # base and adapter


@pytest.mark.slow
def test_quickstart_works(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "quickstart.md"
    monkeypatch.setattr("harness_ext.models.fetch.fetch_model", lambda *_, **__: tiny_model_folder)
    assert walk_through(page, tiny_model_folder) == count_commands(page) > 3


@pytest.mark.slow
def test_your_own_task_works(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert walk_through(NEW_TASK, tiny_model_folder) == count_commands(NEW_TASK)
    shown = capsys.readouterr().out
    assert "next: harness-ext check tasks/news" in shown
    assert "news: ok, 24 documents of validation, 96 to train on" in shown
    assert "world_recall" in Path("tasks/news/news.yaml").read_text()
    assert re.search(r"^ majority( 25\.0|.*\n 25\.0)", shown, re.MULTILINE)  # of the comparison; may be folded
    assert "1 task: no errors" in shown
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


# -- what pages name is there --------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets(page: Path) -> None:
    """`make NAME` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([\w-]+)`", text)) | set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target[0] != "#" and not (page.parent / target.split("#")[0]).exists()]
    assert not missing


def test_contributing_names_files_that_exist() -> None:
    """Paths of its table are below harness_ext/, or begin with another folder; CAPITALS stand for a name to choose."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w/]+\.(?:py|yaml|toml|txt))`", text)
    named = [path for path in paths if not re.search(r"[A-Z]{3}", path)]
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists() and not (ROOT / "harness_ext" / path).exists()]


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name
        assert page.name in navigation, page.name


def test_tasks_and_metrics_have_a_place() -> None:
    """docs/tasks.md lists every task and group that is shipped, docs/metrics.md every metric of theirs."""
    tasks = (DOCS / "tasks.md").read_text(encoding="utf-8")
    metrics = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for file in (ROOT / "tasks").rglob("*.yaml"):
        text = re.sub(r"!function ", "", file.read_text(encoding="utf-8"))
        config = yaml.safe_load(text)
        if not file.name.startswith("_"):
            assert f"`{config.get('task') if 'group' not in config else config['group']}`" in tasks, file
        for metric in config.get("metric_list") or ():
            assert f"`{metric['metric']}`" in metrics, metric


# -- generated pages -----------------------------------------------------------------------------------------------


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", ["checks.md", "cli.md", "doctor.md", "findings.md", "parity.md"])
def test_generated_pages_are_current(file: str) -> None:
    pages = generator().pages()
    assert len(pages) == 5
    assert (DOCS / file).read_text(encoding="utf-8") == pages[file], "out of date; run: make pages"


# -- names of documents --------------------------------------------------------------------------------------------

TREE = ("harness_ext", "tasks", "tests", "benchmarks", "docs", "adapters", ".github", ".ci")


def text_files() -> Iterator[Path]:
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cff", ""}
    files = [file for file in ROOT.iterdir() if file.is_file()]
    files += [file for folder in TREE for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts]
    return (file for file in files if file.is_file() and file.suffix in suffixes)


def documents_named(text: str) -> set[str]:
    """Names like `docs/tasks.md`; not patterns, and not the end of a longer word."""
    return set(re.findall(r"(?<![\w*{}./<>-])((?:[\w.-]+/)*[\w-]+\.md)\b", text))


def test_names_of_documents_are_found() -> None:
    text = "See docs/tasks.md, [x](../CHANGELOG.md), `METRICS.md`; not *.md, {name}.md or a.mdx."
    assert documents_named(text) == {"docs/tasks.md", "../CHANGELOG.md", "METRICS.md"}


def test_every_document_that_is_named_exists() -> None:
    """A reader can open every `X.md` that code, pages, YAML and settings name."""
    there = {file.name for file in text_files() if file.suffix == ".md"}
    missing = {
        f"{name_of(file)}: {document}"
        for file in text_files()
        if file != Path(__file__)
        for document in documents_named(file.read_text(encoding="utf-8"))
        if not exists(document, file, there)
    }
    assert not missing


def exists(document: str, named_in: Path, there: set[str]) -> bool:
    """Beside the file that names it, from the root or in docs/; one without a folder anywhere in the tree."""
    if "/" not in document:
        return document in there
    return any((folder / document).is_file() for folder in (named_in.parent, ROOT, DOCS))
