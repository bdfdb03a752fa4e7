"""Entries of a tournament: recipe files, search spaces, seeds; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import RecipeError
from harness_ext.tuning.entries import Space, check_entries, make_entries, read_space

BASE: dict[str, Any] = {"task": "sst2_choice", "model": "tiny", "output": "adapters/best"}


def space_of(tmp_path: Path, text: str) -> Space:
    (tmp_path / "space.yaml").write_text(text)
    return read_space(tmp_path / "space.yaml")


def test_every_combination_is_an_entry(tmp_path: Path) -> None:
    space = space_of(tmp_path, "learning_rate: [1e-4, 3e-4]\nlora_rank: [8, 16]\nseeds: 2\n")
    entries = make_entries([("train", BASE)], space=space)
    check_entries(entries)
    assert [entry.name for entry in entries][:3] == [
        "lora_rank=8 learning_rate=0.0001 seed=0", "lora_rank=8 learning_rate=0.0001 seed=1",
        "lora_rank=16 learning_rate=0.0001 seed=0",
    ]  # fmt: skip
    assert [(e.recipe.learning_rate, e.recipe.lora_rank, e.recipe.seed) for e in entries] == [
        (rate, rank, seed) for rate in (1e-4, 3e-4) for rank in (8, 16) for seed in (0, 1)
    ]


def test_values_may_be_lists_or_unset(tmp_path: Path) -> None:
    space = space_of(tmp_path, "target_modules: [all-linear, [q_proj, v_proj]]\nlimit: [100, null]\n")
    entries = make_entries([("train", BASE)], space=space)
    assert [(e.recipe.target_modules, e.recipe.limit) for e in entries][1:3] == [
        ("all-linear", None), (["q_proj", "v_proj"], 100),
    ]  # fmt: skip
    assert entries[3].name == 'target_modules=["q_proj", "v_proj"] limit=unset'


def test_recipe_files_give_the_names() -> None:
    entries = make_entries([("here/A.yaml", {**BASE, "lora_rank": 4}), ("B.yaml", {**BASE, "seed": 5})], seeds=2)
    assert [entry.name for entry in entries] == ["A seed=0", "A seed=1", "B seed=5", "B seed=6"]
    alike = make_entries([("a/x.yaml", BASE), ("b/x.yaml", {**BASE, "lora_rank": 4})])
    assert [entry.name for entry in alike] == ["lora_rank=8", "lora_rank=4"]
    assert "/" not in "".join(entry.name for entry in entries)  # no path of this machine


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rat: [1e-4]", "unknown 'learning_rat'; did you mean 'learning_rate'?"),
        ("lora_r: [8, 16]", "unknown 'lora_r'; did you mean 'lora_rank'?"),
        ("learning_rate: 1e-4", "learning_rate must be a list of values"),
        ("learning_rate: []", "learning_rate must be a list of values"),
        ("learning_rate: {low: 1}", "learning_rate must be a list of values"),
        ("seeds: 0", "seeds must be a positive whole number"),
        ("seeds: [1, 2]", "seeds must be a positive whole number"),
        ("seeds: true", "seeds must be a positive whole number"),
        ("seeds: 2\nseed: [1, 2]", "either seed, a list, or seeds"),
        ("task: [a, b]", "'task' cannot be searched"),
        ("model: [a, b]", "'model' cannot be searched"),
        ("evaluate_every: [5, 10]", "'evaluate_every' cannot be searched, and a tournament scores its entries itself"),
        ("- learning_rate", "must be a mapping"),
        ("", "must be a mapping"),
        ("3: [1]", "must be a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_spaces_that_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        space_of(tmp_path, text)
    assert expected in str(caught.value)
    assert "space.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml.*correct the file or its path"):
        read_space(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("recipes", "space", "seeds", "expected"),
    [
        ([{}], {}, None, "two entries or more, and this is one"),
        ([{}], {"lora_rank": [8]}, 1, "two entries or more, and this is one"),
        ([{}], {"lora_rank": [8, 8]}, None, "'sst2_choice' is twice in the tournament"),
        ([{}, {}], {}, None, "is twice in the tournament"),
        ([{}, {"output": "adapters/other"}], {}, None, "differ in output"),
        ([{}, {"task": "ag_news_choice"}], {}, None, "differ in task"),
        ([{}, {"model": "other"}], {}, None, "differ in model"),
        ([{}, {"evaluation_documents": 60}], {}, None, "differ in evaluation_documents"),
        ([{}, {"evaluate_every": 5, "lora_rank": 4}], {}, None, "--evaluate-every is set"),
        ([{}], {"lora_rank": [8, 0]}, None, "--lora-rank must be positive"),
        ([{}], {"lora_rank": [8, "many"]}, None, "lora_rank must be a whole number"),
        ([{}], {"lora_rank": list(range(1, 66))}, None, "65 entries are too many"),
        ([{}], {}, 10**9, "entries are too many"),
        ([{}], {}, 0, "--seeds must be positive"),
        ([{}], {"seed": [1, 2]}, 2, "--seeds and the seeds of the search space exclude each other"),
    ],
)
def test_entries_that_are_refused(
    recipes: list[dict[str, Any]], space: dict[str, list[Any]], seeds: int | None, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_entries(
            make_entries([("train", {**BASE, **values}) for values in recipes], space=Space(space), seeds=seeds)
        )
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
