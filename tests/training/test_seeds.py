"""One recipe with several seeds: names, folders in use, and resuming. Nothing is trained here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import RecipeError, TrainingError
from harness_ext.models.card import AdapterCard
from harness_ext.training.checkpoints import seal
from harness_ext.training.recipe import Recipe
from harness_ext.training.seeds import seed_recipes, train_seeds
from harness_ext.training.trainer import TrainedAdapter


def recipe(folder: Path, **values: Any) -> Recipe:
    return Recipe(task="sst2_choice", model="tiny", output=str(folder / "mine"), **values)


class Recorder:
    """Replaces `train_adapter`: writes a card and records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, bool]] = []
        self.inspected: list[bool] = []

    def __call__(self, each: Recipe, *, resume: bool, overwrite: bool, inspect: Any) -> TrainedAdapter:
        self.inspected.append(inspect is not None)
        self.calls.append((Path(each.output).name, each.seed, resume))
        plain = {"str": "", "int": 0, "float": 0.0, "bool": False}
        made = {field.name: plain.get(str(field.type), {}) for field in dataclasses.fields(AdapterCard)}
        made |= {"base_revision": None, "base_sha256": None, "validation_loss": None}
        made |= {"selection": None, "tournament": None}
        made |= {"recipe": {**each.for_card(), "learning_rate": 0.001}, "seed": each.seed}
        Path(each.output).mkdir(exist_ok=True)
        (Path(each.output) / "card.json").write_text(json.dumps(made))
        return TrainedAdapter(Path(each.output), AdapterCard(**made))  # type: ignore[arg-type]


def test_seeds_count_from_the_recipes_own(tmp_path: Path) -> None:
    made = [(each.seed, Path(each.output).name) for each in seed_recipes(recipe(tmp_path, seed=5), 3)]
    assert made == [(5, "mine-seed5"), (6, "mine-seed6"), (7, "mine-seed7")]


@pytest.mark.parametrize("count", [0, -1])
def test_no_seed_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(RecipeError, match="--seeds must be positive"):
        list(train_seeds(recipe(tmp_path), count, train=Recorder()))


def test_every_seed_is_trained_in_turn(tmp_path: Path) -> None:
    train = Recorder()
    inspecting = train_seeds(recipe(tmp_path), 3, inspect=lambda _: None, train=train)
    folders = [trained.folder.name for trained in inspecting]
    assert train.inspected == [True, False, False]
    assert folders == ["mine-seed0", "mine-seed1", "mine-seed2"]
    assert train.calls == [("mine-seed0", 0, False), ("mine-seed1", 1, False), ("mine-seed2", 2, False)]


def test_a_taken_folder_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mine-seed2").mkdir()
    (tmp_path / "mine-seed2" / "card.json").write_text("{}")
    train = Recorder()
    with pytest.raises(TrainingError, match=r"mine-seed2 is in use .*--resume.*--overwrite"):
        list(train_seeds(recipe(tmp_path), 3, train=train))
    assert train.calls == []


def test_resuming_keeps_what_is_done_and_goes_on_with_what_was_interrupted(tmp_path: Path) -> None:
    train = Recorder()
    list(train_seeds(recipe(tmp_path), 1, train=train))
    checkpoint = tmp_path / ".mine-seed1.training" / "checkpoint-50"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    seal(checkpoint, [])
    made = list(train_seeds(recipe(tmp_path), 3, resume=True, train=train))
    assert [trained.card.seed for trained in made] == [0, 1, 2]
    assert train.calls[1:] == [("mine-seed1", 1, True), ("mine-seed2", 2, False)]


def test_an_adapter_of_an_older_version_is_kept(tmp_path: Path) -> None:
    """Its card lacks the fields that recipes have had since; they had their defaults."""
    list(train_seeds(recipe(tmp_path), 1, train=Recorder()))
    file = tmp_path / "mine-seed0" / "card.json"
    card = json.loads(file.read_text())
    for name in ("evaluate_every", "evaluation_documents", "evaluation_cost", "patience"):
        del card["recipe"][name]
    file.write_text(json.dumps(card))
    train = Recorder()
    list(train_seeds(recipe(tmp_path), 1, resume=True, train=train))
    assert train.calls == []
    with pytest.raises(TrainingError, match=r"mine-seed0 .* evaluate_every, patience;"):
        list(train_seeds(recipe(tmp_path, evaluate_every=5, patience=2), 1, resume=True, train=Recorder()))


def test_resuming_another_recipe_is_refused(tmp_path: Path) -> None:
    list(train_seeds(recipe(tmp_path), 1, train=Recorder()))
    with pytest.raises(TrainingError, match=r"mine-seed0 .* lora_rank;"):
        list(train_seeds(recipe(tmp_path, lora_rank=16), 2, resume=True, train=Recorder()))
