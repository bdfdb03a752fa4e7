"""A group of tasks is tested as it aggregates: weighted by size, or unweighted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lm_eval_files import labelled

from harness_ext.comparison.gate import why_it_fails
from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs
from harness_ext.stats.paired import mcnemar, paired_difference

RNG = np.random.default_rng(2)
SIZES = RNG.integers(100, 390, 57)


def sides(size: int) -> tuple[np.ndarray, np.ndarray]:
    before, change = (RNG.random(size) < 0.5).astype(float), RNG.random(size)
    return before, np.where(before == 1, change > 0.13, change < 0.17).astype(float)


@pytest.fixture
def write_group(write_run, tmp_path):
    def write(values: dict[str, tuple[np.ndarray, np.ndarray]], *, by_size: bool, drop: str | None = None):
        for place, (name, adapter) in enumerate((("base", ""), ("one", ",peft=one"))):
            tasks = {task: labelled(pair[place].tolist()) for task, pair in values.items()}
            if drop and place:
                del tasks[drop]
            path = write_run(f"out/{name}", tasks, model_args=f"pretrained=org/tiny{adapter}")
            file = next(path.glob("results_*.json"))
            payload = json.loads(file.read_text())
            means = [pair[place].mean() for pair in values.values()]
            weights = [len(pair[0]) for pair in values.values()] if by_size else None
            entry = {"alias": "family", "acc,none": float(np.average(means, weights=weights))}
            payload["results"]["family"] = entry
            payload["groups"] = {"family": entry}
            payload["group_subtasks"] = {"family": list(values)}
            file.write_text(json.dumps(payload))
        return load_runs(tmp_path / "out")

    return write


def test_a_small_gain_in_every_task_is_seen_in_the_group(write_group):
    values = {f"t{k:02d}": sides(int(size)) for k, size in enumerate(SIZES)}
    rows = compare_runs(write_group(values, by_size=True)).rows
    (group,) = [row for row in rows if row.task == "family"]
    assert (group.verdict, group.note) == ("better", None)
    assert {row.verdict for row in rows if row is not group} <= {"undecided", "better"}
    before, after = (np.concatenate([pair[side] for pair in values.values()]) for side in (0, 1))
    gained, lost = int(((before == 0) & (after == 1)).sum()), int(((before == 1) & (after == 0)).sum())
    assert group.paired.p_value == pytest.approx(mcnemar(gained, lost))
    assert group.difference == pytest.approx(float((after - before).mean()))
    plain = paired_difference(before, after)
    assert group.paired.interval.high - group.paired.interval.low == pytest.approx(
        plain.interval.high - plain.interval.low, rel=0.02
    )
    assert group.n == len(before)


def test_tasks_that_count_alike(write_group):
    values = {"small": sides(60), "large": sides(900)}
    rows = compare_runs(write_group(values, by_size=False)).rows
    (group,) = [row for row in rows if row.task == "family"]
    parts = [paired_difference(*pair) for pair in values.values()]
    assert group.difference == pytest.approx(float(np.mean([part.difference for part in parts])))
    variance = sum(part.estimate.variances[0][0] / 4 for part in parts)
    assert group.paired.estimate.standard_error == pytest.approx(variance**0.5)
    assert "unweighted" in group.paired.method


def test_a_group_whose_tasks_are_not_all_there_says_so(write_group):
    values = {"a": sides(100), "b": sides(100)}
    comparison = compare_runs(write_group(values, by_size=True, drop="b"))
    (group,) = [row for row in comparison.rows if row.task == "family"]
    assert group.verdict is None
    assert "not all compared" in group.note
    assert why_it_fails(comparison, "worse") == "fails --fail-on worse: one: not evaluated on b"


def test_a_group_of_another_kind_is_not_tested(write_group, tmp_path):
    runs = write_group({"a": sides(100), "b": sides(100)}, by_size=True)
    file = next((tmp_path / "out" / "base").glob("results_*.json"))
    payload = json.loads(file.read_text())
    payload["results"]["family"]["acc,none"] = 0.99
    file.write_text(json.dumps(payload))
    runs = load_runs(tmp_path / "out")
    (group,) = [row for row in compare_runs(runs).rows if row.task == "family"]
    assert group.verdict is None
    assert "mean of its tasks" in group.note
