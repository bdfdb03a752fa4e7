"""Many adapters in one command: memory stays flat, and one that fails does not stop the others."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness_ext.cli import main
from harness_ext.engine import adapter_switch
from harness_ext.engine.evaluate import evaluate, run
from harness_ext.errors import AdapterError
from harness_ext.models.attach import attach
from harness_ext.protocol.lm_eval_api import EvaluatorConfig

TASK = "sst2_choice"
FIVE_TASKS = ["sst2_choice", "sst2_generate", "squad_v2_generate", "sst2_prompt_cloze", "sst2_choice_5shot"]


def copies(adapter: Path, folder: Path, count: int) -> list[Path]:
    return [Path(shutil.copytree(adapter, folder / f"a{number}")) for number in range(count)]


@pytest.fixture
def failing(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    """Adapters that cannot be evaluated, each for its own reason."""
    made = {name: make_adapter(name) for name in ("cut", "no-json", "another-kind", "misfit")}
    weights = made["cut"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (made["no-json"] / "adapter_config.json").write_text("{")
    config = json.loads((made["another-kind"] / "adapter_config.json").read_text())
    (made["another-kind"] / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NEW"}))
    (made["misfit"] / "adapter_config.json").write_text(json.dumps({**config, "r": 7}))
    return {**made, "idle": make_adapter("idle", zero=True)}


def test_those_that_fail_are_told_at_the_end(
    failing: dict[str, Path], make_adapter: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    adapters = [*map(str, failing.values()), str(make_adapter("good"))]
    arguments = ["--model_args", f"pretrained={tiny_model_folder}", "--tasks", TASK, "--limit", "2"]
    output = ["--output_path", str(tmp_path), "--log_samples"]
    assert main(["eval", *arguments, *output, "--adapters", *adapters]) == 1
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    last = told.err.splitlines()[-len(failing) :]
    assert [line.split(" was not evaluated: ")[0] for line in last] == [f"harness-ext: {name}" for name in failing]
    written = [json.loads(file.read_text())["harness_ext"]["variant"] for file in tmp_path.rglob("results_*.json")]
    assert sorted(written) == ["base", "good"]
    assert "next: harness-ext compare" in told.out


def test_an_error_that_is_not_ours_is_one_of_the_adapter(
    make_adapter: Callable[..., Path], tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are not kept, since they hold the adapter's weights."""
    adapters = [make_adapter("first"), make_adapter("second", seed=2)]

    def fails(model: Any, folder: Path, **options: Any) -> Any:
        if folder.name == "first":
            raise MemoryError("no more of it")
        return attach(model, folder, **options)

    monkeypatch.setattr(adapter_switch, "attach", fails)
    base, first, second = evaluate(str(tiny_model_folder), tasks=[TASK], adapters=adapters, limit=2)
    assert base.results
    assert second.results
    assert not first.results
    assert str(first.error).startswith("MemoryError: no more of it")
    assert first.error is not None
    assert first.error.__traceback__ is None
    assert first.error.__cause__ is None


def test_if_none_can_be_evaluated_that_is_an_error(failing: dict[str, Path], tiny_model_folder: Path) -> None:
    with pytest.raises(AdapterError, match="is damaged"):
        evaluate(str(tiny_model_folder), tasks=[TASK], adapters=[*failing.values()], limit=1)


def test_a_base_that_was_changed_ends_the_run(
    make_adapter: Callable[..., Path], tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes afterwards would be of another base."""
    adapters = [make_adapter("first"), make_adapter("second", seed=2)]

    def changes(model: Any, *arguments: Any, **options: Any) -> Any:
        attached = attach(model, *arguments, **options)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return attached

    monkeypatch.setattr(adapter_switch, "attach", changes)
    with pytest.raises(AdapterError, match="changed the base"):
        evaluate(str(tiny_model_folder), tasks=[TASK], adapters=adapters, limit=1)


@pytest.fixture
def _nothing_logged() -> Iterator[None]:
    """pytest keeps every message that is logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def objects_after_each(
    base: Path, adapters: list[Path], tasks: list[str], output: Path
) -> Iterator[tuple[str, int, int]]:
    """The variant, the number of Python objects, and the bytes in tensors, after each variant."""
    config = EvaluatorConfig(
        model="hf-tree", model_args={"pretrained": str(base)}, tasks=tasks, limit=2, output_path=str(output),
        log_samples=True,
    )._configure()  # fmt: skip
    for done in run(config, adapters=adapters):
        assert not done.failures
        name = done.variant.name
        del done
        gc.collect()
        known = gc.get_objects()
        tensors = [each for each in known if type(each) in (torch.Tensor, torch.nn.Parameter)]
        yield name, len(known), sum(tensor.nbytes for tensor in tensors)


@pytest.mark.usefixtures("_nothing_logged")
def test_nothing_of_an_adapter_is_kept(
    make_adapter: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapters = copies(make_adapter("one"), tmp_path, 8)
    counts = list(objects_after_each(tiny_model_folder, adapters, [TASK], tmp_path / "out"))
    early, late = counts[3], counts[-1]
    assert late[2] == early[2]  # bytes of weights
    assert late[1] - early[1] < 250 * 4  # objects: those that pytest records; an adapter alone has thousands


@pytest.mark.long
@pytest.mark.usefixtures("_nothing_logged")
def test_a_hundred_adapters_on_five_tasks(
    make_adapter: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapters = copies(make_adapter("one"), tmp_path, 100)
    counts = list(objects_after_each(tiny_model_folder, adapters, FIVE_TASKS, tmp_path / "out"))
    assert len(counts) == 101
    assert counts[-1][2] == counts[10][2]
    assert counts[-1][1] - counts[10][1] < 250 * 90
    assert len(list((tmp_path / "out").rglob("samples_*.jsonl"))) == 505
