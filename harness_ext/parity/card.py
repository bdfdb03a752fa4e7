"""Keep what was found in the adapter's `card.json`."""

from __future__ import annotations

import json
from pathlib import Path

from harness_ext.atomic import write_text
from harness_ext.errors import AdapterError
from harness_ext.models.card import CARD_FILE, read_card
from harness_ext.parity.outcome import Parity
from harness_ext.parity.served import Target
from harness_ext.reading.json_input import read_json_object


def check_card(adapter: str | Path) -> Path:
    """The card to write to.

    Raises:
        AdapterError: the adapter is no folder of this machine, or has no card that can be read.
    """
    card = Path(adapter).expanduser() / CARD_FILE
    if read_card(adapter) is None:
        raise AdapterError(f"{adapter} has no {CARD_FILE} to write to; leave out --write-card")
    return card


def write_card(adapter: str | Path, target: Target, parity: Parity) -> Path:
    """Put a result into the card, in place of an earlier one for the same kind of serving; all else stays.

    Raises:
        AdapterError: see `check_card`.
        WriteError: the card cannot be written; it is as it was.
    """
    card = check_card(adapter)
    values = read_json_object(card)
    kept = values.get("parity") or {}
    values["parity"] = {**kept, target.kind: {"dtype": target.dtype, "tasks": parity.record()}}
    write_text(card, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return card
