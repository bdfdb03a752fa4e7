"""A vocabulary of 128,256 tokens: time and peak memory."""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from fresh import in_fresh_process
from lines import Line
from lm_eval.api.registry import get_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import harness_ext.engine.hf_tree  # noqa: F401 - registers hf-tree
from harness_ext.protocol.render import PromptSettings, render
from harness_ext.protocol.tasks import load_task

VOCABULARY = 128_256
BATCH_SIZE = 32


class Measured(NamedTuple):
    """One side of both lines."""

    seconds: float
    megabytes: float  # resident at the peak of scoring, beyond what the loaded model takes
    logprobs: list[float]


def of_a_large_vocabulary(base: str, limit: int) -> list[Line]:
    """Score `sst2_choice` with a small random Llama of Llama 3's vocabulary, by `hf` and by `hf-tree`."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(base, Path(folder))
        plain, tree = (in_fresh_process(measured, folder, model, limit) for model in ("hf", "hf-tree"))
    difference = max(abs(a - b) for a, b in zip(plain.logprobs, tree.logprobs, strict=True))
    what, same = (
        "4-layer Llama, 128,256 tokens in the vocabulary",
        f"largest difference of a log-probability {difference:.0e}",
    )
    against = f"`hf`, batch {BATCH_SIZE}"
    return [
        Line(
            f"{what}, {len(tree.logprobs) // 2} documents", against, plain.seconds, tree.seconds, same, minimum=3, aim=3
        ),
        Line(
            f"{what}: peak memory beyond the loaded model", against, plain.megabytes, tree.megabytes, same,
            unit="MB", minimum=10, aim=10,
        ),
    ]  # fmt: skip


def make_model(base: str, folder: Path) -> None:
    """A small random Llama with the base's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def measured(folder: str, model: str, limit: int) -> Measured:
    """Score documents; what loading took is not measured, the check whether the model takes trees is."""
    lm = get_model(model)(pretrained=folder, device="cpu", dtype="float32", batch_size=BATCH_SIZE)
    task = load_task("sst2_choice")
    contexts = [doc.context for doc in render(task, list(task.eval_docs)[:limit], PromptSettings(), lm)]
    requests = [
        (("", ""), *lm._encode_pair(context, word)) for context in contexts for word in (" negative", " positive")
    ]
    for weight in lm.model.parameters():
        weight.sum()  # read from the file only now
    with PeakMemory() as memory:
        started = time.perf_counter()
        scores = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        seconds = time.perf_counter() - started
    return Measured(seconds, memory.grown_by / 2**20, [score[0] for score in scores])


class PeakMemory:
    """By how many bytes the resident set grew at its peak within a `with` block, looked at every two milliseconds."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if sys.platform == "linux":
            # what loading has freed is given back, on either side
            getattr(ctypes.CDLL(None), "malloc_trim", bool)(0)
        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    @property
    def grown_by(self) -> int:
        """Bytes."""
        return self._peak - self._before
