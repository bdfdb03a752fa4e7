"""Training end to end: what is written, invalid input, and interruptions that do not change the result."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import transformers
import yaml
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness_ext.errors import HarnessExtError, ModelError, RecipeError, TaskError, TrainingError
from harness_ext.models.attach import attach
from harness_ext.models.base_proof import BaseProof
from harness_ext.models.card import read_card
from harness_ext.models.sources import weights_sha256
from harness_ext.new_task.make import new_task
from harness_ext.selection.train import train_adapter
from harness_ext.training import workspace as workspaces
from harness_ext.training.callbacks import StopOnInterrupt
from harness_ext.training.pack_trainer import PackTrainer
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import TrainedAdapter

RecipeMaker = Callable[..., Recipe]
STEP = re.compile(r"step (\d+) of \d+, loss (\d+\.\d+)")


def weights(made: TrainedAdapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(made.folder / "adapter_model.safetensors")
    return tensors


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=tolerance, rtol=0, msg=name)


def losses(caplog: pytest.LogCaptureFixture) -> list[float]:
    """The losses reported at each step."""
    matches = [STEP.search(record.getMessage()) for record in caplog.records]
    return [float(match[2]) for match in matches if match]


def nothing_left(recipe: Recipe) -> bool:
    folder = Path(recipe.output).parent
    return not folder.exists() or not list(folder.iterdir())


@pytest.fixture
def recipe_for(tiny_model_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe with a few steps; any field can be set."""

    def make(**values: Any) -> Recipe:
        known: dict[str, Any] = {
            "task": "sst2_choice", "model": str(tiny_model_folder), "output": str(tmp_path / "adapters" / "made"),
            "lora_rank": 4, "limit": 48, "validation_size": 12, "batch_size": 8, "learning_rate": 1e-2,
            "logging_steps": 1, "max_tokens": 400, "dtype": "float32",
        }  # fmt: skip
        return Recipe(**{**known, **values})

    return make


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="harness_ext")
    return caplog


# -- what is made ----------------------------------------------------------------------------------------------------


def test_a_run_from_end_to_end(
    recipe_for: RecipeMaker,
    tiny_model_folder: Path,
    logged: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_for(max_steps=20, lora_rank=8, learning_rate=2e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = train_adapter(recipe)
    # folder
    assert {file.name for file in made.folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "card.json", "README.md",
    }  # fmt: skip
    assert [path.name for path in made.folder.parent.iterdir()] == ["made"]  # no workspace, nothing partial
    # loss
    curve = losses(logged)
    assert len(curve) == 20
    assert max(curve[-3:]) < min(curve[:3]) - 0.3
    # card
    card = made.card
    assert read_card(made.folder) == card
    assert card.base == tiny_model_folder.name
    assert card.base_sha256 == weights_sha256(tiny_model_folder)
    assert (card.task, card.sample_data, card.examples, card.seed) == ("sst2_choice", True, 48, 0)
    assert card.recipe == recipe.for_card()
    assert card.trainable_parameters == sum(tensor.numel() for tensor in weights(made).values())
    assert card.train_loss == pytest.approx(sum(curve) / 20, abs=1e-3)
    assert card.validation_loss is not None
    assert card.validation_loss < curve[0]
    assert card.tokens >= 20 * 8 * 2  # every answer has at least one token and the end token
    assert 0 < card.seconds < 600
    assert set(card.versions) == {"harness-ext", "lm-eval", "torch", "transformers", "peft"}
    # no path of this machine
    for file in made.folder.iterdir():
        text = file.read_bytes().decode("utf-8", errors="replace")
        for place in (str(tiny_model_folder.parent), str(made.folder.parent), "/tmp/", "/home/"):
            assert place not in text, (file.name, place)
    # output: one progress bar with the loss, no dictionaries
    seen = "".join(capfd.readouterr())
    assert "{'" not in seen
    assert "loss=" in seen
    ours = [w for w in caught if "harness_ext" in w.filename or str(w.message).startswith("`gradient_checkpointing`")]
    assert not ours


def test_the_adapter_is_what_was_trained(recipe_for: RecipeMaker, tiny_model_folder: Path) -> None:
    """On a freshly loaded base, it reproduces the held-out loss in the card."""
    prompt = torch.tensor([[5, 6, 7, 8]])
    for extra in ({}, {"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"},
                  {"init_lora_weights": "olora", "use_rslora": True}, {"init_lora_weights": "gaussian"},
                  {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "v_proj"]}):  # fmt: skip
        kept: dict[str, Tensor] = {}
        recipe = recipe_for(max_steps=3, **extra)
        with pytest.MonkeyPatch.context() as patch:
            evaluate = PackTrainer.evaluate

            def remember(self: PackTrainer, kept: dict[str, Tensor] = kept, evaluate: Any = evaluate) -> Any:
                metrics = evaluate(self)
                with torch.no_grad():
                    kept["logits"] = self.model(input_ids=prompt).logits
                return metrics

            patch.setattr(PackTrainer, "evaluate", remember)
            made = train_adapter(recipe, overwrite=True)
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        with torch.no_grad():
            before = base(input_ids=prompt).logits
            logits = PeftModel.from_pretrained(base, str(made.folder)).eval()(input_ids=prompt).logits
        torch.testing.assert_close(logits, kept["logits"], atol=1e-5, rtol=0, msg=str(extra))
        assert (logits - before).abs().max() > 1e-3
        proof = BaseProof.of(transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder), prompt.tolist())
        attach(proof.model, made.folder, base=str(tiny_model_folder))
        proof.check(str(made.folder))  # bit-identical to before, or an error


@pytest.mark.parametrize("task", ["sst2_generate", "squad_v2_generate"])
def test_generation_tasks(recipe_for: RecipeMaker, task: str) -> None:
    made = train_adapter(recipe_for(task=task, max_steps=2, save_dtype="bfloat16", max_tokens=2000))
    assert made.card.task == task
    assert {tensor.dtype for tensor in weights(made).values()} == {torch.bfloat16}


def test_a_built_in_task_with_local_data(recipe_for: RecipeMaker, tmp_path: Path) -> None:
    """lm-eval's own boolq, with local documents."""
    rows = [
        {"passage": f"Stone {n} is {'warm' if n % 3 else 'cold'}.", "question": "is it warm", "label": int(n % 3 > 0)}
        for n in range(40)
    ]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    built_in = Path(lm_eval.__file__).parent / "tasks" / "super_glue" / "boolq" / "default.yaml"
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    task = tmp_path / "my_boolq.yaml"
    task.write_text(
        yaml.safe_dump(
            {"include": str(built_in), "task": "my_boolq", "dataset_path": "json", "dataset_name": None}
            | {"dataset_kwargs": {"data_files": files}}
        )
    )
    for named in ({"task": str(task)}, {"task": "my_boolq", "include_path": str(tmp_path)}):
        made = train_adapter(recipe_for(max_steps=3, **named), overwrite=True)
        assert made.card.task == "my_boolq"
        assert made.card.recipe["include_path"] == ([tmp_path.name] if "include_path" in named else None)
        assert not made.card.sample_data
        assert str(tmp_path) not in "".join(file.read_text() for file in made.folder.glob("*.[jm][sd]*"))


def test_a_task_just_made_is_found_by_its_name(
    recipe_for: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"stone {n} is {'warm' if n % 2 else 'cold'}", "label": n % 2} for n in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    new_task("my_stones", "choice", "rows.jsonl", labels={"0": "cold", "1": "warm"})
    assert train_adapter(recipe_for(task="my_stones", max_steps=1)).card.task == "my_stones"


# -- the same numbers on every path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sst2_choice", "squad_v2_generate"])
def test_trees_packs_and_checkpointing_change_no_loss(
    recipe_for: RecipeMaker, logged: pytest.LogCaptureFixture, task: str
) -> None:
    curves = []
    recipe = recipe_for(task=task, max_steps=4, limit=32, max_tokens=5000)
    for extra in ({}, {"prefix_trees": False}, {"max_tokens": 300}, {"gradient_checkpointing": True}):
        logged.clear()
        made = train_adapter(replace(recipe, **extra), overwrite=True)
        curves.append([*losses(logged), made.card.validation_loss])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


def test_accumulation_is_one_large_batch(recipe_for: RecipeMaker) -> None:
    large = train_adapter(recipe_for(max_steps=3, batch_size=8))
    small = train_adapter(recipe_for(max_steps=3, batch_size=4, gradient_accumulation_steps=2), overwrite=True)
    assert_same_weights(weights(large), weights(small), tolerance=1e-4)
    assert (small.card.tokens, small.card.examples) == (large.card.tokens, large.card.examples)


def test_tokens_of_several_epochs(recipe_for: RecipeMaker) -> None:
    once = train_adapter(recipe_for(epochs=1, validation_size=0)).card
    twice = train_adapter(recipe_for(epochs=2, validation_size=0), overwrite=True).card
    assert twice.tokens == 2 * once.tokens
    assert once.validation_loss is None


SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
logging.getLogger("harness_ext").setLevel(logging.INFO)
from harness_ext.training.recipe import recipe_from, read_recipe
from harness_ext.selection.train import train_adapter
made = train_adapter(recipe_from(read_recipe(sys.argv[1])))
assert (made.folder / "card.json").is_file()  # on every process
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst2_choice", "squad_v2_generate"])
def test_two_processes_give_the_curve_of_one(recipe_for: RecipeMaker, tmp_path: Path, task: str) -> None:
    """Two epochs of 32 examples: one process with two batches of 8 per step, or two processes with one each.

    `accelerate launch --cpu --num_processes 2` starts a single process (accelerate 1.15, without MPI), so torch's own
    launcher starts them, as it does under `accelerate launch --multi_gpu`; accelerate joins them by gloo.
    """
    recipe = recipe_for(task=task, limit=32, epochs=2, batch_size=8, max_tokens=300)
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    curves, cards, adapters = [], [], []
    for launcher, accumulation in (([sys.executable], 2), (two, 1)):
        values = {
            **vars(recipe),
            "output": f"{recipe.output}{accumulation}",
            "gradient_accumulation_steps": accumulation,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        done = subprocess.run(
            [*launcher, str(tmp_path / "train.py"), str(tmp_path / "recipe.yaml")],
            capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "find_unused_parameters" not in done.stderr
        curves.append({int(step): float(loss) for step, loss in STEP.findall(done.stderr)})
        cards.append(read_card(values["output"]))
        adapters.append(load_file(Path(values["output"]) / "adapter_model.safetensors"))
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], abs=2e-4)
    assert_same_weights(*adapters, tolerance=1e-4)
    one, other = cards
    assert one is not None
    assert other is not None
    assert (one.tokens, one.data_sha256) == (other.tokens, other.data_sha256)
    assert other.validation_loss == pytest.approx(one.validation_loss, abs=1e-4)
    assert other.train_loss == pytest.approx(one.train_loss, abs=1e-4)


def launched(script: str, recipe: Recipe, folder: Path, *launcher: str) -> tuple[dict[int, float], dict[str, Tensor]]:
    """The curve and the adapter of a training in processes of their own."""
    (folder / "train.py").write_text(script)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(vars(recipe))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *launcher, str(folder / "train.py"), str(folder / "recipe.yaml")],
        capture_output=True, text=True, timeout=400, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    curve = {int(step): float(loss) for step, loss in STEP.findall(done.stderr)}
    return curve, load_file(Path(recipe.output) / "adapter_model.safetensors")


@pytest.mark.long
def test_passes_that_other_processes_need_change_nothing(recipe_for: RecipeMaker, tmp_path: Path) -> None:
    """As many passes in each process as in the one with most packs, as weights that are divided need them."""
    recipe = recipe_for(task="squad_v2_generate", limit=32, epochs=2, batch_size=8, max_tokens=300, validation_size=5)
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    divided = SCRIPT.replace(
        "made =",
        "from harness_ext.training.pack_trainer import PackTrainer\n"
        "PackTrainer.divides_weights = True\nPackTrainer.trained_weights = lambda self: None\nmade =",
    )
    found = []
    for name, script in (("plain", SCRIPT), ("divided", divided)):
        found.append(launched(script, replace(recipe, output=f"{recipe.output}-{name}"), tmp_path, *two))
    (curve, adapter), (other_curve, other) = found
    assert other_curve == pytest.approx(curve, abs=1e-4)
    assert_same_weights(adapter, other, tolerance=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_gives_the_adapter_of_one_process(stage: int, recipe_for: RecipeMaker, tmp_path: Path) -> None:
    """With the configuration that is shipped, on the CPU."""
    pytest.importorskip("deepspeed")
    shipped = Path(__file__).parents[2] / "docs" / "examples" / "accelerate" / f"deepspeed_zero{stage}.yaml"
    config = {**yaml.safe_load(shipped.read_text()), "use_cpu": True, "num_processes": 2}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    recipe = recipe_for(task="squad_v2_generate", limit=32, epochs=2, batch_size=8, max_tokens=300, validation_size=5)
    one = launched(SCRIPT, replace(recipe, output=f"{recipe.output}-one", gradient_accumulation_steps=2), tmp_path)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "accelerate.yaml")]
    curve, adapter = launched(SCRIPT, replace(recipe, gradient_accumulation_steps=1), tmp_path, *launcher)
    assert len(curve) == 4
    assert curve == pytest.approx(one[0], abs=1e-3)
    assert_same_weights(one[1], adapter, tolerance=2e-4)  # Adam magnifies the rounding of gradients near zero


# -- interruptions ---------------------------------------------------------------------------------------------------


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, times: int = 1) -> None:
    """Press Ctrl-C in the middle of a step."""
    step = PackTrainer.training_step
    pressed = []

    def training_step(self: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == steps - 1 and len(pressed) < times:
            for _ in range(times):
                pressed.append(os.kill(os.getpid(), signal.SIGINT))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PackTrainer, "training_step", training_step)


def interrupted(recipe: Recipe, steps: int, times: int = 1, **how: Any) -> str:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, steps, times)
        with pytest.raises(TrainingError) as caught:
            train_adapter(recipe, **how)
    assert not Path(recipe.output).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return str(caught.value)


@pytest.mark.parametrize("extra", [{}, {"lora_dropout": 0.1}, {"init_lora_weights": "pissa"}], ids=str)
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    recipe_for: RecipeMaker, tmp_path: Path, logged: pytest.LogCaptureFixture, extra: dict[str, Any]
) -> None:
    """Interrupted in the first epoch of two, and again in the second."""
    whole = recipe_for(epochs=2, logging_steps=5, save_steps=4, **extra)
    expected = train_adapter(replace(whole, output=str(tmp_path / "whole")))
    assert "stopped at step 3 of 12; continue with --resume" in interrupted(whole, 3)
    with pytest.raises(TrainingError, match=r"has a checkpoint; .*--resume"):
        train_adapter(whole)
    assert "stopped at step 9 of 12" in interrupted(whole, 9, resume=True)
    made = train_adapter(whole, resume=True)
    assert_same_weights(weights(expected), weights(made))
    assert made.card.train_loss == pytest.approx(expected.card.train_loss, abs=1e-5)
    assert made.card.validation_loss == expected.card.validation_loss
    assert made.card.tokens == expected.card.tokens
    assert [path.name for path in made.folder.parent.iterdir()] == ["made"]


def test_a_second_ctrl_c_ends_at_once(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for(max_steps=6, save_steps=2)
    assert "was interrupted" in interrupted(recipe, 4, times=2)
    assert train_adapter(recipe, resume=True).folder.is_dir()


def test_an_interruption_without_a_checkpoint_leaves_nothing(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for(max_steps=6)
    assert "start again" in interrupted(recipe, 2, times=2)
    assert nothing_left(recipe)


def test_ctrl_c_in_the_last_step_is_too_late(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 3)
    assert train_adapter(recipe_for(max_steps=3)).folder.is_dir()


def test_training_in_a_thread(recipe_for: RecipeMaker) -> None:
    """As in a notebook's background thread, where Python cannot catch signals."""
    made: list[TrainedAdapter] = []
    thread = threading.Thread(target=lambda: made.append(train_adapter(recipe_for(max_steps=2))))
    thread.start()
    thread.join()
    assert made


def test_the_handler_of_others_is_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopOnInterrupt()
    with stop.listening():
        assert signal.getsignal(signal.SIGINT) is not before
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.interrupted
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(OSError, match="full"), stop.listening():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for(max_steps=6)
    interrupted(recipe, 3)
    workspace = Path(recipe.output).with_name(".made.training")
    for step, text in (("5", None), ("6", '{"global_st')):
        broken = workspace / f"checkpoint-{step}"
        shutil.copytree(workspace / "checkpoint-3", broken)
        (broken / "trainer_state.json").unlink()
        if text:
            (broken / "trainer_state.json").write_text(text)
    assert workspaces.last_checkpoint(workspace) == workspace / "checkpoint-3"
    assert train_adapter(recipe, resume=True).folder.is_dir()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lora_rank": 2}, "--lora-rank was 4, is 2"),
        ({"learning_rate": 1.0}, "--learning-rate was 0.01, is 1.0"),
        ({"task": "sst2_generate"}, "--task was 'sst2_choice'"),
        ({"save_steps": 1, "max_tokens": 100, "prefix_trees": False}, None),
    ],
)
def test_only_the_same_run_can_be_resumed(
    recipe_for: RecipeMaker, change: dict[str, Any], expected: str | None
) -> None:
    recipe = recipe_for(max_steps=4)
    interrupted(recipe, 2)
    changed = replace(recipe, **change)
    if expected is None:
        train_adapter(changed, resume=True)
        return
    with pytest.raises(TrainingError, match=re.escape(expected)):
        train_adapter(changed, resume=True)
    assert train_adapter(recipe, resume=True).folder.is_dir()  # the failed attempt does no harm


@pytest.mark.parametrize(
    "place", ["harness_ext.training.trainer.save_adapter", "harness_ext.models.adapters.write_text"]
)
@pytest.mark.parametrize("start", ["default", "pissa"])
def test_a_finished_run_that_could_not_be_written_is_resumed(
    start: str, place: str, recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no space for the adapter itself, or for its last files: no step is trained twice."""
    recipe = recipe_for(max_steps=4, lr_scheduler="constant", init_lora_weights=start)  # in the middle of an epoch
    expected = train_adapter(recipe)
    shutil.move(expected.folder, expected.folder.with_name("expected"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(TrainingError, match=r"cannot be written .*[Nn]o space.*--resume"):
            train_adapter(recipe)
    assert not Path(recipe.output).exists()
    made = train_adapter(recipe, resume=True)
    assert_same_weights(load_file(made.folder.with_name("expected") / "adapter_model.safetensors"), weights(made))
    assert made.card.tokens == expected.card.tokens
    assert {path.name for path in made.folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "card.json", "README.md",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_damaged_checkpoint_is_never_resumed(recipe_for: RecipeMaker, file: str, how: str) -> None:
    recipe = recipe_for(max_steps=6)
    interrupted(recipe, 3)
    damaged = Path(recipe.output).with_name(".made.training") / "checkpoint-3" / file
    content = damaged.read_bytes()
    damaged.unlink()
    if how == "flipped":
        damaged.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    with pytest.raises(TrainingError, match=rf"checkpoint-3 \({file} is .*\); start again without --resume"):
        train_adapter(recipe, resume=True)
    assert train_adapter(recipe).folder.is_dir()


def test_sigterm_checkpoints_and_exits_with_143(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(max_steps=6)
    step = PackTrainer.training_step

    def terminated(self: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(PackTrainer, "training_step", terminated)
        with pytest.raises(TrainingError, match="stopped at step 3 of 6; continue with --resume") as caught:
            train_adapter(recipe)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert train_adapter(recipe, resume=True).folder.is_dir()


def test_a_second_training_to_the_same_output(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once, whatever its flags, and the first one goes on."""
    recipe = recipe_for(max_steps=3)
    step = PackTrainer.training_step
    refused: list[str] = []

    def meanwhile(self: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 1 and not refused:
            for how in ({}, {"overwrite": True}):
                with pytest.raises(TrainingError) as caught:
                    train_adapter(replace(recipe, seed=1), **how)
                refused.append(str(caught.value))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PackTrainer, "training_step", meanwhile)
    assert train_adapter(recipe).card.seed == recipe.seed
    assert [line.partition(" writes to")[0] for line in refused] == ["another training"] * 2


def test_what_appeared_during_the_training_is_not_replaced(
    recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(max_steps=2)
    output = Path(recipe.output)
    step = PackTrainer.training_step

    def meanwhile(self: PackTrainer, *args: Any, **kwargs: Any) -> Tensor:
        output.mkdir(exist_ok=True)
        (output / "weights").write_text("of another tool")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PackTrainer, "training_step", meanwhile)
        with pytest.raises(TrainingError, match="is not replaced; move it away"):
            train_adapter(recipe)
    assert (output / "weights").read_text() == "of another tool"


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ({"task": "sst2_choise"}, TaskError, "did you mean 'sst2_choice'"),
        ({"model": "/nowhere/model"}, ModelError, "/nowhere/model"),
        ({"target_modules": ["nonexistent_proj"]}, RecipeError, "peft rejects this recipe"),
        ({"lr_scheduler": "cosin"}, RecipeError, "transformers rejects this recipe"),
        ({"report_to": "nowhere"}, RecipeError, "transformers rejects this recipe"),
        ({"quantization": "nf4"}, RecipeError, "needs a CUDA GPU"),
        ({"max_length": 3}, TrainingError, "raise --max-length"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    recipe_for: RecipeMaker, values: dict[str, Any], error: type[HarnessExtError], expected: str
) -> None:
    recipe = recipe_for(max_steps=2, **values)
    with pytest.raises(error, match=re.escape(expected)) as caught:
        train_adapter(recipe)
    assert "\n" not in str(caught.value)
    assert nothing_left(recipe)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_base(recipe_for: RecipeMaker, tiny_model_folder: Path, tmp_path: Path, file: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    (base / file).write_bytes((base / file).read_bytes()[:-200])
    recipe = recipe_for(model=str(base))
    with pytest.raises(ModelError) as caught:
        train_adapter(recipe)
    assert "\n" not in str(caught.value)
    assert nothing_left(recipe)


def test_what_is_there_is_kept_unless_told_otherwise(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for(max_steps=1)
    output = Path(recipe.output)
    first = train_adapter(recipe).card
    with pytest.raises(TrainingError, match=r"already contains an adapter; .*--overwrite"):
        train_adapter(recipe)
    with pytest.raises(TrainingError, match=r"no checkpoint of .* to resume"):
        train_adapter(replace(recipe, output=f"{output}2"), resume=True)
    second = train_adapter(replace(recipe, seed=1), overwrite=True).card
    assert second.seed == 1
    assert second.data_sha256 != first.data_sha256
    shutil.rmtree(output)
    output.write_text("a file")
    with pytest.raises(TrainingError, match="is a file"):
        train_adapter(recipe, overwrite=True)


def test_an_output_that_cannot_be_made(recipe_for: RecipeMaker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        train_adapter(recipe_for(output=str(tmp_path / "file" / "adapter")))


def test_too_little_disk_space_is_said_before_training(
    recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    monkeypatch.setattr(PackTrainer, "train", lambda *_, **__: pytest.fail("training began"))
    recipe = recipe_for()
    with pytest.raises(TrainingError, match=r"disk space .* MB are free"):
        train_adapter(recipe)
    assert nothing_left(recipe)


@pytest.mark.parametrize("at", [2, 4], ids=["first checkpoint", "later checkpoint"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
        RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 576 vs 470"),
    ],
    ids=["OSError", "SafetensorError", "RuntimeError", "at the end"],
)
def test_a_disk_that_runs_full_in_training(
    recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    recipe = recipe_for(max_steps=6, save_steps=2)
    save = PackTrainer._save_optimizer_and_scheduler

    def full(self: PackTrainer, folder: str) -> None:
        if self.state.global_step == at:
            raise error
        save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(PackTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(TrainingError, match=r"training of .* stopped") as caught:
            train_adapter(recipe)
    assert "\n" not in str(caught.value)
    assert not Path(recipe.output).exists()
    if at == 2:
        assert nothing_left(recipe)
    else:
        assert "--resume" in str(caught.value)
        assert train_adapter(recipe, resume=True).folder.is_dir()


def test_an_error_of_our_own_is_not_hidden(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(PackTrainer, "training_step", fail)
    recipe = recipe_for()
    with pytest.raises(RuntimeError, match="a bug"):
        train_adapter(recipe)
    assert nothing_left(recipe)


def test_too_little_memory(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PackTrainer, "training_step", fail)
    with pytest.raises(TrainingError, match="lower --max-tokens"):
        train_adapter(recipe_for())


def test_a_loss_that_is_no_number(recipe_for: RecipeMaker) -> None:
    recipe = recipe_for(learning_rate=1e30, max_grad_norm=0, warmup_ratio=0.0, max_steps=6)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) after step \d; lower --learning-rate"):
        train_adapter(recipe)
    assert nothing_left(recipe)


# -- few steps, and none that counts -----------------------------------------------------------------------------------


def test_a_single_step_trains(recipe_for: RecipeMaker, logged: pytest.LogCaptureFixture) -> None:
    """Eight examples in one batch: the warm-up must not take up the only step."""
    made = train_adapter(recipe_for(limit=8, validation_size=0))
    assert len(losses(logged)) == 1
    assert max(float(tensor.abs().max()) for name, tensor in weights(made).items() if "lora_B" in name) > 1e-3


def advice_in(logged: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in logged.records if record.name.startswith("harness_ext")]
    return [message for message in messages if "optimiser step" in message]


def test_few_steps_are_said_and_the_advice_helps(recipe_for: RecipeMaker, logged: pytest.LogCaptureFixture) -> None:
    recipe = recipe_for(limit=24, validation_size=0)
    train_adapter(recipe)
    (advice,) = advice_in(logged)
    assert advice.startswith("only 3 optimiser steps")
    for name, read in (("epochs", float), ("batch_size", int)):
        match = re.search(rf"--{name.replace('_', '-')} (\d+)", advice)
        assert match
        logged.clear()
        train_adapter(replace(recipe, **{name: read(match[1])}), overwrite=True)
        assert len(losses(logged)) >= 20
        assert advice_in(logged) == []


def test_few_steps_are_said_once_and_not_again_on_resuming(
    recipe_for: RecipeMaker, logged: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_for(max_steps=4)
    interrupted(recipe, 2)
    (advice,) = advice_in(logged)
    assert "--max-steps 20" in advice
    logged.clear()
    train_adapter(recipe, resume=True)
    assert advice_in(logged) == []


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "orthogonal"},
        {"weight_decay": 0.5, "learning_rate": 1e-46},
        {
            "learning_rate": 1e-20,
            "save_dtype": "float16",
        },  # the change is too small for the precision of the saved weights
    ],
    ids=str,
)
def test_an_adapter_that_changes_nothing_is_not_written(recipe_for: RecipeMaker, extra: dict[str, Any]) -> None:
    recipe = recipe_for(**{"learning_rate": 1e-50, "max_steps": 2, **extra})
    with pytest.raises(TrainingError, match=r"changed nothing.*--learning-rate") as caught:
        train_adapter(recipe)
    assert "\n" not in str(caught.value)
    assert nothing_left(recipe)


def test_an_adapter_that_is_there_survives_one_that_changes_nothing(recipe_for: RecipeMaker) -> None:
    kept = weights(train_adapter(recipe_for(max_steps=2)))
    recipe = recipe_for(max_steps=2, learning_rate=1e-50)
    with pytest.raises(TrainingError, match="changed nothing"):
        train_adapter(recipe, overwrite=True)
    assert_same_weights(kept, load_file(Path(recipe.output) / "adapter_model.safetensors"))


def test_a_tokenizer_that_ends_every_text_is_refused(
    recipe_for: RecipeMaker, tiny_model_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    values = json.loads((base / "tokenizer.json").read_text())
    values["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    values["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    (base / "tokenizer.json").write_text(json.dumps(values))
    recipe = recipe_for(model=str(base))
    with pytest.raises(ModelError, match="appends </s> to every text"):
        train_adapter(recipe)
    assert nothing_left(recipe)


# -- settings --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_goes_by_the_base(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update matrices are not counted; here they are more than half the size of the base."""
    asked = []
    real = Recipe.learning_rate_for
    monkeypatch.setattr(Recipe, "learning_rate_for", lambda self, n: asked.append(n) or real(self, n))
    recipe = recipe_for(lora_rank=32, learning_rate=None, max_steps=1)
    train_adapter(recipe)
    base = transformers.AutoModelForCausalLM.from_pretrained(recipe.model)
    assert asked == [base.num_parameters()]


def test_warm_up_and_clipping_reach_the_trainer(recipe_for: RecipeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PackTrainer] = []
    train = PackTrainer.train
    monkeypatch.setattr(PackTrainer, "train", lambda self, **how: seen.append(self) or train(self, **how))
    train_adapter(recipe_for(max_steps=10, warmup_ratio=0.25, max_grad_norm=0.5, weight_decay=0.1))
    (trainer,) = seen
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates.index(max(rates)) in (2, 3)  # three of ten steps of warm-up
    assert (trainer.args.max_grad_norm, trainer.args.weight_decay) == (0.5, 0.1)
    assert trainer.args.n_gpu <= 1
    assert trainer.model.get_input_embeddings().weight.shape[0] == trainer.model.config.vocab_size
