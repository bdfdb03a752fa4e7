"""A run as read from results: a model or an adapter, its tasks, their metrics and the files of their samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness_ext.errors import CutShortError, ResultsError, suggest
from harness_ext.metrics.known import PRIMARY_METRICS
from harness_ext.results.samples import (
    Numbers,
    SampleReader,
    SampleScores,
    first_sample,
    is_bundled,
    iter_samples,
    read_scores,
    whole_samples,
)
from harness_ext.stats.sequential.record import Record

LM_EVAL = "lm-eval"


@dataclass(frozen=True)
class MetricValue:
    """One aggregated metric of a task, in the unit in which it was logged."""

    metric: str
    filter: str
    value: float
    stderr: float | None = None  # as logged; None where lm-eval prints N/A
    higher_is_better: bool | None = None  # None if not logged


@dataclass(frozen=True)
class TaskResult:
    """Results of one task, or of one group of tasks, in one run.

    `metrics` is keyed by metric name. If several filters produced a metric, the first has the plain name and the others
    have lm-eval's `metric,filter`.
    """

    task: str
    version: str | None
    n_shot: int
    metrics: Mapping[str, MetricValue]
    fingerprint: str | None  # sha256 of the protocol; None in stock results
    n: int  # number of documents evaluated
    samples_path: Path | None  # None if samples were not logged
    config: Mapping[str, Any] = field(repr=False)
    fingerprint_fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sample_data: bool | None = None  # whether the results file says that the bundled sample was used
    local_data: bool = False  # whether the results file says that the documents came from files of that machine
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # dtype, chat_template …, as far as logged
    token_settings: Mapping[str, str] | None = None  # as the model arguments ask for; None if those were not logged
    resolved_token_settings: Mapping[str, str] | None = None  # as used; None in stock and older results
    is_group: bool = False  # whether it is an aggregate over other tasks
    members: tuple[str, ...] = ()  # of a group: its tasks
    source: Path | None = None  # the results file
    limit: float | None = None  # as given to lm-eval: documents, or a share of them; None: all
    documents: int | None = None  # how many every filter's samples have at least; None if unknown
    available: int | None = None  # documents of the split, whether or not they were asked; None if not logged
    digest: str | None = None  # lm-eval's hash of all samples; None if they were not logged, or by another tool
    sequential: Record | None = field(default=None, repr=False)  # how it was watched, if with --until-decided
    adapter_sha256: Mapping[str, str] = field(default_factory=dict, repr=False)  # by file name; empty in stock results
    evaluation: Mapping[str, Any] = field(default_factory=dict, repr=False)  # limit, seed … as far as they were given
    read_samples: SampleReader = field(default=iter_samples, repr=False)  # other tools have other formats

    @property
    def primary(self) -> MetricValue:
        """The primary metric: `metadata.primary_metric`; else acc, exact_match, exact, em or f1; else the first.

        Raises:
            ResultsError: the declared metric was not logged, or no metric was logged.
        """
        if (declared := self.metadata.get("primary_metric")) is None and not self.metrics:
            raise ResultsError(f"{self.task}: no metric was logged; evaluate without --predict_only")
        return self.metric(primary_name(declared, self.metrics))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The task's `metadata:`; empty if it has none."""
        metadata = self.config.get("metadata")
        return metadata if isinstance(metadata, Mapping) else {}

    @cached_property
    def is_sample(self) -> bool:
        """Whether the documents are the bundled sample, from the first logged sample or else from the results file."""
        if self.read_samples is not iter_samples:
            return False
        sample = None
        with contextlib.suppress(CutShortError):  # whoever reads all samples says so
            sample = first_sample(self.samples_path) if self.samples_path else None
        return bool(self.sample_data) if sample is None else is_bundled(sample)

    def metric(self, name: str, filter: str | None = None) -> MetricValue:
        """The aggregated metric of this name; without `filter`, that of the first filter that has it.

        Raises:
            ResultsError: the task has no such metric.
        """
        for key in (name, f"{name},{filter}"):
            metric = self.metrics.get(key)
            if metric is not None and filter in (None, metric.filter):
                return metric
        requested = name if filter is None else f"{name},{filter}"
        known = ", ".join(self.metrics) or "none"
        raise ResultsError(f"{self.task}: no metric {requested!r} (it has {known}){suggest(name, self.metrics)}")

    def logged_samples(self) -> Iterator[dict[str, Any]]:
        """Yield the logged samples, in the form in which lm-eval logs them.

        Raises:
            CutShortError: the file is not complete.
            ResultsError: no samples were logged, or they cannot be read.
        """
        if self.samples_path is None:
            if self.digest is not None:
                raise CutShortError(f"{self.task}: its samples file is missing; evaluate again")
            raise ResultsError(f"{self.task}: no samples were logged; evaluate again with --log_samples")
        filters = {metric.filter for metric in self.metrics.values()}
        samples = self.read_samples(self.samples_path)
        yield from whole_samples(
            samples, self.samples_path, documents=self.documents, filters=filters, digest=self.digest
        )

    def samples(
        self, metric: str, filter: str | None = None, numbers: Numbers | None = None, cluster: str | None = None
    ) -> SampleScores:
        """Read the metric's per-document scores from the samples file; see `read_scores`.

        Raises:
            ResultsError: no samples were logged, or they cannot be read.
        """
        filter = filter or self.metric(metric).filter
        path, samples = self.samples_path or Path(self.task), self.logged_samples()
        return read_scores(path, metric, filter, numbers, cluster=cluster, samples=lambda _: samples)


def primary_name(declared: Any, metrics: Iterable[str]) -> str:
    """The name of a task's primary metric.

    Args:
        declared: `metadata.primary_metric`; None if the task names none.
        metrics: names of the task's metrics, at least one.
    """
    names = list(metrics)
    if declared is not None:
        return str(declared)
    return next((name for name in PRIMARY_METRICS if name in names), names[0])


@dataclass(frozen=True)
class Run:
    """The results of one model, with or without an adapter."""

    name: str
    path: Path  # the results file; the newest if there are several
    model_args: Mapping[str, Any] = field(repr=False)
    tasks: Mapping[str, TaskResult] = field(repr=False)
    base: str | None
    adapter: str | None
    config: Mapping[str, Any] = field(repr=False)
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the adapter's card, if logged
    seconds_per_document: float | None = None  # of the newest file, over all of its tasks; None if not logged
    tool: str = LM_EVAL  # the tool that wrote the results
    origin: Mapping[str, Any] = field(default_factory=dict, repr=False)  # versions, date, hashes, as far as logged
