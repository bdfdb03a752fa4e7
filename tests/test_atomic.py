"""Files and folders are whole or not there: on full disks, with processes that die, and with what is no file."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import harness_ext
from harness_ext import atomic
from harness_ext.atomic import remove_abandoned, replacing_folder, write_chunks, write_text
from harness_ext.errors import WriteError

PACKAGE = Path(harness_ext.__file__).parent
FULL = "cannot be written (no space left on device); free some space, then try again"
MOUNTS = ["unshare", "-rm", "true"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["write", "fsync", "replace"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return a function that fills the disk, which is noticed at one of three steps."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        target = {"write": (atomic.hashlib, "sha256"), "fsync": (atomic.os, "fsync"), "replace": (Path, "replace")}
        monkeypatch.setattr(*target[request.param], fails)

    return fill


@pytest.mark.parametrize("existing", ["the last good table\n", None], ids=["replaced", "new"])
def test_a_full_disk_keeps_the_old_file(full_disk: Callable[[], None], existing: str | None, tmp_path: Path) -> None:
    file = tmp_path / "table.txt"
    if existing:
        file.write_text(existing)
    full_disk()
    with pytest.raises(WriteError) as raised:
        write_text(file, "x" * 5_000)
    assert str(raised.value) == f"{file} {FULL}"
    assert (file.read_text() if file.exists() else None) == existing
    assert names(tmp_path) == (["table.txt"] if existing else [])  # no part of a file is left


ON_A_REAL_FULL_DISK = """
import sys
from pathlib import Path
from harness_ext.atomic import replacing_folder, write_text
from harness_ext.errors import WriteError
folder = Path(sys.argv[1])
write_text(folder / "table.txt", "old")
for write in ("file", "folder"):
    try:
        if write == "file":
            write_text(folder / "table.txt", "x" * 2_000_000)
        else:
            with replacing_folder(folder / "adapter") as partial:
                (partial / "weights").write_bytes(b"x" * 2_000_000)
    except WriteError as error:
        print(error)
print((folder / "table.txt").read_text(), sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(MOUNTS, check=False, capture_output=True).returncode != 0,
    reason="mounts need Linux namespaces",
)
def test_a_real_full_disk(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, ON_A_REAL_FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/table.txt {FULL}",
        f"{tmp_path}/adapter {FULL}",
        "old ['table.txt']",
    ]


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from harness_ext.atomic import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(sys.argv[1], 'x' * 2000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert "(file too large); raise the limit on file sizes" in done.stderr
    assert names(tmp_path) == []


def test_what_is_read_back_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that loses bytes without an error."""
    monkeypatch.setattr(atomic.os, "fsync", lambda number: os.ftruncate(number, 3))
    with pytest.raises(WriteError, match="what was read back differs"):
        write_text(tmp_path / "a", "abcdef")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "choose a place that can be written to"),
        (errno.EACCES, "check the permissions"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EIO, "choose another place"),
    ],
)
def test_each_reason_has_its_remedy(number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", fails)
    with pytest.raises(WriteError) as raised:
        write_text(tmp_path / "a", "text")
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)


def test_content_that_cannot_be_made_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_text(file, "old")

    def content() -> Iterator[bytes]:
        yield b"new"
        raise KeyError("no")

    with pytest.raises(KeyError):
        write_chunks(file, content())
    with pytest.raises(WriteError, match="surrogates not allowed at character 1"):
        write_text(file, "a\ud800")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_links_are_followed_and_modes_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    write_text(file, "old")
    file.chmod(0o600)
    link.symlink_to("a")
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_no_file_is_written_to_directly(tmp_path: Path) -> None:
    """`--output >(command)` is a pipe; /dev/null must stay what it is."""
    write_text("/dev/null", "text")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(WriteError, match="is a directory"):
        write_text(tmp_path, "text")


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 127)
    write_text(file, "text")
    with replacing_folder(tmp_path / ("ö" * 127)) as partial:
        write_text(partial / "b", "text")
    assert len(names(tmp_path)) == 2


# -- processes that die --------------------------------------------------------------------------------------------

DIES = """
import os, signal, sys
from pathlib import Path
from harness_ext import atomic
from harness_ext.atomic import replacing_folder, write_text
folder, step = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if step == "file":
    atomic.os.fsync = die
    write_text(folder / "a", "new")
with replacing_folder(folder / "adapter") as partial:
    write_text(partial / "weights", "new")
    if step == "block":
        die()
    renames, rename = [], Path.rename

    def second_dies(path, target):
        renames.append(path)
        return die() if len(renames) == 2 else rename(path, target)

    Path.rename = second_dies
"""


@pytest.mark.parametrize("step", ["file", "block", "between the renames"])
def test_what_a_dead_process_left_is_removed(step: str, tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    (tmp_path / "adapter").mkdir()
    write_text(tmp_path / "adapter" / "weights", "old")
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), step], check=False)
    assert done.returncode == -9
    assert len(names(tmp_path)) > 2 or names(tmp_path) != ["a", "adapter"]
    write_text(tmp_path / "b", "next")
    assert names(tmp_path) == ["a", "adapter", "b"]
    assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "adapter" / "weights").read_text() == "old"


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept = [
        f".a.partial-{atomic._MACHINE}-{child.pid}",
        f".a.partial-another_machine-{2**22 - 1}",
        ".a.partial",
        "a.partial-x-1",
    ]
    for name in kept:
        (tmp_path / name).mkdir()
    remove_abandoned(tmp_path)
    child.communicate(b"\n")
    assert names(tmp_path) == sorted(kept)


# -- there is no other way -----------------------------------------------------------------------------------------

# Libraries that write by themselves get a folder that `replacing_folder` makes, or that is removed at the end.
WRITES_INTO_A_FOLDER = {
    "models/adapters": {"save_pretrained", "save_file", "copytree"},  # inside `replacing_folder`, of the trainer
    "models/fetch": {"save_pretrained"},  # into the folder of the conversion, which is renamed at the end
    "training/workspace": {"save_pretrained"},
    "training/evaluated_states": {"save_pretrained"},  # inside `replacing_folder`
    "training/evaluating": {"save"},  # of those states
    "render/plots": {"savefig"},  # into memory
    "new_task/folder": {"ParquetWriter"},
    "wordnet": {"copyfile"},
    "check/child": {"touch"},  # in a scratch folder, as a sign to the parent
    "engine/writing": {"save_results_aggregated", "save_results_samples"},  # for the Hub, into a scratch folder
}
WRITERS = {
    "write_text", "write_bytes", "save_pretrained", "save_file", "savefig", "to_parquet", "dump", "copyfile", "copy",
    "copy2", "copytree", "ParquetWriter", "write_table", "save_results_aggregated", "save_results_samples", "save",
    "tofile", "touch", "NamedTemporaryFile", "mkstemp",
}  # fmt: skip


def written_by(module: ast.Module) -> set[str]:
    """Names of the calls in a module that write a file, except those of `atomic`."""
    ours = {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module == "harness_ext.atomic"
        for alias in node.names
    }
    found = set()
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if is_method else getattr(node.func, "id", "")
        values = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        if name in WRITERS - {"copy"} and (is_method or name not in ours):
            found.add(name)
        elif name == "open" and any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes):
            found.add("open")
    return found


def test_everything_is_written_here() -> None:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        module = file.relative_to(PACKAGE).with_suffix("").as_posix()
        if module != "atomic" and (calls := written_by(ast.parse(file.read_text(encoding="utf-8")))):
            found[module] = calls
    assert found == WRITES_INTO_A_FOLDER


@pytest.mark.parametrize("code", ["p.write_text('x')", "open(p, 'w')", "p.open('ab')", "open(p, mode='r+')"])
def test_another_way_would_be_noticed(code: str) -> None:
    assert written_by(ast.parse(code))
