"""Results of evaluations that were stopped early, as `eval --until-decided` leaves them, without running a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval_files import sample

from harness_ext.stats.sequential import Design, Monitor, TaskDesign, look_sizes, order_units, sequential_record

N = 872
Scores = np.ndarray[Any, Any]


def scores(seed: int, gain: float, discordant: float = 0.2) -> tuple[Scores, Scores]:
    rng = np.random.default_rng(seed)
    before = (rng.random(N) < 0.6).astype(float)
    x = rng.random(N)
    after = np.where(x < discordant, np.where(rng.random(N) < 0.5 + gain / discordant / 2, 1.0, 0.0), before)
    return before, after


def design(family: int = 1, **changes: Any) -> Design:
    return Design({"demo": TaskDesign(N, "acc", margin=0.01, **changes)}, family=family)


def watched(before: Scores, after: Scores, plan: Design) -> Monitor:
    order, monitor = order_units(N, seed=plan.seed), Monitor(plan, "demo")
    for size in look_sizes(N):
        if monitor.look((after - before)[order[:size]]).outcome:
            break
    return monitor


def logged(values: Scores, asked: Any) -> list[dict]:
    both = [{"acc": float(values[i]), "acc_norm": float(values[i])} for i in range(N)]
    return [sample(int(i), {"idx": int(i)}, both[i]) for i in sorted(asked)]


@pytest.fixture
def evaluation(write_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write what an evaluation with --until-decided leaves: a base and adapters, each with its own record."""

    def write(before: Scores, adapters: dict[str, Scores], plan: Design, folder: str = "out") -> Path:
        order = order_units(N, seed=plan.seed)
        monitors = {name: watched(before, after, plan) for name, after in adapters.items()}
        sizes = {name: monitor.looks[-1].documents for name, monitor in monitors.items()}
        for name in ("base", *adapters):
            size = max(sizes.values()) if name == "base" else sizes[name]
            looks = {"demo": monitors[name].looks} if name in monitors else {}
            record = sequential_record(plan, looks, baseline="base", documents={"demo": size})
            values = adapters.get(name, before)
            arguments = "pretrained=org/tiny" + ("" if name == "base" else f",peft=adapters/{name}")
            write_run(
                f"{folder}/{name}", {"demo": logged(values, order[:size])}, model_args=arguments,
                ours={"variant": name, "base": "org/tiny", "sequential": record},
            )  # fmt: skip
        return tmp_path / folder

    return write
