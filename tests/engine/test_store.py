"""The response store: what is in it comes out again, whatever happens to its file."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from harness_ext.engine import store as module
from harness_ext.engine.store import FILE, Response, ResponseStore, StoredModel
from harness_ext.errors import StoreError

ANSWERS = {
    b"score": Response((-1.0000000000000002, True), None, 7),
    b"impossible": Response((-math.inf, False)),
    b"text": Response("a\ud83d ünï\x00\n", ("stop", 5, 2)),
    b"rolling": Response(-1e-300),
}


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "a" / "new folder") as store:
        store.add(ANSWERS)
        assert store.get([*ANSWERS, b"unknown"]) == ANSWERS
        store.add_model(b"digest", StoredModel({"base": "abc"}, {"model_dtype": "float32"}))
    with ResponseStore(tmp_path / "a" / "new folder") as store:
        assert store.get([b"text", b"text", b"score"]) == {key: ANSWERS[key] for key in (b"text", b"score")}
        store.add({b"score": Response((-2.0, False))})
        store.forget([b"text", b"unknown"])
        assert store.get(ANSWERS).keys() == ANSWERS.keys() - {b"text"}
        assert store.get([b"score"])[b"score"].answer == (-2.0, False)
        assert store.models() == {b"digest": StoredModel({"base": "abc"}, {"model_dtype": "float32"})}
    assert [file.name for file in (tmp_path / "a" / "new folder").iterdir()] == [FILE]  # no log is left over


def test_more_keys_than_a_query_takes() -> None:
    many = {str(number).encode(): Response(float(number)) for number in range(3 * module.AT_ONCE + 1)}
    with ResponseStore(None) as store:
        store.add(many)
        assert store.get(many) == many


def newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA application_id = {module.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {module.FORMAT + 1}")


def foreign(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE unnamed (key TEXT, value BLOB)")


def cut(file: Path) -> None:
    with ResponseStore(file.parent) as store:
        store.add({str(number).encode() * 40: Response("long " * 500) for number in range(40)})
    file.write_bytes(file.read_bytes()[:5000])


WRONG_FILES = {
    "newer": (newer, "update harness-ext"),
    "of another program": (foreign, "of another program"),
    "text": (lambda file: file.write_text("a table of answers\n" * 100), "no response store"),
    "cut short": (cut, "damaged"),
    "a folder": (lambda file: file.mkdir(), "is no file"),
    "a pipe": (os.mkfifo, "is no file"),
}


@pytest.mark.parametrize(("make", "says"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_is_no_store_is_refused_and_left_alone(make: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / FILE
    make(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(StoreError, match=says) as raised:
        ResponseStore(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)
    assert before is None or file.read_bytes() == before


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="no response store can be made in"):
        ResponseStore(tmp_path / "file")
    with pytest.raises(StoreError, match="there is no response store"):
        ResponseStore(tmp_path / "nowhere", must_exist=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_flipped_bit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ResponseStore(tmp_path) as store:
        store.add({b"right": Response("the right answer"), b"flipped": Response("the first answer")})
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content.replace(b"the first answer", b"the worst answer"))
    with ResponseStore(tmp_path) as store:
        assert store.get([b"right", b"flipped"]) == {b"right": Response("the right answer")}
    assert "1 answers are damaged" in caplog.text


@pytest.mark.parametrize("place", range(100, 16_000, 1_300))
def test_damage_anywhere_gives_no_wrong_answer(place: int, tmp_path: Path) -> None:
    answers = {str(number).encode() * 8: Response(f"answer {number} " * 20) for number in range(60)}
    with ResponseStore(tmp_path) as store:
        store.add(answers)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[place : place + 64] = bytes(64)
    (tmp_path / FILE).write_bytes(content)
    try:
        with ResponseStore(tmp_path) as store:
            found = store.get(answers)
            store.add({b"new": Response("an answer")})
            assert store.get([b"new"]) == {b"new": Response("an answer")}
    except StoreError:
        return
    assert found.items() <= answers.items()


def test_a_full_disk_costs_nothing_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = {str(number).encode(): Response(f"{number} " * 5000) for number in range(20)}
    with ResponseStore(tmp_path) as store:
        store.add({b"first": Response("1")})
        store._connection.execute("PRAGMA max_page_count = 6")
        store.add(long)
        store.add({b"later": Response("2")})
        assert store.get([b"first", b"later", *long]) == {b"first": Response("1"), b"later": Response("2"), **long}
        assert len([record for record in caplog.records if "is full" in record.message]) == 1
        store._connection.execute("PRAGMA max_page_count = 1000")
    with ResponseStore(tmp_path) as store:
        assert store.get(long) == long  # there was room again when it was closed


def test_a_disk_that_stays_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ResponseStore(tmp_path) as store:
        store._connection.execute("PRAGMA max_page_count = 6")
        store.add({b"long": Response("x" * 100_000)})
    assert "1 answers of this run are not stored" in caplog.text
    with ResponseStore(tmp_path) as store:
        assert not len(store)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_only_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ResponseStore(tmp_path) as store:
        store.add(ANSWERS)
    for path, mode in ((tmp_path / FILE, 0o444), (tmp_path, 0o555)):
        path.chmod(mode)
    try:
        with ResponseStore(tmp_path) as store:
            assert store.get(ANSWERS) == ANSWERS
            store.add({b"new": Response("an answer")})
            assert store.get([b"new"]) == {b"new": Response("an answer")}
        with pytest.raises(StoreError, match="no response store can be made"):
            ResponseStore(tmp_path / "below")
    finally:
        tmp_path.chmod(0o755)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def _write(folder: Path, writer: int) -> None:
    for number in range(30):
        with ResponseStore(folder) as store:
            store.add({f"{writer} {number}".encode(): Response(f"answer {number}"), b"shared": Response("same")})


def _make(folder: Path, number: int, together: Any) -> None:
    for place in range(100):
        together.wait()
        with ResponseStore(folder / str(place)) as store:
            store.add({str(number).encode(): Response("an answer")})


def test_several_processes_make_a_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3, timeout=60)
    makers = [context.Process(target=_make, args=(tmp_path, number, together)) for number in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0] * 3
    with ResponseStore(tmp_path / "99") as store:
        assert len(store) == 3


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path / "shared", number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    with ResponseStore(tmp_path / "shared") as store:
        assert len(store) == 4 * 30 + 1
