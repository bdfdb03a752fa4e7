"""A store on a file system that machines share: every process has a log of its own, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results_content import content
from tqdm import tqdm

from harness_ext.engine import answer_logs, file_system
from harness_ext.engine import store as module
from harness_ext.engine.answer_logs import PATTERN
from harness_ext.engine.array_shard import Shard
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.file_system import is_local
from harness_ext.engine.store import FILE, Response, ResponseStore, StoredModel
from harness_ext.errors import StoreError

ANSWERS = {
    b"score": Response((-1.0000000000000002, True), None, 7),
    b"impossible": Response((float("-inf"), False)),
    b"text": Response("a\ud83d ünï\x00\n\r\x85\u2028", ("stop", 5, 2)),
    b"rolling": Response(-1e-300),
}


@pytest.fixture(autouse=True)
def _on_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_local", lambda _: False)


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob(PATTERN))


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "new folder"
    with ResponseStore(folder) as store:
        assert not logs(folder)  # nothing to say yet
        store.add(ANSWERS)
        assert store.get([*ANSWERS, b"unknown"]) == ANSWERS
        store.add_model(b"digest", StoredModel({"base": "abc"}, {"model_dtype": "float32"}))
        store.add_design(b"design", {"looks": [1]})
        store.add_shard(b"evaluation", Shard(2, 3))
    with ResponseStore(folder, must_exist=True) as store:
        assert store.get(ANSWERS) == ANSWERS
        store.add({b"score": Response((-2.0, False))})
        store.forget([b"text", b"unknown"])
        assert store.get(ANSWERS).keys() == ANSWERS.keys() - {b"text"}
        store.add_model(b"digest", StoredModel({"base": "abc"}, {"model_dtype": "float32"}))  # known
    with ResponseStore(folder) as store:
        assert store.get([b"score", b"text"]) == {b"score": Response((-2.0, False))}
        assert store.models() == {b"digest": StoredModel({"base": "abc"}, {"model_dtype": "float32"})}
        assert store.design(b"design") == {"looks": [1]}
        assert store.shards(b"evaluation") == {Shard(2, 3)}
        assert not store.shards(b"another")
        assert len(store) == 3
    assert len(logs(folder)) == 2
    assert {file.suffix for file in folder.iterdir()} == {".log"}  # no database


def test_answers_of_others_are_seen_while_they_write(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as one, ResponseStore(tmp_path) as other:
        for number in range(5):
            writer, reader = (one, other) if number % 2 else (other, one)
            answer = {str(number).encode(): Response(f"answer {number}")}
            writer.add(answer)
            assert reader.get(answer) == answer
        other.forget([b"0"])
        assert not one.get([b"0"])
    assert len(logs(tmp_path)) == 2


def _write(folder: Path, writer: int, together: Any) -> None:
    together.wait()
    with ResponseStore(folder) as store:
        for number in range(30):
            store.add({f"{writer} {number}".encode(): Response(f"answer {number}"), b"shared": Response("same")})
            assert b"shared" in store.get([b"shared"])


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(4, timeout=60)
    writers = [context.Process(target=_write, args=(tmp_path / "new", number, together)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(logs(tmp_path / "new")) == 4
    with ResponseStore(tmp_path / "new") as store:
        assert len(store) == 4 * 30 + 1


def _write_until_killed(folder: Path, written: Any) -> None:
    with ResponseStore(folder) as store:
        for number in range(100_000):
            store.add({f"{number} {part}".encode(): Response("answer " * 50) for part in range(20)})
            written.value = number + 1


def test_a_killed_process_loses_nothing_that_it_has_written(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for run in range(4):
        folder, written = tmp_path / str(run), context.Value("i", 0)
        process = context.Process(target=_write_until_killed, args=(folder, written))
        process.start()
        while not written.value:
            time.sleep(0.001)
        time.sleep(0.003 * run)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        with ResponseStore(folder) as store:
            keys = [f"{number} {part}".encode() for number in range(written.value) for part in range(20)]
            assert len(store.get(keys)) == len(keys)


@pytest.mark.parametrize("left", [0, 1, 5, 20, 60, 100])
def test_a_line_without_an_end_is_not_read(left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ResponseStore(tmp_path) as store:
        store.add({b"first": Response("1")})
        whole = logs(tmp_path)[0].stat().st_size
        store.add({b"second": Response("2" * 200)})
    os.truncate(logs(tmp_path)[0], whole + left)
    with ResponseStore(tmp_path) as store:
        assert store.get([b"first", b"second"]) == {b"first": Response("1")}
        store.add({b"second": Response("again")})
    with ResponseStore(tmp_path) as store:
        assert store.get([b"second"]) == {b"second": Response("again")}
    assert not caplog.records


@pytest.mark.parametrize("place", range(40, 4000, 331))
def test_damage_anywhere_gives_no_wrong_answer(place: int, tmp_path: Path) -> None:
    answers = {str(number).encode() * 8: Response(f"answer {number} " * 5) for number in range(30)}
    with ResponseStore(tmp_path) as store:
        store.add(answers)
    content = bytearray(logs(tmp_path)[0].read_bytes())
    content[place : place + 16] = bytes(16)
    logs(tmp_path)[0].write_bytes(content)
    with ResponseStore(tmp_path) as store:
        found = store.get(answers)
    assert found.items() <= answers.items()
    assert len(found) >= 28


WRONG_FILES: dict[str, bytes] = {
    "newer": answer_logs._line({"harness-ext responses": answer_logs.FORMAT + 1}),
    "text": b"a table of answers\n" * 10,
    "bytes": b"\xff\xfe\n\x00",
}


@pytest.mark.parametrize("wrong", WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_is_no_log_is_refused_and_left_alone(wrong: bytes, tmp_path: Path) -> None:
    file = tmp_path / "responses-other.log"
    file.write_bytes(wrong)
    with pytest.raises(StoreError, match=r"responses-other\.log is no log") as raised:
        ResponseStore(tmp_path)
    assert "\n" not in str(raised.value)
    assert file.read_bytes() == wrong


def test_pipes_folders_and_empty_files_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "responses-pipe.log")
    (tmp_path / "responses-folder.log").mkdir()
    (tmp_path / "responses-begun.log").touch()
    with ResponseStore(tmp_path) as store:
        store.add(ANSWERS)
        assert store.get(ANSWERS) == ANSWERS
    with pytest.raises(StoreError, match="there is no response store"):
        ResponseStore(tmp_path / "nowhere", must_exist=True)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="no response store can be made in"):
        ResponseStore(tmp_path / "file" / "below")


def test_a_full_disk_costs_nothing_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = {str(number).encode(): Response(f"{number} " * 500) for number in range(20)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResponseStore(tmp_path) as store:
        store.add({b"first": Response("1")})
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
        try:
            store.add(long)
            store.add({b"later": Response("2")})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert store.unwritten == 21
        assert store.get([b"first", b"later", *long]) == {b"first": Response("1"), b"later": Response("2"), **long}
        with ResponseStore(tmp_path) as other:
            assert other.get([b"first", *long]).items() <= {b"first": Response("1"), **long}.items()
    assert len([record for record in caplog.records if "the evaluation goes on" in record.message]) == 1
    with ResponseStore(tmp_path) as store:
        assert store.get([b"first", *long]) == {b"first": Response("1"), **long}  # there was room when it was closed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_only_be_read(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        store.add(ANSWERS)
    tmp_path.chmod(0o555)
    try:
        with ResponseStore(tmp_path) as store:
            store.add({b"new": Response("an answer")})
            assert store.get([*ANSWERS, b"new"]) == {**ANSWERS, b"new": Response("an answer")}
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_that_was_and_will_be_on_a_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database from before is read, not written; logs are read where a database is written."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "is_local", lambda _: True)
        with ResponseStore(tmp_path) as store:
            store.add(ANSWERS)
            store.add_model(b"old", StoredModel({}, {}))
            store.add_shard(b"evaluation", Shard(1, 2))
    before = (tmp_path / FILE).read_bytes()
    with ResponseStore(tmp_path, must_exist=True) as store:
        assert store.get(ANSWERS) == ANSWERS
        store.forget([b"rolling"])
        store.add({b"rolling": Response(-2.0), b"new": Response("from the network")})
        store.add_shard(b"evaluation", Shard(2, 2))
        assert store.get([b"rolling"]) == {b"rolling": Response(-2.0)}
        assert len(store) == len(ANSWERS) + 1
    assert (tmp_path / FILE).read_bytes() == before
    monkeypatch.setattr(module, "is_local", lambda _: True)
    with ResponseStore(tmp_path) as store:
        assert store.get([b"new", b"text"]) == {b"new": Response("from the network"), b"text": ANSWERS[b"text"]}
        assert store.models().keys() == {b"old"}
        assert store.shards(b"evaluation") == {Shard(1, 2), Shard(2, 2)}
        store.add({b"local": Response("again")})
    copied = tmp_path / "copied"
    copied.mkdir()
    for log in logs(tmp_path):
        shutil.copy(log, copied)
    with ResponseStore(copied, must_exist=True) as store:
        assert store.get([b"new", b"local"]) == {b"new": Response("from the network")}


def test_other_folders_are_read(tmp_path: Path) -> None:
    for name in "ab":
        with ResponseStore(tmp_path / name) as store:
            store.add({name.encode(): Response(name), b"both": Response(name)})
    others = [tmp_path / "b"]
    with ResponseStore(tmp_path / "a", others=others) as store:
        found = store.get([b"a", b"b", b"both"])
        assert found == {b"a": Response("a"), b"b": Response("b"), b"both": Response("a")}
        store.add({b"new": Response("new")})
    assert [len(logs(tmp_path / name)) for name in "ab"] == [2, 1]
    with pytest.raises(StoreError, match=r"there is no response store .*; check --store"):
        ResponseStore(tmp_path / "a", others=[tmp_path / "c"])


# -- evaluations ---------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "tasks": ["sst2_choice", "squad_v2_generate"], "limit": 8, "batch_size": 2, "log_samples": True,
}  # fmt: skip


def _evaluate(base: Path, adapter: Path, store: Path, output: Path, together: Any) -> None:
    tqdm.set_lock(threading.RLock())
    together.wait()
    evaluate(str(base), adapters=[adapter], store=store, output_path=str(output), **SETTINGS)


def test_evaluations_share_answers(tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """Two at once, as on two nodes, and one afterwards that computes nothing."""
    adapter, context = make_adapter("twice"), multiprocessing.get_context("fork")
    evaluate(str(tiny_model_folder), adapters=[adapter], store=False, output_path=str(tmp_path / "alone"), **SETTINGS)
    together = context.Barrier(2, timeout=60)
    both = [
        context.Process(
            target=_evaluate, args=(tiny_model_folder, adapter, tmp_path / "store", tmp_path / name, together)
        )
        for name in ("one", "other")
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    again = evaluate(
        str(tiny_model_folder), adapters=[adapter], store=tmp_path / "store", output_path=str(tmp_path / "again"),
        **SETTINGS,
    )  # fmt: skip
    assert [done.results["harness_ext"]["answers_from_store"] for done in again] == [8 * 2 + 8] * 2
    for name in ("one", "other", "again"):
        assert content(tmp_path / name) == content(tmp_path / "alone")


# -- which file systems are shared -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "local"),
    [
        ("ext4", True), ("xfs", True), ("tmpfs", True), ("overlay", True), ("zfs", True), ("nfs", False),
        ("nfs4", False), ("cifs", False), ("lustre", False), ("gpfs", False), ("beegfs", False), ("ceph", False),
        ("fuse.sshfs", False), ("fuse.glusterfs", False), ("9p", False), ("virtiofs", False), ("of tomorrow", False),
    ],
)  # fmt: skip
def test_kinds_of_file_systems(kind: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, point = tmp_path / "mountinfo", tmp_path / "shared data"
    escaped = str(point.resolve()).replace(" ", "\\040")
    mounts.write_text(
        f"27 1 254:0 / / rw,relatime - {'nfs' if local else 'ext4'} /dev/vda rw\n"
        f"40 27 0:39 / {escaped} rw,relatime shared:7 master:1 - autofs systemd-1 rw\n"
        f"41 27 0:40 / {escaped} rw,relatime shared:7 master:1 - {kind.replace(' ', '_')} server:/x rw\n"
        "a line of another kind\n"
    )
    monkeypatch.setattr(file_system, "MOUNTS", mounts)
    assert is_local(point) == is_local(point / "not there" / "yet") == local
    assert is_local(tmp_path / "shared data 2") != local


def test_where_the_system_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "MOUNTS", tmp_path / "nothing")
    assert is_local(tmp_path)
