"""A model that answers well under one condition only, and an adapter for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoModelForCausalLM

from harness_ext.engine.hf_tree import GenerationRecord, RequestKey, TreeLM

CONDITIONAL = "conditional"
LORA_RANK = 4


@register_model(CONDITIONAL)
class ConditionalLM(TreeLM):
    """Knows the reference answers as far as a condition on its prompt and its adapter's scale is met.

    A generation is what `answer` makes of the document if the condition is met fully, else nonsense; it stops at the
    stop strings and at the token limit. A reference answer's log-probability grows with the condition.
    """

    condition: ClassVar[Callable[[str, float], float]]  # (prompt, scale of the adapter) -> 0 to 1
    answer: ClassVar[Callable[[Mapping[str, Any]], str]]  # document -> what is generated

    def _scale(self) -> float:
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        return next(iter(layers[0].scaling.values())) if layers else 0.0

    def _met(self, ids: list[int]) -> float:
        return type(self).condition(self.tokenizer.decode(ids), self._scale())

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return [(-20.0 * (1 - self._met(context)) - 1.0, False) for _, context, _ in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            settings = dict(request.args[1])
            (ids,) = self._prompt_ids([request.args[0]], settings["max_gen_toks"])
            whole = type(self).answer(request.doc) if self._met(ids) == 1 else "nothing of the kind"
            tokens = self.tok_encode(whole, add_special_tokens=False)
            text = self.tok_decode(tokens[: settings["max_gen_toks"]])
            for stop in settings["until"]:
                text = text.split(stop, maxsplit=1)[0]
            reason = "length" if len(tokens) > settings["max_gen_toks"] and whole.startswith(text) else "stop"
            key = RequestKey(str(request.task_name), int(request.doc_id or 0), request.idx)
            self.generation_records[key] = [GenerationRecord(reason, len(ids), len(tokens))]  # type: ignore[arg-type]
            answers.append(text)
        return answers


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set what the conditional model knows, and when."""

    def set_(condition: Callable[[str, float], float], answer: Callable[[Mapping[str, Any]], str]) -> None:
        monkeypatch.setattr(ConditionalLM, "condition", staticmethod(condition), raising=False)
        monkeypatch.setattr(ConditionalLM, "answer", staticmethod(answer), raising=False)

    return set_


@pytest.fixture(scope="session")
def adapter(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of rank 4 and scale 2 for the tiny model, with random weights."""
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    torch.manual_seed(1)
    config = LoraConfig(r=LORA_RANK, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
