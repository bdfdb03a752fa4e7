"""Install WordNet for METEOR: `make wordnet`, or `python -m harness_ext.wordnet`.

nltk's own download is tried first. If its server cannot be reached, the same database is taken from the Debian packages
`wordnet-base` and `wordnet-sense-index`, installed or fetched with `apt-get download` (which needs no root). The
packages lack one small file that nltk needs, `lexnames`, which is written here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness_ext.atomic import write_text
from harness_ext.errors import FetchError

logger = logging.getLogger(__name__)

DEBIAN_PACKAGES = ("wordnet-base", "wordnet-sense-index")
DEBIAN_FOLDER = Path("usr/share/wordnet")
FETCH_SECONDS = 300
# The files that nltk reads, besides `lexnames`.
FILES = ("cntlist.rev", "index.sense") + tuple(  # noqa: RUF005
    name for part in ("adj", "adv", "noun", "verb") for name in (f"index.{part}", f"data.{part}", f"{part}.exc")
)
# The lexicographer files in the order of their numbers: lexnames(5WN) of WordNet 3.0.
LEXICOGRAPHER_FILES = (  # noqa: SIM905
    "adj.all adj.pert adv.all "
    "noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition noun.communication "
    "noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person noun.phenomenon "
    "noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state noun.substance "
    "noun.time "
    "verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact "
    "verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather "
    "adj.ppl"
).split()
PARTS_OF_SPEECH = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}


def install(target: Path | None = None) -> Path:
    """Install WordNet where nltk looks for it, unless it is there already.

    Args:
        target: an nltk data folder; by default the first in `NLTK_DATA`, else the one of this Python environment.

    Returns:
        The nltk data folder.

    Raises:
        FetchError: neither way works.
    """
    target = target or default_folder()
    if (target / "corpora" / "wordnet" / "lexnames").is_file() or (target / "corpora" / "wordnet.zip").is_file():
        return target
    with _not_writable_by_others():
        if _from_nltk(target):
            return target
    logger.info("nltk's server cannot be reached; trying the Debian packages %s", " and ".join(DEBIAN_PACKAGES))
    with tempfile.TemporaryDirectory() as scratch, _not_writable_by_others():
        copy_database(_from_debian(Path(scratch)), target / "corpora" / "wordnet")
    return target


@contextlib.contextmanager
def _not_writable_by_others() -> Iterator[None]:
    """Create files that only their owner can write; nltk refuses others."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def default_folder() -> Path:
    """The nltk data folder of this environment."""
    first = os.environ.get("NLTK_DATA", "").split(os.pathsep)[0]
    return Path(first) if first else Path(sys.prefix) / "nltk_data"


def copy_database(source: Path, folder: Path) -> None:
    """Copy WordNet's files and add `lexnames`, which Debian lacks; the folder is written completely or not at all.

    Raises:
        FetchError: a file is missing.
    """
    if missing := [name for name in FILES if not (source / name).is_file()]:
        raise FetchError(f"{source} lacks {', '.join(missing)}; install {' and '.join(DEBIAN_PACKAGES)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        staged = Path(scratch) / "wordnet"
        staged.mkdir()
        for name in FILES:
            shutil.copyfile(source / name, staged / name)
        write_text(staged / "lexnames", lexnames())
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)


def lexnames() -> str:
    """The file `lexnames`: number, name and part of speech of each lexicographer file, tab-separated.

    >>> lexnames().splitlines()[3]
    '03\\tnoun.Tops\\t1'
    """
    rows = [
        f"{number:02}\t{name}\t{PARTS_OF_SPEECH[name.split('.')[0]]}" for number, name in enumerate(LEXICOGRAPHER_FILES)
    ]
    return "\n".join(rows) + "\n"


def _from_nltk(target: Path) -> bool:
    import nltk

    target.mkdir(parents=True, exist_ok=True)
    return bool(nltk.download("wordnet", download_dir=str(target), quiet=True, print_error_to=io.StringIO()))


def _from_debian(scratch: Path) -> Path:
    """The folder of WordNet's files: as installed, or unpacked in `scratch`."""
    installed = "/" / DEBIAN_FOLDER
    if all((installed / name).is_file() for name in FILES):
        return installed
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FetchError(
            "WordNet cannot be fetched: nltk's server cannot be reached, and this system lacks apt-get; unpack "
            "corpora/wordnet.zip of nltk_data into a folder, and set NLTK_DATA to it"
        )
    _run(["apt-get", "download", *DEBIAN_PACKAGES], scratch)
    for package in sorted(scratch.glob("*.deb")):
        _run(["dpkg-deb", "-x", package.name, "."], scratch)
    return scratch / DEBIAN_FOLDER


def _run(command: list[str], folder: Path) -> None:
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{' '.join(command)} took over {FETCH_SECONDS} s; check the network") from error
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(f"WordNet cannot be fetched: {' '.join(command)}: {reason}; check the network")


def main() -> int:
    """Install WordNet and print its folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logger.info("WordNet is in %s", install())
    except FetchError as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
