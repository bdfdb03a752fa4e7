"""`card.json` of an adapter: where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness_ext.errors import AdapterError, first_line
from harness_ext.models.sources import FETCHABLE

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


def read_card(adapter: str | Path) -> AdapterCard | None:
    """The card of an adapter folder; None for an adapter that another tool made."""
    path = Path(adapter).expanduser() / CARD_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return AdapterCard(**{field.name: values[field.name] for field in fields(AdapterCard)})
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path} is damaged ({first_line(error)}); train the adapter again or delete the card"
        ) from error


def hub_name(base: str) -> str:
    """The Hub id of a base: that of the upstream model for a packaged one."""
    return FETCHABLE[base].upstream_id if base in FETCHABLE else base
