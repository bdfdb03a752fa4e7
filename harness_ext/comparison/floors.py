"""Floors: the score of a constant answer or of guessing on a task."""

from __future__ import annotations

import numpy as np

from harness_ext.comparison.measure import Measurement
from harness_ext.comparison.rows import Floor
from harness_ext.results.run import TaskResult
from harness_ext.results.samples import SampleScores

_ACCURACIES = ("acc", "acc_norm", "exact_match")  # metrics with the floors `majority` and `chance`
_ABSTAINABLE = ("exact", "em", "f1")  # metrics with the floor `abstain` (SQuAD v2)
_LEAST_SHARE = 0.1  # a reference answer with a smaller share of the documents is not a class
_LEAST_COUNT = 5  # nor is one with fewer documents


def floor_of(measurement: Measurement, samples: SampleScores | None) -> Floor | None:
    """The score of always giving the same answer: as logged, else the share of the most frequent one, else 1 / choices.

    If labels are positions among a document's own choices (HellaSwag, MMLU), or the label is the same for every
    document (in BLiMP the right choice always comes first), no constant answer is meaningful; the floor is guessing.

    Args:
        measurement: of any run on the task; only shares of right answers have a floor.
        samples: the compared documents; None if none were logged.
    """
    result, metric = measurement.result, measurement.metric.metric
    if metric in _ABSTAINABLE and (logged := _share(result, "abstain_baseline", 100)) is not None:
        return Floor(logged, "abstain")
    if metric not in _ACCURACIES:
        return None
    if (logged := _share(result, "majority_baseline", 1)) is not None:
        return Floor(logged, "majority")
    labels = result.config.get("doc_to_choice")
    has_labels = isinstance(labels, list) and bool(labels)
    if samples is not None and len(samples):
        counts = np.unique(samples.targets, return_counts=True)[1]
        if bool((samples.options > 0).any()) or result.config.get("output_type") == "multiple_choice":
            if not has_labels or len(counts) == 1:
                return _chance(samples, labels if has_labels else None)
        elif len(counts) == 1:
            return None
        share = float(counts.max()) / len(samples)
        return Floor(share, "majority") if counts.max() >= _LEAST_COUNT and share >= _LEAST_SHARE else None
    return Floor(1 / len(labels), "chance") if isinstance(labels, list) and labels else None


def _chance(samples: SampleScores, labels: list[str] | None) -> Floor | None:
    if labels:
        return Floor(1 / len(labels), "chance")
    options = samples.options[samples.options > 1]
    return Floor(float(np.mean(1 / options)), "chance") if len(options) else None


def _share(result: TaskResult, metric: str, default_scale: int) -> float | None:
    logged = result.metrics.get(metric)
    if logged is None:
        return None
    return logged.value / float(result.metadata.get("metric_scale", default_scale))
