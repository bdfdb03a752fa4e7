"""D20, D25, D30: an adapter's weights, without evaluating it.

```
adapter folder ──> B·A of each layer: norm, scale ──> with the base: relative to its weights, keys, checksum
```
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from harness_ext.doctor.diagnosis import Examination
from harness_ext.errors import AdapterError, HarnessExtError, described
from harness_ext.findings import Finding
from harness_ext.models.adapters import WEIGHTS_FILE, adapter_folder, check_adapter, find_base
from harness_ext.models.attach import attach
from harness_ext.models.card import AdapterCard, read_card
from harness_ext.models.sources import resolve_model, weights_sha256
from harness_ext.trees.support import kind_of

_MATRIX = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_PREFIX = "base_model.model."
LARGE = 1.0  # of an update relative to its weight; usual updates are between 0.01 and 0.3
NAMED = 3  # layers listed in a sentence


@dataclass(frozen=True)
class Update:
    """What a LoRA adds to one layer: scale · B · A."""

    layer: str
    rank: int
    scale: float
    norm: float  # Frobenius norm of scale · B · A
    relative: float | None = None  # norm over that of the layer's weight; None without the base


def examine_adapter(adapter: str | Path, *, base: str | None = None) -> Examination:
    """Norms of the updates, scale, missing or unexpected weights, and whether the base is the one of the card.

    Args:
        adapter: folder or Hub id.
        base: its base; None: as the adapter says.

    Raises:
        AdapterError: no adapter, or one that is damaged.
        ModelError: `base` is given and is no model.
    """
    folder = adapter_folder(adapter)
    config, card = check_adapter(folder), read_card(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    updates, unpaired = read_updates(weights, config)
    notes: list[str] = []
    place = _base(folder, base, notes)
    findings = [
        *_incomplete(folder, weights, unpaired),
        *_without_effect(folder, weights, updates, unpaired),
        *_other_scale(folder, updates, card),
        *_other_base(folder, card, place),
    ]
    model = None if place is None else _load(place, notes)
    if model is not None and place is not None:
        updates = relative_to(model, updates)
        findings += _large(folder, updates)
        if not any(finding.id == "D20" for finding in findings):
            findings += _misfit(folder, model, place)
    if not updates:
        notes.append(f"no norms: {kind_of(config)} adapters have no matrices A and B")
    return Examination(
        subject=f"adapter {adapter}",
        facts=_facts(config, card, weights, updates),
        findings=sorted(findings, key=lambda finding: finding.level != "error"),
        notes=notes,
        details={"updates": [asdict(update) for update in updates]},
    )


def read_updates(weights: Mapping[str, Tensor], config: PeftConfig) -> tuple[list[Update], list[str]]:
    """The updates of a LoRA, in the order of the layers' names, and the matrices that lack their partner.

    The norm of B·A comes from the small products BᵀB and AAᵀ, both (r, r), so that no (out, in) matrix is made.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _MATRIX.fullmatch(name):
            pairs.setdefault(match["layer"], {})[match["side"]] = tensor.detach().to(torch.float64)
    updates, unpaired = [], []
    for layer, sides in sorted(pairs.items(), key=lambda pair: _natural(pair[0])):
        a, b = sides.get("A"), sides.get("B")
        if a is None or b is None or len(a) != b.flatten(1).shape[1]:
            unpaired.append(layer.removeprefix(_PREFIX))
            continue
        a, b = a.flatten(1), b.flatten(1)  # (r, in), (out, r)
        scale = _scale(config, layer, rank=len(a))
        squared = float(((b.T @ b) * (a @ a.T)).sum())
        norm = scale * math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else math.nan
        updates.append(Update(layer.removeprefix(_PREFIX), len(a), scale, norm))
    return updates, unpaired


def relative_to(model: Any, updates: Sequence[Update]) -> list[Update]:
    """The updates with their norms relative to the weights of a base."""
    parameters = dict(model.named_parameters())
    known = []
    for update in updates:
        weight = parameters.get(f"{update.layer}.weight")
        size = 0.0 if weight is None else float(torch.linalg.vector_norm(weight.detach().float()))
        known.append(replace(update, relative=update.norm / size) if size else update)
    return known


def _scale(config: PeftConfig, layer: str, *, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, as peft chooses alpha for a layer."""
    pattern = getattr(config, "alpha_pattern", None) or {}
    alpha = pattern.get(get_pattern_key(pattern.keys(), layer), getattr(config, "lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if getattr(config, "use_rslora", False) else rank)


def _natural(name: str) -> list[int | str]:
    """Layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _base(folder: Path, named: str | None, notes: list[str]) -> str | None:
    """Where the base is; None, with a note, when it is not at hand."""
    if named is not None:
        return resolve_model(named)
    try:
        return resolve_model(find_base(folder))
    except HarnessExtError as error:
        notes.append(f"examined without its base ({error}); name the base with --model for norms relative to it")
        return None


def _load(base: str, notes: list[str]) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    except Exception as error:  # no network, no memory, or whatever a model's own code raises
        notes.append(f"examined without its base: {base} cannot be loaded ({described(error):.160})")
        return None


# -- findings ------------------------------------------------------------------------------------------------------


def _incomplete(folder: Path, weights: Mapping[str, Tensor], unpaired: Sequence[str]) -> list[Finding]:
    where = str(folder)
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor.float()).all())]
    findings = []
    if unpaired:
        text = f"{where}: {len(unpaired)} layers have only one of the two matrices A and B, or of other ranks"
        numbers = {"layers": unpaired}
        findings.append(Finding("D20", "error", where, f"{text} ({_listed(unpaired)})", numbers, "train it again"))
    if broken:
        text = f"{where}: {len(broken)} of {len(weights)} weights are not finite ({_listed(broken)})"
        remedy = "train again with a lower --learning-rate"
        findings.append(Finding("D20", "error", where, text, {"layers": broken}, remedy))
    return findings


def _without_effect(
    folder: Path, weights: Mapping[str, Tensor], updates: Sequence[Update], unpaired: Sequence[str]
) -> list[Finding]:
    where = str(folder)
    zero = [update.layer for update in updates if update.norm == 0]
    others = [name for name in weights if not _MATRIX.fullmatch(name) and "magnitude" not in name]
    numbers = {"zero": zero, "layers": len(updates)}
    if not zero:
        return []
    if len(zero) == len(updates) and not others and not unpaired:
        text = f"{where}: changes nothing: B·A is zero in all {len(updates)} layers"
        remedy = "train it again; it was probably saved before its first step"
        return [Finding("D20", "error", where, text, numbers, remedy)]
    text = f"{where}: B·A is zero in {len(zero)} of {len(updates)} layers ({_listed(zero)})"
    return [Finding("D20", "warning", where, text, numbers, "check that these layers were trained")]


def _other_scale(folder: Path, updates: Sequence[Update], card: AdapterCard | None) -> list[Finding]:
    """The scale of the configuration against that of the recipe in the card."""
    recipe = {} if card is None else card.recipe
    if not updates or not {"lora_rank", "lora_alpha"} <= recipe.keys():
        return []
    rank, alpha = recipe["lora_rank"], recipe["lora_alpha"]
    if not all(isinstance(number, (int, float)) and number > 0 for number in (rank, alpha)):
        return []
    trained = alpha / (math.sqrt(rank) if recipe.get("use_rslora") else rank)
    found = statistics.median(update.scale for update in updates)
    if math.isclose(trained, found, rel_tol=1e-3):
        return []
    text = f"{folder}: updates are scaled by {found:g}, but the adapter was trained with {trained:g} (alpha {alpha:g})"
    numbers = {"scale": found, "trained": trained}
    remedy = f"set lora_alpha, r and use_rslora in {folder}/adapter_config.json as in card.json"
    return [Finding("D25", "error", str(folder), text, numbers, remedy)]


def _large(folder: Path, updates: Sequence[Update]) -> list[Finding]:
    relative = [update.relative for update in updates if update.relative is not None]
    if not relative or not (median := statistics.median(relative)) > LARGE:
        return []
    scale = statistics.median(update.scale for update in updates)
    text = f"{folder}: the updates are {median:.1f} times as large as the weights they change, at scale {scale:g}"
    remedy = "check lora_alpha, r and use_rslora in adapter_config.json, or train with a lower --learning-rate"
    return [Finding("D25", "warning", str(folder), text, {"relative": median, "scale": scale}, remedy)]


def _other_base(folder: Path, card: AdapterCard | None, place: str | None) -> list[Finding]:
    if card is None or card.base_sha256 is None or place is None:
        return []
    found = weights_sha256(place, revision=card.base_revision)
    if found is None or found == card.base_sha256:
        return []
    text = (
        f"{folder}: was trained on other weights of {card.base} (sha256 {card.base_sha256[:12]}…) than those of "
        f"{place} ({found[:12]}…)"
    )
    numbers = {"trained": card.base_sha256, "found": found}
    return [Finding("D34", "error", str(folder), text, numbers, f"name the weights of {card.base} with --model")]


def _misfit(folder: Path, model: Any, place: str) -> list[Finding]:
    """Missing and unexpected weights, as evaluation finds them."""
    try:
        attach(model, folder, base=place)
    except AdapterError as error:
        return [Finding("D20", "error", str(folder), str(error), {"base": place}, "name its own base with --model")]
    return []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# -- facts ---------------------------------------------------------------------------------------------------------


def _facts(
    config: PeftConfig, card: AdapterCard | None, weights: Mapping[str, Tensor], updates: Sequence[Update]
) -> dict[str, str]:
    facts = {"kind": kind_of(config)}
    if card is not None:
        facts["trained"] = f"on {card.task} and {card.base}, {card.examples:,} examples"
    facts["weights"] = f"{sum(tensor.numel() for tensor in weights.values()):,} in {len(weights)} tensors"
    if not updates:
        return facts
    formula = "alpha / sqrt(r)" if getattr(config, "use_rslora", False) else "alpha / r"
    ranks, scales = ({getattr(update, name) for update in updates} for name in ("rank", "scale"))
    facts["rank"] = ", ".join(map(str, sorted(ranks)))
    facts["scale"] = f"{', '.join(f'{scale:g}' for scale in sorted(scales))} ({formula})"
    modules: dict[str, list[Update]] = {}
    for update in updates:
        modules.setdefault(update.layer.rpartition(".")[2], []).append(update)
    for module, group in modules.items():
        facts[f"update of {module}"] = _range(group)
    return facts


def _range(group: Sequence[Update]) -> str:
    relative = [update.relative for update in group if update.relative is not None]
    norms = [update.norm for update in group]
    text = f"norm {min(norms):.3g} to {max(norms):.3g}, median {statistics.median(norms):.3g}"
    if relative:
        text += f"; {100 * min(relative):.2g} % to {100 * max(relative):.2g} % of the weight"
    return f"{text} ({len(group)} layers)"
