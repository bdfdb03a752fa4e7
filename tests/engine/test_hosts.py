"""Engines behind one interface: what every variant, of any engine, brings into its results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.dummy import DummyLM

from harness_ext.engine.evaluate import evaluate
from harness_ext.errors import ModelError
from harness_ext.results.load import load_runs

ADAPTER = Path(__file__).parents[2] / "adapters" / "sst2"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """lm-eval's dummy model in the place of an engine such as vLLM; the arguments that it was created with."""
    created: list[dict[str, Any]] = []

    def create(arguments: dict[str, Any], additional: dict[str, Any] | None = None) -> DummyLM:
        created.append(dict(arguments))
        return DummyLM()

    monkeypatch.setattr(DummyLM, "create_from_arg_obj", create)
    return created


def test_two_runs_of_another_engine_can_be_told_apart(engine: list[dict[str, Any]], tmp_path: Path) -> None:
    adapter = tmp_path / "sst2"
    shutil.copytree(ADAPTER, adapter)
    model_args = {"pretrained": "org/model", "dtype": "bfloat16"}
    for arguments in (model_args, {**model_args, "lora_local_path": str(adapter)}):
        (done,) = evaluate(
            tasks=["sst2_choice"], model="dummy", model_args=arguments, limit=20, log_samples=True,
            output_path=str(tmp_path / "out"),
        )  # fmt: skip
        assert not done.failures
        assert engine[-1] == arguments
    base, with_adapter = sorted(load_runs(str(tmp_path / "out")), key=lambda run: bool(run.adapter))
    assert (base.name, base.base, base.adapter, base.card) == ("model", "org/model", None, {})
    assert (with_adapter.name, with_adapter.base, with_adapter.adapter) == ("sst2", "org/model", str(adapter))
    card = json.loads((adapter / "card.json").read_text(encoding="utf-8"))
    assert {name: with_adapter.card[name] for name in card} == card


def test_an_engine_without_a_switch_takes_its_adapter_by_its_arguments(engine: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelError, match=r"dummy cannot switch adapters; .* --model_args"):
        evaluate(tasks=["sst2_choice"], model="dummy", adapters=[ADAPTER])
    assert not engine
