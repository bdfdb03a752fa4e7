"""What is evaluated: a base and its adapters, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness_ext.errors import AdapterError
from harness_ext.models.adapters import adapter_folder, check_adapter, expand_adapters, is_adapter


@dataclass(frozen=True)
class Variant:
    """One thing to evaluate: the base, or the base with an adapter."""

    name: str
    adapter: str | None = None  # as it was named: a folder or a Hub id
    folder: Path | None = None  # where it lies on this machine; for an engine that reads GGUF, that file


def base_and_adapters(
    adapters: Sequence[str | Path], *, only: str | None = None, revision: str | None = None
) -> list[Variant]:
    """Name what is to be evaluated: the base first, then each adapter by the name of its folder.

    Args:
        adapters: folders, glob patterns or Hub ids.
        only: an adapter that is evaluated without its base beforehand.
        revision: of Hub ids that name none, as lm-eval passes that of the base on to peft.

    Raises:
        AdapterError: one of them is missing or named twice, or the only one is damaged; among several, a damaged one
            fails in its turn.
    """
    named = [*([only] if only else []), *expand_adapters(adapters)]
    folders = [adapter_folder(name, revision=revision) for name in named]
    for folder in folders:
        if len(named) == 1 or not is_adapter(folder):
            check_adapter(folder)
    short = [_short_name(name, folder) for name, folder in zip(named, folders, strict=True)]
    return [*([] if only else [Variant("base")]), *named_variants(named, folders, short)]


def named_variants(named: Sequence[str], places: Sequence[Path], short: Sequence[str]) -> list[Variant]:
    """Adapters under their short names, where these are unique.

    Args:
        named: as the user named them.
        places: where they lie.
        short: their names, if nothing else has them.

    Raises:
        AdapterError: one is named twice.
    """
    resolved = [place.resolve() for place in places]
    for name, place in zip(named, resolved, strict=True):
        if resolved.count(place) > 1:
            raise AdapterError(f"{name} is named twice; name each adapter once")
    counts = Counter(short)
    return [
        Variant(label if counts[label] == 1 and label != "base" else str(Path(name)), name, place)
        for name, label, place in zip(named, short, places, strict=True)
    ]


def _short_name(name: str, folder: Path) -> str:
    """The folder's name, or for a Hub id, whose folder is named by its commit, the name of the repository."""
    is_local = Path(name).expanduser().is_dir()
    return folder.resolve().name if is_local else name.split("@")[0].rsplit("/", 1)[-1]
