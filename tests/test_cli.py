"""The command line: help with an example, one line for an error, and the commands of the documentation."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from transformers import AutoTokenizer

import harness_ext
from harness_ext import cli
from harness_ext.cli.compare import FORMATS
from harness_ext.protocol.documents import DATA_VARIABLE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
DOCUMENTS = sorted([*PAGES, *(ROOT / "adapters").glob("*/README.md")])


def run(*arguments: str) -> int:
    """Exit code, whether returned or raised by argparse."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


# -- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    _, heading, example = re.split(r"^(examples?:)$", text, maxsplit=1, flags=re.MULTILINE)
    assert heading
    assert re.search(rf"harness-ext {command}\b|lm_eval ", example)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_examples_of_the_help_parse(command: str) -> None:
    for words in commands(f"```\n{cli.parser_of(command).epilog}\n```"):
        parse(words)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--help",)):
        assert run(*arguments) == 0
        text = capsys.readouterr().out
        assert not [command for command in cli.COMMANDS if f"\n  {command} " not in text]


@pytest.mark.parametrize("words", [["sst2_nosuch", "--recipe", "FILE"], ["--recipe", "FILE", "sst2_nosuch"]])
def test_the_task_stands_before_or_behind_the_recipe(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: sst2_choice\nmodel: m\noutput: o\n")
    assert run("train", *(str(recipe) if word == "FILE" else word for word in words)) == 2
    assert_one_line(capsys, ("unknown task 'sst2_nosuch'",))


def test_every_recipe_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help")
    text = capsys.readouterr().out
    for field in harness_ext.Recipe.__dataclass_fields__:
        assert field == "task" or f"--{field.replace('_', '-')}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"harness-ext {harness_ext.__version__}\n"


def test_tasks_path_is_a_folder_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks-path") == 0
    folder = Path(capsys.readouterr().out.rstrip("\n"))
    assert {"sst2_choice.yaml", "squad_v2_generate.yaml"} <= {file.name for file in folder.rglob("*.yaml")}


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate"], "'evaluate'"),
        (["--no-such"], "--no-such"),
        (["compare"], "RESULTS"),
        (["compare", "results", "--fromat", "json"], "--fromat"),
        (["compare", "results", "--format", "xlsx"], "'xlsx'"),
        (["compare", "results", "--fail-on", "bad"], "'bad'"),
        (["compare", "results", "--seed", "-1"], "'-1'"),
        (["train", "sst2_choice", "--seeds", "three"], "'three'"),
        (["train", "sst2_choice", "--learning-rat", "1"], "did you mean '--learning-rate'"),  # never guessed
        (["eval", "--tasks", "sst2_choice", "--adaptors", "x"], "--adaptors"),
        (["fetch"], "NAME"),
        (["tasks-path", "--loud"], "--loud"),
    ],
)
def test_a_misused_command_exits_with_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err.splitlines()[-1]


def recipe(folder: Path, **values: object) -> str:
    file = folder / "recipe.yaml"
    file.write_text(
        json.dumps({"task": "sst2_choice", "model": "nowhere/model", "output": str(folder / "out"), **values})
    )
    return str(file)


UNTRAINABLE = {
    "unknown key": ({"learning_rat": 1}, (), ("'learning_rat'", "did you mean 'learning_rate'?")),
    "impossible value": ({}, ("--lora-rank", "0"), ("--lora-rank must be positive", "got 0")),
    "value of another kind": ({}, ("--epochs", "many"), ("epochs", "many")),
    "no such recipe": ({}, ("--recipe", "no/recipe.yaml"), ("no/recipe.yaml", "correct the file or its path")),
    "no model": ({"model": None}, (), ("'model'", "--model")),
    "no such model": ({"model": "./nowhere"}, (), ("nowhere",)),
}


@pytest.mark.parametrize(("values", "flags", "expected"), UNTRAINABLE.values(), ids=UNTRAINABLE)
def test_train_refuses(
    values: dict[str, object],
    flags: tuple[str, ...],
    expected: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", "--recipe", recipe(tmp_path, **values), *flags) == 2
    assert_one_line(capsys, expected)
    assert {child.name for child in tmp_path.iterdir()} == {"recipe.yaml"}  # nothing is left behind


def assert_one_line(capsys: pytest.CaptureFixture[str], expected: tuple[str, ...]) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("harness-ext: ")
    assert not [part for part in expected if part not in lines[0]], lines[0]


@pytest.mark.slow  # lm-eval's own tasks are indexed before a name is called unknown
def test_train_on_an_unknown_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "sst2_choise", "--model", "someone/model", "--output", str(tmp_path / "out")) == 2
    assert_one_line(capsys, ("'sst2_choise'", "did you mean 'sst2_choice'?"))
    assert not list(tmp_path.iterdir())


def test_train_on_an_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text("")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert run("train", "sst2_choice", "--model", "someone/model", "--output", str(tmp_path / "out")) == 2
    assert_one_line(capsys, ("train.jsonl is empty",))


ELSEWHERE = {
    "compare: no such folder": (("compare", "no/results"), ("no/results",)),
    "train: no seed": (
        ("train", "sst2_choice", "--model", "someone/model", "--output", "out", "--seeds", "0"),
        ("--seeds must be positive", "got 0"),
    ),
    "fetch: unknown name": (("fetch", "smollm2-135m"), ("'smollm2-135m'", "smollm2-135m-instruct")),
    "eval: no model": (("eval", "--tasks", "sst2_choice"), ("--model_args pretrained=MODEL",)),
    "eval: no such model": (("eval", "--tasks", "sst2_choice", "--model_args", "pretrained=./nowhere"), ("nowhere",)),
    "eval: no such adapter": (
        ("eval", "--tasks", "sst2_choice", "--model_args", "pretrained=x", "--adapters", "no/adapter"),
        ("no/adapter",),
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_errors_are_one_line(
    arguments: tuple[str, ...], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert_one_line(capsys, expected)


@pytest.fixture(scope="module")
def bare_model_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a tokenizer that has no chat template and adds no begin token."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., str]:
    """Write a task of six documents, to be evaluated and trained on; returns the path of its YAML."""

    def write(name: str = "mine", *, rows: int = 6, **config: Any) -> str:
        documents = [{"text": f"Word {n}", "answer": f"{n}"} for n in range(rows)]
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        (tmp_path / "hooks.py").write_text("def raises(doc, results):\n    return {'acc': 1 / 0}\n")
        files = dict.fromkeys(("train", "test"), str(tmp_path / "docs.jsonl"))
        values = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "training_split": "train",
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}",
            "doc_to_choice": ["no", "yes"], "doc_to_target": 0, "metric_list": [{"metric": "acc"}], **config,
        }  # fmt: skip
        text = yaml.safe_dump({key: value for key, value in values.items() if value is not None})
        (tmp_path / f"{name}.yaml").write_text(text.replace("RAISES", "!function hooks.raises"))
        return str(tmp_path / f"{name}.yaml")

    return write


GENERATE: dict[str, Any] = {
    "output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match"}], "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
}  # fmt: skip
# What the task is; flags of eval (None: not evaluated) and of train; parts of the line.
UNANSWERABLE: dict[str, tuple[dict[str, Any], list[str] | None, list[str] | None, tuple[str, ...]]] = {
    "more shots than documents": ({"num_fewshot": 9}, [], [], ("'mine'", "few-shot examples", "num_fewshot is 9")),
    "more shots by a flag": ({}, ["--num_fewshot", "9"], ["--num-fewshot", "9"], ("num_fewshot is 9", "lower num")),
    "first_n": (
        {"num_fewshot": 9, "fewshot_config": {"sampler": "first_n"}}, [], [], ("'mine'", "num_fewshot is 9"),
    ),
    "no chat template": ({}, ["--apply_chat_template"], ["--apply-chat-template"], ("no chat template", "omit")),
    "a blank prompt": ({"doc_to_text": " "}, [], [], ("'mine'", "without tokens", "' '", "doc_to_text")),
    "no prompt": ({**GENERATE, "doc_to_text": ""}, [], [], ("'mine'", "without tokens", "''", "doc_to_text")),
    "no documents": ({"rows": 0}, [], [], ("mine.yaml", "has no documents")),
    "unknown generation setting": (GENERATE, ["--gen_kwargs", "temperatur=0.5"], None, ("'temperatur'",)),
    "no limit": ({}, ["--limit", "0"], None, ("--limit must be positive",)),
    "fewer than no shots": ({}, ["--num_fewshot", "-1"], None, ("--num_fewshot must not be negative", "-1")),
    "no such document": ({}, ["--samples", '{"mine": [99]}'], None, ("mine failed", "--samples")),
    "a file as output folder": ({}, ["--output_path", "{model}/config.json/x"], None, ("config.json is a file",)),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["hf", "hf-tree"])
@pytest.mark.parametrize(("config", "flags", "_", "expected"), UNANSWERABLE.values(), ids=UNANSWERABLE)
def test_what_cannot_be_evaluated_is_told_in_one_line(
    config: dict[str, Any], flags: list[str], _: Any, expected: tuple[str, ...], engine: str,
    make_task: Callable[..., str], bare_model_folder: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = [flag.replace("{model}", str(bare_model_folder)) for flag in flags]
    arguments = ["--model", engine, "--model_args", f"pretrained={bare_model_folder}", "--device", "cpu", *flags]
    assert run("eval", "--tasks", make_task(**config), *arguments) == 2
    assert_last_line(capsys, expected)


@pytest.mark.parametrize(
    ("config", "flags", "expected"),
    [(config, flags, expected) for config, _, flags, expected in UNANSWERABLE.values() if flags is not None],
    ids=[name for name, case in UNANSWERABLE.items() if case[2] is not None],
)
def test_what_cannot_be_trained_on_is_told_in_one_line(
    config: dict[str, Any], flags: list[str], expected: tuple[str, ...],
    make_task: Callable[..., str], bare_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = str(tmp_path / "out")
    assert run("train", make_task(**config), "--model", str(bare_model_folder), "--output", output, *flags) == 2
    assert_last_line(capsys, expected)


def assert_last_line(capsys: pytest.CaptureFixture[str], expected: tuple[str, ...]) -> None:
    """The error stands in one line of its own, behind what libraries had to say."""
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    own_lines = [line for line in captured.splitlines() if "harness-ext: " in line]
    assert len(own_lines) == 1, own_lines
    assert own_lines[0].startswith("harness-ext: ")  # not behind a progress bar
    assert not [part for part in expected if part not in own_lines[0]], own_lines[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model_args", "pretrained"], "pretrained"),
        (["--model_args", '{"pretrained": "x"'], "Invalid JSON"),
        (["--model_args", "pretrained=x", "--metadata", "{bad"], "Invalid JSON"),
        (["--model_args", "pretrained=x", "--gen_kwargs", "temperature"], "temperature"),
        (["--model_args", "pretrained=x", "--samples", "{bad"], "{bad"),
        (["--model_args", "pretrained=x", "--device", "abacus"], "abacus"),
        (["--model_args", "pretrained=x", "--model", "hf-treee"], "hf-treee"),
        (["--model_args", "pretrained=x", "--wandb_args", "project=x"], "pip install wandb"),
        (["--model_args", "pretrained=TINY,dtpye=float32"], "'dtpye'"),
        (["--model_args", "pretrained=TINY,pack_tokens=many"], "'many'"),
        (["--model_args", "pretrained=TINY,backend=foo"], "cannot be loaded"),
        (["--model_args", "pretrained=x", "--device", "cuda:9"], "--device cuda:9: this machine has"),
    ],
)
def test_mistaken_values_are_told_in_one_line(
    flags: list[str], expected: str, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    flags = [flag.replace("TINY", str(tiny_model_folder)) for flag in flags]
    assert run("eval", "--tasks", "sst2_choice", *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("harness-ext")
    assert expected in lines[-1]


# -- eval --------------------------------------------------------------------------------------------------------


def test_a_failed_task_is_named_at_the_end(
    make_task: Callable[..., str], tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its results are missing; those of the others are printed and written, and the exit code is not 0."""
    tasks = [make_task("broken", process_results="RAISES"), make_task("fine")]
    output = str(tmp_path / "out")
    arguments = ["--model_args", f"pretrained={tiny_model_folder}", "--output_path", output, "--log_samples"]
    assert run("eval", "--tasks", *tasks, *arguments) == 2
    captured = capsys.readouterr()
    assert "|fine" in captured.out
    assert "|broken" not in captured.out
    last = captured.err.splitlines()[-1]
    assert last == "harness-ext: failed for base: broken: ZeroDivisionError: division by zero (hooks.py:2)"
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"].keys() == {"fine"}
    assert [file.name.partition("_20")[0] for file in (tmp_path / "out").rglob("*.jsonl")] == ["samples_fine"]


def test_a_tracker_that_fails_costs_no_results(
    make_task: Callable[..., str], tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def offline(*_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("harness_ext.engine.evaluate.report_to_trackers", offline)
    assert run("eval", "--tasks", make_task(), "--model_args", f"pretrained={tiny_model_folder}") == 2
    captured = capsys.readouterr()
    assert "|mine" in captured.out
    assert captured.err.splitlines()[-1].startswith(
        "harness-ext: failed for base: tracking: ConnectionError: no network"
    )


def test_a_pattern_that_matches_a_group_and_its_members(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model_args", f"pretrained={tiny_model_folder}", "--limit", "2"]
    assert run("eval", "--tasks", "sst2_prompt*,sst2_prompt_cloze", *arguments) == 0
    names = re.findall(r"^\|[ -]*(\w+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert names.count("sst2_prompt_cloze") == 1
    assert {"sst2_choice", "sst2_prompts_spread"} <= set(names)


def test_adapters_are_handed_on_as_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Patterns and Hub ids are the engine's matter; the help tells of both."""
    handed: list[Any] = []
    monkeypatch.setattr("harness_ext.engine.evaluate.run", lambda _, adapters, **__: handed.extend(adapters) or [])
    written = ["adapters/*", "me/my-adapter@v1", "~/mine"]
    assert run("eval", "--tasks", "sst2_choice", "--model_args", "pretrained=x", "--adapters", *written) == 0
    assert handed == written
    assert run("eval", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "'adapters/*'" in text
    assert "org/name@revision" in text


@pytest.mark.slow
def test_a_real_process_shows_no_traceback(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "harness_ext.cli", "train", "--recipe", recipe(tmp_path, model="./nowhere")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.count("\n") == 1  # nor progress, nor what libraries have to say
    assert process.stderr.startswith("harness-ext: no model folder nowhere")


# -- compare -----------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> str:
    """A base, and an adapter that is worse, on one task, as stock lm-eval writes them."""
    for name, wrong_every in (("base", 10), ("adapter", 3)):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        rows = [
            {"doc_id": i, "doc": {"idx": i}, "target": str(i % 2), "filter": "none", "doc_hash": f"{i:064x}",
             "prompt_hash": f"{i:064x}", "acc": float(i % wrong_every > 0)}
            for i in range(300)
        ]  # fmt: skip
        arguments = "pretrained=org/tiny" + (",peft=adapters/mine" if name == "adapter" else "")
        payload = {
            "results": {"demo": {"alias": "demo", "acc,none": sum(row["acc"] for row in rows) / 300}},
            "configs": {"demo": {"task": "demo"}},
            "n-samples": {"demo": {"effective": 300}},
            "config": {"model": "hf", "model_args": arguments},
        }
        (folder / "results_2026-01-01T00-00-00.000000.json").write_text(json.dumps(payload))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples_demo_2026-01-01T00-00-00.000000.jsonl").write_text(lines)
    return str(tmp_path / "results")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("view", ["rows", "board"])
def test_compare_shows_every_format(form: str, view: str, results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", results, "--format", form, "--view", view) == 0
    captured = capsys.readouterr()
    assert "mine" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(("bar", "code"), [("worse", 1), ("undecided", 1), ("not-better", 1)])
def test_a_gate_closes_with_1_and_one_line(
    bar: str, code: int, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", results, "--fail-on", bar) == code
    captured = capsys.readouterr()
    assert "worse" in captured.out  # the table is there all the same
    assert captured.err.startswith(f"harness-ext: fails --fail-on {bar}: mine on demo is worse")
    assert captured.err.count("\n") == 1


def test_a_gate_stays_open(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", results, "--baseline", "mine", "--fail-on", "not-better", "--format", "csv") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--tasks", "dmo"), "did you mean 'demo'?"),
        (("--runs", "other"), "--runs 'other' matches none of mine"),
        (("--allow", "dtyp"), "did you mean 'dtype'?"),
        (("--margin", "-1"), "--margin"),
        (("--output", "no/such/folder.txt"), "no/such/folder.txt"),
    ],
)
def test_compare_refuses_in_one_line(
    flags: tuple[str, ...], expected: str, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", results, *flags) == 2
    assert_one_line(capsys, (expected,))


@pytest.mark.parametrize("format", ["table", "markdown", "csv", "json", "latex", "html"])
def test_a_full_disk_keeps_the_last_comparison(
    format: str, results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "comparison"
    assert run("compare", results, "--format", format, "--output", str(output)) == 0
    before = output.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run("compare", results, "--format", format, "--output", str(output)) == 2
    assert_one_line(capsys, ("no space left on device",))
    assert output.read_bytes() == before


# -- check, new-task ---------------------------------------------------------------------------------------------


def test_check_says_what_was_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "sst2_choice") == 0
    ok, total = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"sst2_choice: ok, 168 documents of validation, 338 to train on; dry score: .* on 168", ok)
    assert total == "1 task: no errors, no warnings, no notes"


def test_check_exits_with_1_and_a_line_for_each_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndoc_to_txt: x\ndataset_path: json\n")
    assert run("check", str(tmp_path)) == 1
    *findings, total = capsys.readouterr().out.splitlines()
    assert f"{tmp_path / 'mine.yaml'}:2: error C04 unknown key 'doc_to_txt'; did you mean 'doc_to_text'?" in findings
    assert total.startswith("1 task: ")


CHECK_ERRORS = {
    "no folder": (("check", "no/such.yaml"), ("no/such.yaml", "check the path")),
    "no model": (("check", "sst2_choice", "--model", "./nowhere"), ("nowhere",)),
    "built-in name": (
        ("new-task", "sst2_choice", "--kind", "choice", "--data", "no.csv", "--output", "x"),
        ("'sst2_choice'", "a task of harness_ext"),
    ),
    "name of lm-eval": (("new-task", "hellaswag", "--kind", "choice", "--data", "no.csv"), ("a task of lm-eval",)),
    "no data": (("new-task", "mine", "--kind", "choice", "--data", "no.csv"), ("no.csv does not exist",)),
    "label without word": (("new-task", "m", "--kind", "choice", "--data", "x", "--labels", "0"), ("'0'", "0=World")),
}


@pytest.mark.parametrize(("arguments", "expected"), CHECK_ERRORS.values(), ids=CHECK_ERRORS)
def test_check_and_new_task_refuse_in_one_line(
    arguments: tuple[str, ...], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert_one_line(capsys, expected)


def test_new_task_names_the_next_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ratings.csv").write_text("review;stars\n" + "".join(f"Review {n}, long;{n % 2}\n" for n in range(40)))
    assert run("new-task", "ratings", "--kind", "choice", "--data", "ratings.csv", "--labels", "0=bad", "1=good") == 0
    summary, *following = capsys.readouterr().out.splitlines()
    assert summary == "tasks/ratings: 32 for train, 8 for validation; text 'review', label 'stars'; choices bad, good"
    for line, command in zip(following, ("check", "eval", "train"), strict=True):
        words = shlex.split(line.removeprefix("next:"))[1:]
        assert words[0] == command
        parse(words)


# -- the commands of the documentation ---------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """Words after `harness-ext` of every such line in the fenced blocks of a Markdown text."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True) if "harness-ext" in line else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # HARNESS_EXT_DATA=… harness-ext …
                words = words[1:]
            if words and Path(words[0]).name == "harness-ext":
                ends = [n for n, word in enumerate(words) if word in ("|", ">", ">>", "&&", ";", "&")]
                yield words[1 : min(ends, default=len(words))]


def parse(words: list[str]) -> None:
    """Parse as `main` does, without running anything."""
    assert words[0] in cli.COMMANDS, f"no command {words[0]!r}"
    if "--help" not in words:
        rest = [cli.dashed(word) for word in words[1:]] if words[0] in ("train", "tune") else words[1:]
        cli.parser_of(words[0]).parse_args(rest)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_documented_commands_parse(document: Path) -> None:
    for words in commands(document.read_text(encoding="utf-8")):
        try:
            parse(words)
        except SystemExit:
            pytest.fail(f"{document.name}: harness-ext {shlex.join(words)}")


def test_commands_are_found() -> None:
    text = (
        "`harness-ext not-me`\n```bash\n$ harness-ext compare a b  # both\n"
        "HARNESS_EXT_DATA=x .venv/bin/harness-ext train t \\\n    --lora_rank 4 && harness-ext demo\nmake demo\n```\n"
    )
    assert list(commands(text)) == [["compare", "a", "b"], ["train", "t", "--lora_rank", "4"]]


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("model: hf\ntasks: [sst2_choice]\n", [], "hf"),
        ("model: hf\ntasks: [sst2_choice]\n", ["--model", "hf-tree"], "hf-tree"),
        ("tasks: [sst2_choice]\n", [], "hf-tree"),
    ],
)
def test_a_config_file_names_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, flags: list[str], expected: str
) -> None:
    """Flags win over the file, the file over our default."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    seen: list[Any] = []
    monkeypatch.setattr("harness_ext.engine.evaluate.run", lambda config, **_: seen.append(config) or [])
    assert cli.main(["eval", "--config", str(file), *flags]) == 0
    assert [config.model for config in seen] == [expected]


# -- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code", "line"), [
    (signal.SIGTERM, 143, "harness-ext: stopped by SIGTERM"), (signal.SIGINT, 130, "harness-ext: stopped by Ctrl-C"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["parser", "command"])
def test_a_signal_ends_a_command_with_one_line(
    where: str, number: int, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While its modules are imported, and while it runs."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(*_: Any) -> Any:
        os.kill(os.getpid(), number)
        raise AssertionError("goes on")

    if where == "parser":
        monkeypatch.setattr(cli, "parser_of", interrupted)
    else:
        monkeypatch.setattr("harness_ext.protocol.task_folders.tasks_path", interrupted)
    assert run("tasks-path") == code
    assert_one_line(capsys, (line,))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(("number", "code", "line"), [
    (signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "stopped by Ctrl-C"),
])  # fmt: skip
def test_a_signal_in_an_import_ends_the_process_at_once(number: int, code: int, line: str, tmp_path: Path) -> None:
    """Where a library would make something else of it."""
    (tmp_path / "library.py").write_text(
        "import os\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    sum(range(1000))\n"
        "except BaseException as error:\n"
        "    raise ImportError('broken') from error\n"
    )
    program = (
        "import importlib, sys; from harness_ext import cli; "
        "cli.parser_of = lambda _: importlib.import_module('library'); sys.exit(cli.main(['tasks-path']))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"harness-ext: {line}\n")


def test_a_full_disk_behind_standard_output_is_one_line(results: str) -> None:
    command = [sys.executable, "-m", "harness_ext.cli", "compare", results]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "free some space" in done.stderr
    assert done.returncode != 0
