"""lm-eval's own `hf`, one variant at a time, with a note of every generated token and how close the choice was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import peft
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from differential.build import Built
from differential.cases import Case
from differential.models import auto_class


@dataclass(frozen=True)
class Generation:
    """What `hf` generated for one prompt."""

    input_tokens: int
    tokens: list[int]
    gaps: list[float]  # at each step, between the best and the second best score, after all processors
    first_tokens: frozenset[int]  # the support of the first token


@dataclass
class StockRun:
    """One variant under `hf`: samples and results of each task, or what it raised."""

    samples: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    lm: RecordingHF | None = None

    @property
    def error(self) -> Exception | None:
        """What ended the run, where no task went well."""
        return next(iter(self.errors.values()), None) if not self.samples else None


class RecordingHF(HFLM):
    """`hf` itself; the scores that `generate` computes anyway are looked at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generations: dict[str, list[Generation]] = defaultdict(list)
        self._prompts: Sequence[str] = ()

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> Any:
        self._prompts = strings
        return super().tok_batch_encode(strings, *args, **kwargs)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = super()._model_generate(
            context, *args, **{**kwargs, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        )
        if not isinstance(output, torch.Tensor):
            if len(self._prompts) == 1 and output.scores is not None:
                self._note(context, output)
            return output.sequences
        return output

    def _note(self, context: torch.Tensor, output: Any) -> None:
        start = context.shape[1] if self.backend == "causal" else 1
        self.generations[self._prompts[0]].append(
            Generation(
                input_tokens=context.shape[1],
                tokens=output.sequences[0, start:].tolist(),
                gaps=[_gap(scores[0], raw[0]) for scores, raw in zip(output.scores, output.logits, strict=True)],
                first_tokens=frozenset(torch.where(output.scores[0][0] > float("-inf"))[0].tolist()),
            )
        )


def _gap(scores: torch.Tensor, logits: torch.Tensor) -> float:
    """Between the best and the second best score; of the logits where processors left only one token.

    In low precision those, rounded and not yet processed, do not tell how close it was: it may have been a tie.
    """
    first, second = scores.float().topk(2).values
    if second == float("-inf"):
        if logits.dtype != torch.float32 or torch.equal(logits, logits.bfloat16().float()):
            return 0.0
        first, second = logits.float().topk(2).values
    return float(first - second)


def run_stock(
    case: Case, built: Built, adapter: Path | None, *, batch_size: int = 1, resized: bool = False
) -> StockRun:
    """One variant through `lm_eval.simple_evaluate`, as a user of lm-eval would run it.

    With `resized` the embedding has as many rows as the tokenizer has tokens, as `hf` makes it for an adapter.
    """
    model_args: dict[str, Any] = {"pretrained": str(built.model), "dtype": case.dtype, **case.shared_args}
    if adapter is not None:
        model_args["peft"] = str(adapter)
        if own := built.tokenizer_of(adapter):
            model_args["tokenizer"] = str(own)

    def load() -> RecordingHF:
        lm = RecordingHF(**model_args, batch_size=batch_size, device="cpu")
        if resized:
            lm.model.resize_token_embeddings(len(lm.tokenizer))
        return lm

    return _evaluate(case, built, load)


def run_peft_alone(case: Case, built: Built, adapter: Path, *, batch_size: int = 1) -> StockRun:
    """`hf` over a model that peft itself loaded, for adapters that `hf` with peft= crashes on.

    `hf` resizes the embedding to the tokenizer before peft loads, and ties weights after it; where one of them is what
    crashes, the adapter is taken as peft loads it.
    """

    def run(*, resize: bool) -> StockRun:
        return _evaluate(
            case, built, lambda: _load_with_peft(case, built, adapter, resize=resize, batch_size=batch_size)
        )

    resized = run(resize=True)
    return resized if resized.error is None else run(resize=False)


def _load_with_peft(case: Case, built: Built, adapter: Path, *, resize: bool, batch_size: int) -> RecordingHF:
    asked = {name: value for name, value in case.shared_args.items() if name == "add_bos_token"}  # `hf` passes it on
    tokenizer = AutoTokenizer.from_pretrained(built.tokenizer_of(adapter) or built.model, **asked)
    model = auto_class(case.architecture).from_pretrained(built.model, dtype=getattr(torch, case.dtype))
    if resize and len(tokenizer) != model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    wrapped = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    wrapped.tie_weights = lambda *_, **__: None
    args = {name: value for name, value in case.shared_args.items() if name != "attn_implementation"}
    return RecordingHF(pretrained=wrapped, tokenizer=tokenizer, **args, batch_size=batch_size)


def _evaluate(case: Case, built: Built, load: Callable[[], RecordingHF]) -> StockRun:
    """All tasks in one call; where that raises, each task alone."""
    try:
        lm = load()
    except Exception as error:
        return StockRun(errors={task.stem: error for task in built.tasks})
    try:
        results = _simple_evaluate(case, lm, built.tasks)
        return StockRun(dict(results["samples"]), dict(results["results"]), lm=lm)
    except Exception as error:
        if len(built.tasks) == 1:
            return StockRun(errors={built.tasks[0].stem: error}, lm=lm)
    run = StockRun(lm=lm)
    for task in built.tasks:
        try:
            results = _simple_evaluate(case, lm, [task])
            run.samples |= results["samples"]
            run.results |= results["results"]
        except Exception as error:
            run.errors[task.stem] = error
    return run


def _simple_evaluate(case: Case, lm: RecordingHF, tasks: Sequence[Path]) -> dict[str, Any]:
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=[str(task) for task in tasks],
        task_manager=TaskManager(include_defaults=False),
        batch_size=1,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
        **call_settings(case),
    )


def call_settings(case: Case) -> dict[str, Any]:
    """The settings of a call that both sides take."""
    return {
        "num_fewshot": case.num_fewshot,
        "apply_chat_template": case.apply_chat_template,
        "system_instruction": case.system_instruction,
        "fewshot_as_multiturn": case.fewshot_as_multiturn,
        "gen_kwargs": dict(case.gen_kwargs) or None,
    }
