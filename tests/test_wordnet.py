"""WordNet from nltk's server, or from Debian's packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness_ext import wordnet
from harness_ext.errors import FetchError


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A folder with the files that Debian ships; empty ones."""
    folder = tmp_path / "debian"
    folder.mkdir()
    for name in wordnet.FILES:
        (folder / name).write_text("")
    return folder


def test_lexnames_is_the_file_of_wordnet_3_0() -> None:
    lines = wordnet.lexnames().splitlines()
    assert len(lines) == 45
    for number, line in enumerate(lines):  # as nltk reads it
        index, name, part = line.split()
        assert int(index) == number
        assert wordnet.PARTS_OF_SPEECH[name.split(".")[0]] == int(part)
    assert (lines[4], lines[29], lines[44]) == ("04\tnoun.act\t1", "29\tverb.body\t2", "44\tadj.ppl\t3")


def test_copy_adds_what_debian_leaves_out(debian: Path, tmp_path: Path) -> None:
    wordnet.copy_database(debian, tmp_path / "corpora" / "wordnet")
    assert {file.name for file in (tmp_path / "corpora" / "wordnet").iterdir()} == {*wordnet.FILES, "lexnames"}
    assert [file.name for file in (tmp_path / "corpora").iterdir()] == ["wordnet"]


def test_copy_is_all_or_nothing(debian: Path, tmp_path: Path) -> None:
    (debian / "index.sense").unlink()
    with pytest.raises(FetchError, match=r"lacks index.sense; install wordnet-base and wordnet-sense-index"):
        wordnet.copy_database(debian, tmp_path / "corpora" / "wordnet")
    assert not (tmp_path / "corpora").exists()


def test_nltk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "_from_nltk", lambda target: True)
    monkeypatch.setattr(wordnet, "_from_debian", lambda scratch: pytest.fail("not needed"))
    assert wordnet.install(tmp_path) == tmp_path


def test_debian_where_nltk_is_out_of_reach(debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "_from_nltk", lambda target: False)
    monkeypatch.setattr(wordnet, "_from_debian", lambda scratch: debian)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "named"))
    assert wordnet.install() == tmp_path / "named"
    monkeypatch.setattr(wordnet, "_from_nltk", lambda target: pytest.fail("it is there"))
    wordnet.install()


def test_neither_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(wordnet, "_from_nltk", lambda target: False)
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", Path("nowhere"))
    monkeypatch.setattr(wordnet.shutil, "which", lambda name: None)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert wordnet.main() == 2
    assert "corpora/wordnet.zip" in caplog.text


def test_apt_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package wordnet-base\n")
    monkeypatch.setattr(wordnet.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(FetchError, match="Unable to locate package wordnet-base; check the network"):
        wordnet._run(["apt-get", "download"], tmp_path)
