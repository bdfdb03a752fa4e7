"""A model whose logits are not numbers gets no score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import save_tiny_model
from transformers import AutoModelForCausalLM

from harness_ext.engine.asking import Answering
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.finite import check_logits, finite_generation
from harness_ext.engine.store import ResponseStore
from harness_ext.errors import ModelError
from harness_ext.protocol.lm_eval_api import get_model


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers NaN."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    save_tiny_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("engine", ["hf", "hf-tree"])
@pytest.mark.parametrize("task", ["sst2_generate", "sst2_choice"])
@pytest.mark.parametrize("has_store", [True, False])
def test_no_score(engine: str, task: str, has_store: bool, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(not finite numbers while it generates|NaN).*; try dtype=float32"):
        evaluate(
            str(broken), tasks=[task], model=engine, limit=3, output_path=str(tmp_path / "results"),
            store=str(tmp_path / "store") if has_store else False,
        )  # fmt: skip
    assert not list(tmp_path.glob("**/results_*"))


@pytest.mark.parametrize("answer", [(float("nan"), False), float("nan")])
def test_no_answer_of_a_store_is_nan(answer: object, tiny_model_folder: Path) -> None:
    lm = get_model("hf")(pretrained=str(tiny_model_folder), device="cpu", dtype="float32")
    hook = Answering(ResponseStore(None), b"model", lm)._hook
    hook.expect({b"key": "name"}, None)
    with pytest.raises(ModelError, match="NaN as a log-probability"):
        hook._take(b"key", answer, None)


def test_the_largest_logits() -> None:
    check_logits(torch.tensor([0.0, -3.0, -torch.inf]))  # where processors forbid all tokens, generate decides
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ModelError, match="not finite"):
            check_logits(torch.tensor([0.0, bad]))


def test_only_the_next_token_counts(tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    head = model.get_output_embeddings()
    hidden = torch.zeros(1, 3, head.in_features)
    with finite_generation(model), torch.no_grad():
        head(hidden.index_fill(1, torch.tensor([0]), torch.nan))  # a position of padding
        with pytest.raises(ModelError, match="not finite"):
            head(hidden.index_fill(1, torch.tensor([2]), torch.nan))
    head(hidden.index_fill(1, torch.tensor([2]), torch.nan))  # it is as it was
