"""What a run can be resumed from: whole checkpoints only, whatever happened to their files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness_ext import atomic
from harness_ext.errors import WriteError
from harness_ext.training.checkpoints import MANIFEST, damaged_checkpoint, last_checkpoint, seal, why_not_whole

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def make(workspace: Path, step: int) -> Path:
    folder = workspace / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(f"{name} {step}".encode())
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "initial").mkdir()
    (tmp_path / "initial" / "adapter_model.safetensors").write_bytes(b"initial")
    (tmp_path / "recipe.json").write_text("{}")
    return tmp_path


def shared(workspace: Path) -> list[Path]:
    return [workspace / "recipe.json", workspace / "initial"]


def test_the_newest_sealed_one_counts(workspace: Path) -> None:
    assert last_checkpoint(workspace) is None
    first = make(workspace, 9)
    assert last_checkpoint(workspace) is None  # not sealed yet
    seal(first, shared(workspace))
    second = make(workspace, 10)
    assert last_checkpoint(workspace) == first
    seal(second, shared(workspace))
    assert last_checkpoint(workspace) == second
    assert not first.exists()


CHANGED = [*FILES, "../recipe.json", "../initial/adapter_model.safetensors"]


@pytest.mark.parametrize("how", ["missing", "flipped", "cut", "empty"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_file_that_was_changed(name: str, how: str, workspace: Path) -> None:
    folder = make(workspace, 3)
    seal(folder, shared(workspace))
    file = folder / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        file.write_bytes(content[:-1] if how == "cut" else b"")
    reason = why_not_whole(folder)
    assert reason == f"{name} is missing" if how == "missing" else f"{name} is not what was written"
    assert last_checkpoint(workspace) is None
    assert damaged_checkpoint(workspace) == f"checkpoint-3 ({reason})"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": 3}', b"\xff", b"[" * 100_000])
def test_a_manifest_that_was_changed(content: bytes, workspace: Path) -> None:
    folder = make(workspace, 3)
    seal(folder, [])
    (folder / MANIFEST).write_bytes(content)
    assert last_checkpoint(workspace) is None
    assert damaged_checkpoint(workspace) == f"checkpoint-3 ({MANIFEST} is damaged)"


def test_a_full_disk_keeps_the_one_before(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(workspace, 1)
    seal(first, [])
    second = make(workspace, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises((OSError, WriteError)):
            seal(second, [])
    assert last_checkpoint(workspace) == first


# -- real processes ------------------------------------------------------------------------------------------------


def train(base: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "harness_ext.cli", "train", "sst2_choice", "--model", str(base), "--output", str(output),
        "--no-preflight", "--lora-rank", "2", "--batch-size", "2", "--save-steps", "2", "--limit", "64",
        "--epochs", "40", "--validation-size", "0", *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: subprocess.Popen[str], output: Path) -> Path:
    workspace = output.with_name(f".{output.name}.training")
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if (found := last_checkpoint(workspace)) is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint(number: int, code: int, tiny_model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "made"
    process = train(tiny_model_folder, output)
    wait_for_checkpoint(process, output)
    with_lock = train(tiny_model_folder, output, "--overwrite")
    assert "another training writes to" in with_lock.communicate()[1]
    assert with_lock.returncode == 2
    process.send_signal(number)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == code, told
    last = told.strip().splitlines()[-1]
    assert last.endswith("continue with --resume")
    step = int(last.partition("at step ")[2].split()[0])
    checkpoint = last_checkpoint(tmp_path / ".made.training")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == step


@pytest.mark.long  # what a signal meets in the first second depends on the machine
@pytest.mark.parametrize("after", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_first_seconds_is_one_line(
    after: float, number: int, code: int, tiny_model_folder: Path, tmp_path: Path
) -> None:
    process = train(tiny_model_folder, tmp_path / "made")
    time.sleep(after)
    process.send_signal(number)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == code or (after < 1 and process.returncode == -number), told
    assert "Traceback" not in told or after < 1
    assert not list(tmp_path.iterdir())
