"""`card.json` of an adapter: where it comes from."""

from __future__ import annotations

import math
import os
import re
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
    tournament: Mapping[str, Any] | None = None  # the rungs and the entries, if it won one
    parity: Mapping[str, Any] | None = None  # by how it is served: what `harness-ext parity` found on each task


def read_card(adapter: str | Path) -> AdapterCard | None:
    """The card of an adapter folder; None for an adapter that another tool made."""
    path = Path(adapter).expanduser() / CARD_FILE
    if not os.path.lexists(path):
        return None
    try:
        values = read_json_object(path)
        present = [field.name for field in fields(AdapterCard) if field.name in values or field.default is MISSING]
        card = AdapterCard(**{name: _checked(name, values[name]) for name in present})
        if card.selection is not None:
            _check_selection(card.selection)
        if card.tournament is not None:
            _check_tournament(card.tournament)
        return card
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


_NUMBERS = {"score": float, "low": float, "high": float}
_SELECTION: dict[str, type] = {
    "metric": str, "is_share": bool, "higher_is_better": bool, "documents": int, "units": int, "data_sha256": str,
    "curve": list, "chosen_step": int, "best_step": int, "last_step": int, "planned_steps": int, "chosen_again": dict,
    "seconds": float,
}  # fmt: skip
_METRIC = re.compile(r"[\w .,:@/+()-]{1,100}")  # as it stands in a Markdown table


def _check_selection(selection: Any) -> None:
    """Raise TypeError if the record of evaluated checkpoints has another form than `training.evaluating` writes."""
    _check_fields("selection", selection, _SELECTION)
    if not _METRIC.fullmatch(selection["metric"]) or not selection["curve"]:
        raise TypeError("selection is without a metric or a curve")
    for point in selection["curve"]:
        _check_fields("selection", point, {"step": int, **_NUMBERS})
    _check_fields("selection", selection["chosen_again"], {"documents": int, **_NUMBERS})


_TOURNAMENT: dict[str, type] = {
    "design_sha256": str, "metric": str, "is_share": bool, "higher_is_better": bool, "documents": int, "units": int,
    "data_sha256": str, "rungs": list, "entries": list, "winner": int, "winner_again": dict, "trained_share": float,
    "training_seconds": float, "full_training_seconds": float, "scoring_seconds": float,
}  # fmt: skip
_ENTRY: dict[str, type] = {"name": str, "rung": int, "step": int, "planned_steps": int, "standing": str, **_NUMBERS}
_DIFFERENCE = {"difference": float, "difference_low": float, "difference_high": float, "p_value": float}
STANDINGS = ("winner", "worse", "not distinguishable", "better")


def _check_tournament(tournament: Mapping[str, Any]) -> None:
    """Raise TypeError if the record of a tournament has another form than `tuning.summary` writes."""
    _check_fields("tournament", tournament, _TOURNAMENT)
    if not _METRIC.fullmatch(tournament["metric"]) or not tournament["rungs"]:
        raise TypeError("tournament is without a metric or a rung")
    for rung in tournament["rungs"]:
        _check_fields("tournament", rung, {"share": float, "entries": int})
    for entry in tournament["entries"]:
        _check_fields("tournament", entry, _ENTRY)
        if entry["standing"] not in STANDINGS:
            raise TypeError(f"tournament: standing is {entry['standing']!r:.40}")
        if entry["standing"] != "winner":
            _check_fields("tournament", entry, _DIFFERENCE)
    if not 1 <= tournament["winner"] <= len(tournament["entries"]):
        raise TypeError(f"tournament: winner is {tournament['winner']}")
    _check_fields("tournament", tournament["winner_again"], {"documents": int, "units": int, **_NUMBERS})


def _check_fields(part: str, values: Any, wanted: Mapping[str, type]) -> None:
    for name, kind in wanted.items():
        value = values.get(name) if isinstance(values, Mapping) else None
        allowed = (int, float) if kind is float else (kind,)
        is_kind = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
        if not is_kind or (isinstance(value, float) and not math.isfinite(value)):
            raise TypeError(f"{part}: {name} is {value!r:.40}")


def checkpoint_selection(card: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The record of evaluated checkpoints of a card that a results file holds; None if it has none that can be read."""
    selection = card.get("selection")
    try:
        _check_selection(selection)
    except TypeError:
        return None
    return selection


def hub_name(base: str) -> str:
    """The Hub id of a base: that of the upstream model for a packaged one."""
    return FETCHABLE[base].upstream_id if base in FETCHABLE else base
