"""Adapters that are fine, evaluated as they were trained: the doctor may find no error in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness_ext.doctor.preflight.adapter import examine_adapter
from harness_ext.engine.evaluate import evaluate
from harness_ext.models.adapters import find_base
from harness_ext.models.card import read_card
from harness_ext.models.sources import resolve_model
from planted import world
from planted.runner import BEFORE, Report, World, by_replay, from_log, logged, of_adapter, of_batches
from planted.trainers import LOOP, OURS, TRL, Training

CHAT = Training(form=world.chatml)
WEAK = Training(documents=64, epochs=1, learning_rate=3e-3)  # so little that the score is poor


@dataclass(frozen=True)
class Sound:
    """An adapter that is fine."""

    name: str
    trainer: str
    training: Training

    @property
    def chat(self) -> bool:
        """Whether it is trained and evaluated in the tokenizer's chat template."""
        return self.training.form is world.chatml


SOUND: tuple[Sound, ...] = (
    Sound("rank 2", OURS, Training(rank=2)),
    Sound("rank 4, seed 1", LOOP, Training(rank=4, seed=1)),
    Sound("rank 8", OURS, Training()),
    Sound("rank 8, by TRL", TRL, Training()),
    Sound("rank 8, by a loop", LOOP, Training()),
    Sound("rank 16, seed 2", TRL, Training(rank=16, alpha=32, seed=2)),
    Sound("rank 32", LOOP, Training(rank=32, alpha=32)),
    Sound("rank 64", OURS, Training(rank=64, alpha=64, learning_rate=2e-3)),
    Sound("DoRA", OURS, Training(use_dora=True, seed=1)),
    Sound("DoRA, by TRL", TRL, Training(use_dora=True)),
    Sound("rsLoRA", OURS, Training(rank=16, use_rslora=True)),
    Sound("rsLoRA, by a loop", LOOP, Training(rank=32, use_rslora=True, learning_rate=3e-3)),
    Sound("one epoch", OURS, Training(epochs=1)),
    Sound("one epoch, by a loop", LOOP, Training(epochs=1, seed=2)),
    Sound("two epochs, by TRL", TRL, Training(epochs=2, seed=1)),
    Sound("few examples", OURS, Training(documents=48, epochs=3)),
    Sound("few examples, by a loop", LOOP, Training(documents=48, epochs=3, seed=1)),
    Sound("hardly trained", OURS, WEAK),
    Sound("hardly trained, by TRL", TRL, WEAK),
    Sound("hardly trained, by a loop", LOOP, WEAK),
    Sound("hardly trained, rsLoRA by a loop", LOOP, replace(WEAK, use_rslora=True, rank=16, alpha=4)),
    Sound("in chat", OURS, CHAT),
    Sound("in chat, by TRL", TRL, Training(form=world.chatml, seed=1)),
    Sound("a choice", OURS, Training(task="sst2_choice", seed=2)),
)


SHIPPED = ("sst2", "squad_v2")  # adapters of a real model
SHIPPED_DOCUMENTS = 100


def shipped_reports(name: str, folder: Path) -> Iterator[Report]:
    """What each layer but that of the batches says of an adapter in adapters/."""
    adapter = Path(__file__).parents[3] / "adapters" / name
    card = read_card(adapter)
    assert card is not None
    base = resolve_model(find_base(adapter))
    yield BEFORE, examine_adapter(adapter, base=base).findings
    evaluate(
        base, tasks=[card.task], adapters=[str(adapter)], limit=SHIPPED_DOCUMENTS, log_samples=True,
        output_path=str(folder / "out"),
    )  # fmt: skip
    yield from_log(folder / "out", folder)
    yield by_replay(folder / "out", folder)


def reports(sound: Sound, place: World, folder: Path) -> Iterator[Report]:
    """What each layer says of a sound adapter."""
    folder.mkdir(parents=True)
    with place.data():
        adapter = place.adapter(sound.trainer, sound.training)
        yield of_adapter(place, adapter)
        yield BEFORE, of_batches(place, sound.trainer, sound.training, folder, apply_chat_template=sound.chat)[1]
        task, chat = sound.training.task, sound.chat
        logged(place, folder, task, run="base", apply_chat_template=chat)
        results = logged(place, folder, task, adapter=adapter, apply_chat_template=chat)
        yield from_log(results, folder)
        yield by_replay(results, folder)
