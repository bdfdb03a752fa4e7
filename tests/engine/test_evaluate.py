"""A base and its adapters in one process: the same numbers as separate stock runs, in lm-eval's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from versions import LM_EVAL_05

from harness_ext.engine.evaluate import evaluate
from harness_ext.errors import AdapterError, HarnessExtError, ModelError, TaskError
from harness_ext.leaderboard import compare_runs
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.results.load import load_runs

TASKS = ["sst2_choice", "sst2_generate"]


def numbers(results: Any, task: str) -> dict[str, float]:
    values = {name: value for name, value in results["results"][task].items() if isinstance(value, float)}
    # lm-eval 0.5 resamples our aggregations for their standard errors, which takes hours; `evaluate` does not let it
    return {name: value for name, value in values.items() if not (LM_EVAL_05 and "_stderr" in name)}


@pytest.mark.parametrize("model", ["hf", "hf-tree"])
def test_one_process_gives_the_numbers_of_separate_stock_runs(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path, model: str
) -> None:
    adapters = [make_adapter("one", seed=1), make_adapter("two", seed=2, r=2, target_modules=["q_proj", "up_proj"])]
    ours = evaluate(
        str(tiny_model_folder), tasks=TASKS, adapters=adapters, model=model, limit=12, batch_size=4,
        output_path=str(tmp_path / "results"), log_samples=True,
    )  # fmt: skip
    assert [each.variant.name for each in ours] == ["base", "one", "two"]
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False)
    for done, adapter in zip(ours, [None, *adapters], strict=True):
        arguments = {
            "pretrained": str(tiny_model_folder),
            "dtype": "float32",
            **({"peft": str(adapter)} if adapter else {}),
        }
        stock = lm_eval.simple_evaluate(
            "hf", model_args=arguments, tasks=TASKS, task_manager=manager, limit=12, batch_size=4, device="cpu",
            **({"bootstrap_iters": 0} if LM_EVAL_05 else {}),
        )  # fmt: skip
        for task in TASKS:
            assert numbers(done.results, task) == pytest.approx(numbers(stock, task), abs=1e-4)
    runs = load_runs(tmp_path / "results")
    assert sorted(run.name for run in runs) == ["base", "one", "two"]
    comparison = compare_runs(runs)
    assert comparison.baseline == "base"
    assert len(comparison.rows) == 4
    assert "SAMPLE" in comparison.to_markdown()


def test_merged_adapters_give_the_same_scores(tiny_model_folder: Path, make_adapter: Callable[..., Path]) -> None:
    adapters = [make_adapter("first", seed=1), make_adapter("second", seed=2, r=2, target_modules=["q_proj"])]
    arguments: dict[str, Any] = {"tasks": TASKS, "adapters": adapters, "limit": 12}
    apart = evaluate(str(tiny_model_folder), **arguments)
    merged = evaluate(str(tiny_model_folder), model_args={"merge": True}, **arguments)
    for one, other in zip(apart, merged, strict=True):
        for task in TASKS:
            assert numbers(other.results, task) == pytest.approx(numbers(one.results, task), abs=1e-4)


def test_our_key_and_the_logged_samples(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter("logged")
    (_, done) = evaluate(
        str(tiny_model_folder),
        tasks=["sst2_generate"],
        adapters=[adapter],
        limit=3,
        output_path=str(tmp_path),
        log_samples=True,
    )
    assert done.folder is not None
    (written,) = done.folder.glob("results_*.json")
    ours = json.loads(written.read_text())["harness_ext"]
    assert ours["variant"] == "logged"
    assert ours["sample_data"] is True
    assert ours["card"] is None  # peft's own adapters have none
    assert len(ours["fingerprints"]["sst2_generate"]) == 64
    assert ours["fingerprint_fields"]["sst2_generate"]["fewshot"] == "0"
    (samples,) = done.folder.glob("samples_sst2_generate_*.jsonl")
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        assert sample["finish_reason"] in ("stop", "length")
        assert sample["output_tokens"] >= 1
        assert sample["input_tokens"] > sample["output_tokens"]


def test_hf_is_told_from_its_answers_why_they_ended(tiny_model_folder: Path, tmp_path: Path) -> None:
    """So that `compare` can say, for any engine, how much of a gain is stopping."""
    done = {
        model: evaluate(
            str(tiny_model_folder), tasks=["sst2_generate"], model=model, limit=8, log_samples=True,
            output_path=str(tmp_path / model),
        )[0].results["samples"]["sst2_generate"]
        for model in ("hf", "hf-tree")
    }  # fmt: skip
    for theirs, ours in zip(done["hf"], done["hf-tree"], strict=True):
        assert theirs["resps"] == ours["resps"]
        assert theirs["finish_reason"] == ours["finish_reason"]


def test_an_adapter_alone_finds_its_base(tiny_model_folder: Path, make_adapter: Callable[..., Path]) -> None:
    adapter = make_adapter("alone")  # peft notes the base's folder, which is there
    (done,) = evaluate(model_args={"peft": str(adapter)}, tasks=["sst2_choice"], limit=2)
    assert done.variant.name == "alone"
    assert done.results["harness_ext"]["base"] == str(tiny_model_folder)


def test_another_prompt_than_in_training_is_reported(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from harness_ext.selection.train import train_adapter
    from harness_ext.training.recipe import Recipe

    output = tmp_path / "prompted"
    recipe = Recipe(
        task="sst2_choice", model=str(tiny_model_folder), output=str(output), max_steps=3, limit=8, lora_rank=2
    )
    train_adapter(recipe)
    caplog.clear()
    _, done = evaluate(str(tiny_model_folder), tasks=["sst2_choice"], adapters=[output], limit=2)
    card = done.results["harness_ext"]["card"]
    assert card["task"] == "sst2_choice"
    assert card["adapter_bytes"] == (output / "adapter_model.safetensors").stat().st_size
    assert "another prompt" not in caplog.text
    evaluate(str(tiny_model_folder), tasks=["sst2_choice"], adapters=[output], limit=2, num_fewshot=1)
    assert "was trained on sst2_choice with another prompt than sst2_choice has here: fewshot" in caplog.text


def bad_inputs() -> list[tuple[str, dict[str, Any], type[HarnessExtError], str]]:
    return [
        (
            "unknown setting",
            {"base": "BASE", "tasks": ["sst2_choice"], "num_fewshots": 1},
            TaskError,
            "mean 'num_fewshot'",
        ),
        ("no model", {"tasks": ["sst2_choice"]}, ModelError, "no model is named"),
        ("unknown task", {"base": "BASE", "tasks": ["sst2_choise"]}, TaskError, "did you mean 'sst2_choice'"),
        ("missing model folder", {"base": "./nowhere", "tasks": ["sst2_choice"]}, ModelError, "nowhere"),
        (
            "unknown model argument",
            {"base": "BASE", "tasks": ["sst2_choice"], "model_args": {"dtpye": "x"}},
            ModelError,
            "dtpye",
        ),
        (
            "unknown dtype",
            {"base": "BASE", "tasks": ["sst2_choice"], "model_args": {"dtype": "f32"}},
            ModelError,
            "float32",
        ),
        (
            "missing adapter",
            {"base": "BASE", "tasks": ["sst2_choice"], "adapters": ["nowhere"]},
            AdapterError,
            "nowhere",
        ),
        (
            "idle adapter",
            {"base": "BASE", "tasks": ["sst2_choice"], "adapters": ["ZERO"]},
            AdapterError,
            "changes nothing",
        ),
        (
            "same adapter twice",
            {"base": "BASE", "tasks": ["sst2_choice"], "adapters": ["ONE", "ONE"]},
            AdapterError,
            "twice",
        ),
    ]


@pytest.mark.parametrize(("_name", "arguments", "error", "says"), bad_inputs(), ids=[case[0] for case in bad_inputs()])
def test_bad_input_gets_one_line(
    _name: str, arguments: dict[str, Any], error: type[HarnessExtError], says: str,
    tiny_model_folder: Path, make_adapter: Callable[..., Path],
) -> None:  # fmt: skip
    adapters = {"ZERO": lambda: make_adapter("zero", zero=True), "ONE": lambda: make_adapter("one")}
    given = {**arguments, "limit": 2}
    if given.get("base") == "BASE":
        given["base"] = str(tiny_model_folder)
    if "adapters" in given:
        made = {name: adapters[name]() for name in set(given["adapters"]) if name in adapters}
        given["adapters"] = [made.get(name, name) for name in given["adapters"]]
    with pytest.raises(error) as raised:
        evaluate(**given)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
