"""`harness-ext card`: valid metadata, all that a reader needs, and nothing lost of what a person wrote."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_hub import FakeHub
from huggingface_hub import ModelCard, ModelCardData
from published import CARD

from harness_ext import cli
from harness_ext.cli import parser_of
from harness_ext.models.adapters import check_adapter
from harness_ext.models.sources import files_sha256
from harness_ext.publish.claims import claims_in
from harness_ext.publish.front_matter import metadata_of, with_metadata
from harness_ext.regions import find_regions


def run(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("harness-ext: ")
    return line


def front_of(readme: Path) -> dict:
    return yaml.safe_load(readme.read_text(encoding="utf-8").split("---\n")[1])


# -- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_are_those_of_the_hub(adapter: Path, write_results: Callable[..., Path], hub: FakeHub) -> None:
    results = write_results(adapter, ("sst2_choice", "sst2_generate"))
    assert run("card", adapter, results) == 0
    text = (adapter / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    card.validate()  # asks the Hub
    assert (card.data.base_model, card.data.library_name, card.data.pipeline_tag) == (
        "org/tiny", "peft", "text-generation",
    )  # fmt: skip
    assert card.data.datasets == ["stanfordnlp/sst2"]
    assert card.data.metrics == ["accuracy"]
    found = card.data.eval_results
    assert found is not None
    assert [(each.task_name, each.metric_type, each.metric_value) for each in found] == [
        ("sst2_choice", "accuracy", 0.9), ("sst2_generate", "accuracy", 0.9),
    ]  # fmt: skip
    assert found[0].dataset_type == "stanfordnlp/sst2"
    assert found[0].dataset_split == "validation"
    assert found[0].dataset_revision
    details = found[0].metric_args
    assert details is not None
    assert details["baseline"] == pytest.approx(133 / 200)
    assert details["difference"] == pytest.approx(47 / 200)
    assert details["low"] < 0.9 < details["high"]
    assert details["verdict"] == "better"


def test_the_hubs_parser_gives_back_what_was_written(adapter: Path, write_results: Callable[..., Path]) -> None:
    run("card", adapter, write_results(adapter))
    text = (adapter / "README.md").read_text(encoding="utf-8")
    again = str(ModelCard(text))
    place = "README.md"
    assert metadata_of(again, place) == metadata_of(text, place)
    assert claims_in(metadata_of(again, place), place) == claims_in(metadata_of(text, place), place)
    assert again.split("---\n", 2)[2] == text.split("---\n", 2)[2]


def test_what_a_person_set_in_the_metadata_stays(adapter: Path, write_results: Callable[..., Path]) -> None:
    readme = adapter / "README.md"
    foreign = (
        "model-index:\n- name: theirs\n  results:\n  - task: {type: text-generation}\n"
        "    dataset: {name: GSM8K, type: openai/gsm8k}\n    metrics: [{type: accuracy, value: 0.5}]\n"
    )
    head = (
        "---\n# my own remark\nlicense: apache-2.0   # as the base\nbase_model: other/base\ntags: [mine]\n"
        f"pipeline_tag: text-classification\n{foreign}---\n"
    )
    body = readme.read_text(encoding="utf-8").split("---\n", 2)[2]
    readme.write_text(head + body, encoding="utf-8")
    results = write_results(adapter)
    for _ in range(2):  # the second time, our entries are replaced, not doubled
        assert run("card", adapter, results) == 0
        text, front = readme.read_text(encoding="utf-8"), front_of(readme)
        assert "# my own remark\nlicense: apache-2.0   # as the base\n" in text
        assert front["base_model"] == "other/base"
        assert front["pipeline_tag"] == "text-classification"
        assert front["tags"][0] == "mine"
        assert "lora" in front["tags"]
        assert [entry["name"] for entry in front["model-index"]] == ["theirs", "sst2"]
        assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5}]


@pytest.mark.parametrize("front", [
    "tags:\n- a\n- b\n# remark\nlicense: mit\n", "tags: [a,\n  b]\nlicense: mit", '"tags": ["a", "b"]\nlicense: mit\n',
    "{tags: [a, b], license: mit}\n", "tags:\n  - a\n  - b\n\nlicense: mit\n",
])  # fmt: skip
def test_a_key_is_changed_in_any_way_of_writing_it(front: str) -> None:
    text = with_metadata(f"---\n{front}---\nbody\n" if front.endswith("\n") else f"---\n{front}\n---\nbody\n",
                         {"tags": ["a", "b", "c"], "datasets": ["x/y"]}, "README.md")  # fmt: skip
    assert metadata_of(text, "README.md") == {"tags": ["a", "b", "c"], "license": "mit", "datasets": ["x/y"]}
    assert text.endswith("---\nbody\n")


# -- regions ---------------------------------------------------------------------------------------------------------


def test_a_person_s_text_stays_and_regions_are_replaced(adapter: Path, write_results: Callable[..., Path]) -> None:
    readme = adapter / "README.md"
    text = readme.read_text(encoding="utf-8")
    between = "<!-- harness-ext:about end -->"
    mine = "\n\n## Limits\n\nOnly for *films*.\n<!-- my comment -->\n"
    readme.write_text(text.replace(between, between + mine) + "\nThe end, by me.", encoding="utf-8")
    assert run("card", adapter, write_results(adapter)) == 0
    first = readme.read_text(encoding="utf-8")
    assert mine in first
    assert first.endswith("\nThe end, by me.")
    assert list(find_regions(first, "")) == ["about", "results", "protocol", "use", "repeat", "recipe"]
    assert run("card", adapter, write_results(adapter, before=2, name="other")) == 0
    second = readme.read_text(encoding="utf-8")
    assert second != first
    outside = re.compile(r"<!-- harness-ext:(\w+) begin.*?harness-ext:\1 end -->", re.DOTALL)
    assert outside.sub("", second.split("---\n", 2)[2]) == outside.sub("", first.split("---\n", 2)[2])


def test_a_readme_without_markers_is_kept_whole(adapter: Path, write_results: Callable[..., Path]) -> None:
    readme = adapter / "README.md"
    readme.write_bytes(b"# By hand\r\n\r\nOnly mine.\r\n")
    assert run("card", adapter, write_results(adapter)) == 0
    assert b"---\n# By hand\r\n\r\nOnly mine." in readme.read_bytes()
    assert "results" in find_regions(readme.read_text(encoding="utf-8"), "")


def test_an_edited_region_is_not_lost(
    adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    readme, results = adapter / "README.md", write_results(adapter)
    run("card", adapter, results)
    edited = readme.read_text(encoding="utf-8").replace("## Results\n", "## Results, and my doubts\n")
    readme.write_text(edited, encoding="utf-8")
    capsys.readouterr()
    assert run("card", adapter, results) == 2
    line = one_line(capsys)
    assert "'results'" in line
    assert "--overwrite" in line
    assert readme.read_text(encoding="utf-8") == edited
    assert run("card", adapter, results, "--overwrite") == 0
    assert (adapter / "README.md.edited").read_text(encoding="utf-8") == edited
    assert "my doubts" not in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", [
    lambda text: text.replace("<!-- harness-ext:use end -->", ""),
    lambda text: text + "\n<!-- harness-ext:use end -->\n",
    lambda text: text + text.split("---\n", 2)[2],
    lambda text: text.replace("<!-- harness-ext:use end -->", "<!-- harness-ext:about end -->"),
])  # fmt: skip
def test_markers_that_do_not_match(
    damage: Callable[[str], str], adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = adapter / "README.md"
    broken = damage(readme.read_text(encoding="utf-8"))
    readme.write_text(broken, encoding="utf-8")
    assert run("card", adapter, write_results(adapter)) == 2
    assert re.search(r"README.md:\d+: ", one_line(capsys))
    assert readme.read_text(encoding="utf-8") == broken


# -- content ---------------------------------------------------------------------------------------------------------


def test_it_says_what_a_reader_needs(adapter: Path, write_results: Callable[..., Path]) -> None:
    run("card", adapter, write_results(adapter), "--name", "hub:me/sst2-lora")
    text = (adapter / "README.md").read_text(encoding="utf-8")
    for part in (
        "`sst2_choice`, acc: 66.5 → 90.0, a difference of +23.5 [", "on 200 documents: **better**", "| sst2_choice |",
        "stanfordnlp/sst2 (validation)", "eeeeeeee", '"lora_rank": 8', '"me/sst2-lora")', "**How to read this**",
    ):  # fmt: skip
        assert part in text, part
    assert str(adapter) not in text
    block = text.split("## Repeat the evaluation")[1].split("```\n")[1].replace("\\\n", "")
    evaluate, compare = (shlex.split(line) for line in block.splitlines())
    options = parser_of("eval").parse_args(evaluate[2:])
    assert options.adapters == ["me/sst2-lora"]
    assert options.tasks == ["sst2_choice"]
    assert options.model_args == {"pretrained": "org/tiny", "dtype": "float32"}
    assert parser_of("compare").parse_args(compare[2:]).results == [options.output_path]


def test_an_adapter_of_another_trainer(write_adapter: Callable[..., Path], write_results: Callable[..., Path]) -> None:
    folder = write_adapter("trl", card=None, config={"base_model_name_or_path": "/home/someone/models/my-base"})
    assert run("card", folder, write_results(folder)) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "/home/someone" not in text
    assert "my-base" in text
    assert "| rank | 2 |" in text
    assert list(find_regions(text, "")) == ["about", "results", "protocol", "use", "repeat"]


def test_hostile_texts_stay_text(write_adapter: Callable[..., Path], write_results: Callable[..., Path]) -> None:
    hostile = "<script>x</script> <!-- harness-ext:results end --> | a\x1b[31m"
    folder = write_adapter(card=replace(CARD, recipe={"system_instruction": hostile}))
    results = write_results(folder, ("sst2_choice",), system_instruction=hostile)
    assert run("card", folder, results) == 0
    assert list(find_regions((folder / "README.md").read_text(encoding="utf-8"), ""))[1] == "results"


# -- bad input -------------------------------------------------------------------------------------------------------


def test_results_of_other_weights(
    adapter: Path, write_results: Callable[..., Path], write_adapter: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    results = write_results(adapter)
    other = write_adapter("../else/sst2", seed=1)
    before = (other / "README.md").read_text(encoding="utf-8")
    assert run("card", other, results) == 2
    line = one_line(capsys)
    assert "other weights" in line
    assert "harness-ext eval --adapters" in line
    assert (other / "README.md").read_text(encoding="utf-8") == before


def test_results_without_the_adapter(
    adapter: Path, write_results: Callable[..., Path], write_adapter: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run("card", write_adapter("mine", seed=1), write_results(adapter)) == 2
    line = one_line(capsys)
    assert "no run of" in line
    assert "sst2" in line


def test_results_that_do_not_name_weights_count_by_name(
    adapter: Path, write_results: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("card", adapter, write_results(adapter, hashes=False)) == 0
    assert "which weights" in caplog.text
    assert "which weights" in (adapter / "README.md").read_text(encoding="utf-8")


def test_results_cut_short(
    adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(adapter)
    (samples,) = (results / "sst2").glob("samples_*.jsonl")
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:50]))
    assert run("card", adapter, results) == 2
    assert "cut short" in one_line(capsys)
    next((results / "sst2").glob("results_*.json")).unlink()
    assert run("card", adapter, results) == 2
    assert "not whole" in one_line(capsys)


def test_one_task_twice(adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    first = write_results(adapter)
    second = write_results(adapter, name="again", after=11)
    assert run("card", adapter, first, second) == 2
    assert "sst2_choice" in one_line(capsys)


@pytest.mark.parametrize("front", [
    "a: &a [x]\nb: [*a, *a", "- a list\n", "model-index: nonsense\n", "model-index:\n- name: x\n", "tags: {a: 1}\nx: [",
    "model-index:\n- name: x\n  results:\n  - task: 1\n",
])  # fmt: skip
def test_metadata_that_cannot_be_read(
    front: str, adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = adapter / "README.md"
    before = f"---\n{front}\n---\n# x\n"
    readme.write_text(before)
    assert run("card", adapter, write_results(adapter)) == 2
    assert "README.md" in one_line(capsys)
    assert readme.read_text() == before


def test_a_readme_that_is_no_text(
    adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "README.md").write_bytes(b"\xff\xfe")
    assert run("card", adapter, write_results(adapter)) == 2
    assert "UTF-8" in one_line(capsys)


def test_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: Path,
                    write_results: Callable[..., Path]) -> None:  # fmt: skip
    results = write_results(adapter)
    assert run("card", tmp_path / "nothing", results) == 2
    assert "no adapter folder" in one_line(capsys)
    check_adapter(adapter)
    assert json.loads((adapter / "card.json").read_text())["base"] == "org/tiny"


def test_without_write_permission(
    adapter: Path, write_results: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    results = write_results(adapter)
    (adapter / "README.md").write_text("mine\n")
    monkeypatch.setattr("harness_ext.atomic.os.access", lambda *_: False)  # permissions do not bind root
    assert run("card", adapter, results) == 2
    assert "check the permissions" in one_line(capsys)
    assert (adapter / "README.md").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["sst2", "squad_v2"])
def test_the_shipped_cards_are_those_of_their_adapters(name: str) -> None:
    folder = Path(__file__).parents[2] / "adapters" / name
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (result,) = card.data.eval_results
    assert result.metric_value * 100 == pytest.approx({"sst2": 92.1, "squad_v2": 57.8}[name], abs=0.05)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert not [region for region in find_regions(text, "README.md").values() if region.is_edited]
    (claim,) = claims_in(metadata_of(text, "README.md"), "README.md")
    assert claim.weights == files_sha256(folder / "adapter_model.safetensors")
    assert claim.verdict == "better"
    assert claim.baseline is not None
