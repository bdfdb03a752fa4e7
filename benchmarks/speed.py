"""`hf` against `hf-tree`, and padded against tree training: ratios, side by side, each with its equality check.

    HARNESS_EXT_DATA=DIR python benchmarks/speed.py --output docs/benchmarks.md

Machines are noisy: read the ratio, not the seconds.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.engine.evaluate import VariantResults, evaluate
from harness_ext.models.forward import Pack, padded_packs, tree_packs
from harness_ext.models.sources import fetch_model
from harness_ext.protocol.render import PromptSettings, load_task, training_docs
from harness_ext.training.batches import GroupedBatches, build_examples, group_by_prefix

MODEL = "smollm2-135m-instruct"
PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft")
LOGPROB_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Line:
    """One comparison of the table."""

    what: str
    plain: str
    plain_seconds: float
    tree_seconds: float
    same: str  # what was checked to be equal


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--limit", type=int, help="documents of each evaluation, for trying this script out")
    parser.add_argument("--steps", type=int, default=8, help="training steps of 32 examples (default: 8)")
    options = parser.parse_args()
    base = str(fetch_model(MODEL))
    lines = []
    for measure in measurements(base, options.limit, options.steps):
        line = measure()
        print(f"{line.what}: {line.plain_seconds / line.tree_seconds:.2f}x ({line.same})", flush=True)
        lines.append(line)
        gc.collect()
    options.output.write_text(document(lines), encoding="utf-8")


def measurements(base: str, limit: int | None, steps: int) -> Iterator[Callable[[], Line]]:
    """Every line of the table, in order."""
    yield lambda: evaluation(base, "sst2_choice", limit=limit, batch_sizes=(8, 16, 32))
    yield lambda: evaluation(base, "sst2_generate", limit=limit or 400, batch_sizes=(16, 32))
    yield lambda: evaluation(base, "squad_v2_generate", limit=limit or 400, batch_sizes=(16,))
    yield lambda: training(base, "sst2_choice", steps)
    yield lambda: training(base, "squad_v2_generate", steps)


def evaluation(base: str, task: str, *, limit: int | None, batch_sizes: Sequence[int]) -> Line:
    """Time both model classes on a task, loading left out; `hf` at the best of several batch sizes."""
    plain = {size: run(base, task, "hf", limit, size) for size in batch_sizes}
    tree = run(base, task, "hf-tree", limit, batch_sizes[0])
    best = min(plain, key=lambda size: seconds(plain[size]))
    documents = len(tree.results["samples"][task])
    return Line(
        what=f"`{task}`, {documents} documents",
        plain=f"`hf`, batch {best}",
        plain_seconds=seconds(plain[best]),
        tree_seconds=seconds(tree),
        same=agreement(plain[best], tree, task),
    )


def run(base: str, task: str, model: str, limit: int | None, batch_size: int) -> VariantResults:
    """One evaluation of the base."""
    with tempfile.TemporaryDirectory() as folder:
        (done,) = evaluate(
            base, tasks=[task], model=model, limit=limit, batch_size=batch_size, output_path=folder, log_samples=True
        )
    return done


def seconds(done: VariantResults) -> float:
    """How long lm-eval took, without loading the model."""
    return float(done.results["harness_ext"]["seconds"])


def agreement(plain: VariantResults, tree: VariantResults, task: str) -> str:
    """Say how the two agree, document by document."""
    pairs = list(zip(plain.results["samples"][task], tree.results["samples"][task], strict=True))
    answers = [(one["filtered_resps"], other["filtered_resps"]) for one, other in pairs]
    if isinstance(answers[0][0][0], str):
        return f"{sum(one == other for one, other in answers)} of {len(answers)} texts identical"
    scores = [(float(a[0]), float(b[0])) for one, other in answers for a, b in zip(one, other, strict=True)]
    difference = max(abs(a - b) for a, b in scores)
    assert difference <= LOGPROB_TOLERANCE, f"log-probabilities differ by {difference}"
    return f"largest difference of a log-probability {difference:.1e}"


def training(base: str, task_name: str, steps: int) -> Line:
    """Time forward and backward passes of the same batches, padded and as trees."""
    task = load_task(task_name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal")
    docs = training_docs(task)
    examples = build_examples(
        task, docs, PromptSettings(), lm, limit=32 * steps * 4, validation_size=0, max_length=lm.max_length, seed=0
    ).training
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).train()
    batches = [
        [examples[n] for n in batch] for batch in GroupedBatches(group_by_prefix(examples), batch_size=32, seed=0)
    ]
    batches = batches[:steps]
    layouts: dict[str, Callable[[list], Iterator[Pack]]] = {
        "padded": lambda batch: padded_packs(batch, max_tokens=2048, pad_token_id=tokenizer.eos_token_id),
        "tree": lambda batch: tree_packs(batch, max_tokens=2048),
    }
    times, losses = {}, {}
    for name, layout in layouts.items():
        started = time.perf_counter()
        losses[name] = [step(model, layout(batch)) for batch in batches]
        times[name] = time.perf_counter() - started
    difference = max(abs(a - b) / abs(a) for a, b in zip(losses["padded"], losses["tree"], strict=True))
    assert difference < 1e-4, f"losses differ by {difference}"
    return Line(
        what=f"training on `{task_name}`, {len(batches)} steps of 32",
        plain="padded batches, longest first",
        plain_seconds=times["padded"],
        tree_seconds=times["tree"],
        same=f"largest relative difference of a loss {difference:.1e}",
    )


def step(model: torch.nn.Module, packs: Iterator[Pack]) -> float:
    """Loss of a batch, its gradients computed and thrown away."""
    total = 0.0
    for pack in packs:
        loss = -pack.target_logprobs(model).sum()
        loss.backward()
        total += float(loss)
    model.zero_grad()
    return total


def document(lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    rows = [
        f"| {line.what} | {line.plain} | {line.plain_seconds:.1f} s | {line.tree_seconds:.1f} s "
        f"| **{line.plain_seconds / line.tree_seconds:.2f}×** | {line.same} |"
        for line in lines
    ]
    return f"""# Benchmarks

{MODEL}, float32, {torch.get_num_threads()} threads, {platform.machine()};
Python {platform.python_version()}, {versions}. Both sides of a line ran one after the other in one process.
Made by `make bench`.

| what | plain | plain | trees | ratio | the same? |
|---|---|---:|---:|---:|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
