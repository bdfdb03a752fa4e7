"""Our metrics as `evaluate.Metric`: the numbers of the hooks, in one call or in batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness_ext.errors import MetricError
from harness_ext.evaluate_metrics import Labels, SquadV1, SquadV2


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


def test_squad_v1() -> None:
    scores = SquadV1().compute(predictions=["the Cat.", "dog"], references=[["cat", "a dog"], ["black dog"]])
    assert scores["exact"] == 50.0
    assert scores["f1"] == pytest.approx((100 + 200 / 3) / 2)
    assert scores["bleu_1"] > scores["bleu"] == 0.0
    with pytest.raises(MetricError, match="no reference answer"):
        SquadV1().compute(predictions=["cat"], references=[[]])


def test_squad_v2_in_batches() -> None:
    metric = SquadV2()
    metric.add_batch(predictions=["unanswerable", "cat"], references=[[], ["a cat"]])
    metric.add_batch(predictions=["dog"], references=[[]])
    scores = metric.compute()
    assert scores["exact"] == pytest.approx(200 / 3)
    assert (scores["HasAns_exact"], scores["NoAns_exact"], scores["abstain_recall"]) == (100.0, 50.0, 50.0)
    assert scores["abstain_baseline"] == pytest.approx(200 / 3)
    # Metrics of a class without documents are missing.
    assert "HasAns_exact" not in SquadV2().compute(predictions=[""], references=[[]])


def test_labels() -> None:
    scores = Labels().compute(predictions=[0, 1, -1, 1], references=[0, 1, 1, 0])
    assert (scores["acc"], scores["parsed_rate"], scores["majority_baseline"]) == (0.5, 0.75, 0.5)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
