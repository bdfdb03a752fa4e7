"""Our metrics as `evaluate.Metric`, for use in notebooks and in a Trainer's `compute_metrics`.

```python
from harness_ext.evaluate_metrics import SquadV2

SquadV2().compute(predictions=["unanswerable"], references=[[]])  # {'exact': 100.0, ...}
```

The numbers are those of the hooks in task YAMLs. As with any `evaluate.Metric`, predictions and references can also be
added in batches with `add_batch`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

from harness_ext import hooks

CITATIONS = {
    "squad_v1": "Rajpurkar et al. (2016), arXiv:1606.05250",
    "squad_v2": "Rajpurkar et al. (2018), arXiv:1806.03822",
}
AGGREGATES: Mapping[str, Callable[[Any], float]] = {
    name: getattr(hooks, name) for name in ("abstain_f1", "abstain_precision", "abstain_recall", "bleu", "bleu_1")
}


class SquadV1(evaluate.Metric):
    """Exact match, F1, BLEU, ROUGE and METEOR of answers, 0-100; every question has a reference."""

    def _info(self) -> evaluate.MetricInfo:
        return _answers_info(type(self).__doc__, CITATIONS["squad_v1"])

    def _compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return _aggregate(hooks.score_squad_v1, predictions, references)


class SquadV2(evaluate.Metric):
    """SQuAD v2, 0-100: exact match and F1, in total and by class, abstention metrics, and the abstain baseline.

    A question without references is unanswerable.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _answers_info(type(self).__doc__, CITATIONS["squad_v2"])

    def _compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return _aggregate(hooks.score_squad_v2, predictions, references)


class Labels(evaluate.Metric):
    """Accuracy, macro-F1 and Matthews correlation of class indices, and the majority baseline, 0-1.

    A prediction of -1 is an output that could not be parsed: it is always wrong, and lowers `parsed_rate`.
    """

    def _info(self) -> evaluate.MetricInfo:
        index = datasets.Value("int64")
        return _info(type(self).__doc__, {"predictions": index, "references": index}, citation="")

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        golds = [int(gold) for gold in references]
        parsed = [None if predicted == -1 else int(predicted) for predicted in predictions]
        pairs = list(zip(golds, parsed, strict=True))
        return {
            "acc": sum(gold == predicted for gold, predicted in pairs) / len(pairs),
            "parsed_rate": sum(predicted is not None for predicted in parsed) / len(pairs),
            "macro_f1": hooks.macro_f1(pairs),
            "mcc": hooks.mcc(pairs),
            "majority_baseline": hooks.majority_baseline(golds),
        }


def _answers_info(description: str | None, citation: str) -> evaluate.MetricInfo:
    text = datasets.Value("string")
    return _info(description, {"predictions": text, "references": datasets.Sequence(text)}, citation=citation)


def _info(description: str | None, columns: Mapping[str, Any], *, citation: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description or "",
        citation=citation,
        inputs_description="predictions and references, one of each per document",
        features=datasets.Features(columns),
    )


def _aggregate(
    score: Callable[[Any, Any], Mapping[str, Any]], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Score each document and aggregate as a task would; metrics of a class without documents are missing."""
    values: dict[str, list[Any]] = defaultdict(list)
    for prediction, golds in zip(predictions, references, strict=True):
        for name, value in score({"answers": {"text": list(golds)}}, [prediction]).items():
            values[name].append(value)
    return {
        name: AGGREGATES[name](rows) if name in AGGREGATES else math.fsum(rows) / len(rows)
        for name, rows in values.items()
    }
