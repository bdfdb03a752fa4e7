"""The learning rate of each step: no step is wasted, and a resumed run continues the schedule."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from harness_ext.training.recipe import Recipe
from harness_ext.training.schedule import few_steps_advice, make_schedule, warmup_steps

SCHEDULES = (
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_restarts",
)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates_of(schedule: LRScheduler, steps: int) -> list[float]:
    """The rates that the optimiser's next steps use."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects an optimiser step first
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            schedule.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 20, 41])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, 0.99])
def test_every_step_has_a_rate_and_the_peak_is_reached(name: str, total: int, ratio: float) -> None:
    rates = rates_of(make_schedule(name, optimizer(), total=total, ratio=ratio), total)
    assert min(rates) > 0
    assert max(rates) == 1
    assert warmup_steps(total, ratio) < total


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_the_warm_up_the_rates_are_those_of_transformers(name: str) -> None:
    rising = warmup_steps(40, 0.1)
    theirs = get_scheduler(name, optimizer(), num_warmup_steps=rising, num_training_steps=40)
    ours = rates_of(make_schedule(name, optimizer(), total=40, ratio=0.1), 40)
    assert rising == 4
    assert ours[rising:] == rates_of(theirs, 40)[rising:]
    if name != "constant":
        assert ours[:rising] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stop", [1, 3, 17])
def test_a_resumed_schedule_goes_on_where_it_stopped(name: str, stop: int) -> None:
    whole = rates_of(make_schedule(name, optimizer(), total=20, ratio=0.2), 20)
    first = make_schedule(name, optimizer(), total=20, ratio=0.2)
    before = rates_of(first, stop)
    second = make_schedule(name, optimizer(), total=20, ratio=0.2)
    second.load_state_dict(first.state_dict())
    assert before + rates_of(second, 20 - stop) == whole


def recipe(**values: Any) -> Recipe:
    return Recipe(task="sst2_choice", model="m", output="adapters/x", **values)


@pytest.mark.parametrize(
    ("values", "examples", "processes", "steps", "ways"),
    [
        ({"batch_size": 8}, 160, 1, 20, None),
        ({"batch_size": 8}, 8, 1, 1, ["--epochs 20"]),  # eight batches of one example are fewer than 20 steps
        ({"batch_size": 32}, 40, 1, 2, ["--epochs 10", "--batch-size 2"]),
        ({"batch_size": 16, "epochs": 2.0}, 48, 1, 6, ["--epochs 7", "--batch-size 5"]),
        ({"batch_size": 8, "gradient_accumulation_steps": 4}, 64, 1, 2, ["--epochs 10"]),
        ({"batch_size": 8}, 64, 2, 4, ["--epochs 5", "--batch-size 1"]),
        ({"batch_size": 8, "epochs": 0.5}, 8, 1, 1, ["--epochs 20"]),
        ({"batch_size": 8, "max_steps": 5}, 1000, 1, 5, ["--max-steps 20"]),
        ({"batch_size": 8, "max_steps": 20}, 8, 1, 20, None),
    ],
)
def test_few_steps_name_what_would_help(
    values: dict[str, Any], examples: int, processes: int, steps: int, ways: list[str] | None
) -> None:
    advice = few_steps_advice(steps, recipe(**values), examples=examples, processes=processes)
    if ways is None:
        assert advice is None
        return
    assert advice is not None
    assert all(way in advice for way in ways)
    assert ("--batch-size" in advice) == any("--batch-size" in way for way in ways)
    assert "\n" not in advice
