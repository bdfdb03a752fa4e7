"""A fixture that writes results the way lm-eval lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import DATE, mean


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of one run; it returns the run's folder."""

    def write(
        folder: str,
        tasks: dict[str, list[dict]],
        *,
        model_args: Any = None,
        metrics: dict[str, dict[str, Any]] | None = None,
        configs: dict[str, dict] | None = None,
        ours: dict | None = None,
        date: str = DATE,
        log_samples: bool = True,
        **overrides: Any,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        payload: dict[str, Any] = {
            "results": {},
            "group_subtasks": {task: [] for task in tasks},
            "configs": {},
            "versions": {},
            "n-shot": {},
            "higher_is_better": {},
            "n-samples": {},
            "config": {"model": "hf", "model_args": model_args},
        }
        for task, samples in tasks.items():
            names = list(dict.fromkeys(name for s in samples for name in s["metrics"]))
            values = {f"{name},none": mean(samples, name) for name in names}
            values |= {f"{name}_stderr,none": "N/A" for name in names}
            payload["results"][task] = {"name": task, "alias": task, "sample_len": len(samples), **values}
            payload["results"][task] |= (metrics or {}).get(task, {})
            payload["configs"][task] = {"task": task, "metadata": {"version": 1.0}, **(configs or {}).get(task, {})}
            payload["versions"][task] = 1.0
            payload["n-shot"][task] = 0
            payload["higher_is_better"][task] = dict.fromkeys(names, True)
            documents = len({s["doc_id"] for s in samples})
            payload["n-samples"][task] = {"original": documents, "effective": documents}
            if log_samples:
                lines = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
                (path / f"samples_{task}_{date}.jsonl").write_text(lines, encoding="utf-8")
        if ours is not None:
            payload["harness_ext"] = ours
        payload |= overrides
        (path / f"results_{date}.json").write_text(json.dumps(payload, indent=2), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_pair(write_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of a base run and an adapter run on one task; it returns the folder that holds both."""

    def write(task: str, before: list[dict], after: list[dict], *, both: dict | None = None, **by_run: dict) -> Path:
        arguments = {"base": "pretrained=org/tiny", "sst2": "pretrained=org/tiny,peft=adapters/sst2"}
        for name, samples in (("base", before), ("sst2", after)):
            options = {**(both or {}), **by_run.get(name, {})}
            write_run(f"out/{name}", {task: samples}, **{"model_args": arguments[name], **options})
        return tmp_path / "out"

    return write
