"""Two trainings to one output: one goes on, the other is told so; what is replaced is checked before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.errors import TrainingError
from harness_ext.training.lock import LOCK_FILE, OutputLock

HOLDS = """
import sys
from pathlib import Path
from harness_ext.training.lock import OutputLock
with OutputLock(Path(sys.argv[1]), "made").held():
    print("held", flush=True)
    input()
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "new" / ".made.training"


def test_a_second_one_is_refused(workspace: Path) -> None:
    with OutputLock(workspace, "made").held():
        with (
            pytest.raises(TrainingError, match="another training"),
            OutputLock(workspace, "made").held(),
        ):
            pass
        assert (workspace / LOCK_FILE).is_file()
    assert not workspace.parent.exists()
    with OutputLock(workspace, "made").held():
        pass


def test_another_process_holds_it_until_it_dies(workspace: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(workspace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(TrainingError, match="another training"), OutputLock(workspace, "made").held():
        pass
    holder.kill()
    holder.communicate()
    assert (workspace / LOCK_FILE).is_file()
    with OutputLock(workspace, "made").held() as lock:
        lock.check()


def test_a_checkpoint_stays(workspace: Path) -> None:
    with OutputLock(workspace, "made").held():
        (workspace / "checkpoint-1").mkdir()
    assert os.listdir(workspace) == ["checkpoint-1"]  # noqa: PTH208
    with OutputLock(workspace, "made").held() as lock:
        (workspace / "file").write_text("")
        lock.clear_workspace()
        assert [path.name for path in workspace.iterdir()] == [LOCK_FILE]
        lock.check()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_that_was_deleted_is_noticed(workspace: Path, replaced: bool) -> None:
    with OutputLock(workspace, "made").held() as lock:
        (workspace / LOCK_FILE).unlink()
        if replaced:
            with OutputLock(workspace, "made").held(), pytest.raises(TrainingError, match="was deleted during"):
                lock.check()
        else:
            with pytest.raises(TrainingError, match="was deleted during"):
                lock.check()


def test_the_lock_of_one_that_just_ended_is_not_taken(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is removed between another one's opening and locking it."""
    opened = []
    open_file = os.open

    def removed_behind(path: Path, *arguments: int) -> int:
        descriptor = open_file(path, *arguments)
        if Path(path).name == LOCK_FILE and len(opened) < 2:
            opened.append(path)
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", removed_behind)
    with OutputLock(workspace, "made").held() as lock:
        assert len(opened) == 2
        lock.check()
