"""Training with an evaluation of checkpoints: what is held out, what is left untouched, what is chosen and written."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness_ext.errors import HarnessExtError, RecipeError, TaskError, TrainingError, WriteError
from harness_ext.models.card import read_card
from harness_ext.protocol.content import content_keys
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.selection.carve import carve
from harness_ext.selection.live import LiveEvaluator, live_evaluator, untouched
from harness_ext.selection.train import train_adapter
from harness_ext.training import trainer as trainers
from harness_ext.training.batches import build_examples
from harness_ext.training.evaluated_states import EvaluatedState, EvaluatedStates
from harness_ext.training.evaluating import StateEvaluation
from harness_ext.training.pack_trainer import PackTrainer
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import TrainedAdapter, start_training

RecipeMaker = Callable[..., Recipe]


def weights(made: TrainedAdapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(made.folder / "adapter_model.safetensors")
    return tensors


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def recipe_for(tiny_model_folder: Path, tmp_path: Path) -> RecipeMaker:
    """Makes a recipe that evaluates every second of eight steps, whatever that costs."""

    def make(**values: Any) -> Recipe:
        known: dict[str, Any] = {
            "task": "sst2_choice", "model": str(tiny_model_folder), "output": str(tmp_path / "adapters" / "made"),
            "lora_rank": 4, "lora_dropout": 0.1, "limit": 64, "validation_size": 12, "batch_size": 8,
            "learning_rate": 1e-2, "logging_steps": 1, "max_tokens": 400, "dtype": "float32", "evaluate_every": 2,
            "evaluation_documents": 40, "evaluation_cost": 0.0,
        }  # fmt: skip
        return Recipe(**{**known, **values})

    return make


def scripted(monkeypatch: pytest.MonkeyPatch, *right: int) -> None:
    """Let the evaluations have the first documents right, so many each; the one after them is the final one."""
    remaining = list(right)

    def scores(self: LiveEvaluator, _: Any, documents: Any) -> list[float]:
        n = len(documents.numbers)
        count = remaining.pop(0) if set(documents.numbers) <= set(self.for_choice.numbers) else n // 2
        return [1.0] * count + [0.0] * (n - count)

    monkeypatch.setattr(LiveEvaluator, "scores", scores)


def state_of(recipe: Recipe, step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights that a run without an evaluation has after a step of its schedule."""
    seen: dict[str, Tensor] = {}
    made = PackTrainer.training_step

    def training_step(self: PackTrainer, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == step:
            seen.update({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return made(self, model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PackTrainer, "training_step", training_step)
        train_adapter(recipe, overwrite=True)
    return seen


# -- the whole -------------------------------------------------------------------------------------------------------


def test_a_run_from_end_to_end(recipe_for: RecipeMaker) -> None:
    lines: list[str] = []
    made = train_adapter(recipe_for(), on_evaluation=lines.append)
    assert [re.findall(r"step (\d+) of 8", line) for line in lines] == [["2"], ["4"], ["6"], ["8"], []]
    assert all(re.search(r"acc [\d.]+ \[[\d.]+, [\d.]+\] on 40 documents, would keep step \d", x) for x in lines[:4])
    selection = made.card.selection
    assert selection is not None
    assert [point["step"] for point in selection["curve"]] == [2, 4, 6, 8]
    assert all(point["low"] <= point["score"] <= point["high"] for point in selection["curve"])
    assert (selection["metric"], selection["documents"], selection["planned_steps"]) == ("acc", 40, 8)
    assert selection["chosen_again"]["documents"] == 40
    assert read_card(made.folder) == made.card
    readme = (made.folder / "README.md").read_text()
    assert len(re.findall(rf"^\| {selection['chosen_step']} \| [\d.]+ \|", readme, re.MULTILINE)) == 1
    assert f"| **{selection['chosen_step']}** |" in readme
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["made"]


def test_scores_are_those_of_the_evaluator_on_the_written_adapter(recipe_for: RecipeMaker) -> None:
    """The chosen checkpoint, loaded anew from its folder, has the score of the card on the same documents."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = recipe_for(learning_rate=5e-2)
    card = train_adapter(recipe).card
    start = start_training(recipe)
    evaluator = LiveEvaluator(start)
    base = AutoModelForCausalLM.from_pretrained(recipe.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, recipe.output)
    assert card.selection is not None
    for documents, expected in (
        (evaluator.for_report, card.selection["chosen_again"]),
        (evaluator.for_choice, next(p for p in card.selection["curve"] if p["step"] == card.selection["chosen_step"])),
    ):
        assert np.mean(evaluator.scores(model, documents)) == pytest.approx(expected["score"])


@pytest.mark.parametrize("task", ["sst2_generate", "squad_v2_generate", "tickets_choice"])
def test_other_kinds_of_tasks(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setattr("harness_ext.selection.carve.LEAST_UNITS", 2)  # the samples are small
    made = train_adapter(recipe_for(task=task, max_steps=2, evaluation_documents=10, limit=16, max_tokens=2000))
    assert made.card.selection is not None
    assert 0 <= made.card.selection["chosen_again"]["score"] <= 1


# -- training is not disturbed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra", [{}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}], ids=str
)
def test_training_goes_on_bit_identically(
    recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    """The last state, with dropout and after three evaluations, is that of a training that never scores a document."""
    monkeypatch.setattr(StateEvaluation, "_load", lambda *_: None)  # keep the last state
    with_evaluation = train_adapter(recipe_for(**extra))
    scripted(monkeypatch, 0)
    without = train_adapter(recipe_for(evaluate_every=1000, **extra), overwrite=True)
    assert with_evaluation.card.selection is not None
    assert len(with_evaluation.card.selection["curve"]) == 4
    assert_same_weights(weights(without), weights(with_evaluation))
    assert with_evaluation.card.train_loss == without.card.train_loss
    assert with_evaluation.card.data_sha256 == without.card.data_sha256
    assert with_evaluation.card.fingerprint == without.card.fingerprint


def test_modes_gradients_and_generators_are_as_before(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for()
    start = start_training(recipe)
    model = trainers.add_lora(start.lm.model, recipe)
    model.train()
    next(iter(model.modules())).training = False
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    evaluator = LiveEvaluator(start)
    evaluator.scores(model, evaluator.for_choice)
    with pytest.raises(ZeroDivisionError), untouched(model):
        torch.rand(1), random.random(), 1 / 0
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert "tie_weights" not in vars(model)


# -- the choice ------------------------------------------------------------------------------------------------------


def test_the_chosen_weights_are_written(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for()
    scripted(monkeypatch, 10, 30, 32, 29)
    expected = state_of(recipe, 4, monkeypatch)
    scripted(monkeypatch, 10, 30, 32, 29)
    made = train_adapter(recipe, overwrite=True)
    selection = made.card.selection
    assert selection is not None
    assert (selection["chosen_step"], selection["best_step"]) == (4, 6)
    tensors = weights(made)
    assert len(tensors) == len(expected)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name.replace(".weight", ".default.weight")]), name


def test_equal_checkpoints_keep_the_first(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 20, 20, 20, 20)
    selection = train_adapter(recipe_for()).card.selection
    assert selection is not None
    assert selection["chosen_step"] == 2


def test_patience_stops_when_nothing_is_better_beyond_noise(
    recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 10, 30, 31, 32)
    lines: list[str] = []
    card = train_adapter(recipe_for(patience=2, epochs=3), on_evaluation=lines.append).card
    assert card.selection is not None
    assert (card.selection["chosen_step"], card.selection["last_step"]) == (4, 8)
    assert card.selection["planned_steps"] == 24
    assert "stopped at step 8 of 24" in lines[-2]


# -- interruptions ---------------------------------------------------------------------------------------------------


def interrupted(recipe: Recipe, steps: int, times: int = 1, **how: Any) -> str:
    """Press Ctrl-C in the middle of a step."""
    step, pressed = PackTrainer.training_step, []

    def training_step(self: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == steps - 1 and not pressed:
            for _ in range(times):
                pressed.append(os.kill(os.getpid(), signal.SIGINT))
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackTrainer, "training_step", training_step)
        with pytest.raises(TrainingError) as caught:
            train_adapter(recipe, **how)
    return str(caught.value)


def same_but_for_seconds(selection: Any) -> dict[str, Any]:
    return {name: value for name, value in selection.items() if name != "seconds"}


def test_a_resumed_run_has_the_same_curve_and_chooses_the_same(recipe_for: RecipeMaker, tmp_path: Path) -> None:
    """Stopped at a step that is evaluated, then killed after an evaluation that no checkpoint follows."""
    recipe = recipe_for(save_steps=3)
    expected = train_adapter(replace(recipe, output=str(tmp_path / "whole")))
    assert "stopped at step 2 of 8" in interrupted(recipe, 2)
    assert "--resume" in interrupted(recipe, 5, times=2, resume=True)  # checkpoint 3, evaluated at 4
    evaluated = Path(recipe.output).with_name(".made.training") / "evaluated"
    assert {folder.name for folder in evaluated.iterdir()} == {"step-2", "step-4"}
    lines: list[str] = []
    made = train_adapter(recipe, resume=True, on_evaluation=lines.append)
    assert len(lines) == 4  # of steps 4, 6 and 8, and the final one
    assert expected.card.selection is not None
    assert same_but_for_seconds(made.card.selection) == same_but_for_seconds(expected.card.selection)
    assert_same_weights(weights(expected), weights(made))


def test_a_state_of_other_weights_is_not_taken_over(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(save_steps=3)
    interrupted(recipe, 5, times=2)
    state = Path(recipe.output).with_name(".made.training") / "evaluated" / "step-4" / "state.json"
    for content in (state.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'), "{}"):
        state.write_text(content)
        interrupted(recipe, 5, times=2, resume=True)
        assert json.loads(state.read_text())["step"] == 4  # evaluated again, since its checksum is another one


def test_a_damaged_state_is_named(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for()
    interrupted(recipe, 5)
    folder = Path(recipe.output).with_name(".made.training") / "evaluated" / "step-2"
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"step 2 is damaged \(adapter_model.* with --overwrite"):
        train_adapter(recipe, resume=True)


def test_a_run_that_was_stopped_by_patience_is_not_continued(
    recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter could not be written; a resumed run writes it, and trains no further step."""
    recipe = recipe_for(patience=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    scripted(monkeypatch, 30, 30)
    with monkeypatch.context() as patch:
        patch.setattr("harness_ext.training.trainer.save_adapter", full)
        with pytest.raises(TrainingError, match="cannot be written"):
            train_adapter(recipe)
    monkeypatch.setattr(PackTrainer, "training_step", lambda *_: pytest.fail("a step was trained"))
    card = train_adapter(recipe, resume=True).card
    assert card.selection is not None
    assert (card.selection["chosen_step"], card.selection["last_step"]) == (2, 4)


def test_settings_of_the_evaluation_cannot_change(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for()
    interrupted(recipe, 3)
    with pytest.raises(TrainingError, match=r"--evaluate-every was 2.0, is 3.0"):
        train_adapter(replace(recipe, evaluate_every=3), resume=True)


# -- documents -------------------------------------------------------------------------------------------------------


def test_held_out_documents_are_apart(recipe_for: RecipeMaker) -> None:
    """Neither set is trained on, nor is a document of the same content; the two sets share nothing."""
    recipe = recipe_for()
    start = start_training(recipe)
    carved = carve(start.task, start.docs, size=40, seed=0)
    keys = list(content_keys(start.docs, ["sentence"]))
    choice, report = ({keys[n] for n in part.numbers} for part in (carved.for_choice, carved.for_report))
    assert (len(choice), len(report)) == (40, 40)
    assert not choice & report
    assert not (choice | report) & set(content_keys(start.task.eval_docs, ["sentence"]))
    examples = build_examples(
        start.task, start.docs, recipe.prompt, start.lm,
        limit=None, validation_size=20, max_length=512, seed=0, excluded=carved.excluded,
    )  # fmt: skip
    assert len(examples.documents) + len(examples.validation) == len(start.docs) - len(carved.excluded)
    assert not {keys[n] for n in examples.documents} & (choice | report)
    assert carve(start.task, start.docs, size=40, seed=0) == carved
    assert carve(start.task, start.docs, size=40, seed=1) != carved


class Rows:
    """A task with the given documents to train on and to be evaluated on."""

    def __init__(self, task: Any, evaluated: list[dict[str, Any]]) -> None:
        self.task_name, self.config, self.eval_docs = "rows", task.config, evaluated


def test_duplicates_and_evaluated_documents(recipe_for: RecipeMaker) -> None:
    task = start_training(recipe_for()).task
    docs = [{"sentence": f"stone {n % 150}", "label": 0} for n in range(300)]  # each twice
    evaluated = [{"sentence": f"Stone  {n}", "label": 0} for n in range(60)]  # but for case and white space
    carved = carve(Rows(task, evaluated), docs, size=30, seed=0)  # type: ignore[arg-type]
    chosen = [docs[n]["sentence"] for part in (carved.for_choice, carved.for_report) for n in part.numbers]
    assert len(set(chosen)) == 60
    assert not {int(text.split()[1]) for text in chosen} & set(range(60))
    assert len(carved.excluded) == 120
    with pytest.raises(TrainingError, match="too few training documents that are not evaluated"):
        carve(Rows(task, evaluated), docs, size=60, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["context", "passage"])
def test_passages_are_kept_together(recipe_for: RecipeMaker, name: str) -> None:
    """Also where nobody says which column holds them."""
    task = start_training(recipe_for()).task
    docs = [{name: f"passage {n // 4} " + 40 * "long ", "sentence": f"question {n}"} for n in range(800)]
    carved = carve(Rows(task, docs[:4]), docs, size=121, seed=0)  # type: ignore[arg-type]
    for part in (carved.for_choice, carved.for_report):
        assert len(part.numbers) == 124
        assert part.independent == 31
        assert {n // 4 for n in part.numbers} == {n // 4 for n in range(800) if n in set(part.numbers)}
    assert carved.cluster == name
    passages = {n // 4 for n in carved.excluded}
    assert carved.excluded == {n for n in range(800) if n // 4 in passages}
    assert 0 not in passages  # one of its documents is evaluated
    with pytest.raises(TrainingError, match="only 15 passages"):
        carve(Rows(task, docs[:4]), docs, size=60, seed=0)  # type: ignore[arg-type]


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ({"evaluation_documents": 20}, TrainingError, "give at least 30"),
        ({"evaluation_documents": 100}, TrainingError, "more than half; give at most 84"),
        ({"task": "squad_v1_generate"}, TrainingError, "train without --evaluate-every"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    recipe_for: RecipeMaker, values: dict[str, Any], error: type[HarnessExtError], expected: str
) -> None:
    recipe = recipe_for(**values)
    with pytest.raises(error, match=re.escape(expected)) as caught:
        train_adapter(recipe)
    assert "\n" not in str(caught.value)
    folder = Path(recipe.output).parent
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(("metric", "expected"), [("macro_f1", "has no score for each"), ("rouge", "has no score for")])
def test_a_metric_without_a_score_for_each_document(
    recipe_for: RecipeMaker, tmp_path: Path, metric: str, expected: str
) -> None:
    task = tmp_path / "by_f1.yaml"
    task.write_text(
        f"include: {tasks_path() / 'sst2' / 'sst2_choice.yaml'}\ntask: by_f1\nmetadata:\n  primary_metric: {metric}\n"
    )
    with pytest.raises(TaskError, match=rf"{metric}, the primary metric of 'by_f1', {expected}.*primary_metric:"):
        train_adapter(recipe_for(task=str(task)))


def test_a_score_that_is_no_number(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(_: Any, task: Any, **__: Any) -> Any:
        samples = [{"filter": "none", "doc_id": n, "acc": None if n else 1.0} for n in range(40)]
        return {"samples": {task.task_name: samples}}

    monkeypatch.setattr("harness_ext.selection.live.evaluate", evaluate)
    with pytest.raises(TaskError, match="acc of 'sst2_choice' has no number for each document"):
        train_adapter(recipe_for())


def test_a_score_outside_its_range(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(_: Any, task: Any, **__: Any) -> Any:
        samples = [{"filter": "none", "doc_id": n, "acc": 100.0 * (n % 2)} for n in range(40)]
        return {"samples": {task.task_name: samples}}

    monkeypatch.setattr("harness_ext.selection.live.evaluate", evaluate)
    with pytest.raises(TaskError, match=r"is 0 to 100, outside its range of 0(\.0)? to 1(\.0)?; declare its unit"):
        train_adapter(recipe_for())


def test_a_disk_that_runs_full_at_a_state(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(save_steps=3)
    save = EvaluatedStates.save

    def full(self: EvaluatedStates, state: EvaluatedState, model: Any) -> None:
        if state.step == 4:
            raise WriteError("step-4 cannot be written (no space left on device); free some space, then try again")
        save(self, state, model)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluatedStates, "save", full)
        with pytest.raises(TrainingError, match=r"stopped: step-4 cannot be written.*--resume"):
            train_adapter(recipe)
    selection = train_adapter(recipe, resume=True).card.selection
    assert selection is not None
    assert [point["step"] for point in selection["curve"]] == [2, 4, 6, 8]


def test_several_processes_are_refused_by_name(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    start = start_training(recipe_for())
    monkeypatch.setattr("harness_ext.selection.live.PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(RecipeError, match=r"--evaluate-every .* in one process, and 2 were launched"):
        live_evaluator(start)


# -- what it costs ---------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One second per step; 20 ms for each document that is scored, and a second more for the first ones."""
    clock, step, evaluated = Clock(), PackTrainer.training_step, []

    def training_step(self: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
        clock.now += 1
        return step(self, *args, **kwargs)

    def scores(self: LiveEvaluator, _: Any, documents: Any) -> list[float]:
        clock.now += 0.02 * len(documents.numbers) + (0 if evaluated else 1)
        evaluated.append(len(documents.numbers))
        return [1.0] * len(documents.numbers)

    monkeypatch.setattr("harness_ext.training.evaluating.time", clock)
    monkeypatch.setattr(PackTrainer, "training_step", training_step)
    monkeypatch.setattr(LiveEvaluator, "scores", scores)
    return clock


@pytest.mark.parametrize(
    ("epochs", "steps", "documents"),
    [
        (10, 80, 68),  # eight seconds: fewer documents, a second for the first look, five evaluations
        (25, 200, 84),  # all documents, further apart than every second step
        (2, 16, 60),  # 1.6 seconds: as few documents as there may be, and only the first and the last state
    ],
)
def test_evaluations_keep_to_their_share_of_the_time(
    recipe_for: RecipeMaker, clock: Clock, epochs: int, steps: int, documents: int
) -> None:
    lines: list[str] = []
    recipe = recipe_for(epochs=epochs, evaluation_cost=0.1, evaluation_documents=84, save_steps=1000)
    selection = train_adapter(recipe, on_evaluation=lines.append).card.selection
    assert selection is not None
    at = [point["step"] for point in selection["curve"]]
    assert (at[0], at[-1], selection["documents"]) == (2, steps, documents)
    assert selection["chosen_again"]["documents"] >= documents
    if epochs == 2:
        assert at == [2, 16]
    else:
        assert len(at) >= 4
        assert selection["seconds"] <= 0.1 * steps
    assert clock.now == pytest.approx(steps + selection["seconds"], abs=0.1)
    assert any(f"on {documents} of 84 documents" in line for line in lines) == (documents < 84)
    assert any("next at step" in line for line in lines)


def test_without_a_limit_every_evaluation_is_made(recipe_for: RecipeMaker, clock: Clock) -> None:
    selection = train_adapter(recipe_for(evaluation_cost=0.0, evaluation_documents=84)).card.selection
    assert selection is not None
    assert [point["step"] for point in selection["curve"]] == [2, 4, 6, 8]
    assert selection["documents"] == selection["chosen_again"]["documents"] == 84
    assert clock.now > 8


def test_a_share_of_an_epoch(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 1, 2, 3, 4, 5, 6)
    selection = train_adapter(recipe_for(evaluate_every=0.4, epochs=2)).card.selection  # of 8 steps
    assert selection is not None
    assert [point["step"] for point in selection["curve"]] == [3, 6, 9, 12, 15, 16]


# -- reports ---------------------------------------------------------------------------------------------------------


def test_tensorboard_receives_the_curve(recipe_for: RecipeMaker, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
        card = train_adapter(recipe_for(report_to="tensorboard")).card
    (folder,) = {file.parent for file in (tmp_path / "logs").rglob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert card.selection is not None
    for name in ("score", "low", "high"):
        tag = "eval/acc" + ("" if name == "score" else f"_{name}")
        curve = {event.step: event.value for event in events.Scalars(tag)}
        assert curve == pytest.approx({point["step"]: point[name] for point in card.selection["curve"]})


def test_mlflow_receives_the_curve(recipe_for: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its file store, in the run of the training."""
    mlflow = pytest.importorskip("mlflow")
    for name, value in (("TRACKING_URI", (tmp_path / "runs").as_uri()), ("EXPERIMENT_NAME", "ours"),
                        ("ALLOW_FILE_STORE", "true")):  # fmt: skip
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    card = train_adapter(recipe_for(report_to="mlflow")).card
    client = mlflow.MlflowClient()
    (experiment,) = (found for found in client.search_experiments() if found.name == "ours")
    histories = [
        {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "eval_acc")}
        for run in client.search_runs([experiment.experiment_id])
    ]
    assert card.selection is not None
    assert {p["step"]: p["score"] for p in card.selection["curve"]} in histories
