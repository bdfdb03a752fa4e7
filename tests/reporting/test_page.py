"""The page: complete, accessible in its structure, and inert whatever models and documents hold."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from lm_eval_files import labelled, sample
from report_page import Page

from harness_ext import cli
from harness_ext.comparison.compare import compare_runs
from harness_ext.render.verdict import sentence
from harness_ext.report import write_report
from harness_ext.reporting.collect import collect
from harness_ext.reporting.samples import Budget
from harness_ext.results.load import load_runs

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>", "\x1b[31mred\x1b[0m", "\u202egnirts\u202c", "lone",
    r"$\input{/etc/passwd}$ \href{javascript:x}{y}", "</script><!-- <script>", "]]>", "{{ 7 * 7 }}{% raw %}",
    "שלום עולם", "a" * 1_000_000, "nul\x00", "\u2028line",
)  # fmt: skip
ACTING = {"style", "src", "onclick", "onerror", "onload"}  # attributes
GENERATED = {"configs": {"demo": {"output_type": "generate_until"}}}


def answers(values: list[float], text: str = "out {}", **more: object) -> list[dict]:
    samples = []
    for number, value in enumerate(values):
        scores = {"acc": value, "parsed_rate": float(number % 3 > 0), **more}
        one = sample(number, {"q": f"question {number}"}, scores, prompt=f"Answer.\nQ: {number}\nA:", target="gold")
        samples.append({**one, "resps": [[text.format(number)]], "filtered_resps": [text.format(number)]})
    return samples


@pytest.fixture
def pair(write_pair: Callable[..., Path]) -> Path:
    """A base and an adapter that is better, with outputs that parse or not."""
    before, after = [float(n % 3 == 0) for n in range(90)], [float(n % 4 > 0) for n in range(90)]
    return write_pair("demo", answers(before, "base {}"), answers(after, "run {}"), both=GENERATED)


def written(folder: Path, tmp_path: Path, *flags: str) -> Page:
    file = tmp_path / "report.html"
    assert cli.main(["report", str(folder), "--output", str(file), *flags]) == 0
    return Page(file)


def test_page_holds_everything(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = written(pair, tmp_path)
    sections = ("verdict", "leaderboard", "differences", "gain", "findings", "tasks", "samples", "provenance", "repeat")
    assert page.ids.keys() >= set(sections)
    assert max(page.ids.values()) == 1
    assert page.unclosed == []
    comparison = write_report(load_runs(pair), tmp_path / "again.html")
    verdict = sentence(comparison)
    assert verdict in page.text_of("verdict")
    assert verdict in capsys.readouterr().out
    assert "harness-ext compare" in page.text_of("provenance")
    assert "lm_eval --model hf --model_args pretrained=org/tiny,peft=adapters/sst2" in page.text_of("provenance")
    (content,) = page.samples
    assert content["runs"] == ["tiny", "sst2"]
    assert content["prefix"] == "Answer.\n"
    assert len(content["rows"]) == 90
    id_, prompt, gold, _, _, choices, (base, run) = content["rows"][4]
    assert (id_, prompt, gold, choices) == (4, "Q: 4\nA:", "gold", None)
    assert (base[:3], run[:3]) == (["base 4", 0.0, 0], ["run 4", 0.0, 0])
    assert content["rows"][3][6][0][:3] == ["base 3", 1.0, 1]  # right, and did not parse


def test_nothing_but_its_own_script_and_style(pair: Path, tmp_path: Path) -> None:
    page = written(pair, tmp_path)
    ((meta, _),) = page.all("meta", http_equiv_="Content-Security-Policy") or [
        entry for entry in page.all("meta") if entry[0].get("http-equiv") == "Content-Security-Policy"
    ]
    policy = str(meta["content"])
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    ((_, style),) = page.all("style")
    scripts = [text for attrs, text in page.all("script") if "type" not in attrs]
    for text in (style, *scripts):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(scripts) == 1
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", scripts[0])
    assert not [attrs for _, attrs, _ in page.elements if ACTING & attrs.keys()]
    links = [str(attrs["href"]) for attrs, _ in page.all("a")]
    assert all(link.startswith("#") and link[1:] in page.ids for link in links)


def test_structure_can_be_read_aloud(pair: Path, tmp_path: Path) -> None:
    page = written(pair, tmp_path)
    tags = [tag for tag, _, _ in page.elements]
    assert [tags.count(tag) for tag in ("html", "main", "header", "footer", "h1")] == [1] * 5
    assert page.elements[0][1] == {"lang": "en"}
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for attrs, _ in page.all("th"):
        assert attrs.get("scope") in ("col", "row", "colgroup")
    for tag in ("section", "nav"):
        assert all({"aria-label", "aria-labelledby"} & attrs.keys() for attrs, _ in page.all(tag))
    for attrs, _ in page.all("svg"):
        assert attrs.get("aria-hidden") == "true" or (attrs.get("role") == "img" and attrs["aria-label"]), attrs


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_stay_text(write_pair: Callable[..., Path], tmp_path: Path, text: str) -> None:
    before, after = answers([0.0] * 40, "x"), answers([1.0] * 40, "y")
    for one in (*before[:3], *after[:3]):
        one.update(resps=[[text]], filtered_resps=[text], target=text)
        one["doc"]["q"] = text
        one["arguments"]["gen_args_0"]["arg_0"] = f"{text}\n{one['doc_id']}"
    folder = write_pair("demo", before, after, both=GENERATED, sst2={"ours": {"variant": text[:500]}})
    for file in folder.rglob("samples_*"):
        file.write_text(file.read_text().replace("lone", "\\ud800"))  # half a character, as JSON can write it
    page = written(folder, tmp_path)
    assert page.unclosed == []
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u202a-\u202e\u2066-\u2069]", page.source)
    kept = page.samples[0]["rows"][0][6][0][0]
    assert kept in (text, "\\ud800") or (
        "980,000 of 1,000,000 characters are left out here" in kept and len(kept) < 21_000
    )
    assert len(page.source) < 1_500_000


def test_results_without_samples(pair: Path, tmp_path: Path) -> None:
    for file in pair.rglob("samples_*.jsonl"):
        file.unlink()
    page = written(pair, tmp_path)
    assert page.samples == []
    assert "sst2 on demo was not tested: no samples logged" in page.text_of("verdict")
    assert "--log_samples" in page.text_of("samples")
    assert "differences" not in page.ids


def test_samples_that_are_cut_short_are_named(pair: Path, tmp_path: Path) -> None:
    (file,) = (pair / "sst2").glob("samples_*.jsonl")
    file.write_text(file.read_text()[:2000])
    page = written(pair, tmp_path)
    assert "was the run cut short?" in page.text_of("tasks")
    assert page.samples[0]["runs"] == ["tiny"]


@pytest.mark.parametrize("values", [[1.0] * 30, [0.0] * 30])
def test_no_differences(write_pair: Callable[..., Path], tmp_path: Path, values: list[float]) -> None:
    page = written(write_pair("demo", labelled(values), labelled(values)), tmp_path)
    assert "0.0 [" in page.text_of("differences")


def test_one_class(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    scores = {"acc": 1.0, "macro_f1": [0, 0], "ece": [1.0, 1.0]}
    samples = [sample(n, {"idx": n, "choices": ["no", "yes"]}, scores) for n in range(30)]
    both = {"metrics": {"demo": {"macro_f1,none": 1.0, "ece,none": 0.0}}}
    page = written(write_pair("demo", samples, samples, both=both), tmp_path)
    assert "30 of 30 right" in page.text_of("tasks")
    assert page.samples[0]["classes"] == ["no", "yes"]


def test_many_runs_with_long_names(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(100):
        name = f"{number}-" + "n" * 300
        rows = labelled([float(number > 0)] * 20)
        write_run(
            f"out/{number}", {"t" * 150: rows}, model_args="pretrained=org/tiny" + (f",peft=a/{name}" * (number > 0))
        )
    page = written(tmp_path / "out", tmp_path)
    assert "first 24 of 100 runs" in page.text_of("verdict")
    assert len(page.samples[0]["runs"]) == 24
    assert len(page.all("span", class_="name")) >= 99


def test_only_as_many_samples_as_fit(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    before = answers([float(n % 2) for n in range(400)])
    after = answers([float(n % 2 if n % 50 else 1 - n % 2) for n in range(400)])
    folder = write_pair("demo", before, after, both=GENERATED)
    write_report(load_runs(folder), tmp_path / "r.html", limits=Budget(documents=60))
    (content,) = Page(tmp_path / "r.html").samples
    changed = [row for row in content["rows"] if row[6][0][1] != row[6][1][1]]
    assert (len(content["rows"]), len(changed)) == (60, 8)  # all that changed are there
    assert "60 of 400 documents are in this file: 8 of the 8" in content["selection"]
    ids = [row[0] for row in content["rows"]]
    assert ids == sorted(ids)
    write_report(load_runs(folder), tmp_path / "s.html", limits=Budget(characters=2_000))
    assert 0 < len(Page(tmp_path / "s.html").samples[0]["rows"]) < 150


def test_the_same_results_give_the_same_bytes(pair: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(load_runs(pair), tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_memory_depends_on_what_is_kept(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    """60 MB of samples, of which a few go into the file; line by line, no more than some are in memory."""
    runs = load_runs(write_pair("demo", *(answers([1.0] * 300, f"{name} {{}} " + "long " * 20_000) for name in "ab")))
    comparison = compare_runs(runs)
    tracemalloc.start()
    report = collect(runs, comparison, [], limits=Budget(documents=20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.samples[0].size == 20
    assert peak < 10e6


@pytest.mark.slow
def test_twenty_thousand_short_samples(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    values = [float(n % 3 > 0) for n in range(20_000)]
    page = written(write_pair("demo", answers(values, "word {}"), answers(values[::-1], "other {}")), tmp_path)
    assert len(page.samples[0]["rows"]) == 20_000
    assert len(page.source) < 15e6


@pytest.mark.parametrize(
    ("output", "message"),
    [("missing/report.html", "its folder does not exist"), (".", "is a directory")],
)
def test_output_that_cannot_be_written_is_said_first(
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    message: str,
) -> None:
    monkeypatch.setattr("harness_ext.results.load.load_results", lambda *_: pytest.fail("the results were read"))
    assert cli.main(["report", str(pair), "--output", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("is_there", [False, True])
def test_without_write_permission(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_there: bool
) -> None:
    file = tmp_path / "report.html"
    if is_there:
        file.write_text("old")
    monkeypatch.setattr("harness_ext.atomic.os.access", lambda *_: False)  # permissions do not bind root
    monkeypatch.setattr("harness_ext.results.load.load_results", lambda *_: pytest.fail("the results were read"))
    assert cli.main(["report", str(pair), "--output", str(file)]) == 2
    error = capsys.readouterr().err
    assert "check the permissions" in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out", *["report.html"] * is_there}
    assert not is_there or file.read_text() == "old"


def test_a_folder_that_is_being_written(pair: Path, tmp_path: Path) -> None:
    """An evaluation that goes on has written the samples of its next run, but no results yet."""
    before = written(pair, tmp_path)
    (samples,) = (pair / "sst2").glob("samples_*.jsonl")
    text = samples.read_text()
    (pair / "sst2" / samples.name.replace("2025-06-01", "2025-06-02")).write_text(text[:500])
    (pair / "sst2" / f".{samples.name}.partial-machine-{os.getpid()}").write_text(text[:500])
    (pair / "third").mkdir()
    (pair / "third" / f".results_2025-06-02.json.partial-machine-{os.getpid()}").write_text("{")
    assert written(pair, tmp_path).samples == before.samples


def test_texts_from_right_to_left(write_pair: Callable[..., Path], tmp_path: Path) -> None:
    """They stand in elements of their own direction, so that what surrounds them keeps its order."""
    name, word = "משימה", "שלום"
    before, after = answers([0.0, 1.0] * 20, f"{word} {{}}"), answers([1.0] * 40, f"{word} {{}}")
    folder = write_pair("demo", before, after, both=GENERATED, sst2={"ours": {"variant": name}})
    page = written(folder, tmp_path)
    assert page.samples[0]["rows"][0][6][1][0] == f"{word} 0"
    holders = [attrs for tag, attrs, text in page.elements if tag in ("span", "th", "td", "h1", "figcaption", "dd")
               and name in "".join(text)]  # fmt: skip
    assert holders
    around = [attrs for attrs in holders if "dir" not in attrs and attrs.get("class") not in (None, "", "line")]
    assert around == []


def test_a_failure_keeps_the_old_file(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    (payload,) = (pair / "sst2").glob("results_*.json")
    values = json.loads(payload.read_text())
    values["configs"]["demo"]["doc_to_text"] = "another prompt"
    payload.write_text(json.dumps(values))
    assert cli.main(["report", str(pair), "--output", str(file)]) == 2
    assert "differ in doc_to_text" in capsys.readouterr().err
    assert file.read_text() == "old"
    assert cli.main(["report"]) == 2


def test_logs_of_inspect_show_what_they_carry(tmp_path: Path) -> None:
    log = Path(__file__).parents[1] / "results" / "data" / "inspect_0.3.285.eval"
    for name in ("a", "b"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        shutil.copy(log, tmp_path / "logs" / name / f"{name}.eval")
    runs = load_runs(tmp_path / "logs")
    write_report(runs, tmp_path / "report.html", baseline=runs[0].name)
    (content,) = Page(tmp_path / "report.html").samples
    assert len(content["rows"]) == 3
    for row in content["rows"]:
        assert row[1], "the prompt"
        assert row[2], "the reference"
        assert row[6][0][0], "the output"


def test_the_demo_ends_with_a_report(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models aside: what was evaluated lies in its folder, and the report is written and named."""
    shutil.copytree(pair, tmp_path / "demo" / "results")
    card = SimpleNamespace(examples=1, seconds=1.0, train_loss=1.0)
    monkeypatch.setattr("harness_ext.demo.fetch_model", lambda *_, **__: tmp_path)
    monkeypatch.setattr("harness_ext.demo.evaluate", lambda *_, **__: [])
    monkeypatch.setattr("harness_ext.demo.train_adapter", lambda *_, **__: SimpleNamespace(card=card))
    assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 0
    assert f"{tmp_path / 'demo' / 'report.html'}: open it in a browser" in capsys.readouterr().out
    assert len(Page(tmp_path / "demo" / "report.html").samples) == 1
