"""What a run that has learnt nothing scores on a task."""

from __future__ import annotations

import numpy as np

from harness_ext.comparison.measure import Measurement
from harness_ext.comparison.rows import Floor
from harness_ext.results.run import TaskResult
from harness_ext.results.samples import SampleScores

_ACCURACIES = ("acc", "acc_norm", "exact_match")  # what a constant answer can be measured by
_ABSTAINABLE = ("exact", "em", "f1")  # what always abstaining can be measured by (SQuAD v2)
_LEAST_FLOOR = 0.1  # a most frequent reference rarer than that is no class
_LEAST_COUNT = 5  # documents that must carry it


def floor_of(measurement: Measurement, samples: SampleScores | None) -> Floor | None:
    """What always giving one answer scores: as logged, else the most frequent reference, else 1 / choices.

    A label that stands for a position among a document's own choices (HellaSwag, MMLU), or is the same for every
    document (BLiMP's right choice always stands first), is no answer that could be given: there guessing is the floor.

    Args:
        measurement: of any run on the task; only plain shares of right answers have a floor.
        samples: the compared documents; None when none were logged.
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
        return Floor(share, "majority") if counts.max() >= _LEAST_COUNT and share >= _LEAST_FLOOR else None
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
