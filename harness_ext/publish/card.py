"""README.md of an adapter, with the results of its evaluation: `harness-ext card ADAPTER RESULTS…`.

```
results ──> runs of this adapter ──> comparison with the base ──> claims (metadata) + regions (text) ──> README.md
```

Regions are generated again at each call. What stands outside them is a person's and stays as it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from harness_ext.atomic import write_text
from harness_ext.comparison.compare import find_baseline
from harness_ext.comparison.rows import Row
from harness_ext.errors import CardError, InputError
from harness_ext.formatting import format_difference, format_difference_interval, format_score
from harness_ext.leaderboard import Leaderboard, compare_runs
from harness_ext.models.adapter_input import CONFIG_FILE, WEIGHTS_FILE, read_settings
from harness_ext.models.adapters import check_adapter
from harness_ext.models.card import AdapterCard, hub_name, read_card
from harness_ext.models.sources import files_sha256
from harness_ext.publish.claims import Claim, claim_of, is_ours, model_index
from harness_ext.publish.front_matter import metadata_of, split, with_metadata
from harness_ext.publish.places import place_in, without_places
from harness_ext.reading.files import read_text
from harness_ext.regions import find_regions, with_regions
from harness_ext.render.grid import escape_markdown
from harness_ext.reporting.datasets import dataset_of
from harness_ext.results.run import Run, TaskResult
from harness_ext.training.model_card import HUB_ID, TAGS, about_text, recipe_text, repeat_text, use_text

logger = logging.getLogger(__name__)

README = "README.md"
KEPT = "README.md.edited"  # copy of a README whose regions somebody has edited
CUT_SHORT = "R16"

ABOUT = """\
A {kind} adapter for `{base}`.

| | |
|---|---|
{rows}
"""


@dataclass(frozen=True)
class AdapterResults:
    """What results say of one adapter."""

    adapter: Path
    comparison: Leaderboard  # of this adapter alone with its base
    runs: Mapping[str, Run]  # of this adapter, by name; only tasks that were evaluated with its weights
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """One row for each task."""
        return self.comparison.rows

    def result_of(self, row: Row) -> TaskResult:
        """The logged result that a row compares with the base."""
        return self.runs[row.run].tasks[row.task]

    @property
    def claims(self) -> list[Claim]:
        """What the card claims."""
        return [claim_of(row, self.runs[row.run]) for row in self.rows]


def results_of(adapter: str | Path, runs: Sequence[Run], *, baseline: str | None = None) -> AdapterResults:
    """The results of an adapter, compared with those of its base.

    A run belongs to the adapter if it logged the sha256 of its weights. Runs of stock lm-eval log none; they belong to
    the adapter if they name a folder of the same name, and a warning says so.

    Args:
        adapter: its folder.
        runs: of results; those of other adapters are left out.
        baseline: name of the base's run; None: the one without an adapter.

    Raises:
        AdapterError: the folder holds no adapter.
        CardError: no run belongs to it, two runs of it have the same task, or a run was cut short.
        ComparisonError: there is no base to compare with, or the protocols differ.
    """
    folder = Path(adapter).expanduser()
    check_adapter(folder)
    ours, warnings = _runs_of(folder, runs)
    base = find_baseline(runs, baseline)
    comparison = compare_runs([base, *ours], baseline=base.name, group_seeds=False)
    if cut := next((finding for finding in comparison.findings if finding.id == CUT_SHORT), None):
        raise CardError(f"no card is written from results that were cut short: {cut.text}")
    return AdapterResults(folder, comparison, {run.name: run for run in ours}, tuple(warnings))


def _runs_of(folder: Path, runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs of an adapter, with the tasks evaluated with its weights only; and what to warn about."""
    weights = files_sha256(folder / WEIGHTS_FILE)
    config = files_sha256(folder / CONFIG_FILE)
    ours: list[Run] = []
    unknown: list[str] = []
    changed: list[str] = []
    for run in runs:
        if run.adapter is None:
            continue
        tasks: dict[str, TaskResult] = {}
        for name, result in run.tasks.items():
            logged = result.adapter_sha256.get(WEIGHTS_FILE)
            if logged == weights or (logged is None and Path(run.adapter).name == folder.resolve().name):
                tasks[name] = result
                unknown += [run.name] if logged is None else []
                if logged is not None and result.adapter_sha256.get(CONFIG_FILE, config) != config:
                    changed.append(run.name)
        if tasks:
            ours.append(replace(run, tasks=tasks))
    if not ours:
        raise CardError(_none_found(folder, weights, runs))
    _check_tasks_differ(ours)
    warnings = [
        f"{name} does not say which weights it evaluated; it is taken for this adapter by its name"
        for name in dict.fromkeys(unknown)
    ]
    warnings += [
        f"{CONFIG_FILE} is not the one that {name} evaluated; evaluate again if more than a name in it has changed"
        for name in dict.fromkeys(changed)
    ]
    return ours, warnings


def _none_found(folder: Path, weights: str, runs: Sequence[Run]) -> str:
    others = [run for run in runs if run.adapter is not None]
    repeat = f"evaluate it: harness-ext eval --adapters {folder} --tasks TASK --output_path RESULTS --log_samples"
    same_name = [run.name for run in others if Path(str(run.adapter)).name == folder.resolve().name]
    if same_name:
        return (
            f"the results of {same_name[0]} are of other weights than {folder / WEIGHTS_FILE} ({weights[:12]}…) has; "
            f"{repeat}"
        )
    found = ", ".join(run.name for run in others[:5]) or "no adapter"
    return f"the results hold no run of {folder} (they have {found}); {repeat}"


def _check_tasks_differ(runs: Sequence[Run]) -> None:
    seen: dict[str, str] = {}
    for run in runs:
        for task in run.tasks:
            if task in seen:
                raise CardError(
                    f"the results hold {task} twice for this adapter ({seen[task]}, {run.name}); name one folder"
                )
            seen[task] = run.name


# -- the text --------------------------------------------------------------------------------------------------------


def card_text(results: AdapterResults, before: str | None, *, name: str | None = None) -> str:
    """The README of an adapter with its results.

    Args:
        results: of the adapter.
        before: the README as it is; None if there is none.
        name: Hub id under which the adapter is published; None: it is called by its folder.

    Raises:
        CardError: the README's markers or metadata cannot be read.
    """
    place = str(results.adapter / README)
    title = results.adapter.resolve().name
    card = read_card(results.adapter)
    text = f"# {title}\n" if before is None else before
    front, body = split(text)
    if _is_untouched_template(body):
        text = (f"---\n{front.rstrip()}\n---\n" if front else "") + f"\n# {title}\n"
    metadata = metadata_of(text, place)
    text = with_metadata(text, _metadata(results, card, metadata, title), place)
    return with_regions(text, _regions(results, card, name), place)


def _is_untouched_template(body: str) -> bool:
    """Whether it is the form that peft writes, in which nobody has filled in anything."""
    template = ModelCard.from_template(ModelCardData()).text.splitlines()
    known = {line.strip() for line in template} | {"### Framework versions", ""}
    lines = [line.strip() for line in body.splitlines()]
    return "# Model Card for Model ID" in lines and all(
        line in known or re.fullmatch(r"- PEFT [\w.+]+", line) for line in lines
    )


def _metadata(
    results: AdapterResults, card: AdapterCard | None, before: Mapping[str, Any], title: str
) -> dict[str, Any]:
    """The metadata to set: what a person has set stays, lists grow, and the claims are replaced."""
    claims = results.claims
    (index,) = model_index(title, claims)
    foreign: list[dict[str, Any]] = []
    for entry in before.get("model-index") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("results"), list):
            raise CardError(f"{results.adapter / README}: its model-index has another form than the Hub's; correct it")
        kept = [result for result in entry["results"] if not is_ours(result)]
        foreign += [{**entry, "results": kept}] if kept else []
    base, hub = base_of(card, read_settings(results.adapter))
    single: dict[str, Any] = {
        "base_model": hub or base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
    }
    named = before.get("base_model")
    if isinstance(named, str) and place_in(named, strict=True):  # peft's own README names the folder of the base
        before = {**before, "base_model": None}
    if isinstance(tags := before.get("tags"), list):
        before = {**before, "tags": [tag for tag in tags if not place_in(str(tag).rpartition(":")[2], strict=True)]}
    lists = {
        "tags": list(TAGS),
        "datasets": [claim.dataset.name for claim in claims if claim.dataset and claim.dataset.is_on_hub],
        "metrics": [metric["type"] for result in index["results"] for metric in result["metrics"]],
    }
    return {
        **{key: value for key, value in single.items() if before.get(key) is None and value is not None},
        **{key: grown for key, new in lists.items() if (grown := _grown(before.get(key), new))},
        "model-index": [*foreign, index],
    }


def _grown(before: Any, new: Sequence[str]) -> list[Any]:
    old = [before] if isinstance(before, str) else list(before) if isinstance(before, list) else []
    return [*old, *(value for value in dict.fromkeys(new) if value not in old)]


def base_of(card: AdapterCard | None, settings: Mapping[str, Any]) -> tuple[str, str | None]:
    """Name of an adapter's base for our commands, and its Hub id; None for a local folder.

    Args:
        card: of the adapter.
        settings: of `adapter_config.json`.
    """
    name = card.base if card else str(settings.get("base_model_name_or_path") or "BASE")
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        name = Path(name).name or "BASE"
    hub = hub_name(name)
    return name, hub if HUB_ID.fullmatch(hub) else None


def _regions(results: AdapterResults, card: AdapterCard | None, name: str | None) -> dict[str, str]:
    settings = read_settings(results.adapter)
    base, hub = base_of(card, settings)
    adapter = name or _shown_folder(results.adapter)
    regions = {
        "about": about_text(card) if card else _foreign_about(base, settings),
        "results": str(without_places(_results_text(results).replace(str(results.adapter), adapter))),
        "protocol": _protocol_text(results),
        **names_text(results.claims, adapter, base, hub or base, _include_path(card)),
    }
    return {**regions, "recipe": recipe_text(card.recipe)} if card else regions


def _shown_folder(adapter: Path) -> str:
    """The folder as it stands in commands: relative to the current folder, and no path of this machine."""
    absolute = adapter.resolve()
    here = Path.cwd().resolve()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else f"adapters/{absolute.name}"


def _include_path(card: AdapterCard | None) -> list[str]:
    folders = card.recipe.get("include_path") if card else None
    return [str(folder) for folder in folders] if isinstance(folders, list) else []


def names_text(
    claims: Sequence[Claim], adapter: str, base: str, hub: str, include_path: Sequence[str]
) -> dict[str, str]:
    """The regions that call the adapter by its name, which is another one on the Hub."""
    short = adapter.rstrip("/").rpartition("/")[2]
    evaluations: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for claim in claims:
        evaluations.setdefault(repr(claim.settings), ([], claim.settings))[0].append(claim.task)
    return {
        "use": use_text(hub, adapter),
        "repeat": repeat_text(base, adapter, list(evaluations.values()), include_path, f"results/{short}"),
    }


def _foreign_about(base: str, settings: Mapping[str, Any]) -> str:
    """Of an adapter that another tool has trained: what its configuration says."""
    shown = {"r": "rank", "lora_alpha": "alpha", "target_modules": "target modules", "peft_version": "peft"}
    rows = []
    for key, label in shown.items():
        value = settings.get(key)
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append(f"| {label} | {escape_markdown(text)} |")
    return ABOUT.format(kind=escape_markdown(str(settings.get("peft_type"))), base=base, rows="\n".join(rows))


def _results_text(results: AdapterResults) -> str:
    sentences = "\n".join(f"- {sentence(row)}" for row in results.rows)
    warnings = "".join(f"- {escape_markdown(warning)}\n" for warning in results.warnings)
    provenance = f"\n**Where the results come from**\n\n{warnings}" if warnings else ""
    return f"## Results\n\n{sentences}\n\n{results.comparison.to_markdown('rows')}{provenance}"


def sentence(row: Row) -> str:
    """One row of a comparison in words."""
    metric = f"`{row.task}`, {escape_markdown(row.metric)}"
    scores = f"{format_score(row.baseline.value, row.unit)} → {format_score(row.score.value, row.unit)}"
    if row.paired is None:
        return f"{metric}: {scores}; the difference was not tested."
    difference = format_difference(row.difference, row.unit, row.scale)
    interval = format_difference_interval(row.paired.interval, row.unit, row.scale)
    return f"{metric}: {scores}, a difference of {difference} {interval} on {row.n:,} documents: **{row.verdict}**."


def _protocol_text(results: AdapterResults) -> str:
    lines = ["## Protocol", "", "| task | documents | shots | chat template | data set | fingerprint |"]
    lines.append("|---|---:|---:|---|---|---|")
    for row in results.rows:
        result = results.result_of(row)
        dataset = dataset_of(result)
        at = f" ({dataset.split})" if dataset.split else ""
        cells = [
            row.task, f"{row.n:,}", str(result.n_shot), "yes" if result.evaluation.get("apply_chat_template") else "no",
            f"{dataset.name}{at}", (result.fingerprint or "not logged")[:16],
        ]  # fmt: skip
        lines.append("| " + " | ".join(escape_markdown(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


# -- writing ---------------------------------------------------------------------------------------------------------


def read_readme(adapter: Path) -> str | None:
    """The README of an adapter; None if there is none.

    Raises:
        CardError: it cannot be read as text.
    """
    path = adapter / README
    if not path.is_symlink() and not path.exists():
        return None
    try:
        return read_text(path)
    except InputError as error:
        raise CardError(f"{error}; replace or remove it") from error


def write_card(results: AdapterResults, *, name: str | None = None, overwrite: bool = False) -> Path:
    """Write the README of an adapter; regions are replaced, all else stays as it is.

    Args:
        results: of the adapter.
        name: Hub id under which the adapter is published.
        overwrite: replace regions that somebody has edited; a copy of the old README is kept.

    Returns:
        The path of the README.

    Raises:
        CardError: somebody has edited a region, or the README cannot be read.
        WriteError: it cannot be written; the old one is as it was.
    """
    path = results.adapter / README
    before = read_readme(results.adapter)
    edited = [region for region in find_regions(before or "", str(path)).values() if region.is_edited]
    if edited and not overwrite:
        raise CardError(
            f"{path}:{edited[0].line}: the region {edited[0].name!r} was edited, and would be lost; move your text "
            f"outside the markers, or add --overwrite, which keeps a copy as {KEPT}"
        )
    text = card_text(results, before, name=name)
    if edited:
        assert before is not None
        kept = results.adapter / KEPT
        if kept.exists() and read_text(kept) != before:
            raise CardError(f"{kept} is there from an earlier time; move it away first")
        write_text(kept, before)
    write_text(path, text)
    return path
