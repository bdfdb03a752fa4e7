"""Evaluation: the same task by `hf` and by `hf-tree`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lines import Line
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.engine.evaluate import VariantResults, evaluate
from harness_ext.engine.scoring import score_continuations
from harness_ext.models.attention import use_blocks
from harness_ext.models.forward import TokenPair, tree_packs
from harness_ext.protocol.locations import tasks_path
from harness_ext.protocol.render import PromptSettings, encode, load_task, render

LOGPROB_TOLERANCE = 1e-4
SHIPPED = ("adapters/sst2", "adapters/squad_v2")


def of_task(
    base: str, task: str, limit: int | None, *, batch_sizes: Sequence[int], minimum: float, aim: float
) -> list[Line]:
    """Time both model classes on a task, loading left out; `hf` at the best of several batch sizes."""
    plain = {size: run(base, task, "hf", limit, size) for size in batch_sizes}
    tree = run(base, task, "hf-tree", limit, batch_sizes[0])
    best = min(plain, key=lambda size: seconds(plain[size]))
    documents = len(tree.results["samples"][task])
    return [
        Line(
            f"`{task}`, {documents} documents",
            f"`hf`, batch {best}" + (f" (best of {', '.join(map(str, batch_sizes))})" if len(batch_sizes) > 1 else ""),
            seconds(plain[best]),
            seconds(tree),
            agreement(plain[best], tree, task),
            minimum=minimum,
            aim=aim,
        )
    ]


def run(base: str, task: str, model: str, limit: int | None, batch_size: int, **settings: Any) -> VariantResults:
    """One evaluation of the base."""
    with tempfile.TemporaryDirectory() as folder:
        (done,) = evaluate(
            base, tasks=[task], model=model, limit=limit, batch_size=batch_size, output_path=folder, log_samples=True,
            **settings,
        )  # fmt: skip
    return done


def seconds(done: VariantResults) -> float:
    """How long lm-eval took, without loading the model."""
    return float(done.results["harness_ext"]["seconds"])


def agreement(plain: VariantResults, tree: VariantResults, task: str) -> str:
    """Say how the two agree, document by document; raises where they differ by more than rounding."""
    pairs = list(zip(plain.results["samples"][task], tree.results["samples"][task], strict=True))
    answers = [(one["filtered_resps"], other["filtered_resps"]) for one, other in pairs]
    if isinstance(answers[0][0][0], str):
        return f"{sum(one == other for one, other in answers)} of {len(answers)} texts identical"
    scores = [(float(a[0]), float(b[0])) for one, other in answers for a, b in zip(one, other, strict=True)]
    difference = max(abs(a - b) for a, b in scores)
    if difference > LOGPROB_TOLERANCE:
        raise SystemExit(f"{task}: log-probabilities differ by {difference}")
    return f"largest difference of a log-probability {difference:.0e}"


def of_adapters(base: str, limit: int) -> list[Line]:
    """A base and four adapters: five runs of lm-eval, loading included, against one of `harness-ext eval`."""
    tasks = "sst2_choice,squad_v2_generate"
    settings = ["--limit", str(limit), "--device", "cpu", "--batch_size", "16"]
    with tempfile.TemporaryDirectory() as folder:
        adapters = four_adapters(Path(folder))
        plain, plain_scores = 0.0, []
        for adapter in (None, *adapters):
            arguments = f"pretrained={base},dtype=float32" + (f",peft={adapter}" if adapter else "")
            output = Path(folder) / "plain" / (adapter.name if adapter else "base")
            command = ["-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--tasks", *tasks.split(",")]
            plain += timed([*command, "--include_path", str(tasks_path()), "--output_path", str(output), *settings])
            plain_scores += primary_scores(output)
        output = Path(folder) / "tree"
        command = [
            "-c",
            "import sys; from harness_ext.cli import main; sys.exit(main())",
            "eval",
            "--model_args",
            f"pretrained={base},dtype=float32,merge=true",
        ]
        command += ["--adapters", *map(str, adapters), "--tasks", *tasks.split(","), "--output_path", str(output)]
        tree = timed([*command, *settings])
        tree_scores = primary_scores(output)
    equal = sum(scores in tree_scores for scores in plain_scores)
    return [
        Line(
            f"base and 4 adapters on {tasks.replace(',', ' and ')}, {limit} documents each",
            "five `lm_eval` runs, batch 16, loading included",
            plain,
            tree,
            f"task scores of {equal} of 5 identical",
            minimum=4,
            aim=6,
        )
    ]


def four_adapters(folder: Path) -> list[Path]:
    """The shipped adapters, and each of them once more with a little noise."""
    made = []
    for source in map(Path, SHIPPED):
        target = folder / f"{source.name}-noisy"
        target.mkdir()
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        weights = load_file(target / "adapter_model.safetensors")
        torch.manual_seed(0)
        noisy = {name: w + 0.02 * w.float().std().to(w.dtype) * torch.randn_like(w) for name, w in weights.items()}
        save_file(noisy, target / "adapter_model.safetensors", metadata={"format": "pt"})
        made += [source, target]
    return made


def timed(arguments: Iterable[str]) -> float:
    """Seconds that a Python command takes; its errors end the benchmark."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - started


def primary_scores(folder: Path) -> list[dict[str, float]]:
    """acc and exact of each results file below a folder."""
    found = []
    for file in sorted(folder.rglob("results_*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        found.append({"acc": results["sst2_choice"]["acc,none"], "exact": results["squad_v2_generate"]["exact,none"]})
    return found


def of_matrix_products(base: str, limit: int | None) -> list[Line]:
    """The time that the machine's best matrix product would take for each token once, against that of scoring."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = encoded("sst2_choice", limit, model, tokenizer)
    use_blocks(model)
    packs = list(tree_packs(pairs, max_tokens=10**9))
    tokens, rows = sum(len(pack.ends) for pack in packs), sum(len(pack.rows) for pack in packs)
    matrices = [module.weight for name, module in model.named_modules() if hasattr(module, "weight") and "proj" in name]
    work = 2 * sum(weight.numel() for weight in matrices) * tokens + 2 * model.lm_head.weight.numel() * rows
    rate = max(product_rate(weight) for weight in {tuple(w.shape): w for w in matrices}.values())
    started = time.perf_counter()
    scores = dict(score_continuations(model, pairs, max_tokens=1024))
    taken = time.perf_counter() - started
    return [
        Line(
            f"matrix products of {tokens:,} distinct tokens at {rate / 1e9:.0f} GFLOP/s, measured here",
            "their time alone / scoring `sst2_choice`",
            work / rate,
            taken,
            f"{len(scores):,} choices scored",
            minimum=0.6,
            aim=0.7,
            ratio_name="of it",
        )
    ]


def encoded(task_name: str, limit: int | None, model: Any, tokenizer: Any) -> list[TokenPair]:
    """Both choices of each document of a task."""
    task = load_task(task_name)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal")
    pairs = []
    for rendered in render(task, list(task.eval_docs)[:limit], PromptSettings(), lm):
        context, _ = encode(task, rendered, lm)
        pairs += [TokenPair(list(context), lm.tok_encode(f" {word}")) for word in ("negative", "positive")]
    return pairs


@torch.no_grad()
def product_rate(weight: torch.Tensor, *, rows: int = 1024, repeats: int = 30) -> float:
    """Floating-point operations per second of a batch times this matrix, the best of three."""
    batch = torch.randn(rows, weight.shape[1])
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(repeats):
            torch.nn.functional.linear(batch, weight)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * weight.numel() * repeats / best
