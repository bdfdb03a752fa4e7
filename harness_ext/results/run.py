"""What a run is once it is read: a model or an adapter, its tasks, their metrics and where their samples lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness_ext.errors import ResultsError, suggest
from harness_ext.results.samples import (
    Numbers,
    SampleReader,
    SampleScores,
    first_sample,
    is_bundled,
    iter_samples,
    read_scores,
)

LM_EVAL = "lm-eval"
PRIMARY_METRICS = ("acc", "exact_match", "exact", "em", "f1")  # the first one found is the headline


@dataclass(frozen=True)
class MetricValue:
    """One aggregated number of a task, in the unit lm-eval logged."""

    metric: str
    filter: str
    value: float
    stderr: float | None = None  # lm-eval's own; None where it prints N/A
    higher_is_better: bool | None = None  # None when it was not logged


@dataclass(frozen=True)
class TaskResult:
    """One task, or one group of tasks, of one run.

    `metrics` is keyed by the metric's name; where several filters produced it, the first filter has the
    plain name and the others have lm-eval's `metric,filter`.
    """

    task: str
    version: str | None
    n_shot: int
    metrics: Mapping[str, MetricValue]
    fingerprint: str | None  # sha256 of the protocol; None in stock results
    n: int  # documents evaluated
    samples_path: Path | None  # None when the run did not log samples
    config: Mapping[str, Any] = field(repr=False)
    fingerprint_fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sample_data: bool | None = None  # what the results file says about the bundled sample
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # dtype, chat_template … where logged
    token_settings: Mapping[str, str] | None = None  # as the model arguments say; None when none were logged
    resolved_token_settings: Mapping[str, str] | None = None  # as the run logged them; None in stock and older results
    is_group: bool = False  # an aggregate over other tasks
    members: tuple[str, ...] = ()  # of a group: the tasks below it
    read_samples: SampleReader = field(default=iter_samples, repr=False)  # other tools log in forms of their own

    @property
    def primary(self) -> MetricValue:
        """The headline metric: `metadata.primary_metric`, else acc, exact_match, exact, em, f1, else the first.

        Raises:
            ResultsError: the declared metric was not logged, or no metric was.
        """
        declared = self.metadata.get("primary_metric")
        if declared is not None:
            return self.metric(str(declared))
        if not self.metrics:
            raise ResultsError(f"{self.task}: no metric was logged; evaluate without --predict_only")
        return self.metrics[next((name for name in PRIMARY_METRICS if name in self.metrics), next(iter(self.metrics)))]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The task's own `metadata:`, empty where it has none."""
        metadata = self.config.get("metadata")
        return metadata if isinstance(metadata, Mapping) else {}

    @cached_property
    def is_sample(self) -> bool:
        """Whether the documents are the bundled sample: the first logged sample tells, else the results file."""
        if self.read_samples is not iter_samples:
            return False
        sample = first_sample(self.samples_path) if self.samples_path else None
        return bool(self.sample_data) if sample is None else is_bundled(sample)

    def metric(self, name: str, filter: str | None = None) -> MetricValue:
        """Find an aggregated metric; without `filter`, under the first filter that has it.

        Raises:
            ResultsError: the task has no such metric.
        """
        for key in (name, f"{name},{filter}"):
            found = self.metrics.get(key)
            if found is not None and filter in (None, found.filter):
                return found
        wanted = name if filter is None else f"{name},{filter}"
        known = ", ".join(self.metrics) or "none"
        raise ResultsError(f"{self.task}: no metric {wanted!r} (it has {known}){suggest(name, self.metrics)}")

    def samples(
        self, metric: str, filter: str | None = None, numbers: Numbers | None = None, cluster: str | None = None
    ) -> SampleScores:
        """Read the metric's per-document scores from the samples file; see `read_scores`.

        Raises:
            ResultsError: no samples were logged, or they cannot be read.
        """
        if self.samples_path is None:
            raise ResultsError(f"{self.task}: no samples were logged; evaluate again with --log_samples")
        filter = filter or self.metric(metric).filter
        return read_scores(self.samples_path, metric, filter, numbers, cluster=cluster, samples=self.read_samples)


@dataclass(frozen=True)
class Run:
    """One model, or one model with one adapter, and what it scored."""

    name: str
    path: Path  # the (newest) results file
    model_args: Mapping[str, Any] = field(repr=False)
    tasks: Mapping[str, TaskResult] = field(repr=False)
    base: str | None
    adapter: str | None
    config: Mapping[str, Any] = field(repr=False)
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)  # facts of the adapter's training, where logged
    tool: str = LM_EVAL  # that wrote the results
