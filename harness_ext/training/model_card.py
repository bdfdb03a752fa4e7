"""The README.md of an adapter, in the form that the Hub renders: metadata, and regions that can be generated again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from harness_ext.models.card import AdapterCard, hub_name
from harness_ext.models.sources import FETCHABLE
from harness_ext.regions import marked

TAGS = ("lora", "lm-evaluation-harness", "harness-ext")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

FRONT_MATTER = """\
---
base_model: {quoted_base}
library_name: peft
pipeline_tag: text-generation
tags:
{tags}
---
"""

ABOUT = """\
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
"""

USE = """\
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), {adapter})
```
"""

REPEAT = """\
## Repeat the evaluation

Base and adapter, under the same protocol.{first}

{commands}
"""

RECIPE = """\
## Recipe

{recipe}
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

TOURNAMENT = """\
## Chosen in a tournament

This adapter is the winner of {entries} trainings. They were trained in {rungs}: after
{shares} of the steps the better half went on, without those that were significantly worse than the best.
`{metric}` was scored on {documents} documents of the training split that none of them was trained on. The winner has
the highest mean; of equal ones the cheaper training goes on, then the earlier entry. Its score in the table is too high
on average, since it was chosen by it. **On {again_documents} other documents, at the end of training, it is {again}.**

| entry | steps | {metric} | minus the winner at the same rung | |
|---|---|---|---|---|
{rows}

Intervals: 95 %. *Worse*: significantly, by a paired test with Holm's correction for all entries. *Not distinguishable*:
within noise, so another one may be as good. Trained: {share:.0f} % of what training all entries to the end takes.
"""


def model_card(card: AdapterCard, name: str) -> str:
    """An adapter's card as Markdown, with the Hub's metadata as front matter and each section in a marked region."""
    quoted_base = json.dumps(hub_name(card.base))  # a name like 1e3 stays text
    front = FRONT_MATTER.format(quoted_base=quoted_base, tags="\n".join(f"- {tag}" for tag in TAGS))
    regions = [marked(region, content) for region, content in sections(card, name).items()]
    return "\n\n".join([f"{front}\n# {name}", *regions]) + "\n"


def sections(card: AdapterCard, name: str, *, adapter: str | None = None) -> dict[str, str]:
    """The sections that a card alone gives, by the name of their region, in order.

    Args:
        card: of the adapter.
        name: of its folder.
        adapter: what the commands call it: its Hub id, or its folder, `adapters/NAME`.
    """
    recipe = card.recipe
    settings = {key: recipe.get(key) for key in ("num_fewshot", *_FLAGS)}
    return {
        "about": about_text(card),
        **({} if card.selection is None else {"selection": _selection(card.selection)}),
        **({} if card.tournament is None else {"tournament": _tournament(card.tournament)}),
        "use": use_text(hub_name(card.base), adapter or name),
        "repeat": repeat_text(
            card.base,
            adapter or f"adapters/{name}",
            [([card.task], settings)],
            recipe.get("include_path") or (),
            f"results/{name}",
        ),
        "recipe": recipe_text(recipe),
    }


def about_text(card: AdapterCard) -> str:
    """Where the adapter comes from."""
    return ABOUT.format(
        base=card.base,
        task=card.task,
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
    )


def use_text(base: str, adapter: str) -> str:
    """How to load the adapter.

    Args:
        base: Hub id of the base.
        adapter: its folder or Hub id.
    """
    return USE.format(base=json.dumps(base), adapter=json.dumps(adapter))


def repeat_text(
    base: str,
    adapter: str,
    evaluations: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    include_path: Sequence[str],
    results: str,
) -> str:
    """The commands that evaluate base and adapter again, and compare them.

    Args:
        base: Hub id, name of a packaged model, or the folder name of a local one.
        adapter: its folder or Hub id.
        evaluations: names of tasks, and the settings that they were evaluated with, see `flags_of`.
        include_path: folders of further tasks.
        results: folder for the results.
    """
    commands = []
    for tasks, settings in evaluations:
        arguments = ",".join(f"{key}={value}" for key, value in (settings.get("model_args") or {}).items())
        words = ["--model_args", f"pretrained={base}{',' if arguments else ''}{arguments}", "--adapters", adapter]
        words += ["--tasks", ",".join(tasks)]
        words += [word for folder in include_path for word in ("--include_path", folder)]
        first = "harness-ext eval " + shlex.join([*words, *flags_of(settings)])
        commands.append(f"{first} \\\n    --output_path {shlex.quote(results)} --log_samples")
    commands.append(f"harness-ext compare {shlex.quote(results)}")
    return REPEAT.format(commands=fenced("\n".join(commands)), first=_before(base))


def fenced(content: str, language: str = "") -> str:
    """A code block whose fence is longer than any in its content."""
    longest = max(map(len, re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def _before(base: str) -> str:
    """What has to be done before the commands work."""
    if base in FETCHABLE:
        return f" `harness-ext fetch {base}` fetches the base first."
    if not HUB_ID.fullmatch(base):
        return f" The base was a local folder: put its path in place of `{base}`."
    return ""


_FLAGS = ("apply_chat_template", "fewshot_as_multiturn", "system_instruction")


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """The flags of `harness-ext eval` for settings of an evaluation.

    >>> flags_of({"num_fewshot": 5, "apply_chat_template": True, "limit": 100})
    ['--num_fewshot', '5', '--apply_chat_template', '--limit', '100']
    """
    flags: list[str] = []
    if settings.get("num_fewshot") is not None:
        flags += ["--num_fewshot", str(settings["num_fewshot"])]
    if (template := settings.get("apply_chat_template")) not in (None, False):
        flags += ["--apply_chat_template"] if template is True else [f"--apply_chat_template={template}"]
        if settings.get("fewshot_as_multiturn") is False:
            flags.append("--fewshot_as_multiturn=false")
    if settings.get("system_instruction"):
        flags.append(f"--system_instruction={settings['system_instruction']}")
    if settings.get("limit") is not None:
        flags += ["--limit", f"{settings['limit']:g}"]
    if settings.get("seed"):
        flags += ["--seed", ",".join(map(str, settings["seed"]))]
    if settings.get("gen_kwargs"):
        flags += ["--gen_kwargs", *(f"{key}={value}" for key, value in settings["gen_kwargs"].items())]
    return flags


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as JSON; a comment in one of its texts does not end the region."""
    written = json.dumps(recipe, indent=2).replace("<", "\\u003c")
    return RECIPE.format(recipe=fenced(written, "json"))


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


SCORE, DIFFERENCE = ("score", "low", "high"), ("difference", "difference_low", "difference_high")
_NOT_PLAIN = re.compile(r"[^\w .,:;=@/+()\[\]'…-]")


def _tournament(tournament: Mapping[str, Any]) -> str:
    """The entries of a tournament, and the score of the winner on untouched documents."""
    again, rungs = tournament["winner_again"], tournament["rungs"]
    return TOURNAMENT.format(
        entries=len(tournament["entries"]),
        rungs="one rung" if len(rungs) == 1 else f"{len(rungs)} rungs",
        shares=_enumerated([f"{100 * rung['share']:.3g} %" for rung in rungs]),
        metric=tournament["metric"],
        documents=f"{tournament['documents']:,}",
        again_documents=f"{again['documents']:,}",
        again=interval_text(tournament, again, SCORE),
        rows="\n".join(_entry_row(tournament, entry) for entry in tournament["entries"]),
        share=100 * tournament["trained_share"],
    )


def _entry_row(tournament: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    won = entry["standing"] == "winner"
    cells = (
        _NOT_PLAIN.sub("?", entry["name"])[:200],
        f"{entry['step']} of {entry['planned_steps']}",
        interval_text(tournament, entry, SCORE),
        "" if won else interval_text(tournament, entry, DIFFERENCE, sign="+"),
        f"**{entry['standing']}**" if won else entry["standing"],
    )
    return f"| {' | '.join(cells)} |"


def interval_text(record: Mapping[str, Any], values: Mapping[str, Any], names: Sequence[str], sign: str = "") -> str:
    """A value and its interval, in points if it is a share."""
    value, low, high = (
        f"{100 * values[name]:{sign}.1f}" if record["is_share"] else f"{values[name]:{sign}.4g}" for name in names
    )
    return f"{value} ({low} to {high})"


def _enumerated(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _row(selection: Mapping[str, Any], point: Mapping[str, Any], step: str, documents: int, remark: str) -> str:
    score, low, high = (
        f"{100 * point[name]:.1f}" if selection["is_share"] else f"{point[name]:.4g}"
        for name in ("score", "low", "high")
    )
    return f"| {step} | {score} | {low} to {high} | {documents:,} | {remark} |"
