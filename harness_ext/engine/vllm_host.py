"""vLLM with adapters by request: one engine, the base and every adapter in one process.

```
LLM(enable_lora) ── no request ──> base
                 ── LoRARequest ─> adapter, whose answers are proved to differ from the base's
```
"""

from __future__ import annotations

import importlib
import logging
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from harness_ext.engine.answer_hook import GenerationRecord, RequestKey
from harness_ext.engine.generation_records import add_generation_records
from harness_ext.engine.hosts import SCORED_KINDS, Selected, probe_prompts, prompt_settings, resolve_base
from harness_ext.engine.variants import Variant, base_and_adapters
from harness_ext.errors import AdapterError, ModelError, NotAppliedError, first_line
from harness_ext.models.adapters import CONFIG_FILE
from harness_ext.models.snapshot import AdapterSnapshot, snapshot
from harness_ext.protocol.lm_eval_api import HFLM, LM, EvaluatorConfig, Instance, Task, get_model
from harness_ext.reading.json_input import read_json_object

logger = logging.getLogger(__name__)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for max_lora_rank
PROBED_TOKENS = 8  # generated behind each probe
LEAST_CHANGE = 1e-6  # nats


Answer = tuple[tuple[int, ...], float]  # generated tokens, and their log-probability


class VllmHost:
    """A vLLM engine that takes each adapter by request.

    Args:
        config: of `--model vllm`.
        adapters: folders, glob patterns or Hub ids.

    Raises:
        ModelError: the arguments name an adapter, too, or leave too little room for the rank of one.
    """

    hf: HFLM | None = None
    takes_shards = False  # vLLM divides its work itself
    is_intact = True  # weights of the base are never changed

    def __init__(self, config: EvaluatorConfig, adapters: Sequence[str | Path]) -> None:
        self._config = config
        if config.model_args.get("lora_local_path"):
            raise ModelError("lora_local_path and --adapters both name adapters; leave out lora_local_path")
        if int(config.model_args.get("data_parallel_size", 1)) > 1:
            raise ModelError("--adapters needs data_parallel_size=1; use tensor_parallel_size for several GPUs")
        self.variants: Sequence[Variant] = base_and_adapters(adapters)
        self.base = resolve_base(config.model_args, [variant for variant in self.variants if variant.adapter])
        self.weights: str | None = self.base
        self.snapshot: AdapterSnapshot | None = None
        self._rank = self._chosen_rank()

    def _chosen_rank(self) -> int:
        """Room for the adapter of the largest rank."""
        ranks = {variant.name: _rank(variant.folder) for variant in self.variants if variant.folder}
        name, largest = max(ranks.items(), key=lambda item: item[1])
        given = self._config.model_args.get("max_lora_rank")
        if given is not None and int(given) < largest:
            raise ModelError(
                f"max_lora_rank={given} is below the rank {largest} of {name}; leave it out, and it is chosen"
            )
        if largest > RANKS[-1]:
            raise ModelError(f"{name} has rank {largest}, and vLLM takes at most {RANKS[-1]}; evaluate it with hf-tree")
        return int(given) if given is not None else next(rank for rank in RANKS if rank >= largest)

    def load(self, tasks: Sequence[Task]) -> None:
        """Start the engine, and keep what the base answers to some prompts of the tasks."""
        config = self._config
        _check_tasks(tasks)
        config.model_args.update(pretrained=self.base, max_lora_rank=self._rank)
        if str(config.batch_size or 1) == "1":
            config.batch_size = "auto"  # else lm-eval sends one request and waits for its answer
        options = {name: getattr(config, name) for name in ("batch_size", "max_batch_size")}
        try:
            self.lm: LM = get_model(config.model).create_from_arg_obj(
                {**config.model_args, "enable_lora": True}, {k: v for k, v in options.items() if v is not None}
            )
        except Exception as error:  # whatever vLLM raises of a model, a device or an argument
            raise ModelError(
                f"vLLM cannot load {self.base} with LoRA ({type(error).__name__}: {first_line(error):.200}); check "
                "--model_args, or evaluate with hf-tree"
            ) from error
        _keep_records(self.lm)
        _without_bar(self.lm)
        self._prompts = probe_prompts(tasks, prompt_settings(config), cast(HFLM, self.lm))
        self._answers = self._asked()
        again = self._asked()
        self._noise = _largest_change(self._answers, again)

    def _asked(self) -> list[Answer]:
        """Greedy continuations of the probes, with their log-probabilities."""
        lm: Any = self.lm
        ids = [lm.tok_encode(prompt) for prompt in self._prompts]
        if not ids:
            return []
        settings = _sampling(temperature=0, max_tokens=PROBED_TOKENS, logprobs=1)
        outputs = lm._model_generate(requests=ids, generate=True, sampling_params=settings)
        return [
            (tuple(done.token_ids), float(done.cumulative_logprob)) for done in (each.outputs[0] for each in outputs)
        ]

    def model_args(self, variant: Variant) -> dict[str, Any]:
        """With the adapter as stock lm-eval takes it."""
        adapter = {} if variant.adapter is None else {"lora_local_path": str(variant.adapter)}
        return {**self._config.model_args, **adapter}

    def why_not(self, _variant: Variant) -> str | None:
        """Nothing is known beforehand."""
        return None

    @contextmanager
    def active(self, variant: Variant) -> Iterator[Mapping[str, str]]:
        """Send the adapter with every request.

        Raises:
            AdapterError: vLLM cannot load it, or does not apply it.
            ModelError: the base no longer answers as it did before.
        """
        lm: Any = self.lm
        lm.generation_records.clear()
        if variant.folder is None:
            yield {}
            return
        number = [each.name for each in self.variants].index(variant.name)
        try:
            with snapshot(variant.folder) as self.snapshot:
                lm.lora_request = _request(variant.name, number, variant.folder)
                self._prove_active(variant)
            yield {}
        finally:
            self.snapshot = lm.lora_request = None
        self._prove_base(variant)

    def _prove_active(self, variant: Variant) -> None:
        try:
            answers = self._asked()
        except Exception as error:  # whatever vLLM raises of an adapter
            raise AdapterError(
                f"vLLM cannot load {variant.adapter} ({type(error).__name__}: {first_line(error):.200}); evaluate it "
                "with hf-tree"
            ) from error
        if answers and _largest_change(self._answers, answers) <= max(LEAST_CHANGE, 2 * self._noise):
            raise NotAppliedError(
                f"vLLM answers {len(answers)} prompts of the tasks with {variant.adapter} exactly as without it: it "
                "does not apply the adapter (are its layers among those that vLLM supports for this model?); evaluate "
                "it with hf-tree"
            )

    def _prove_base(self, variant: Variant) -> None:
        if _largest_change(self._answers, self._asked()) > max(1e-2, 4 * self._noise):
            raise ModelError(
                f"after {variant.name} the base no longer gives the answers it gave before; evaluate each alone"
            )

    def check(self) -> None:
        """Nothing is known beforehand."""

    def add_records(self, samples: Mapping[str, list[dict[str, Any]]], selected: Selected) -> None:
        """Finish reason and token counts; see `generation_records`."""
        add_generation_records(samples, cast(HFLM, self.lm), selected)


def _check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse what makes vLLM's engine for CPUs end: log-probabilities of prompts with LoRA."""
    scoring = [str(task.task_name) for task in tasks if task.OUTPUT_TYPE in SCORED_KINDS]
    if scoring and _is_cpu():
        raise ModelError(
            f"vLLM on a CPU gives no log-probabilities of prompts with LoRA, which {', '.join(scoring)} needs; use "
            "tasks that generate, a GPU, or hf-tree"
        )


def _largest_change(before: Sequence[Answer], after: Sequence[Answer]) -> float:
    """The largest difference between two sets of answers, in nats; infinite where other tokens were generated."""
    return max(
        (abs(a[1] - b[1]) if a[0] == b[0] else math.inf for a, b in zip(before, after, strict=True)), default=0.0
    )


def _is_cpu() -> bool:
    return bool(importlib.import_module("vllm.platforms").current_platform.is_cpu())


def _sampling(**settings: Any) -> Any:
    return importlib.import_module("vllm").SamplingParams(**settings)


def _rank(folder: Path) -> int:
    config = read_json_object(folder / CONFIG_FILE)
    patterns = config.get("rank_pattern") or {}
    return max([int(config.get("r") or 0), *(int(rank) for rank in patterns.values())])


def _request(name: str, number: int, folder: Path) -> Any:
    return importlib.import_module("vllm.lora.request").LoRARequest(name, number, str(folder))


def _keep_records(lm: Any) -> None:
    """Let a vLLM model of lm-eval note why each generation ended."""
    lm.generation_records = {}
    seen: defaultdict[tuple[int, ...], deque[GenerationRecord]] = defaultdict(deque)
    lm._model_generate = partial(_noting, lm._model_generate, seen)
    lm.generate_until = partial(_recording, lm, lm.generate_until, seen)


def _without_bar(lm: Any) -> None:
    """Ask vLLM for no progress bar: where bars are switched off, it divides by the time that its own took."""
    if (engine := getattr(lm, "model", None)) is not None:
        generate = engine.generate
        engine.generate = lambda *prompts, **options: generate(*prompts, **{**options, "use_tqdm": False})


def _noting(ask: Any, seen: Any, requests: Sequence[Sequence[int]], generate: bool = False, **options: Any) -> Any:
    outputs = ask(requests, generate=generate, **options)
    if generate:
        for prompt, output in zip(requests, outputs, strict=True):
            done = output.outputs[0]
            reason = "length" if done.finish_reason == "length" else "stop"
            seen[tuple(prompt)].append(GenerationRecord(reason, len(prompt), len(done.token_ids)))
    return outputs


def _recording(lm: Any, ask: Any, seen: Any, requests: Sequence[Instance], **options: Any) -> list[str]:
    seen.clear()
    answers: list[str] = ask(requests, **options)
    for request, prompt in zip(requests, lm.tok_encode([request.args[0] for request in requests]), strict=True):
        if records := seen.get(tuple(prompt)):  # none for a prompt that was cut
            lm.generation_records.setdefault(RequestKey.of(request), []).append(records.popleft())
    return answers
