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
    folder: Path | None = None  # where it lies on this machine


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
    seen: set[Path] = set()
    for name, folder in zip(named, folders, strict=True):
        if (resolved := folder.resolve()) in seen:
            raise AdapterError(f"{name} is named twice; name each adapter once")
        seen.add(resolved)
        if len(named) == 1 or not is_adapter(folder):
            check_adapter(folder)
    short = [_short_name(name, folder) for name, folder in zip(named, folders, strict=True)]
    counts = Counter(short)
    variants = [] if only else [Variant("base")]
    for name, label, folder in zip(named, short, folders, strict=True):
        unique = counts[label] == 1 and label != "base"
        variants.append(Variant(label if unique else str(Path(name)), name, folder))
    return variants


def _short_name(name: str, folder: Path) -> str:
    """The folder's name, or for a Hub id, whose folder is named by its commit, the name of the repository."""
    is_local = Path(name).expanduser().is_dir()
    return folder.resolve().name if is_local else name.split("@")[0].rsplit("/", 1)[-1]
