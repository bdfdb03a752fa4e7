"""`hf-tree` on a GPU, against `hf`, transformers' `generate`, TRL and vLLM: equality first, then ratios.

    python benchmarks/gpu.py                         # on a GPU: under ten minutes -> docs/benchmarks-gpu.md
    python benchmarks/gpu.py --dry-run               # on a CPU, with tiny shapes; its figures mean nothing

Models have random weights in the shapes of Llama-3.2-1B and Qwen2.5-7B, requests the lengths of three tasks, so nothing
is downloaded. Answers are compared in float32 first; what is not equal is not timed. Times are those of bfloat16. Each
measurement is kept in --lines as soon as it is there, and not made again: what a budget left out, another call adds.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fresh import in_fresh_process
from gpu_shapes import (
    SHAPES,
    TINY_SHAPES,
    TINY_WORKLOADS,
    WORKLOADS,
    Shape,
    Workload,
    token_ids,
    tokens_of,
    write_adapter,
)

from harness_ext.engine.hf_tree import TreeLM
from harness_ext.models.attach import attach
from harness_ext.protocol.lm_eval_api import HFLM

PAGE = Path("docs/benchmarks-gpu.md")
FLOAT32_TOLERANCE = 1e-3  # nats, of a log-probability
BATCH = 64  # of `hf` and `generate`
FEW = 4  # passages that are compared, and run once before the clock starts
PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft", "trl", "vllm")
ENGINES: dict[str, dict[str, Any]] = {  # of this process: model class, attention, settings
    "hf": {"kind": HFLM, "attention": "sdpa", "batch_size": BATCH},
    "generate": {"kind": None, "attention": "sdpa"},
    "hf-tree": {"kind": TreeLM, "attention": "sdpa"},
    "hf-tree, packs of 4,096": {"kind": TreeLM, "attention": "sdpa", "pack_tokens": 4096, "cache_tokens": 32_768},
    "hf-tree, flex attention": {"kind": TreeLM, "attention": "flex_attention", "pack_tokens": 4096},
}


class OutOfBudgetError(Exception):
    """The time is up."""


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Raise OutOfBudgetError in the block when the time is up."""

    def stop(*_: object) -> None:
        raise OutOfBudgetError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Lines:
    """Measurements by key, in a file of JSON lines; each is made once on a machine."""

    def __init__(self, file: Path, machine: str) -> None:
        self._file, self._machine = file, machine
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        made = [json.loads(line) for line in lines]
        self.made: dict[str, dict[str, Any]] = {line["key"]: line for line in made if line["machine"] == machine}

    def measure(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A measurement, made now unless it is there; one that fails is a line with its error."""
        if key not in self.made:
            try:
                found = make()
            except OutOfBudgetError:
                raise
            except Exception as error:  # whatever an engine raises: the others are measured
                found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            line = {"key": key, "machine": self._machine, **found}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.made[key] = line
            print(key, {name: value for name, value in found.items() if name != "answers"}, flush=True)
        return self.made[key]


# -- engines -------------------------------------------------------------------------------------------------------


class Engine:
    """One way to answer requests with a model of this process."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        settings = dict(ENGINES[name])
        kind, attention = settings.pop("kind"), settings.pop("attention")
        model.set_attn_implementation(attention)
        self._lm = None if kind is None else kind(pretrained=model, tokenizer=tokenizer, backend="causal", **settings)

    def answer(self, workload: Workload, requests: Sequence[Any]) -> list[Any]:
        """Texts, or log-probabilities, in the order of the requests."""
        if self._lm is None:
            return self._generate(workload, requests)
        if workload.generates:
            return list(self._lm.generate_until(list(requests), disable_tqdm=True))
        return [float(score[0]) for score in self._lm.loglikelihood(list(requests), disable_tqdm=True)]

    @torch.no_grad()
    def _generate(self, workload: Workload, requests: Sequence[Any]) -> list[str]:
        """By `generate`, in batches that are padded on the left."""
        texts: list[str] = []
        ordered = sorted(range(len(requests)), key=lambda number: len(requests[number].args[0]))
        for start in range(0, len(ordered), BATCH):
            prompts = [requests[number].args[0] for number in ordered[start : start + BATCH]]
            batch = self._tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
            batch = batch.to(self._model.device)
            made = self._model.generate(**batch, max_new_tokens=workload.answer, do_sample=False, pad_token_id=2)
            texts += self._tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        by_place = dict(zip(ordered, texts, strict=True))
        return [by_place[number] for number in range(len(requests))]


def agreement(expected: Sequence[Any], found: Sequence[Any]) -> tuple[bool, str]:
    """Whether answers in float32 are equal, and how that is said."""
    if isinstance(expected[0], str):
        same = sum(one.split() == other.split() for one, other in zip(expected, found, strict=True))
        return same == len(expected), f"{same} of {len(expected)} texts identical"
    difference = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    return difference <= FLOAT32_TOLERANCE, f"log-probabilities within {difference:.0e}"


def timed(
    engine: Engine, workload: Workload, requests: Sequence[Any], few: Sequence[Any], rate: float
) -> dict[str, Any]:
    """Seconds, tokens in a second, share of the matrix-product rate, peak memory."""
    model = engine._model
    engine.answer(workload, few)
    _synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    engine.answer(workload, requests)
    _synchronize()
    seconds = time.perf_counter() - started
    plain = tokens_of(workload, list(requests), tree=False)
    computed = tokens_of(workload, list(requests), tree=True) if isinstance(engine._lm, TreeLM) else plain
    weights = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    return {
        "seconds": round(seconds, 3),
        "tokens_per_second": round(plain / seconds),
        "share": round(2 * weights * computed / seconds / rate, 4),
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def matrix_rate(device: torch.device, dtype: torch.dtype, *, size: int) -> dict[str, Any]:
    """Operations in a second of a plain product of two square matrices, the best of ten."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _synchronize()
        started = time.perf_counter()
        one @ other
        _synchronize()
        best = min(best, time.perf_counter() - started)
    return {"operations_per_second": 2 * size**3 / best, "size": size}


def switching(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Seconds to put one of two adapters on the model: from its file, checks included; the median of six."""
    adapters = [write_adapter(model, folder / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    seconds = []
    for number in range(6):
        _synchronize()
        started = time.perf_counter()
        attached = attach(model, adapters[number % 2], base="random weights", tokenizer=tokenizer)
        _synchronize()
        seconds.append(time.perf_counter() - started)
        del attached
    return {"seconds": round(statistics.median(seconds), 4)}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# -- engines in processes of their own ---------------------------------------------------------------------------------


def by_vllm(folder: str, workload: Workload, requests: list[Any], few: list[Any]) -> dict[str, Any]:
    """Ask vLLM, with prefix caching; its process has the GPU for itself."""
    import vllm

    engine = vllm.LLM(model=folder, dtype="bfloat16", enable_prefix_caching=True, max_model_len=2048)
    how = vllm.SamplingParams(temperature=0, max_tokens=workload.answer, ignore_eos=True)
    if not workload.generates:
        how = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def ask(some: list[Any]) -> None:
        prompts = [{"prompt_token_ids": [*context, *answer]} for context, answer in map(token_ids, some)]
        engine.generate(prompts, how, use_tqdm=False)

    ask(few)
    started = time.perf_counter()
    ask(requests)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens_of(workload, requests, tree=False) / seconds),
    }


def by_trainer(folder: str, way: str, pairs: list[Any], dtype: str, *, use_cpu: bool) -> dict[str, Any]:
    """Train one epoch by TRL or by ours."""
    import training

    training.SHARED["use_cpu"] = use_cpu
    done = training.trained(folder, way, pairs, dtype=getattr(torch, dtype))
    return {"seconds": round(done.seconds, 3), "loss": done.losses[-1] if done.losses else None}


# -- the plan ------------------------------------------------------------------------------------------------------


def measure_all(lines: Lines, *, dry: bool, device: torch.device, engines: Sequence[str]) -> None:
    """All measurements, in the order of their use."""
    dtype = torch.float32 if dry else torch.bfloat16
    rate = lines.measure("matrix product", lambda: matrix_rate(device, dtype, size=128 if dry else 8192))
    for shape in TINY_SHAPES if dry else SHAPES:
        of_shape(lines, shape, rate["operations_per_second"], dry=dry, device=device, dtype=dtype, engines=engines)


def of_shape(
    lines: Lines,
    shape: Shape,
    rate: float,
    *,
    dry: bool,
    device: torch.device,
    dtype: torch.dtype,
    engines: Sequence[str],
) -> None:
    """Equality and times of one model."""
    workloads = TINY_WORKLOADS if dry else WORKLOADS
    with tempfile.TemporaryDirectory() as scratch:
        in_this_process(lines, shape, workloads, rate, Path(scratch), device=device, dtype=dtype, engines=engines)
        gc.collect()
        torch.cuda.empty_cache()  # the others have processes of their own
        _others(lines, shape, Path(scratch) / "model", workloads, dtype=dtype, use_cpu=device.type == "cpu")


def in_this_process(
    lines: Lines,
    shape: Shape,
    workloads: Sequence[Workload],
    rate: float,
    scratch: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    engines: Sequence[str],
) -> None:
    """What shares one model: equality in float32, then times, then adapters; the model is saved for the others."""
    torch.backends.cuda.matmul.allow_tf32 = False
    tokenizer, vocabulary = shape.tokenizer(), shape.sizes["vocab_size"]
    model = shape.build(device, torch.float32)
    for workload in workloads:
        few, expected = workload.requests(vocabulary, passages=FEW), []

        def compare(name: str, workload: Workload, few: list[Any], expected: list[Any]) -> dict[str, Any]:
            if not expected:
                expected += Engine("hf", model, tokenizer).answer(workload, few)
            equal, said = agreement(expected, Engine(name, model, tokenizer).answer(workload, few))
            return {"equal": equal, "said": said}

        for name in _of(engines, workload):
            key = f"{shape.name}, {workload.name}, {name}, equality"
            lines.measure(key, partial(compare, name, workload, few, expected))
    model.to(dtype)

    def measured(name: str, workload: Workload) -> dict[str, Any]:
        requests, few = workload.requests(vocabulary), workload.requests(vocabulary, passages=FEW)
        return timed(Engine(name, model, tokenizer), workload, requests, few, rate)

    for workload in workloads:
        for name in _of(engines, workload):
            if lines.made[f"{shape.name}, {workload.name}, {name}, equality"].get("equal"):
                lines.measure(f"{shape.name}, {workload.name}, {name}", partial(measured, name, workload))
    model.set_attn_implementation("sdpa")
    lines.measure(f"{shape.name}, adapter switch", lambda: switching(model, tokenizer, scratch / "adapters"))
    if any(importlib.util.find_spec(package) for package in ("trl", "vllm")):
        model.save_pretrained(scratch / "model")
        tokenizer.save_pretrained(scratch / "model")


def _others(
    lines: Lines, shape: Shape, folder: Path, workloads: Sequence[Workload], *, dtype: torch.dtype, use_cpu: bool
) -> None:
    """TRL and vLLM, where they are installed."""
    if importlib.util.find_spec("trl"):
        pairs = [token_ids(request) for request in workloads[0].requests(shape.sizes["vocab_size"]) if not request.idx]
        pairs = pairs[: len(pairs) // 32 * 32 or len(pairs)]
        for way in ("padded", "packed", "ours"):
            lines.measure(
                f"{shape.name}, training, {way}",
                partial(
                    in_fresh_process,
                    by_trainer,
                    str(folder),
                    way,
                    pairs,
                    str(dtype).removeprefix("torch."),
                    use_cpu=use_cpu,
                ),
            )
    if importlib.util.find_spec("vllm") and not use_cpu:
        for workload in workloads:
            requests = workload.requests(shape.sizes["vocab_size"])
            few = workload.requests(shape.sizes["vocab_size"], passages=FEW)
            lines.measure(
                f"{shape.name}, {workload.name}, vllm",
                partial(in_fresh_process, by_vllm, str(folder), workload, requests, few),
            )


def _of(engines: Sequence[str], workload: Workload) -> list[str]:
    return [name for name in engines if name != "generate" or workload.generates]


# -- the page ------------------------------------------------------------------------------------------------------

NOT_MEASURED = """# Benchmarks on a GPU

No figure has been measured on a GPU yet: there was none at hand. The figures in [benchmarks](benchmarks.md) are those
of a CPU, and say nothing of GPUs.

```
python benchmarks/gpu.py
```

measures them on a machine with a CUDA GPU (an H100 holds both models) in under ten minutes, without a download, and
writes this page: `hf-tree` with SDPA and with compiled flex attention, against `hf`, transformers' `generate`, and TRL
and vLLM where they are installed, on random weights in the shapes of Llama-3.2-1B and Qwen2.5-7B in bfloat16. Answers
are compared in float32 first; what is not equal is not timed. With `--dry-run` it runs tiny shapes on a CPU.
"""


def page(lines: Lines, machine: str, *, dry: bool) -> str:
    """The page of what was measured."""
    made = lines.made
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    rate = made["matrix product"]["operations_per_second"]
    rows = []
    for shape in TINY_SHAPES if dry else SHAPES:
        for workload in TINY_WORKLOADS if dry else WORKLOADS:
            prefix = f"{shape.name}, {workload.name}, "
            base = made.get(f"{prefix}hf", {}).get("seconds")
            for name in [*_of(list(ENGINES), workload), "vllm"]:
                line, equality = made.get(prefix + name, {}), made.get(f"{prefix}{name}, equality", {})
                if line or equality:
                    rows.append(_row(shape.name, workload.like, name, line, equality, base))
    others = [
        f"| {key} | {line['seconds']} s |" if "seconds" in line else f"| {key} | {line.get('error')} |"
        for key, line in made.items()
        if ", adapter switch" in key or ", training, " in key
    ]
    warning = "A dry run with tiny shapes on a CPU: these figures mean nothing.\n\n" if dry else ""
    return f"""# Benchmarks on a GPU

{warning}{machine}; {versions}. Made by `python benchmarks/gpu.py`. Random weights, bfloat16; answers were compared in
float32 before. A plain product of two matrices reaches {rate / 1e12:.3g} teraflops; shares are of that, for the
decoder's weights and the tokens that an engine computes. Tokens per second count every prompt in full.

| model | like | engine | equal to `hf`? | seconds | times `hf` | tokens/s | share of the rate | peak memory |
|---|---|---|---|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

| what else | |
|---|---:|
{chr(10).join(others)}

How it works: [prefix_trees.md](prefix_trees.md).
"""


def _row(shape: str, like: str, name: str, line: dict[str, Any], equality: dict[str, Any], base: float | None) -> str:
    said = equality.get("said") or equality.get("error") or "not compared"
    if "seconds" not in line:
        return f"| {shape} | {like} | {name} | {said} | {line.get('error', 'not timed')} | | | | |"
    ratio = f"{base / line['seconds']:.2f}×" if base else ""
    share = f"{100 * line['share']:.1f} %" if line.get("share") is not None else ""
    memory = f"{line['peak_bytes'] / 1e9:.1f} GB" if line.get("peak_bytes") else ""
    return (
        f"| {shape} | {like} | {name} | {said} | {line['seconds']} | {ratio} | {line['tokens_per_second']:,} "
        f"| {share} | {memory} |"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the page; 1 where the budget left something out, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="default: 540")
    parser.add_argument("--lines", type=Path, default=Path("build/gpu.jsonl"), help="default: build/gpu.jsonl")
    parser.add_argument("--output", type=Path, help=f"default: {PAGE}; nowhere with --dry-run")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, without flex attention")
    options = parser.parse_args(argv)
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu.py: there is no CUDA GPU; use --dry-run to see that it runs")
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    machine = "dry run" if options.dry_run else torch.cuda.get_device_name()
    engines = [name for name in options.engines if not options.dry_run or ENGINES[name]["attention"] == "sdpa"]
    lines, code = Lines(options.lines, machine), 0
    try:
        with budget(options.budget):
            measure_all(lines, dry=options.dry_run, device=device, engines=engines)
    except OutOfBudgetError:
        print("gpu.py: the budget is used up; run it again for the rest")
        code = 1
    output = options.output or (None if options.dry_run else PAGE)
    if output is not None and "matrix product" in lines.made:
        output.write_text(page(lines, machine, dry=options.dry_run), encoding="utf-8")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
