"""Other engines, where they are installed: vLLM in an environment of its own (`make vllm-test` makes one)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from evaluation import SHIPPED, timed
from lines import Line

from harness_ext.results.load import load_runs

ROOT = Path(__file__).resolve().parents[1]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
TASKS = ("sst2_generate", "squad_v2_generate")
ON_A_CPU = "max_model_len=1024,enforce_eager=True"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING", "PYTHONPATH": str(ROOT)}


def of_vllm(base: str, limit: int) -> list[Line]:
    """Base and both shipped adapters by vLLM and by `hf-tree`, whole commands; nothing where there is no vLLM."""
    if not VLLM_PYTHON.is_file():
        print(f"(k) left out: no vLLM at {VLLM_PYTHON}; `make vllm-test` installs it")
        return []
    with tempfile.TemporaryDirectory() as folder:
        plain, tree = Path(folder) / "vllm", Path(folder) / "hf-tree"
        theirs = _by_vllm([*_command(base, limit, plain, f",{ON_A_CPU}"), "--model", "vllm"])
        ours = timed(_command(base, limit, tree, ""))
        texts = [_texts(output) for output in (plain, tree)]
    identical = sum(texts[0][key] == texts[1][key] for key in texts[0])
    return [
        Line(
            f"base and {len(SHIPPED)} adapters, {' and '.join(f'`{task}`' for task in TASKS)}, {limit} documents each",
            "vLLM on the same CPU, LoRA by request, bfloat16, loading included",
            theirs,
            ours,
            f"{identical} of {len(texts[0])} texts identical (bfloat16 rounds differently in each)",
            minimum=2,
            aim=2,
        )
    ]


def _command(base: str, limit: int, output: Path, more: str) -> list[str]:
    command = ["-m", "harness_ext.cli", "eval", "--model_args", f"pretrained={base},dtype=bfloat16{more}", "--no-store"]
    command += ["--adapters", *SHIPPED, "--tasks", ",".join(TASKS), "--limit", str(limit), "--log_samples"]
    return [*command, "--output_path", str(output)]


def _by_vllm(arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    command = [str(VLLM_PYTHON), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ENVIRONMENT})
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - started


def _texts(output: Path) -> dict[tuple[str, str, int], str]:
    """What was generated, by variant, task and document."""
    found = {}
    for run in load_runs(output):
        variant = "base" if run.adapter is None else Path(run.adapter).name
        for task, result in run.tasks.items():
            assert result.samples_path is not None
            for line in result.samples_path.read_text(encoding="utf-8").splitlines():
                sample = json.loads(line)
                found[variant, task, sample["doc_id"]] = sample["resps"][0][0]
    return found
