"""Evaluation: the same task by `hf` and by `hf-tree`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fresh import in_fresh_process
from lines import Line
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.cpu.fast_paths import use_fast_paths
from harness_ext.cpu.onednn import use_onednn
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.scoring import score_continuations
from harness_ext.protocol.render import PromptSettings, encode, render
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task
from harness_ext.trees.packs import TokenPair, tree_packs

LOGPROB_TOLERANCE = 1e-4
SHIPPED = ("adapters/sst2", "adapters/squad_v2")
ADAPTER_TASKS = ("sst2_choice", "squad_v2_generate")


class Run(NamedTuple):
    """One evaluation of one task."""

    seconds: float  # what lm-eval took, without loading the model
    answers: list[list[Any]]  # of each document: texts, or a pair of log-probability and greedy for each choice


def of_task(
    base: str, task: str, limit: int | None, *, batch_sizes: Sequence[int], minimum: float, aim: float
) -> list[Line]:
    """Time both model classes on a task, loading left out.

    `hf` counts with its best batch size, `hf-tree` with the best of as many runs, in turns.
    """
    plain, trees = {}, []
    for size in batch_sizes:
        plain[size] = run(base, task, "hf", limit, size)
        trees.append(run(base, task, "hf-tree", limit, size))
    best = min(plain, key=lambda size: plain[size].seconds)
    tree = min(trees, key=lambda one: one.seconds)
    return [
        Line(
            f"`{task}`, {len(tree.answers)} documents",
            f"`hf`, batch {best}" + (f" (best of {', '.join(map(str, batch_sizes))})" if len(batch_sizes) > 1 else ""),
            plain[best].seconds,
            tree.seconds,
            agreement(plain[best], tree, task),
            minimum=minimum,
            aim=aim,
        )
    ]


def run(base: str, task: str, model: str, limit: int | None, batch_size: int, **settings: Any) -> Run:
    """Evaluate the base in a process of its own."""
    return in_fresh_process(evaluated, base, task, model, limit, batch_size, **settings)


def evaluated(base: str, task: str, model: str, limit: int | None, batch_size: int, **settings: Any) -> Run:
    """Evaluate the base here."""
    with tempfile.TemporaryDirectory() as folder:
        (done,) = evaluate(
            base, tasks=[task], model=model, model_args={"dtype": "float32"}, limit=limit, batch_size=batch_size,
            output_path=folder, log_samples=True, **settings,
        )  # fmt: skip
    answers = [sample["filtered_resps"] for sample in done.results["samples"][task]]
    return Run(float(done.results["harness_ext"]["seconds"]), answers)


def agreement(plain: Run, tree: Run, task: str) -> str:
    """Say how the two agree, document by document; raises where they differ by more than rounding."""
    pairs = list(zip(plain.answers, tree.answers, strict=True))
    if isinstance(plain.answers[0][0], str):
        return f"{sum(one == other for one, other in pairs)} of {len(pairs)} texts identical"
    scores = [(float(a[0]), float(b[0])) for one, other in pairs for a, b in zip(one, other, strict=True)]
    difference = max(abs(a - b) for a, b in scores)
    if difference > LOGPROB_TOLERANCE:
        raise SystemExit(f"{task}: log-probabilities differ by {difference}")
    same = sum(chosen(one) == chosen(other) for one, other in pairs)
    return f"{same} of {len(pairs)} answers identical; log-probabilities differ by {difference:.0e} at most"


def chosen(choices: Sequence[Sequence[Any]]) -> int:
    """Number of the likeliest choice."""
    return max(range(len(choices)), key=lambda number: float(choices[number][0]))


def of_adapters(base: str, limit: int) -> list[Line]:
    """A base and 1, 2, 4 adapters: as many runs of lm-eval, loading included, against one of `harness-ext eval`."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = four_adapters(Path(folder))
        plain = [timed(stock_command(base, adapter, limit, Path(folder) / "plain")) for adapter in (None, *adapters)]
        plain_scores = primary_scores(Path(folder) / "plain")
        lines = []
        for count in (1, 2, 4):
            output = Path(folder) / f"tree{count}"
            tree = timed(our_command(base, adapters[:count], limit, output))
            equal = sum(plain_scores[adapter] == scores for adapter, scores in primary_scores(output).items())
            lines.append(
                Line(
                    f"base and {count} adapter{'s' if count > 1 else ''} on `sst2_choice` and `squad_v2_generate`, "
                    f"{limit} documents of each",
                    f"{count + 1} `lm_eval` runs, batch 16, loading included",
                    sum(plain[: count + 1]),
                    tree,
                    f"task scores of {equal} of {count + 1} identical",
                    minimum=4 if count == 4 else None,
                    aim=6 if count == 4 else None,
                )
            )
    return lines


def stock_command(base: str, adapter: Path | None, limit: int, output: Path) -> list[str]:
    """Arguments of Python for one model or adapter by lm-eval alone."""
    arguments = f"pretrained={base},dtype=float32" + (f",peft={adapter}" if adapter else "")
    command = ["-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--tasks", *ADAPTER_TASKS]
    command += ["--include_path", str(tasks_path()), "--output_path", str(output)]
    return [*command, "--limit", str(limit), "--device", "cpu", "--batch_size", "16"]


def our_command(base: str, adapters: Sequence[Path], limit: int, output: Path) -> list[str]:
    """Arguments of Python for a base and its adapters in one process."""
    command = ["-m", "harness_ext.cli", "eval"]
    command += ["--model_args", f"pretrained={base},dtype=float32,merge=true", "--adapters", *map(str, adapters)]
    command += ["--tasks", *ADAPTER_TASKS, "--output_path", str(output)]
    return [*command, "--limit", str(limit), "--device", "cpu"]


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


def primary_scores(folder: Path) -> dict[str | None, dict[str, float]]:
    """acc and exact of each results file below a folder, by its adapter."""
    found = {}
    for file in sorted(folder.rglob("results_*.json")):
        written = json.loads(file.read_text(encoding="utf-8"))
        acc, exact = (written["results"][task] for task in ADAPTER_TASKS)
        adapter = written["config"]["model_args"].get("peft")
        found[adapter] = {"acc": acc["acc,none"], "exact": exact["exact,none"]}
    return found


def of_matrix_products(base: str, limit: int | None) -> list[Line]:
    """How near scoring comes to the machine's best matrix product, in a process of its own."""
    return in_fresh_process(measured_products, base, limit)


def measured_products(base: str, limit: int | None) -> list[Line]:
    """The time that the machine's best matrix product would take for each token once, against that of scoring."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = encoded("sst2_choice", limit, model, tokenizer)
    use_fast_paths(model)
    packs = list(tree_packs(pairs, max_tokens=10**9))
    tokens, rows = sum(len(pack.ends) for pack in packs), sum(len(pack.rows) for pack in packs)
    matrices = [module.weight for name, module in model.named_modules() if hasattr(module, "weight") and "proj" in name]
    work = 2 * sum(weight.numel() for weight in matrices) * tokens + 2 * model.lm_head.weight.numel() * rows
    rate = max(
        product_rate(weight, ours)
        for weight in {tuple(w.shape): w for w in matrices}.values()
        for ours in (False, True)
    )
    started = time.perf_counter()
    scores = sum(len(pack) for pack in score_continuations(model, pairs, max_tokens=1024))
    taken = time.perf_counter() - started
    return [
        Line(
            f"matrix products of {tokens:,} distinct tokens at {rate / 1e9:.0f} GFLOP/s, measured here",
            "their time alone / scoring `sst2_choice`",
            work / rate,
            taken,
            f"{scores:,} choices scored",
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
def product_rate(weight: torch.Tensor, ours: bool, *, rows: int = 1024, repeats: int = 30) -> float:
    """Floating-point operations per second of a batch times this matrix, PyTorch's way or ours, the best of three."""
    batch = torch.randn(rows, weight.shape[1])
    layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
    if ours:
        use_onednn(layer)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(repeats):
            layer(batch)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * weight.numel() * repeats / best
