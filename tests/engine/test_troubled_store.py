"""What happens to the store in the middle of an evaluation costs the evaluation nothing."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from harness_ext.engine import asking
from harness_ext.engine import store as store_module
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.store import FILE, ResponseStore

SETTINGS: dict[str, Any] = {
    "tasks": ["sst2_choice", "squad_v2_generate"], "limit": 8, "batch_size": 2, "log_samples": True,
    "model_args": {"pack_tokens": 100},
}  # fmt: skip
MOUNTS = ["unshare", "-rm", "true"]


@pytest.fixture(autouse=True)
def _many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is written, and there are many."""
    monkeypatch.setattr(asking, "COMMIT_SECONDS", 0.0)


def samples(done: Any) -> Any:
    return [each.results["samples"] for each in done]


def read_only(store: ResponseStore) -> None:
    """As SQLite says it of a file system that the kernel has mounted again without the right to write."""
    store._connection.execute("PRAGMA query_only = 1")


def limited(store: ResponseStore) -> None:
    """No file may grow: the kernel says so to every write, as it does on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def locked(store: ResponseStore) -> None:
    """Another process writes and does not end."""
    store._connection.execute("PRAGMA busy_timeout = 50")
    other = ResponseStore(store.path.parent if store.path else None)
    other._connection.execute("BEGIN IMMEDIATE")
    _OTHERS.append(other)


_OTHERS: list[ResponseStore] = []


@pytest.fixture
def _as_before() -> Iterator[None]:
    """Limits and locks are taken back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    while _OTHERS:
        _OTHERS.pop()._connection.close()


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("trouble", [read_only, limited, locked])
@pytest.mark.parametrize("after", [0, 3])
def test_the_store_fails_in_the_middle(
    after: int, trouble: Callable[[ResponseStore], None], tiny_model_folder: Path, make_adapter: Callable[..., Path],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The evaluation ends as without a store, one warning says it, and what was written before is still there."""
    run: dict[str, Any] = {**SETTINGS, "adapters": [make_adapter("troubled")], "output_path": str(tmp_path / "out")}
    plain = evaluate(str(tiny_model_folder), store=False, **run)
    add, calls, written = ResponseStore.add, iter(range(100)), set()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def failing(self: ResponseStore, responses: Mapping[bytes, Any]) -> None:
        number = next(calls)
        if number == after:
            trouble(self)
        if number >= after and trouble is limited:
            limited(self)
        add(self, responses)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # results can be written
        if number < after:
            written.update(responses)

    with monkeypatch.context() as patch:
        patch.setattr(ResponseStore, "add", failing)
        patch.setattr(store_module, "AGAIN_SECONDS", 0.05)
        done = evaluate(str(tiny_model_folder), store=tmp_path / "store", **run)
    assert samples(done) == samples(plain)
    assert len([record for record in caplog.records if "the evaluation goes on" in record.getMessage()]) == 1
    assert next(calls) > after + 1  # it went on writing, or trying to
    while _OTHERS:
        _OTHERS.pop()._connection.close()
    with ResponseStore(tmp_path / "store") as store:
        assert len(store.get(written)) == len(written)
    assert samples(evaluate(str(tiny_model_folder), store=tmp_path / "store", **run)) == samples(plain)


def _evaluate(base: Path, adapter: Path, output: Path, together: Any) -> None:
    tqdm.set_lock(threading.RLock())
    together.wait()
    evaluate(str(base), adapters=[adapter], output_path=str(output), **SETTINGS)


def test_two_evaluations_at_once_to_one_store_and_one_output(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter, context = make_adapter("twice"), multiprocessing.get_context("fork")
    alone = evaluate(str(tiny_model_folder), adapters=[adapter], output_path=str(tmp_path / "alone"), **SETTINGS)
    together = context.Barrier(2, timeout=60)
    both = [
        context.Process(target=_evaluate, args=(tiny_model_folder, adapter, tmp_path / "both", together))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    texts: dict[str, set[str]] = {}
    for file in (tmp_path / "both").rglob("samples_*"):
        texts.setdefault(f"{file.parent.name}/{file.name.rsplit('_', 1)[0]}", set()).add(file.read_text())
    expected = {
        f"{file.parent.name}/{file.name.rsplit('_', 1)[0]}": {file.read_text()}
        for file in (tmp_path / "alone").rglob("samples_*")
    }
    assert texts == expected
    assert len([*(tmp_path / "both").rglob("results_*")]) == 2 * len(alone)
    with ResponseStore(tmp_path / "both", must_exist=True) as store, ResponseStore(tmp_path / "alone") as one:
        assert len(store) == len(one)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(MOUNTS, check=False, capture_output=True).returncode != 0,
    reason="mounts need Linux namespaces",
)
def test_a_real_disk_that_runs_full(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The store has 64 kB, and the results another disk; the evaluation that follows has room, and goes on."""
    command = [
        sys.executable, "-m", "harness_ext.cli", "eval", "--model_args", f"pretrained={tiny_model_folder}", "--tasks",
        "sst2_choice", "--limit", "300", "--store", str(tmp_path / "store"), "--log_samples", "--output_path",
    ]  # fmt: skip
    (tmp_path / "store").mkdir()
    small_disk = 'mount -t tmpfs -o size=64k tmpfs "$1" && shift && exec "$@"'
    within = ["unshare", "-rm", "sh", "-c", small_disk, "sh", str(tmp_path / "store")]
    texts = []
    for before, output in ((within, tmp_path / "full"), ([], tmp_path / "room")):
        done = subprocess.run([*before, *command, str(output)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the evaluation goes on") == bool(before)
        assert (tmp_path / "store" / FILE).exists() != bool(before)  # the small disk is gone with its process
        texts.append([file.read_text() for file in output.rglob("samples_*")])
    assert texts[0] == texts[1]
