"""`harness-ext push`: what is sent, what never is, and what the Hub's refusals become. The Hub is a local one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from fake_hub import FakeHub
from huggingface_hub import ModelCard, parse_eval_result_entries

from harness_ext import cli
from harness_ext.models.adapters import adapter_folder, check_adapter
from harness_ext.results.load import load_runs

NAME = "me/sst2-lora"
TARGET = f"hub:{NAME}"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "card.json"}


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


@pytest.fixture
def carded(adapter: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Path:
    """An adapter with the card of its results, in out/."""
    assert run("card", adapter, write_results(adapter)) == 0
    capsys.readouterr()
    return adapter


def test_it_is_published_and_can_be_loaded_back(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    (carded / "checkpoint-10").mkdir()
    for stray in ("optimizer.pt", "training_args.bin", "README.md.edited", "notes.txt", "checkpoint-10/adapter.bin"):
        (carded / stray).write_bytes(b"never")
    assert run("push", carded, TARGET) == 0
    assert f"{hub.url}/{NAME}/commit/" in capsys.readouterr().out
    assert hub.files(NAME).keys() - {".gitattributes"} == FILES
    assert "POST /api/validate-yaml" in hub.requests
    back = adapter_folder(NAME)
    check_adapter(back)
    assert (back / "adapter_model.safetensors").read_bytes() == (carded / "adapter_model.safetensors").read_bytes()
    card = ModelCard((back / "README.md").read_text(encoding="utf-8"))
    assert card.data.eval_results
    assert f"--adapters {NAME}" in card.text  # the commands of a published card name the published adapter
    assert f'"{NAME}")' in card.text


def test_a_card_of_training_alone_names_the_published_adapter(adapter: Path, hub: FakeHub) -> None:
    assert run("push", adapter, TARGET) == 0
    text = hub.files(NAME)["README.md"].decode()
    assert f"--adapters {NAME}" in text
    assert "adapters/sst2" not in text


def test_pushed_twice_is_an_update(carded: Path, hub: FakeHub) -> None:
    assert run("push", carded, TARGET) == 0
    (carded / "README.md").write_text(
        (carded / "README.md").read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8"
    )
    assert run("push", carded, TARGET) == 0
    assert hub.files(NAME)["README.md"].endswith(b"\nMore.\n")


def test_private(carded: Path, hub: FakeHub) -> None:
    assert run("push", carded, TARGET, "--private") == 0
    assert hub.private == {f"models/{NAME}"}


def test_dry_run_lists_and_sends_nothing(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("push", carded, TARGET, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = {name: int(size.replace(",", "")) for size, name in map(str.split, lines[:-1])}
    assert sizes.keys() == FILES
    assert sizes["adapter_model.safetensors"] == (carded / "adapter_model.safetensors").stat().st_size
    assert "nothing was sent" in lines[-1]
    assert not hub.repositories
    assert not [request for request in hub.requests if request.startswith("POST")]


def test_dry_run_needs_neither_network_nor_token(
    carded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert run("push", carded, TARGET, "--dry-run") == 0  # HF_HUB_OFFLINE is set
    assert "nothing was sent" in capsys.readouterr().out


def test_results_and_report_go_along_without_places(
    carded: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    report.write_text("<html>")
    (tmp_path / "out/base/unrelated.txt").write_text("no")
    assert run("push", carded, TARGET, "--with", f"results={tmp_path / 'out'},report={report}") == 0
    sent = hub.files(NAME)
    assert sent["report.html"] == b"<html>"
    results = {path: content for path, content in sent.items() if path.startswith("results/")}
    assert {path.split("/")[1] for path in results} == {"base", "sst2"}
    assert len(results) == 4
    for path, content in sent.items():
        assert str(tmp_path).encode() not in content, path
    for path, content in results.items():
        target = tmp_path / "downloaded" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert {found.name for found in load_runs(tmp_path / "downloaded")} == {"base", "sst2"}


def test_pull_request(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories["models/them/theirs"] = {"adapter_config.json": b"{}"}
    assert run("push", carded, "hub:them/theirs", "--pr") == 0
    assert "/them/theirs/discussions/1" in capsys.readouterr().out
    ((repository, sent),) = hub.pull_requests
    assert repository == "them/theirs"
    assert sent.keys() == FILES
    assert hub.files("them/theirs") == {"adapter_config.json": b"{}"}


# -- refusals --------------------------------------------------------------------------------------------------------


def test_no_token(
    carded: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run("push", carded, TARGET) == 2
    assert "hf auth login" in one_line(capsys)


def test_a_wrong_token(
    carded: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run("push", carded, TARGET) == 2
    line = one_line(capsys)
    assert "token" in line
    assert "hf_wrong" not in line
    assert not hub.repositories


def test_no_right(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("push", carded, "hub:them/new") == 2
    assert "may not write to them/new" in one_line(capsys)


def test_name_taken(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories[f"models/{NAME}"] = {"model.safetensors": b"a whole model"}
    assert run("push", carded, TARGET) == 2
    line = one_line(capsys)
    assert "taken" in line
    assert "model.safetensors" in line
    assert hub.files(NAME) == {"model.safetensors": b"a whole model"}


def test_nothing_to_open_a_pull_request_to(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("push", carded, TARGET, "--pr") == 2
    assert "leave out --pr" in one_line(capsys)
    assert not hub.repositories


def test_no_network(
    carded: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between huggingface_hub's tries
    assert run("push", carded, TARGET) == 2
    assert "cannot be reached" in one_line(capsys)


def test_offline(carded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run("push", carded, TARGET) == 2
    line = one_line(capsys)
    assert "HF_HUB_OFFLINE" in line or "cannot be reached" in line


@pytest.mark.parametrize("name", ["sst2", "hub:", "hub:me/", "hub:a/b/c", "hub:../x", "hub:me/x@v1", "me/" + "x" * 300])
def test_no_name(name: str, carded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("push", carded, name) == 2
    assert "hub:USER/NAME" in one_line(capsys)


def test_no_card(carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    (carded / "README.md").unlink()
    assert run("push", carded, TARGET) == 2
    assert "harness-ext card" in one_line(capsys)


@pytest.mark.parametrize(("old", "new", "named"), [
    ("base_model: ", "base_model: {a: 1} #", "base_model"), ("base_model: ", "base_model: tiny #", "base_model"),
    ("library_name: ", "language: [not a language] #", "language"),  # the Hub says so itself
])  # fmt: skip
def test_metadata_that_are_refused(
    old: str, new: str, named: str, carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (carded / "README.md").read_text(encoding="utf-8")
    (carded / "README.md").write_text(text.replace(old, new, 1), encoding="utf-8")
    assert run("push", carded, TARGET) == 2
    assert named in one_line(capsys)
    assert not hub.repositories


@pytest.mark.parametrize("base", ["/home/me/models/tiny", "C:\\Users\\me\\tiny"])
def test_a_place_on_this_machine(base: str, carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((carded / "adapter_config.json").read_text())
    (carded / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    assert run("push", carded, TARGET) == 2
    assert "a path of this machine" in one_line(capsys)
    assert not hub.repositories


def test_a_place_in_the_text(carded: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = carded / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(f"{text}\nAs in /path/to/your/model, or https://host/a/b.\n", encoding="utf-8")
    assert run("push", carded, TARGET, "--dry-run") == 0
    capsys.readouterr()
    readme.write_text(f"{text}\nSee {tmp_path}.\n", encoding="utf-8")
    assert run("push", carded, TARGET) == 2
    assert str(tmp_path) in one_line(capsys)


@pytest.mark.parametrize(("parts", "expected"), [
    ("reslts", "did you mean 'results'"), ("results=nowhere", "no results in nowhere"), ("report=no.html", "no report"),
])  # fmt: skip
def test_with_what_is_not_there(
    parts: str, expected: str, carded: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("push", carded, TARGET, "--with", parts) == 2
    assert expected in one_line(capsys)


# -- benchmarks ------------------------------------------------------------------------------------------------------

SST2_BENCHMARK = "name: SST-2\ntasks:\n- {id: sst2, config: default, split: validation}\n- {id: other, split: test}\n"


def test_results_on_a_registered_benchmark(carded: Path, hub: FakeHub) -> None:
    hub.repositories["datasets/stanfordnlp/sst2"] = {"eval.yaml": SST2_BENCHMARK.encode()}
    assert run("push", carded, TARGET) == 0
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.files(NAME)[".eval_results/sst2_choice.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("stanfordnlp/sst2", "sst2", 90.0)
    assert entry.dataset_revision
    assert entry.notes
    assert "sst2_choice" in entry.notes


@pytest.mark.parametrize("declared", ["tasks: 3", "[", "tasks:\n- {id: a, split: test}", "tasks: [1, {id: 2}]"])
def test_a_data_set_that_is_no_benchmark_for_it(declared: str, carded: Path, hub: FakeHub) -> None:
    hub.repositories["datasets/stanfordnlp/sst2"] = {"eval.yaml": declared.encode()}
    assert run("push", carded, TARGET) == 0
    assert not [path for path in hub.files(NAME) if path.startswith(".eval_results")]


def test_a_part_of_a_split_is_no_result_on_the_benchmark(
    adapter: Path, write_results: Callable[..., Path], hub: FakeHub
) -> None:
    hub.repositories["datasets/stanfordnlp/sst2"] = {"eval.yaml": SST2_BENCHMARK.encode()}
    results = write_results(adapter)
    for file in results.rglob("results_*.json"):
        payload = json.loads(file.read_text())
        payload["config"]["limit"] = 200.0
        file.write_text(json.dumps(payload))
    assert run("card", adapter, results) == 0
    assert run("push", adapter, TARGET) == 0
    assert not [path for path in hub.files(NAME) if path.startswith(".eval_results")]
