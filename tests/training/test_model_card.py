"""The README of an adapter: valid front matter, every fact of the card, and commands that work."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCardData

from harness_ext.cli import parser_of
from harness_ext.models.card import AdapterCard
from harness_ext.models.sources import FETCHABLE
from harness_ext.regions import find_regions, with_regions
from harness_ext.training.model_card import model_card, sections

CARD = AdapterCard(
    base="someone/model-1b", base_revision=None, base_sha256="b" * 64, task="sst2_choice", fingerprint="f" * 64,
    fingerprint_fields={"version": "1.0"}, recipe={"lora_rank": 8, "system_instruction": "{not} a: field"},
    data_sha256="d" * 64, sample_data=False, examples=24_000, tokens=48_123, trainable_parameters=5_636_096, seed=3,
    seconds=90.0, train_loss=0.25, validation_loss=0.3, versions={"peft": "0.21.2", "torch": "2.13.0"},
)  # fmt: skip


def test_it_contains_all_facts_of_the_card() -> None:
    text = model_card(CARD, "sst2")
    for fact in (
        "# sst2", "someone/model-1b", "sst2_choice", "24,000 examples", "48,123 label tokens", "5,636,096",
        "1.5 minutes",
        "b" * 64, "f" * 64, "d" * 64, "0.25 / 0.3", "peft 0.21.2, torch 2.13.0", '"lora_rank": 8', "{not} a: field",
        "--adapters adapters/sst2 --tasks sst2_choice", "harness-ext compare results/sst2",
    ):  # fmt: skip
        assert fact in text, fact
    assert "small sample" not in text
    assert text.count("```") % 2 == 0


SELECTION = {
    "metric": "acc", "is_share": True, "higher_is_better": True, "documents": 200, "units": 200,
    "data_sha256": "e" * 64,
    "curve": [
        {"step": 20, "score": 0.7, "low": 0.63, "high": 0.76, "p_against_best": 0.01},
        {"step": 40, "score": 0.8, "low": 0.74, "high": 0.85, "p_against_best": 1.0},
    ],
    "chosen_step": 40, "best_step": 40, "last_step": 40, "planned_steps": 100,
    "chosen_again": {"documents": 210, "units": 210, "score": 0.775, "low": 0.71, "high": 0.83}, "seconds": 12.0,
}  # fmt: skip


def test_the_curve_of_the_checkpoints_is_a_table() -> None:
    assert "Chosen checkpoint" not in model_card(CARD, "sst2")
    text = model_card(replace(CARD, selection=SELECTION), "sst2")
    for fact in (
        "checkpoint of step 40 of 100; training was stopped at step 40", "scored 2 times in training on 200\n",
        "| 20 | 70.0 | 63.0 to 76.0 | 200 |  |", "| 40 | 80.0 | 74.0 to 85.0 | 200 | chosen |",
        "| **40** | 77.5 | 71.0 to 83.0 | 210 | chosen, on other documents |", "## Use",
    ):  # fmt: skip
        assert fact in text, fact
    perplexity = {**SELECTION, "is_share": False, "last_step": 100}
    assert "| 20 | 0.7 | 0.63 to 0.76 | 200 |  |" in model_card(replace(CARD, selection=perplexity), "sst2")


ENTRY = {"rung": 2, "step": 10, "planned_steps": 60, "score": 0.8, "low": 0.75, "high": 0.85}
LOSER = {**ENTRY, "difference": -0.031, "difference_low": -0.05, "difference_high": -0.012, "p_value": 0.01}
TOURNAMENT = {
    "design_sha256": "d", "metric": "acc", "is_share": True, "higher_is_better": True, "documents": 1200, "units": 1200,
    "data_sha256": "e", "rungs": [{"share": 1 / 12, "entries": 4}, {"share": 1 / 6, "entries": 2}], "winner": 1,
    "entries": [
        {**ENTRY, "name": "lora_rank=8", "standing": "winner"}, {**LOSER, "name": "lora_rank=4", "standing": "worse"},
        {**LOSER, "name": 'system_instruction=a | <!-- "b" -->', "standing": "not distinguishable"},
    ],
    "winner_again": {"documents": 1201, "units": 1201, "score": 0.79, "low": 0.74, "high": 0.84}, "trained_share": 0.33,
    "training_seconds": 3.0, "full_training_seconds": 9.0, "scoring_seconds": 1.0,
}  # fmt: skip


def test_the_entries_of_a_tournament_are_a_table() -> None:
    assert "tournament" not in model_card(CARD, "best")
    text = model_card(replace(CARD, tournament=TOURNAMENT), "best")
    for fact in (
        "winner of 3 trainings", "in 2 rungs: after\n8.33 % and 16.7 % of the steps", "scored on 1,200 documents",
        "| lora_rank=8 | 10 of 60 | 80.0 (75.0 to 85.0) |  | **winner** |",
        "| lora_rank=4 | 10 of 60 | 80.0 (75.0 to 85.0) | -3.1 (-5.0 to -1.2) | worse |",
        "| system_instruction=a ? ??-- ?b? --? | 10 of 60 |", "On 1,201 other documents", "it is 79.0 (74.0 to 84.0)",
        "Trained: 33 %",
    ):  # fmt: skip
        assert fact in text, fact
    assert "tournament" in sections(replace(CARD, tournament=TOURNAMENT), "best")


@pytest.mark.parametrize("base", ["someone/model-1b", "1e3", "yes", "a: b", *FETCHABLE])
def test_front_matter(base: str) -> None:
    _, front, body = model_card(replace(CARD, base=base), "sst2").split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["base_model"] == (FETCHABLE[base].upstream_id if base in FETCHABLE else base)
    assert values["library_name"] == "peft"
    assert values["pipeline_tag"] == "text-generation"
    assert "lora" in values["tags"]
    assert body.startswith("\n# sst2")
    ModelCardData(**values)  # raises for what the Hub's parser refuses


def test_each_section_is_a_region_that_can_be_generated_again() -> None:
    text = model_card(CARD, "sst2")
    regions = find_regions(text, "README.md")
    assert list(regions) == ["about", "use", "repeat", "recipe"]
    assert not any(region.is_edited for region in regions.values())
    assert with_regions(text, sections(CARD, "sst2"), "README.md") == text


@pytest.mark.parametrize("hostile", ["```\n# out", "<!-- harness-ext:recipe end -->", "<!-- harness-ext:use begin -->"])
def test_a_recipe_cannot_end_its_block(hostile: str) -> None:
    text = model_card(replace(CARD, recipe={"system_instruction": hostile}), "sst2")
    assert list(find_regions(text, "README.md")) == ["about", "use", "repeat", "recipe"]
    written = re.search(r"^(`{3,})json\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert written
    assert json.loads(written[2]) == {"system_instruction": hostile}
    for fence in re.findall(r"^(`{3,})\w*$", text, re.MULTILINE)[::2]:  # opening ones: each is closed
        assert len(re.findall(rf"^{fence}(?!`)", text, re.MULTILINE)) % 2 == 0


def test_the_evaluation_is_that_of_the_training() -> None:
    recipe = {
        "num_fewshot": 3,
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "system_instruction": "It's",
    }
    options = parser_of("eval").parse_args(evaluation(model_card(replace(CARD, recipe=recipe), "sst2")))
    settings = {name: getattr(options, name) for name in recipe}
    assert settings == recipe


def evaluation(text: str) -> list[str]:
    """The arguments of the command that evaluates."""
    block = text.split("## Repeat the evaluation")[1].split("```\n")[1]
    return shlex.split(block.replace("\\\n", "").splitlines()[0])[2:]


def test_its_commands_can_be_pasted_into_a_shell() -> None:
    block = model_card(CARD, "sst2").split("```\n")[2]
    assert "\\\n" in block  # one long command on two lines, which a shell joins
    compare = shlex.split(block.splitlines()[-1])
    options = parser_of("eval").parse_args(evaluation(model_card(CARD, "sst2")))
    assert (options.tasks, options.adapters, options.output_path) == (
        ["sst2_choice"],
        ["adapters/sst2"],
        "results/sst2",
    )
    assert compare == ["harness-ext", "compare", "results/sst2"]


def test_the_folder_of_a_custom_task_is_in_the_command() -> None:
    text = model_card(replace(CARD, task="tickets", recipe={"include_path": ["tickets", "more"]}), "mine")
    assert "--tasks tickets --include_path tickets --include_path more" in text
    assert "--include_path" not in model_card(CARD, "sst2")


def test_unknown_values_are_marked() -> None:
    text = model_card(replace(CARD, base_sha256=None, validation_loss=None, sample_data=True), "x")
    assert "not known" in text
    assert "none held out" in text
    assert "**Trained on the small sample" in text
    assert "None" not in text
