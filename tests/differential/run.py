# ruff: noqa: T201, T203
"""Differential test: random cases through lm-eval's `hf` alone and through `hf-tree` in company, compared per sample.

    python tests/differential/run.py --minutes 10 --seed 0 --jobs 1 --output fuzz.jsonl
    python tests/differential/run.py --only 1234 -v

Exit code 1 when a case differs. A run with the same --output goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import pprint
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH = 50  # cases of one child process: what a case leaves in memory ends with it
CASE_SECONDS = 180


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on (default 10)")
    parser.add_argument("--cases", type=int, help="stop after so many cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--output", type=Path, default=Path("fuzz.jsonl"), help="JSON lines, one for each case")
    parser.add_argument("--only", type=int, help="run one seed in this process")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the case")
    parser.add_argument("--batch", type=int, nargs=2, metavar=("FIRST", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only is not None:
        return _run_only(options.only, verbose=options.verbose)
    if options.batch is not None:
        return _run_batch(*options.batch, output=options.output)
    return _run_many(options)


def _run_only(seed: int, *, verbose: bool) -> int:
    from differential.cases import random_case

    if verbose:
        pprint.pprint(random_case(seed), width=120, sort_dicts=False)
    result = guarded(seed)
    print(f"seed {seed}: {result['verdict']} in {result['seconds']} s")
    print(result["text"])
    if verbose:
        print("\n".join(result["plain"]))
    return int(result["verdict"] == "difference")


def guarded(seed: int) -> dict[str, Any]:
    """Run the case of a seed; a fault of the test itself is a difference, too."""
    from differential.cases import random_case
    from differential.judge import run_case

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end after {CASE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(CASE_SECONDS)
    try:
        return asdict(run_case(random_case(seed)))
    except Exception:
        text = f"the test itself failed: {traceback.format_exc()[-1500:]}"
        return {"seed": seed, "verdict": "difference", "text": text, "seconds": 0.0, "plain": (), "kinds": {}}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _run_batch(first: int, count: int, *, output: Path) -> int:
    """In a child process: cases one after another, each written at once."""
    import torch

    torch.set_num_threads(1)
    for seed in range(first, first + count):
        result = guarded(seed)
        _append(result, output)
    return 0


@dataclass
class _Child:
    """A process with a range of seeds."""

    seeds: range
    process: subprocess.Popen[bytes]


def _run_many(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + 60 * options.minutes
    results = {result["seed"]: result for result in read_results(options.output)}
    batches = _batches(options.seed, options.cases, done=set(results))
    children: list[_Child] = []
    shown = {seed for seed, result in results.items() if result["verdict"] == "difference"}
    try:
        while True:
            out_of_time = time.monotonic() > deadline
            while not out_of_time and len(children) < options.jobs and (seeds := next(batches, None)) is not None:
                children.append(_start(seeds, options.output))
            if not children or out_of_time:
                break
            time.sleep(0.5)
            _show_new(options.output, shown)
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                if rest := _after_a_crash(child, options.output):
                    children.append(_start(rest, options.output))
    finally:
        for child in children:
            child.process.terminate()
            child.process.wait()
    _show_new(options.output, shown)
    return summarize(list(read_results(options.output)))


def _batches(first: int, count: int | None, *, done: set[int]) -> Iterator[range]:
    """Ranges of seeds that have no result yet."""
    last = None if count is None else first + count
    while last is None or first < last:
        if first in done:
            first += 1
            continue
        end = first
        while end - first < BATCH and end not in done and (last is None or end < last):
            end += 1
        yield range(first, end)
        first = end


def _start(seeds: range, output: Path) -> _Child:
    command = [sys.executable, str(Path(__file__).resolve()), "--batch", str(seeds[0]), str(len(seeds))]
    return _Child(seeds, subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.DEVNULL))


def _after_a_crash(child: _Child, output: Path) -> range | None:
    """Note the case that ended its process; the seeds that come after it."""
    done = {result["seed"] for result in read_results(output)}
    missing = [seed for seed in child.seeds if seed not in done]
    if not missing:
        return None
    text = f"the process ended with {child.process.returncode}"
    result = {"seed": missing[0], "verdict": "difference", "text": text, "seconds": 0.0, "plain": (), "kinds": {}}
    _append(result, output)
    return range(missing[1], child.seeds.stop) if len(missing) > 1 else None


def _append(result: dict[str, Any], output: Path) -> None:
    """Write one line; on a new one where a process ended within the last."""
    is_cut = output.exists() and output.stat().st_size > 0 and not output.read_bytes().endswith(b"\n")
    with output.open("a", encoding="utf-8") as file:
        file.write("\n" * is_cut + json.dumps(result) + "\n")


def read_results(output: Path) -> Iterator[dict[str, Any]]:
    """What an earlier or a running process wrote; a line cut short is left out."""
    if not output.exists():
        return
    for line in output.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _show_new(output: Path, shown: set[int]) -> None:
    for result in read_results(output):
        if result["verdict"] == "difference" and result["seed"] not in shown:
            shown.add(result["seed"])
            first, *more = result["text"].splitlines() or [""]
            extra = f" (+{len(more)} lines)" if more else ""
            print(f"seed {result['seed']}: {first:.300}{extra}")
            print(f"    python tests/differential/run.py --only {result['seed']} -v", flush=True)


def summarize(results: Sequence[dict[str, Any]]) -> int:
    """Print how many cases there were, of which kinds, and what came of them; 1 when one differs."""
    verdicts = Counter(result["verdict"] for result in results)
    reasons = Counter(
        reason for result in results if result["verdict"] == "refused" for reason in result["text"].split("; ")
    )
    print(f"\n{len(results)} cases: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    trees = sum(not result["plain"] for result in results if result["verdict"] == "agreed")
    print(f"agreed without a word about the plain path: {trees}")
    for reason, count in reasons.most_common():
        print(f"  refused: {reason}: {count}")
    for kind in (
        "architecture",
        "rope",
        "fails",
        "tokenizer",
        "tasks",
        "adapters",
        "generation_config",
        "dtype",
        "merged",
    ):
        counts: Counter[str] = Counter()
        for result in results:
            value = result["kinds"].get(kind, [])
            counts.update(map(str, value if isinstance(value, list) else [value]))
        print(f"  {kind}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    return int(verdicts["difference"] > 0)


if __name__ == "__main__":
    sys.exit(main())
