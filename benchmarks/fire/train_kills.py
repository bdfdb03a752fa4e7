"""Trainings that are killed at random moments, resumed, and killed again.

At the end: weights, configuration and card of the adapter are those of an uninterrupted training, but for seconds, and
nothing else is left.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny
from records import Record, Records
from victims import Board, Child

from harness_ext import cli
from harness_ext.training import trainer
from harness_ext.training.callbacks import StopOnInterrupt
from harness_ext.training.checkpoints import last_checkpoint
from harness_ext.training.pack_trainer import PackTrainer
from harness_ext.training.workspace import workspace_of

KILLS = 120
MOST_IN_A_ROW = 9
SIGTERM_SHARE = 0.2
SAVE_STEPS = 2
STAGES = ("starting", "loading the model", "training", "writing a checkpoint", "writing the adapter")
RECIPES = {
    "default": [],
    "dropout, clipping, accumulation": [
        "--lora-dropout", "0.1", "--gradient-accumulation-steps", "2", "--batch-size", "3", "--max-grad-norm", "0.5",
    ],
    "PiSSA": ["--init-lora-weights", "pissa"],
    "rsLoRA, no trees": ["--use-rslora", "--no-prefix-trees"],
}  # fmt: skip


def run(work: Path, records: Records, kills: int = KILLS) -> None:
    """Kill until there are as many kills as wanted; sequences that are recorded are not repeated."""
    base, _ = tiny.make(work, 0)
    references = {name: _Reference(work / "reference" / str(number), base, name) for number, name in enumerate(RECIPES)}
    done = records.all()
    count, number = sum(len(record["kills"]) for record in done), len(done)
    while count < kills:
        record = sequence(number, work / "killed" / "made", base, references)
        records.add(record)
        count, number = count + len(record["kills"]), number + 1


class _Reference:
    """A training that nobody interrupts: what it writes, and how long it takes."""

    def __init__(self, output: Path, base: Path, recipe: str) -> None:
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        log, board = output.with_suffix(".log"), _board()
        child = Child(lambda: training(base, output, recipe, [], board), log)
        assert child.wait() == 0, log.read_text()
        self.seconds = child.seconds
        self.checkpoints = board["writing a checkpoint"]
        self.content = content(output)


def _board() -> Board:
    return Board("step", stages=STAGES)


def training(base: Path, output: Path, recipe: str, more: list[str], board: Board) -> int:
    """Run the command, and note what it does."""
    board.watch(trainer, "start_training", "loading the model")
    board.watch(PackTrainer, "train", "training")
    board.watch(PackTrainer, "_save_checkpoint", "writing a checkpoint")
    board.watch(trainer, "_write", "writing the adapter")
    on_step_end = StopOnInterrupt.on_step_end

    def counted(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        board["step"] = state.global_step
        on_step_end(self, args, state, control, **options)

    StopOnInterrupt.on_step_end = counted  # type: ignore[method-assign]
    return cli.main([
        "train", "sst2_choice", "--model", str(base), "--output", str(output), "--no-preflight", "--dtype", "float32",
        "--limit", "48", "--validation-size", "8", "--batch-size", "6", "--epochs", "2", "--learning-rate", "1e-2",
        "--max-tokens", "400", "--save-steps", str(SAVE_STEPS), *RECIPES[recipe], *more,
    ])  # fmt: skip


def sequence(number: int, output: Path, base: Path, references: Mapping[str, _Reference]) -> Record:
    """Kill a training some times in a row, then let it end; the number is the seed."""
    draw = random.Random(number)
    recipe = draw.choice([*RECIPES])
    reference, kills, problems = references[recipe], [], []
    shutil.rmtree(output.parent, ignore_errors=True)
    output.parent.mkdir(parents=True)
    log = output.parent.with_suffix(".log")
    log.unlink(missing_ok=True)
    for _ in range(draw.randint(1, MOST_IN_A_ROW)):
        if output.exists():  # it was done
            break
        board, more = _board(), _next_flags(output)
        before = _step(output)
        child = Child(lambda board=board, more=more: training(base, output, recipe, more, board), log)
        _wait(child, board, draw, reference)
        ended_by = signal.SIGTERM if draw.random() < SIGTERM_SHARE else signal.SIGKILL
        code = child.end(ended_by)
        if code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            kept = _step(output)
            lost = 0 if output.exists() else max(board["step"] - kept, 0)
            kills.append({"stage": board.stage, "signal": ended_by.name, "code": code, "steps_lost": lost})
            if kept < before and not output.exists():
                problems.append(f"step {before} could be resumed, now {kept}")
            if lost > (0 if code == 128 + signal.SIGTERM else SAVE_STEPS):
                problems.append(f"{lost} steps are lost")
        elif code:
            problems.append(f"exit code {code}")
    problems += _end(output, base, recipe, reference, log)
    if problems:
        shutil.copytree(output.parent, output.parent.with_name(f"problem {number}"), dirs_exist_ok=True)
        shutil.copy(log, output.parent.with_name(f"problem {number}.log"))
    return {"seed": number, "recipe": recipe, "kills": kills, "problems": problems}


def _end(output: Path, base: Path, recipe: str, reference: _Reference, log: Path) -> list[str]:
    """Run to the end; returns what is wrong then."""
    problems = []
    if not output.exists():
        code = Child(lambda: training(base, output, recipe, _next_flags(output), _board()), log).wait()
        if code:
            problems.append(f"exit code {code} at the end")
    elif workspace_of(str(output)).exists():  # killed between the last rename and the end
        flags = ["--overwrite", "--resume"] if _step(output) else ["--overwrite"]
        code = Child(lambda: training(base, output, recipe, flags, _board()), log).wait()
        if code:
            problems.append(f"exit code {code} when it was run again")
    if not output.is_dir() or content(output) != reference.content:
        problems.append("the adapter differs")
    if left := sorted(file.name for file in output.parent.iterdir() if file != output):
        problems.append(f"left behind: {left}")
    return problems


def _wait(child: Child, board: Board, draw: random.Random, reference: _Reference) -> None:
    """Until a random moment: of the whole life of the run, or close to a write."""
    aim = draw.random()
    if aim < 0.7:
        child.wait_until(draw.uniform(0.0, reference.seconds))
    elif aim < 0.9:
        times = draw.randint(1, reference.checkpoints)
        child.wait_for(board, "writing a checkpoint", times, draw.uniform(0, 0.05))
    else:
        child.wait_for(board, "writing the adapter", 1, draw.uniform(0, 0.05))


def _next_flags(output: Path) -> list[str]:
    """What the message of an interrupted training asks for."""
    return ["--resume"] if _step(output) else []


def _step(output: Path) -> int:
    """The step that a training can be resumed from; 0 for none."""
    checkpoint = last_checkpoint(workspace_of(str(output)))
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def content(output: Path) -> dict[str, Any]:
    """Hashes of weights and configuration, and the card without the seconds."""
    card = json.loads((output / "card.json").read_text(encoding="utf-8"))
    return {
        "files": sorted(file.name for file in output.iterdir()),
        **{
            name: hashlib.sha256((output / name).read_bytes()).hexdigest()
            for name in ("adapter_model.safetensors", "adapter_config.json")
        },
        "card": {name: value for name, value in card.items() if name != "seconds"},
    }
