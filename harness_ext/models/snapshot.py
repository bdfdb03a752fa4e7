"""What an adapter's folder held when it was attached: whatever is reported of the adapter later comes from here.

A folder may be replaced or deleted while its adapter is evaluated, by the next training, for instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness_ext.errors import AdapterError, first_line
from harness_ext.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from harness_ext.models.card import CARD_FILE, AdapterCard, read_card
from harness_ext.models.sources import files_sha256

_Identity = tuple[int, ...] | None  # of a file: changes when it is replaced or written to


@dataclass(frozen=True)
class AdapterSnapshot:
    """Card, size and hashes of an adapter, read once."""

    card: AdapterCard | None
    weights_bytes: int
    sha256: Mapping[str, str]  # by the names of the files: weights and configuration
    _identities: Mapping[Path, _Identity] = field(repr=False)

    @classmethod
    def of(cls, place: Path) -> AdapterSnapshot:
        """Read a folder, or a file with an adapter, such as a GGUF; its card is the one of the folder that it is in.

        Raises:
            AdapterError: a file cannot be read.
        """
        folder, weights = (place, place / WEIGHTS_FILE) if place.is_dir() else (place.parent, place)
        names = (weights, folder / CONFIG_FILE, folder / CARD_FILE)
        identities = {file: _identity(file) for file in names}
        try:
            files = [file for file, identity in identities.items() if identity is not None and file.name != CARD_FILE]
            hashes = {file.name: files_sha256(file) for file in files}
            size = weights.stat().st_size if weights in files else 0
            return cls(read_card(folder), size, hashes, identities)
        except OSError as error:
            raise AdapterError(f"{place} cannot be read ({first_line(error)}); copy it again") from error

    def check(self) -> None:
        """Make sure that the folder still is what was read.

        Raises:
            AdapterError: a file has been replaced, written to or deleted.
        """
        changed = [file for file, identity in self._identities.items() if _identity(file) != identity]
        if changed:
            raise AdapterError(f"{changed[0]} changed while it was read; evaluate this adapter again")


@contextmanager
def snapshot(place: Path) -> Iterator[AdapterSnapshot]:
    """What a folder or a file holds, while the block reads it, too.

    Raises:
        AdapterError: it changed before the end of the block, which may have read something else.
    """
    taken = AdapterSnapshot.of(place)
    yield taken
    taken.check()


def _identity(file: Path) -> _Identity:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
