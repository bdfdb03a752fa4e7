"""Commands that repeat a run are those that made it, and the command line understands them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lm_eval_files import labelled

from harness_ext import cli
from harness_ext.reporting.provenance import facts_of
from harness_ext.results.load import load_runs
from harness_ext.training.recipe import Recipe, recipe_from

CONFIG = {
    "model": "hf-tree",
    "random_seed": 0,
    "numpy_seed": 1,
    "torch_seed": 1,
    "fewshot_seed": 1,
    "gen_kwargs": {"top_k": 1},
}


def test_commands_repeat_the_run(write_run: Callable[..., Path], tmp_path: Path) -> None:
    recipe = Recipe(task="demo", model="org/tiny", output="adapters/x", lora_rank=4, epochs=2.0, prefix_trees=False)
    card = {"base": "org/tiny", "task": "demo", "recipe": asdict(recipe), "examples": 10, "versions": {"peft": "1"}}
    config = {**CONFIG, "model_args": {"pretrained": "org/tiny", "peft": "adapters/it's"}, "limit": 20}
    hashes = {"adapter_model.safetensors": "ab12"}
    shared = {
        "ours": {"version": "0.1.0", "card": card, "variant": "mine", "adapter_sha256": hashes},
        "chat_template": "{{ x }}", "system_instruction": "Be brief.", "lm_eval_version": "0.4.13",
    }  # fmt: skip
    write_run("out", {"demo": labelled([1.0] * 20)}, config=config, **shared)
    more = {**config, "limit": None}
    other = write_run("more", {"other": labelled([1.0] * 5)}, config=more, **{**shared, "n-shot": {"other": 3}})
    for file in other.iterdir():
        renamed = file.name.replace("2025-06-01", "2025-06-02")
        file.rename(tmp_path / "out" / renamed)
    (run,) = load_runs(tmp_path / "out")
    facts = facts_of(run)
    assert facts.facts["sha256 of adapter_model.safetensors"] == "ab12"
    assert facts.facts["written by"] == "lm-eval 0.4.13, harness-ext 0.1.0"
    assert sum(name.startswith("results of ") for name in facts.facts) == 2
    train, *evaluations = facts.commands
    words = shlex.split(train)
    assert words[:3] == ["harness-ext", "train", "demo"]
    options = vars(cli.parser_of("train").parse_args(words[2:]))
    given = {name: options[name] for name in ("model", "output", "lora_rank", "epochs", "prefix_trees")}
    assert given == {
        "model": "org/tiny",
        "output": "adapters/it's",
        "lora_rank": "4",
        "epochs": "2",
        "prefix_trees": False,
    }
    assert recipe_from({"task": "demo", "model": "org/tiny", "output": "o", "lora_rank": 4}).lora_rank == 4
    first, second = (cli.parser_of("eval").parse_args(shlex.split(each)[2:]) for each in evaluations)
    assert (first.tasks, first.limit, second.tasks, second.limit) == (["demo"], 20.0, ["other"], None)
    assert second.num_fewshot == 3
    assert first.system_instruction == "Be brief."
    assert first.apply_chat_template
    assert first.seed == [0, 1, 1, 1]


def test_other_tools_have_no_commands(tmp_path: Path) -> None:
    rows = "\n".join(f"{n},{run},t,acc,{n % 2}" for n in range(4) for run in ("base", "mine"))
    (tmp_path / "r.csv").write_text(f"id,run,task,metric,value\n{rows}\n")
    for run in load_runs(tmp_path / "r.csv"):
        assert facts_of(run).commands == []
