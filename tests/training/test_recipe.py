"""Recipes: which values are accepted, and the errors for others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import RecipeError
from harness_ext.training.recipe import Recipe, flag, from_text, read_recipe, recipe_from

NEEDED = {"task": "sst2_choice", "model": "m", "output": "adapters/x"}
ADAPTERS = Path(__file__).parents[2] / "adapters"


def recipe(**values: Any) -> Recipe:
    return recipe_from({**NEEDED, **values}, source="my.yaml")


def test_an_unknown_key_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"my\.yaml: unknown 'learning_rat'; did you mean 'learning_rate'\?"):
        recipe(learning_rat=1)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"{name!r} is missing; set it there or as --{name}"):
        recipe(**{name: None})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("lora_rank", "8", "a whole number"),
        ("lora_rank", 8.0, "a whole number"),
        ("lora_rank", True, "a whole number"),
        ("lora_rank", None, "a whole number"),
        ("limit", "all", "a whole number or unset"),
        ("learning_rate", "fast", "a number or unset"),
        ("learning_rate", True, "a number or unset"),
        ("learning_rate", float("nan"), "a number or unset"),
        ("learning_rate", ".inf", "a number or unset"),
        ("epochs", None, "a number"),
        ("epochs", [1], "a number"),
        ("use_dora", "yes", "true or false"),
        ("use_dora", 1, "true or false"),
        ("fewshot_as_multiturn", "no", "true or false or unset"),
        ("quantization", "int8", "'none' or 'nf4'"),
        ("dtype", "float64", "'auto' or 'float32' or 'bfloat16' or 'float16'"),
        ("dtype", ["float32"], "'auto' or"),
        ("target_modules", [1], "text or a list of names"),
        ("target_modules", [], "text or a list of names"),
        ("target_modules", None, "text or a list of names"),
        ("modules_to_save", "lm_head", "a list of names or unset"),
        ("include_path", 3, "text or a list of names or unset"),
        ("revision", 12, "text or unset"),
        ("task", 3, "text"),
    ],
)
def test_wrong_types(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**{name: value})
    assert str(caught.value).startswith(f"my.yaml: {name} must be {allowed}")
    with pytest.raises(RecipeError, match=f"{name} must be"):  # also without YAML
        Recipe(**{**NEEDED, name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "1e-3", 1e-3),  # YAML reads it as text
        ("learning_rate", 1, 1.0),
        ("learning_rate", None, None),
        ("epochs", 2, 2.0),
        ("limit", 10, 10),
        ("limit", None, None),
        ("use_dora", True, True),
        ("fewshot_as_multiturn", None, None),
        ("fewshot_as_multiturn", False, False),
        ("target_modules", "all-linear", "all-linear"),
        ("target_modules", ["q_proj"], ["q_proj"]),
        ("include_path", "tasks/mine", "tasks/mine"),
        ("include_path", ["tasks/mine", "more"], ["tasks/mine", "more"]),
        ("include_path", None, None),
        ("modules_to_save", ["lm_head"], ["lm_head"]),
        ("dtype", "bfloat16", "bfloat16"),
        ("init_lora_weights", "pissa_niter_16", "pissa_niter_16"),
        ("system_instruction", None, None),
    ],
)
def test_accepted(name: str, value: Any, expected: Any) -> None:
    actual = getattr(recipe(**{name: value}), name)
    assert actual == expected
    assert type(actual) is type(expected)


IMPOSSIBLE = {
    **dict.fromkeys(("lora_rank", "batch_size", "gradient_accumulation_steps", "max_tokens", "save_steps"), 0),
    **dict.fromkeys(("logging_steps", "limit", "max_length"), 0),
    **dict.fromkeys(("max_steps", "validation_size", "seed", "num_fewshot"), -1),
    **dict.fromkeys(("lora_alpha", "epochs", "learning_rate"), 0.0),
    **dict.fromkeys(("weight_decay", "max_grad_norm"), -0.1),
    **dict.fromkeys(("lora_dropout", "warmup_ratio"), 1.0),
    **dict.fromkeys(("task", "model", "output"), " "),
    "init_lora_weights": "pisa",
}


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE.items())
def test_impossible_values_name_the_flag(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"^{flag(name)} must") as caught:
        recipe(**{name: value})
    assert repr(value) in str(caught.value)
    with pytest.raises(RecipeError, match=flag(name)):
        dataclasses.replace(recipe(), **{name: value})


@pytest.mark.parametrize(
    "other",
    [{"use_dora": True}, {"quantization": "nf4"}, {"modules_to_save": ["lm_head"]}],
    ids=lambda d: next(iter(d)),
)
def test_what_a_start_that_changes_the_base_excludes(other: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="--init-lora-weights pissa"):
        recipe(init_lora_weights="pissa", **other)


def test_every_field_goes_through_text_and_back() -> None:
    """The text of each field's default, as on the command line."""
    for field in dataclasses.fields(Recipe):
        if field.name in NEEDED:
            continue
        default = field.default
        text = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        assert getattr(recipe(**{field.name: from_text(field.name, text)}), field.name) == default, field.name


def test_text_fields_stay_text() -> None:
    assert from_text("output", "2024") == "2024"
    assert from_text("system_instruction", "yes") == "yes"
    assert from_text("target_modules", "[q_proj, v_proj]") == ["q_proj", "v_proj"]
    assert from_text("target_modules", ".*_proj") == ".*_proj"
    assert from_text("limit", "{") == "{"  # its type is refused later


def test_the_card_names_no_place() -> None:
    shown = recipe(
        task="/home/me/tasks/mine.yaml", model="/data/models/base", output="/scratch/x",
        include_path=["/home/me/tasks", "~/more/tickets/"],
    ).for_card()  # fmt: skip
    assert shown["task"] == "mine"
    assert shown["include_path"] == ["tasks", "tickets"]
    assert not any("/" in str(value) for value in shown.values())
    assert shown["lora_rank"] == 8


def test_learning_rate_by_size() -> None:
    of = recipe().learning_rate_for
    assert of(10_000) == of(134_515_008) == of(135_000_000) == 1e-3
    assert of(1_000_000_000) == of(70_000_000_000) == pytest.approx(2e-4)
    assert 2e-4 < of(360_000_000) < 1e-3
    assert recipe(learning_rate=3e-4).learning_rate_for(10_000) == 3e-4


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_recipes_are_sound(path: Path) -> None:
    assert recipe_from(read_recipe(path), source=str(path)).output == f"adapters/{path.stem}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "cannot be read"), ("a: [", "cannot be read as YAML"), ("- a", "must be a mapping"), ("", "mapping")],
)
def test_broken_recipe_files(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=problem) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_of_more_tasks_as_the_command_has_them(tmp_path: Path) -> None:
    assert recipe().include_paths == ()
    assert recipe(include_path="tasks/mine").include_paths == ("tasks/mine",)
    assert recipe(include_path=["a", "b"]).include_paths == ("a", "b")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "tasks/recipe"),
        (["--include_path", "tasks/a"], ["tasks/a"]),  # a flag takes precedence over the file
        (["--include_path", "tasks/a", "--include-path", "tasks/b"], ["tasks/a", "tasks/b"]),
    ],
)
def test_the_flag_is_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: Any
) -> None:
    from harness_ext import cli

    seen: list[Recipe] = []

    def remember(each: Recipe, **_: Any) -> None:
        seen.append(each)
        raise RecipeError("seen")

    monkeypatch.setattr("harness_ext.selection.train.train_adapter", remember)
    (tmp_path / "mine.yaml").write_text("model: m\noutput: x\ninclude_path: tasks/recipe\n")
    assert cli.main(["train", "sst2_choice", "--recipe", str(tmp_path / "mine.yaml"), *flags]) == 2
    assert [each.include_path for each in seen] == [expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"evaluate_every": 0}, "--evaluate-every must be a whole number of steps, or a share of an epoch"),
        ({"evaluate_every": -0.5}, "--evaluate-every must be"),
        ({"evaluate_every": 2.5}, "--evaluate-every must be"),
        ({"evaluate_every": 10, "evaluation_documents": 0}, "--evaluation-documents must be positive"),
        ({"include_path": ["tasks\0"]}, "--include-path must not contain a null character"),
        ({"evaluate_every": 10, "evaluation_cost": 1.0}, "--evaluation-cost must be at least 0 and less than 1"),
        ({"evaluate_every": 10, "patience": -1}, "--patience must not be negative"),
        ({"patience": 3}, "--patience counts evaluations, so it needs --evaluate-every"),
    ],
)
def test_impossible_settings(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**values)
    assert str(caught.value).startswith(expected)
    assert recipe(evaluate_every=10, patience=3).patience == 3
    assert recipe(evaluate_every="0.25").evaluate_every == 0.25
