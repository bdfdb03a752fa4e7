"""`card.json` of an adapter: where it comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from harness_ext.errors import AdapterError, InputError, first_line
from harness_ext.models.sources import FETCHABLE
from harness_ext.names import clean_name
from harness_ext.reading.json_input import read_json_object

CARD_FILE = "card.json"


@dataclass(frozen=True)
class AdapterCard:
    """Where an adapter comes from. No field names a place on the machine it was trained on."""

    base: str  # Hub id, name of a packaged model, or the folder name of a local one
    base_revision: str | None
    base_sha256: str | None  # over the base's safetensors files
    task: str
    fingerprint: str  # of the protocol it was trained under
    fingerprint_fields: Mapping[str, str]
    recipe: Mapping[str, Any]
    data_sha256: str  # over the token ids of the training examples
    sample_data: bool  # trained on the bundled sample
    examples: int
    tokens: int  # label tokens seen in training, repeated epochs counted
    trainable_parameters: int
    seed: int
    seconds: float
    train_loss: float
    validation_loss: float | None
    versions: Mapping[str, str]
    selection: Mapping[str, Any] | None = None  # the curve and the choice, if checkpoints were scored in training


def read_card(adapter: str | Path) -> AdapterCard | None:
    """The card of an adapter folder; None for an adapter that another tool made."""
    path = Path(adapter).expanduser() / CARD_FILE
    if not os.path.lexists(path):
        return None
    try:
        values = read_json_object(path)
        present = [field.name for field in fields(AdapterCard) if field.name in values or field.default is MISSING]
        return AdapterCard(**{name: _checked(name, values[name]) for name in present})
    except (InputError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path} is damaged ({first_line(error)}); train the adapter again or delete the card"
        ) from error


def _checked(name: str, value: Any) -> Any:
    """A field of the type that it is declared with; names are made visible.

    Raises:
        TypeError: it is of another type.
    """
    hint = get_type_hints(AdapterCard)[name]
    kinds = tuple(get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))
    if float in kinds and type(value) is int:
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{name} is {value!r:.40}")
    return clean_name(value) if name in ("base", "base_revision", "task") and value is not None else value


def hub_name(base: str) -> str:
    """The Hub id of a base: that of the upstream model for a packaged one."""
    return FETCHABLE[base].upstream_id if base in FETCHABLE else base
