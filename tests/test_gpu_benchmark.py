"""`benchmarks/gpu.py` runs on a CPU with tiny shapes: every engine answers alike, and nothing is measured twice."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks-gpu.md"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu")
    for name in ("gpu", "gpu_shapes", "fresh"):
        sys.modules.pop(name, None)


def test_a_dry_run_measures_all_engines(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda _: None)  # TRL and vLLM have processes of their own
    lines, output = tmp_path / "made" / "gpu.jsonl", tmp_path / "page.md"
    arguments = ["--dry-run", "--lines", str(lines), "--output", str(output)]
    assert gpu.main(arguments) == 0
    before = lines.read_text()
    made = {line["key"]: line for line in map(json.loads, before.splitlines())}
    assert not [line for line in made.values() if "error" in line]
    engines = ["hf", "hf-tree", "hf-tree, packs of 4,096"]
    for shape in ("tiny Llama", "tiny Qwen2"):
        for workload, names in {"label": engines, "choice": engines, "generation": [*engines, "generate"]}.items():
            for name in names:
                assert made[f"{shape}, {workload}, {name}, equality"]["equal"], name
                assert made[f"{shape}, {workload}, {name}"]["tokens_per_second"] > 0
        assert made[f"{shape}, adapter switch"]["seconds"] > 0
    text = output.read_text()
    assert "these figures mean nothing" in text
    assert text.count("texts identical") == 2 * 4
    assert gpu.main(arguments) == 0
    assert lines.read_text() == before  # all of it was there


def test_what_the_budget_leaves_out_is_left_out(gpu: Any, tmp_path: Path) -> None:
    lines = tmp_path / "gpu.jsonl"
    assert gpu.main(["--dry-run", "--budget", "0", "--lines", str(lines)]) == 1
    assert not lines.exists() or "hf-tree" not in lines.read_text()


def test_engines_that_differ_are_not_timed(gpu: Any) -> None:
    assert gpu.agreement([-1.0, -2.0], [-1.0, -2.0 - 1e-5])[0]
    assert not gpu.agreement([-1.0, -2.0], [-1.0, -2.1])[0]
    assert not gpu.agreement(["t1 t2", "t3"], ["t1 t2", "t4"])[0]


@pytest.mark.parametrize(
    ("workload", "plain", "tree"),
    [
        ("label", 8 * (6 + 8), 6 + 8 * 8),  # both choices are read off one pass
        ("choice", 4 * 4 * (30 + 8 + 2), 30 + 4 * (8 + 4 * 2)),
        ("generation", 9 * (4 + 20 + 5 + 4), 4 + 3 * 20 + 9 * (5 + 4)),
    ],
)
def test_tokens_are_counted(workload: str, plain: int, tree: int, gpu: Any) -> None:
    """Worked out by hand: instruction, passage, question, answer without its last token, which is not fed."""
    (shape,) = [each for each in gpu.TINY_WORKLOADS if each.name == workload]
    requests = shape.requests(500)
    assert gpu.tokens_of(shape, requests, tree=False) == plain
    assert gpu.tokens_of(shape, requests, tree=True) == tree


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "--dry-run" in capsys.readouterr().out


def test_the_page_has_no_figure_that_was_not_measured(gpu: Any) -> None:
    """As long as none was, it is the page that says so."""
    text = PAGE.read_text(encoding="utf-8")
    assert text == gpu.NOT_MEASURED or "teraflops" in text
    assert "mean nothing" not in text
