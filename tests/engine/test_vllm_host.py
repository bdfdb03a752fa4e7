"""vLLM with adapters by request. It is not installed here: a small engine with its interface answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.engine import engines, vllm_host
from harness_ext.engine.evaluate import evaluate
from harness_ext.errors import HarnessExtError, ModelError
from harness_ext.protocol import lm_eval_api
from harness_ext.protocol.lm_eval_api import LM, Instance

FAULTS: set[str] = set()


class Engine(LM):
    """What lm-eval's `vllm` is to the host: token prompts in, vLLM's outputs out."""

    def __init__(self, pretrained: str, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.tokenizer = AutoTokenizer.from_pretrained(pretrained)
        self.max_gen_toks = 8
        self.lora_request: Any = None
        self._pretrained = pretrained
        self._models = {"": AutoModelForCausalLM.from_pretrained(pretrained).eval()}

    @classmethod
    def create_from_arg_obj(cls, arguments: dict[str, Any], additional: dict[str, Any] | None = None) -> Engine:
        return cls(**arguments, **(additional or {}))

    def tok_encode(self, text: Any) -> Any:
        return self.tokenizer(list(text) if isinstance(text, (list, tuple)) else text)["input_ids"]

    def _model(self) -> Any:
        request = self.lora_request
        if request is None or "no-op" in FAULTS:
            return self._models[""]
        if request.path not in self._models:
            base = AutoModelForCausalLM.from_pretrained(self._pretrained)
            self._models[request.path] = PeftModel.from_pretrained(base, request.path).eval()
        return self._models[request.path]

    @torch.no_grad()
    def _model_generate(
        self, requests: Sequence[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> Any:
        outputs = []
        for ids in requests:
            made = self._model().generate(
                torch.tensor([ids]), max_new_tokens=sampling_params.max_tokens, do_sample=False, pad_token_id=2,
                output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
            tokens = made.sequences[0, len(ids) :].tolist()
            scores = [float(step[0].log_softmax(-1)[token]) for step, token in zip(made.scores, tokens, strict=True)]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(
                token_ids=tokens, text=self.tokenizer.decode(tokens), cumulative_logprob=sum(scores),
                finish_reason="length" if len(tokens) == sampling_params.max_tokens else "stop",
            )]))  # fmt: skip
        return outputs

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        longest_first = sorted(range(len(requests)), key=lambda n: -len(requests[n].args[0]))
        prompts = self.tok_encode([requests[n].args[0] for n in longest_first])
        settings = SimpleNamespace(max_tokens=self.max_gen_toks)
        outputs = self._model_generate(requests=prompts, generate=True, sampling_params=settings)
        texts = {n: output.outputs[0].text for n, output in zip(longest_first, outputs, strict=True)}
        return [texts[n] for n in range(len(requests))]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS.clear()
    for module in (engines, vllm_host):
        monkeypatch.setattr(module, "get_model", lambda name: Engine if name == "vllm" else lm_eval_api.get_model(name))
    monkeypatch.setattr(vllm_host, "_sampling", lambda **settings: SimpleNamespace(**settings))
    monkeypatch.setattr(
        vllm_host, "_request", lambda name, number, folder: SimpleNamespace(name=name, id=number, path=str(folder))
    )
    monkeypatch.setattr(vllm_host, "_is_cpu", lambda: "cpu" in FAULTS)


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> list[Path]:
    return [make_adapter("first", r=4), make_adapter("second", seed=2, r=12)]


def test_one_engine_answers_for_all(tiny_model_folder: Path, adapters: list[Path], tmp_path: Path) -> None:
    """As hf answers; with finish reasons and token counts, names and hashes."""
    arguments: dict[str, Any] = {"tasks": ["sst2_generate"], "adapters": adapters, "limit": 5, "log_samples": True}
    served = evaluate(str(tiny_model_folder), model="vllm", output_path=str(tmp_path / "vllm"), **arguments)
    own = evaluate(
        str(tiny_model_folder), model="hf", output_path=str(tmp_path / "hf"), store=False, batch_size=1,
        gen_kwargs={"max_gen_toks": 8, "until": ["~~~"]}, **arguments,
    )  # fmt: skip
    assert [each.variant.name for each in served] == ["base", "first", "second"]
    for there, here in zip(served, own, strict=True):
        for one, other in zip(*(each.results["samples"]["sst2_generate"] for each in (there, here)), strict=True):
            assert one["resps"][0][0].strip() == other["resps"][0][0].strip()
            assert one["output_tokens"] == len(AutoTokenizer.from_pretrained(tiny_model_folder)(
                one["resps"][0][0], add_special_tokens=False)["input_ids"]) or one["output_tokens"] == 8  # fmt: skip
            assert one["finish_reason"] in ("stop", "length")
        assert there.results["harness_ext"]["adapter_sha256"] == here.results["harness_ext"]["adapter_sha256"]


def test_the_rank_is_chosen(tiny_model_folder: Path, adapters: list[Path]) -> None:
    done = evaluate(str(tiny_model_folder), model="vllm", tasks=["sst2_generate"], adapters=adapters, limit=2)
    assert done[0].results["config"]["model_args"]["max_lora_rank"] == 16
    assert done[0].results["config"]["batch_size"] == "auto"
    with pytest.raises(ModelError, match="max_lora_rank=8 is below the rank 12 of second"):
        evaluate(
            str(tiny_model_folder), model="vllm", tasks=["sst2_generate"], adapters=adapters,
            model_args={"max_lora_rank": 8},
        )  # fmt: skip


def test_a_rank_that_no_engine_takes(tiny_model_folder: Path, make_adapter: Callable[..., Path]) -> None:
    folder = make_adapter("wide")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 513}))
    with pytest.raises(HarnessExtError, match=r"rank 513|r is 513"):
        evaluate(str(tiny_model_folder), model="vllm", tasks=["sst2_generate"], adapters=[folder], limit=2)


def test_an_adapter_that_is_not_applied(tiny_model_folder: Path, adapters: list[Path]) -> None:
    FAULTS.add("no-op")
    with pytest.raises(HarnessExtError, match="it does not apply the adapter"):
        evaluate(str(tiny_model_folder), model="vllm", tasks=["sst2_generate"], adapters=adapters[:1], limit=2)


def test_scores_with_lora_on_a_cpu_are_refused_first(tiny_model_folder: Path, adapters: list[Path]) -> None:
    FAULTS.add("cpu")
    with pytest.raises(ModelError, match="no log-probabilities of prompts with LoRA, which sst2_choice needs"):
        evaluate(str(tiny_model_folder), model="vllm", tasks=["sst2_choice"], adapters=adapters, limit=2)


def test_arguments_that_contradict(tiny_model_folder: Path, adapters: list[Path]) -> None:
    for arguments, message in (
        ({"lora_local_path": "x"}, "leave out lora_local_path"),
        ({"data_parallel_size": 2}, "data_parallel_size=1"),
    ):
        with pytest.raises(ModelError, match=message):
            evaluate(
                str(tiny_model_folder), model="vllm", tasks=["sst2_generate"], adapters=adapters, model_args=arguments
            )


def test_vllm_that_is_not_installed() -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(ModelError, match=r"--model vllm needs a package that is not installed .*; see docs/engines.md"):
        lm_eval_api.get_model("vllm")
