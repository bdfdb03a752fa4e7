"""Which documents reports and cards name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_ext.engine.evaluate import evaluate
from harness_ext.reporting.datasets import dataset_of
from harness_ext.results.load import load_runs


@pytest.mark.parametrize("is_local", [True, False])
def test_files_of_a_machine_are_not_the_data_set_of_that_name(
    is_local: bool, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be a part of it, or anything else."""
    data, output = tmp_path / "data" / "sst2", tmp_path / "results"
    data.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = ({"sentence": f"film {number}", "label": number % 2} for number in range(6))
        (data / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if is_local:
        monkeypatch.setenv("HARNESS_EXT_DATA", str(data.parent))
    evaluate(str(tiny_model_folder), tasks=["sst2_choice"], limit=3, output_path=str(output), log_samples=True)
    (run,) = load_runs(output)
    result = run.tasks["sst2_choice"]
    assert (result.local_data, result.is_sample) == (is_local, not is_local)
    dataset = dataset_of(result)
    assert not dataset.is_on_hub
    assert str(dataset) == ("stanfordnlp/sst2 (local files) (validation)" if is_local else "sample of sst2_choice")
