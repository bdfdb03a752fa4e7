"""The README.md of an adapter, in the form that the Hub renders."""

from __future__ import annotations

import json

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
        versions=", ".join(f"{package} {version}" for package, version in card.versions.items()),
        recipe=json.dumps(card.recipe, indent=2),
    )
