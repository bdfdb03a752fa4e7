"""The README.md of an adapter, in the form that the Hub renders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness_ext.models.card import AdapterCard, hub_name

TEMPLATE = """\
---
base_model: {quoted_base}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- lm-evaluation-harness
- harness-ext
---

# {name}

A LoRA adapter for `{base}`, trained on the lm-eval task `{task}` with harness_ext: {examples} examples,
{tokens} label tokens, {parameters} trainable parameters, {minutes:.1f} minutes.{sample}

| | |
|---|---|
| base weights (sha256) | `{base_sha256}` |
| protocol fingerprint | `{fingerprint}` |
| training data (sha256) | `{data_sha256}` |
| seed | {seed} |
| training loss / held-out loss | {train_loss} / {validation_loss} |
| versions | {versions} |
{selection}
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{hub_base}"), "{name}")
```

## Evaluate

Evaluate base and adapter with the protocol of the training:

```
harness-ext eval --model_args pretrained={base} --adapters adapters/{name} --tasks {task}{included} \\
    --output_path results/{name} --log_samples
harness-ext compare results/{name}
```

## Recipe

```json
{recipe}
```
"""

SELECTION = """\
## Chosen checkpoint

This is the checkpoint of step {chosen} of {planned}{early}. `{metric}` was scored {times} in training on {documents}
documents of the training split that were not trained on. Kept is the earliest checkpoint that is not significantly
worse than the best one (paired test, Holm's correction for the number of checkpoints), nor than the last one. The score
that it was chosen by is too high on average, since it was chosen by it; the one on other documents is not.

| step | {metric} | 95 % interval | documents | |
|---|---|---|---|---|
{rows}
"""


def model_card(card: AdapterCard, name: str) -> str:
    """An adapter's card as Markdown, with the Hub's metadata as front matter."""
    return TEMPLATE.format(
        name=name,
        base=card.base,
        hub_base=hub_name(card.base),
        quoted_base=json.dumps(hub_name(card.base)),  # a name like 1e3 stays text
        task=card.task,
        included="".join(f" --include_path {folder}" for folder in card.recipe.get("include_path") or ()),
        examples=f"{card.examples:,}",
        tokens=f"{card.tokens:,}",
        parameters=f"{card.trainable_parameters:,}",
        minutes=card.seconds / 60,
        sample="\n\n**Trained on the small sample bundled with harness_ext, for demonstration only.**"
        if card.sample_data
        else "",
        base_sha256=card.base_sha256 or "not known",
        fingerprint=card.fingerprint,
        data_sha256=card.data_sha256,
        seed=card.seed,
        train_loss=card.train_loss,
        validation_loss="none held out" if card.validation_loss is None else card.validation_loss,
        selection="" if card.selection is None else f"\n{_selection(card.selection)}",
        versions=", ".join(f"{package} {version}" for package, version in card.versions.items()),
        recipe=json.dumps(card.recipe, indent=2),
    )


def _selection(selection: Mapping[str, Any]) -> str:
    """The curve of the checkpoints, and the score of the chosen one on untouched documents."""
    curve, again, chosen = selection["curve"], selection["chosen_again"], selection["chosen_step"]
    rows = [
        _row(selection, point, str(point["step"]), selection["documents"], "chosen" if point["step"] == chosen else "")
        for point in curve
    ]
    rows.append(_row(selection, again, f"**{chosen}**", again["documents"], "chosen, on other documents"))
    return SELECTION.format(
        chosen=chosen,
        planned=selection["planned_steps"],
        early=""
        if selection["last_step"] == selection["planned_steps"]
        else f"; training was stopped at step {selection['last_step']}, since nothing had become better",
        metric=selection["metric"],
        times="once" if len(curve) == 1 else f"{len(curve)} times",
        documents=f"{selection['documents']:,}",
        rows="\n".join(rows),
    )


def _row(selection: Mapping[str, Any], point: Mapping[str, Any], step: str, documents: int, remark: str) -> str:
    score, low, high = (
        f"{100 * point[name]:.1f}" if selection["is_share"] else f"{point[name]:.4g}"
        for name in ("score", "low", "high")
    )
    return f"| {step} | {score} | {low} to {high} | {documents:,} | {remark} |"
