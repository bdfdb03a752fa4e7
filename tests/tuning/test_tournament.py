"""Tournaments on a tiny random model: who wins, what is written, what a kill at any point costs, what is refused."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from harness_ext import cli
from harness_ext.errors import HarnessExtError
from harness_ext.models.card import read_card
from harness_ext.selection.live import LiveEvaluator
from harness_ext.selection.train import train_adapter
from harness_ext.training.evaluator import EvaluatedMetric, HeldOutDocuments
from harness_ext.training.pack_trainer import PackTrainer
from harness_ext.training.trainer import Progress, TrainedAdapter, Training
from harness_ext.tuning.entries import Entry, make_entries
from harness_ext.tuning.record import Record, design_of, documents_of, folder_of
from harness_ext.tuning.tournament import Tournament, tune

EntriesMaker = Callable[..., list[Entry]]
DOCUMENTS = 40
SETTINGS: dict[str, Any] = {
    "task": "sst2_choice", "lora_dropout": 0.1, "limit": 64, "validation_size": 12, "batch_size": 8,
    "learning_rate": 1e-2, "logging_steps": 1, "max_tokens": 400, "dtype": "float32", "save_steps": 1,
    "evaluation_documents": DOCUMENTS,
}  # fmt: skip


@pytest.fixture
def entries_for(tiny_model_folder: Path, tmp_path: Path) -> EntriesMaker:
    """Makes entries of eight steps that differ in the rank."""

    def make(*ranks: int, **values: Any) -> list[Entry]:
        base = {"model": str(tiny_model_folder), "output": str(tmp_path / "adapters" / "best"), **SETTINGS, **values}
        return make_entries([("train", {**base, "lora_rank": rank}) for rank in ranks])

    return make


def scripted(patch: pytest.MonkeyPatch, right: dict[int, int]) -> None:
    """Let the evaluations have the first documents right, as many as stands there for each rank."""

    def scores(self: LiveEvaluator, _: Any, documents: Any) -> list[float]:
        count, n = right[self._start.recipe.lora_rank], len(documents.numbers)
        return [1.0] * count + [0.0] * (n - count)

    patch.setattr(LiveEvaluator, "scores", scores)


def content(made: TrainedAdapter) -> bytes:
    return (made.folder / "adapter_model.safetensors").read_bytes()


def test_a_tournament_from_end_to_end(entries_for: EntriesMaker) -> None:
    lines: list[str] = []
    entries = entries_for(2, 4, 8)
    made = tune(entries, first_rung=0.25, report=lines.append)
    record = made.card.tournament
    assert record is not None
    assert [rung["share"] for rung in record["rungs"]] == [0.25, 0.5][: len(record["rungs"])]
    assert [entry["name"] for entry in record["entries"]] == ["lora_rank=2", "lora_rank=4", "lora_rank=8"]
    assert {entry["step"] for entry in record["entries"]} <= {2, 4}
    winner = record["entries"][record["winner"] - 1]
    assert winner["standing"] == "winner"
    assert made.card.recipe["lora_rank"] == entries[record["winner"] - 1].recipe.lora_rank
    losers = [entry for entry in record["entries"] if entry is not winner]
    assert all(entry["difference_low"] <= entry["difference"] <= entry["difference_high"] for entry in losers)
    assert record["winner_again"]["documents"] == record["documents"] == DOCUMENTS
    assert record["trained_share"] == pytest.approx((8 + sum(entry["step"] for entry in losers)) / 24)
    assert read_card(made.folder) == made.card
    readme = (made.folder / "README.md").read_text()
    assert readme.startswith("---\n")
    assert "# best" in readme
    assert "\n## Chosen in a tournament\n" in readme
    assert len([line for line in readme.splitlines() if line.startswith("| lora_rank=")]) == 3
    assert [path.name for path in made.folder.parent.iterdir()] == ["best"]  # no state is left
    assert sum(" rung 1, step 2 of 8, lora_rank=" in line for line in lines) == 3
    assert lines[-1].endswith("s of scoring")

    # its weights are those of a training in one go that holds out the same documents
    recipe = entries[record["winner"] - 1].recipe
    whole = train_adapter(replace(recipe, output=f"{recipe.output}-whole", evaluate_every=1000))
    assert content(whole) == content(made)
    assert whole.card.data_sha256 == made.card.data_sha256
    assert whole.card.selection is not None
    assert whole.card.selection["chosen_again"]["score"] == record["winner_again"]["score"]


@pytest.mark.parametrize(
    ("right", "winner", "standings"),
    [
        ({2: 30, 4: 31, 8: 10}, 4, ["not distinguishable", "winner", "worse"]),
        ({2: 20, 4: 20, 8: 20}, 2, ["winner", "not distinguishable", "not distinguishable"]),  # equal: the cheaper
        ({2: 5, 4: 6, 8: 35}, 8, ["worse", "worse", "winner"]),  # decided after one rung
    ],
)
def test_who_wins(
    entries_for: EntriesMaker,
    monkeypatch: pytest.MonkeyPatch,
    right: dict[int, int],
    winner: int,
    standings: list[str],
) -> None:
    begun = functools.partial(without_training, right=right)
    monkeypatch.setattr(Tournament, "_begun", lambda self, entry: begun(self, entry))
    record: Any = tune(entries_for(2, 4, 8), first_rung=0.25)
    assert record["entries"][record["winner"] - 1]["name"] == f"lora_rank={winner}"
    assert [entry["standing"] for entry in record["entries"]] == standings
    assert len(record["rungs"]) == (1 if winner == 8 else 2)


def without_training(self: Tournament, entry: int, *, right: dict[int, int]) -> Any:
    """An entry whose evaluations have the first documents right, and of which no step is trained."""
    rank = self._entries[entry].recipe.lora_rank
    documents = HeldOutDocuments(tuple(range(DOCUMENTS)), None)
    evaluator = SimpleNamespace(
        scores=lambda *_: [1.0] * right[rank] + [0.0] * (DOCUMENTS - right[rank]), for_choice=documents,
        for_report=documents, data_sha256="d", metric=EvaluatedMetric("acc", (0, 1), True, True),
    )  # fmt: skip
    self._record.describe(documents_of(evaluator))  # type: ignore[arg-type]
    steps: list[float] = []
    training = SimpleNamespace(
        model=None, fit=lambda until=1.0: steps.append(8 * until), write=lambda tournament: tournament,
        progress=lambda: Progress(int(steps[-1]), 8, 64, 100 * rank, 1.0),
    )  # fmt: skip
    return contextlib.nullcontext((training, evaluator))


# -- kills -----------------------------------------------------------------------------------------------------------


class Watched:
    """Logs what is done, and ends the process as SIGKILL does at a point of it."""

    def __init__(self, log: Path, point: str = "", count: int = 0) -> None:
        self.log, self.point, self.left = log, point, count

    def at(self, point: str) -> None:
        """Die here, if this is the point."""
        if point == self.point:
            self.left -= 1
            if not self.left:
                os._exit(9)

    def note(self, line: str) -> None:
        with self.log.open("a") as log:
            log.write(line + "\n")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        step, scores = PackTrainer.training_step, LiveEvaluator.scores
        write, finish = Record.write, Training.write

        def training_step(trainer: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
            self.at("training")
            loss = step(trainer, *args, **kwargs)
            self.note(f"{Path(trainer.args.output_dir).name} trained step {trainer.state.global_step + 1}")
            return loss

        def scored(evaluator: LiveEvaluator, model: Any, documents: Any) -> list[float]:
            made = scores(evaluator, model, documents)
            self.at("scored")
            again = documents is evaluator.for_report
            self.note(
                f"rank {evaluator._start.recipe.lora_rank} scored {self.log.read_text().count('trained')} {again}"
            )
            return made

        def recorded(record: Record) -> None:
            write(record)
            self.at("recorded")

        def written(training: Training, **records: Any) -> TrainedAdapter:
            made = finish(training, **records)
            self.at("written")
            return made

        patch.setattr(PackTrainer, "training_step", training_step)
        patch.setattr(LiveEvaluator, "scores", scored)
        patch.setattr(Record, "write", recorded)
        patch.setattr(Training, "write", written)


def in_child(work: Callable[[], object]) -> int:
    """Run something in a child process; its exit code."""
    child = os.fork()
    if not child:
        tqdm.set_lock(threading.RLock())  # a thread of the parent may hold the lock that is copied here
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


KILLS = [  # each goes on where the one before it was killed
    ("recorded", 1),  # the design
    ("training", 2),  # within the first rung
    ("scored", 1),  # but not recorded
    ("recorded", 1),
    ("recorded", 2),  # the last of the first rung
    ("training", 1),  # within the second rung
    ("recorded", 2),  # the last of the second rung
    ("training", 3),  # the winner
    ("recorded", 1),  # its score
    ("written", 1),  # but the state not removed
]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills child processes")
def test_killed_at_every_rung_and_within(
    entries_for: EntriesMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {2: 20, 4: 22, 8: 21})
    whole, killed = tmp_path / "whole.log", tmp_path / "killed.log"
    entries = entries_for(2, 4, 8)
    apart = [Entry(entry.name, replace(entry.recipe, output=str(tmp_path / "whole" / "best"))) for entry in entries]
    with monkeypatch.context() as patch:
        Watched(whole).install(patch)
        expected = tune(apart, first_rung=0.25)
    for number, (point, count) in enumerate(KILLS):
        with monkeypatch.context() as patch:
            Watched(killed, point, count).install(patch)
            code = in_child(lambda first=not number: tune(entries, first_rung=0.25, resume=not first))  # type: ignore[misc]
        assert code == 9, (number, point)
    with monkeypatch.context() as patch:
        Watched(killed, "training", 1).install(patch)
        made = tune(entries, first_rung=0.25, resume=True)
    assert content(made) == content(expected)
    assert killed.read_text().splitlines() == whole.read_text().splitlines()  # nothing twice, in the same order
    assert len(whole.read_text().splitlines()) == 3 * 2 + 3 + 2 * 2 + 2 + 4 + 1
    assert made.card.recipe["lora_rank"] == 4
    assert without_seconds(made.card.tournament) == without_seconds(expected.card.tournament)
    assert [path.name for path in made.folder.parent.iterdir()] == ["best"]
    assert load_file(made.folder / "adapter_model.safetensors")


def without_seconds(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.endswith("seconds")}


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipes(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two recipes and a space, in which commands run."""
    monkeypatch.chdir(tmp_path)
    for name, rank in (("A", 2), ("B", 4)):
        values = {**SETTINGS, "model": str(tiny_model_folder), "output": "adapters/best", "lora_rank": rank}
        Path(f"{name}.yaml").write_text(json.dumps(values))
    Path("space.yaml").write_text("lora_rank: [2, 4]\n")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.strip() and "Loading weights" not in line]  # not our bar
    assert len(lines) == 1, shown
    assert lines[0].startswith("harness-ext: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tune", "--recipe", "A.yaml", "C.yaml"), "C.yaml"),
        (("train", "--recipe", "A.yaml", "C.yaml"), "C.yaml"),
        (("tune", "--recipe", "A.yaml"), "two entries or more"),
        (("tune", "--recipe", "A.yaml", "--space", "none.yaml"), "none.yaml"),
        (("tune", "--recipe", "A.yaml", "B.yaml", "--first-rung", "1.5"), "--first-rung must be above 0"),
        (("tune", "--recipe", "A.yaml", "B.yaml", "--first-rung", "nan"), "--first-rung must be above 0"),
        (("tune", "--recipe", "A.yaml", "B.yaml", "--resume"), "no tournament of adapters/best to resume"),
        (("train", "--recipe", "A.yaml", "A.yaml"), "is twice in the tournament"),
        (("train", "--recipe", "A.yaml", "B.yaml", "--evaluate-every", "2"), "--evaluate-every is set"),
        (("tune", "--recipe", "A.yaml", "B.yaml", "--evaluation-documents", "100"), "give at most 84"),
        (("tune", "--recipe", "A.yaml", "B.yaml", "--evaluation-documents", "20"), "give at least 30"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    recipes: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(capsys, *arguments)
    assert not (recipes / "adapters").exists()


def test_what_is_in_the_way_is_kept(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness_ext.training.recipe import read_recipe

    command = ("tune", "--recipe", "A.yaml", "B.yaml")
    output = recipes / "adapters" / "best"
    output.mkdir(parents=True)
    (output / "mine.txt").write_text("mine")
    assert "already contains" in refused(capsys, *command)
    assert (output / "mine.txt").read_text() == "mine"
    (output / "mine.txt").unlink()
    output.rmdir()
    output.write_text("a file")
    assert "is a file" in refused(capsys, *command)
    output.unlink()
    entries = make_entries([(f"{name}.yaml", read_recipe(f"{name}.yaml")) for name in "AB"])
    folder = folder_of("adapters/best")
    folder.mkdir()
    Record(folder, design_of(entries, 1 / 12)).write()
    state = (folder / "tournament.json").read_text()
    assert "holds the state of a tournament; continue it with --resume" in refused(capsys, *command)
    for flags, expected in (
        (("--learning-rate", "1e-3"), "--learning-rate of entry 1 was 0.01, is 0.001"),
        (("--seeds", "2"), "it has 2 entries, not 4"),
        (("--first-rung", "0.25"), "first_rung was 0.083"),
    ):
        assert expected in refused(capsys, *command, "--resume", *flags)
    (folder / "tournament.json").write_text(state.replace('"rungs": []', '"rungs": [{"0": {"step": 1}}]'))
    assert "is damaged" in refused(capsys, *command, "--resume")
    (folder / "tournament.json").write_text("{")
    assert "is damaged" in refused(capsys, *command, "--resume")


def test_changed_documents_are_refused(entries_for: EntriesMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "fit", lambda *_, **__: None)
    monkeypatch.setattr(Training, "progress", lambda _: Progress(2, 8, 64, 100, 1.0))
    scripted(monkeypatch, {2: 20, 4: 22})
    hashes = iter("ab")

    def init(self: LiveEvaluator, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.data_sha256 = next(hashes)

    made = LiveEvaluator.__init__
    monkeypatch.setattr(LiveEvaluator, "__init__", init)
    with pytest.raises(HarnessExtError, match="have changed since the tournament began"):
        tune(entries_for(2, 4), first_rung=0.25)


def test_several_recipes_of_train_are_a_tournament(
    recipes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands hand the same entries over, and print what `train` prints."""
    seen: list[list[str]] = []

    def remember(entries: list[Entry], **_: Any) -> TrainedAdapter:
        seen.append([f"{entry.name} {entry.recipe.lora_rank} {entry.recipe.seed}" for entry in entries])
        raise HarnessExtError("seen")

    monkeypatch.setattr("harness_ext.tuning.tournament.tune", remember)
    assert cli.main(["train", "--recipe", "A.yaml", "B.yaml", "--seeds", "2"]) == 2
    assert cli.main(["tune", "--recipe", "A.yaml", "--recipe", "B.yaml", "--seeds", "2"]) == 2
    assert cli.main(["tune", "sst2_choice", "--recipe", "A.yaml", "--space", "space.yaml"]) == 2
    assert seen[0] == seen[1] == ["A seed=0 2 0", "A seed=1 2 1", "B seed=0 4 0", "B seed=1 4 1"]
    assert seen[2] == ["lora_rank=2 2 0", "lora_rank=4 4 0"]
