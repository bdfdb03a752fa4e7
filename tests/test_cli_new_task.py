"""`harness-ext new-task` from the command line: one file, files in splits, the Hub; and data of a single split."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import huggingface_hub
import pytest

from harness_ext.cli import main, parser_of
from harness_ext.protocol.documents import DATA_VARIABLE, SAMPLE_FOLDER


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: int, first: int = 0) -> str:
    with Path(name).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "stars"])
        writer.writerows([f"Review {n}, long", ("NA", "00501")[n % 2]] for n in range(first, first + rows))
    return name


def new_task(*words: str) -> int:
    return main(["new-task", "ratings", *words])


def assert_next_commands(lines: list[str], *names: str) -> None:
    commands = [shlex.split(line.removeprefix("next:"))[1:] for line in lines]
    assert [command for command, *_ in commands] == list(names)
    for command, *words in commands:
        parser_of(command).parse_args(words)


def test_files_in_splits(capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--train", write("a.csv", 40), "--validation", write("b.csv", 10, 40), "--test", write("c.csv", 8, 50))
    assert new_task("--kind", "choice", *files) == 0
    summary, *following = capsys.readouterr().out.splitlines()
    assert summary == (
        "tasks/ratings: 40 for train, 10 for validation, 8 for test; text 'review', label 'stars'; choices 00501, NA"
    )
    assert_next_commands(following, "check", "eval", "train")
    assert main(["check", "tasks/ratings"]) == 0


def test_shares_of_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert new_task("--kind", "choice", "--data", write("a.csv", 40), "--validation", "0.25", "--test", "0.25") == 0
    assert "20 for train, 10 for validation, 10 for test" in capsys.readouterr().out


def test_unanswerable(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"How many is {n}?", "answer": f"It is {n}" if n % 2 else ""} for n in range(40)]
    Path("faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert new_task("--kind", "generate", "--data", "faq.jsonl") == 0
    assert "note: 20 rows without 'answer' are dropped" in capsys.readouterr().out
    assert new_task("--kind", "generate", "--data", "faq.jsonl", "--unanswerable", "--overwrite") == 0
    assert "32 for train, 8 for validation" in capsys.readouterr().out
    assert main(["check", "tasks/ratings"]) == 0


REFUSED = {
    "one file and splits": (("--data", "a.csv", "--train", "a.csv"), ("--data", "--train", "one of the two")),
    "no data": ((), ("--data FILE", "--train FILE --validation FILE")),
    "no validation": (("--train", "a.csv"), ("--validation FILE is missing",)),
    "a file for a share": (("--data", "a.csv", "--validation", "b.csv"), ("'b.csv'", "0.2", "--train FILE")),
    "a share that is none": (("--data", "a.csv", "--test", "1.5"), ("--test 1.5", "below 1")),
    "file missing": (("--data", "no.csv"), ("no.csv does not exist", "check the path")),
    "neither file nor on the Hub": (("--data", "acme/none@v1"), ("acme/none", "cannot be reached", "HF_ENDPOINT")),
}


@pytest.mark.parametrize(("words", "expected"), REFUSED.values(), ids=REFUSED)
def test_errors_of_use_are_one_line(
    words: tuple[str, ...],
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write("a.csv", 20)
    write("b.csv", 20, 20)
    assert new_task("--kind", "choice", *words) == 2
    assert_one_line(capsys, expected)
    assert not Path("tasks").exists()


def assert_one_line(capsys: pytest.CaptureFixture[str], expected: tuple[str, ...]) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("harness-ext: ")
    assert not [part for part in expected if part not in line], line


# -- HARNESS_EXT_DATA with one split only --------------------------------------------------------------------------


def only(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data/sst2").mkdir(parents=True)
    (Path("data/sst2") / f"{split}.jsonl").write_text((SAMPLE_FOLDER / "sst2" / f"{split}.jsonl").read_text())
    monkeypatch.setenv(DATA_VARIABLE, "data")


def evaluate(model: Path, *words: str) -> int:
    arguments = ("--model_args", f"pretrained={model}", "--tasks", "sst2_choice", "--limit", "4", "--device", "cpu")
    return main(["eval", *arguments, *words])


def train(model: Path) -> int:
    arguments = ("--model", str(model), "--output", "adapters/mine", "--limit", "8", "--validation-size", "4")
    return main(["train", "sst2_choice", *arguments, "--max-steps", "1", "--lora-rank", "2"])


def test_a_validation_file_is_enough_to_evaluate(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only("validation", monkeypatch)
    assert evaluate(tiny_model_folder) == 0
    capsys.readouterr()
    assert evaluate(tiny_model_folder, "--num_fewshot", "2") == 2
    assert "data/sst2 has no split 'train'" in capsys.readouterr().err.splitlines()[-1]
    assert train(tiny_model_folder) == 2
    assert "'train'" in capsys.readouterr().err.splitlines()[-1]


def test_a_training_file_is_enough_to_train(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only("train", monkeypatch)
    assert train(tiny_model_folder) == 0
    capsys.readouterr()
    assert evaluate(tiny_model_folder) == 2
    assert "data/sst2 has no split 'validation'" in capsys.readouterr().err.splitlines()[-1]
