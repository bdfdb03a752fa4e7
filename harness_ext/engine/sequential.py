"""Evaluate until every verdict is known: base and adapters are asked the same documents, block by block.

```
design ──> block ──> look ──> block ──> look … ──> results of the documents that were asked
             │         └─ a decided adapter drops out; the base goes on as long as one row is open
             └─ base and each open adapter, and back; answers of earlier blocks come from the response store
```
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.comparison.measure import Settings, agreed_factor, margin_of, measure
from harness_ext.comparison.pair import pair
from harness_ext.comparison.units import cluster_column
from harness_ext.engine.hosts import prompt_settings
from harness_ext.engine.isolation import leaves, one_line
from harness_ext.engine.session import EVERYTHING, Part, Session, Store, VariantResults
from harness_ext.engine.variants import Variant
from harness_ext.errors import HarnessExtError, TaskError
from harness_ext.metrics.declarations import declared
from harness_ext.protocol.fingerprint import fingerprint
from harness_ext.protocol.lm_eval_api import EvaluatorConfig, Task
from harness_ext.results.file import run_in_memory
from harness_ext.results.run import Run, primary_name
from harness_ext.results.samples import Hashes, document_units
from harness_ext.stats.sequential import (
    LOOKS,
    Design,
    Look,
    Monitor,
    Outcome,
    TaskDesign,
    look_sizes,
    order_units,
    sequential_record,
)
from harness_ext.stats.sequential.design import LEAST_UNITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UntilDecided:
    """How to decide; see docs/stopping.md.

    Args:
        margin: differences of up to this many points count as equivalent.
        margins: margins of single metrics: in points for shares and percentages, else in the metric's own unit.
        looks: shares of the documents after which to look, increasing; the last is 1.
        max_documents: ask at most so many of each task; None: all.
        seed: of the order in which documents are asked.
    """

    margin: float = 1.0
    margins: Mapping[str, float] = field(default_factory=dict)
    looks: Sequence[float] = LOOKS
    max_documents: int | None = None
    seed: int = 0


@dataclass
class Row:
    """One adapter on one task."""

    task: str
    adapter: str
    planned: int  # documents
    monitor: Monitor
    unit: str  # of the metric
    asked: int = 0  # documents
    failure: str | None = None  # why it is not decided early

    @property
    def look(self) -> Look | None:
        """The last one."""
        return self.monitor.looks[-1] if self.monitor.looks else None

    @property
    def outcome(self) -> Outcome | None:
        """The verdict; None while the row is open."""
        return self.monitor.outcome

    @property
    def is_open(self) -> bool:
        """Whether more documents are to be asked."""
        return self.outcome is None and self.failure is None


OnLook = Callable[[Sequence[Row]], None]
Evaluate = Callable[[Variant, Part], VariantResults]


def run_until_decided(
    config: EvaluatorConfig,
    *,
    adapters: Sequence[str | Path],
    rule: UntilDecided,
    store: Store = None,
    on_look: OnLook = lambda _: None,
) -> Iterator[VariantResults]:
    """Evaluate base and adapters until every row has a verdict or cannot get one; then yield their results.

    Results hold the documents that were asked, the design, and the looks that were taken. Samples are always logged.
    A task whose primary metric has no score for each document, whose passages repeat without being named as units, or
    which has too few of them, is evaluated on all its documents, or on `max_documents` of them; a warning says so.

    Args:
        config: checked by lm-eval.
        adapters: adapter folders.
        rule: how to decide.
        store: folder of the response store, as of `harness_ext.engine.evaluate.run`.
        on_look: called with all rows after each look.

    Raises:
        HarnessExtError: one line on what is wrong, such as no adapter, no task that can be decided early, or an
            evaluation that began with another design.
    """
    _check(config)
    config.log_samples = True
    with Session.open(config, adapters=adapters, store=store, asks_again=True) as session:
        course = _Course(session, rule)
        with session.staying() as evaluate:
            course.decide(evaluate, on_look)
        yield from course.results()


def _check(config: EvaluatorConfig) -> None:
    for name in ("limit", "samples"):
        if getattr(config, name) is not None:
            raise TaskError(f"--until-decided chooses the documents itself; leave out --{name}, or use --max-documents")
    if config.predict_only:
        raise TaskError("--until-decided needs scores, and --predict_only computes none; leave out one of them")


@dataclass(frozen=True)
class _Order:
    """The documents of a task in the order in which they are asked, at most as many as the rule allows."""

    numbers: NDArray[np.intp]
    units: Hashes | None  # of all documents of the task: those of one passage have the same
    cluster: str | None  # the column that names them
    repeated: Sequence[str]  # columns whose values many documents share, where none is named

    def documents(self, count: int) -> _Indices:
        """The first ones, as lm-eval wants them: sorted."""
        return _Indices(sorted(self.numbers[:count].tolist()))


@dataclass(frozen=True)
class _Plan:
    """A task that may be stopped early."""

    task: Task
    order: _Order
    sizes: Sequence[int]  # documents asked at each look
    design: TaskDesign
    unit: str  # of the metric


class _Indices(list[int]):
    """Numbers of documents; lm-eval asks for each document of a task whether it is among them."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(numbers)
        self._set = frozenset(numbers)

    def __contains__(self, number: object) -> bool:
        return number in self._set


class _Course:
    """A sequential evaluation from the design to the results."""

    def __init__(self, session: Session, rule: UntilDecided) -> None:
        if session.shards.size > 1:
            raise TaskError("--until-decided works in one process; launch it without accelerate or torchrun")
        self._session, self._rule = session, rule
        self._settings = Settings(rule.margin / 100, dict(rule.margins))
        variants = [variant for variant in session.host.variants if session.host.why_not(variant) is None]
        self._base = next((variant for variant in variants if variant.adapter is None), None)
        self._adapters = [variant for variant in variants if variant.adapter is not None]
        if self._base is None or not self._adapters:
            raise TaskError("--until-decided compares adapters with their base; name them with --adapters")
        self._fixed: dict[str, _Indices] = {}  # documents of the tasks that are not decided early
        self._plans = self._planned(rule)
        self._design = self._begun(rule)
        self._rows = [
            Row(name, adapter.name, plan.design.documents, Monitor(self._design, name), plan.unit)
            for adapter in self._adapters
            for name, plan in self._plans.items()
        ]

    # -- the design --------------------------------------------------------------------------------------------------

    def _planned(self, rule: UntilDecided) -> dict[str, _Plan]:
        plans: dict[str, _Plan] = {}
        reasons: dict[str, str] = {}
        for task in leaves(self._session.tasks):
            course = _order(task, rule)
            try:
                plans[task.task_name] = _plan(task, course, rule, self._settings)
            except _FixedSizeError as error:
                reasons[task.task_name] = str(error)
                self._fixed[task.task_name] = course.documents(len(course.numbers))
        if not plans:
            said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise TaskError(f"no task can be decided early ({said}); evaluate without --until-decided")
        for name, reason in reasons.items():
            logger.warning("%s is evaluated on %s: %s", name, _how_many(len(self._fixed[name]), rule), reason)
        return plans

    def _begun(self, rule: UntilDecided) -> Design:
        """The design, which must be that of an earlier process that began this evaluation.

        Raises:
            TaskError: it is another one.
        """
        session, plans = self._session, self._plans
        try:
            design = Design(
                {name: plan.design for name, plan in plans.items()},
                family=len(plans) * len(self._adapters),
                seed=rule.seed,
                looks=tuple(rule.looks),
            )
            settings = prompt_settings(session.config)
            prints = [fingerprint(plan.task, settings, session.host.hf).digest for plan in plans.values()]
            begun = session.answers.begun_design(design, session.host.variants, prints)
        except ValueError as error:
            raise TaskError(f"--until-decided: {error}") from error
        if differing := design.differences(begun):
            raise TaskError(
                f"this evaluation began with another design (different: {', '.join(differing)}), and a design that is "
                "changed after looking at answers proves nothing; give the same options, or name another --store"
            )
        return design

    # -- blocks and looks --------------------------------------------------------------------------------------------

    def decide(self, evaluate: Evaluate, on_look: OnLook) -> None:
        """Ask block after block until no row is open, each by the variants in the other order than the last."""
        for number in range(max(len(plan.sizes) for plan in self._plans.values())):
            sizes = {
                name: plan.sizes[number]
                for name, plan in self._plans.items()
                if number < len(plan.sizes) and any(row.is_open for row in self._rows if row.task == name)
            }
            if sizes:
                self._take_look(evaluate, sizes, is_reversed=number % 2 == 1)
                on_look(self._rows)

    def _take_look(self, evaluate: Evaluate, sizes: Mapping[str, int], *, is_reversed: bool) -> None:
        assert self._base is not None
        rows_of = {
            adapter.name: [
                row for row in self._rows if row.adapter == adapter.name and row.is_open and row.task in sizes
            ]
            for adapter in self._adapters
        }
        turns = [self._base, *(adapter for adapter in self._adapters if rows_of[adapter.name])]
        answers: dict[str, VariantResults] = {}
        for variant in reversed(turns) if is_reversed else turns:
            asked = sizes if variant is self._base else {row.task: sizes[row.task] for row in rows_of[variant.name]}
            answers[variant.name] = evaluate(variant, self._block(asked))
        base = answers[self._base.name]
        for adapter in turns[1:]:
            done = answers[adapter.name]
            for row in rows_of[adapter.name]:
                row.asked = sizes[row.task]
                row.failure = _failure(row.task, base) or _failure(row.task, done) or self._look(row, base, done)
                if row.failure is not None and done.error is None:
                    row.asked = row.planned
                    many = _how_many(row.planned, self._rule)
                    logger.warning("%s, %s is evaluated on %s: %s", row.task, row.adapter, many, row.failure)

    def _block(self, sizes: Mapping[str, int]) -> Part:
        plans = {name: self._plans[name] for name in sizes}
        samples = {name: plan.order.documents(sizes[name]) for name, plan in plans.items()}
        return Part([plan.task for plan in plans.values()], samples, writes=False)

    def _look(self, row: Row, base: VariantResults, done: VariantResults) -> str | None:
        """Take a look at a row; returns why that is not possible."""
        try:
            differences, units = _differences(row.task, self._run(base), self._run(done), self._settings)
            row.monitor.look(differences, units)
        except (HarnessExtError, ValueError) as error:
            return one_line(error)
        return None

    def _run(self, done: VariantResults) -> Run:
        return run_in_memory(done.results)

    # -- results -----------------------------------------------------------------------------------------------------

    def results(self) -> Iterator[VariantResults]:
        """Score and write, for each variant, the documents that it was asked; all answers are there."""
        for variant in self._session.host.variants:
            rows = [row for row in self._rows if variant is self._base or row.adapter == variant.name]
            asked = {name: max(row.asked for row in rows if row.task == name) for name in self._plans} if rows else {}
            yield self._session.evaluate(variant, self._part(variant, asked))

    def _part(self, variant: Variant, asked: Mapping[str, int]) -> Part:
        """The documents of a variant, and what its results say of the design."""
        if not asked:
            return EVERYTHING
        assert self._base is not None
        looks = {row.task: row.monitor.looks for row in self._rows if row.adapter == variant.name and not row.failure}
        documents = asked if variant is self._base else {name: asked[name] for name in looks}
        record = sequential_record(self._design, looks, baseline=self._base.name, documents=documents)
        extra = {"sequential": record} if documents else {}
        samples = self._fixed | {name: self._plans[name].order.documents(count) for name, count in asked.items()}
        tasks = leaves(self._session.tasks)
        if all(len(samples[task.task_name]) == len(task.eval_docs) for task in tasks):
            return Part(extra=extra)
        return Part(tasks, samples, extra=extra)  # no groups: they have no value without all documents


def _failure(task: str, done: VariantResults) -> str | None:
    """Why a task has no scores in what was just evaluated."""
    if done.error is not None:
        return str(done.error)
    return done.failures.get(task) or (None if task in done.results.get("results", {}) else "it has no results")


class _FixedSizeError(Exception):
    """A task cannot be stopped early."""


def _how_many(count: int, rule: UntilDecided) -> str:
    return "all its documents" if rule.max_documents is None else f"{count} documents"


def _order(task: Task, rule: UntilDecided) -> _Order:
    column = cluster_column(task.task_name, task.config.metadata or {}, {})
    units, repeated = document_units(task.eval_docs, column)
    order = order_units(len(task.eval_docs) if units is None else units, seed=rule.seed)
    return _Order(order[: _whole_units(units, order, rule.max_documents)], units, column, repeated)


def _plan(task: Task, order: _Order, rule: UntilDecided, settings: Settings) -> _Plan:
    metadata, names = task.config.metadata or {}, list(task.aggregation())
    if not names:
        raise _FixedSizeError("it declares no metric")
    metric = primary_name(metadata.get("primary_metric"), names)
    statistic = declared(metric, metadata, names)[0].in_shares()
    if not statistic.is_mean or statistic.scale != "linear" or statistic.describes:
        raise _FixedSizeError(f"{metric} is not the mean of a score for each document")
    if order.repeated:
        column = order.repeated[0]
        raise _FixedSizeError(
            f"many documents share a {column!r}; name this column in the YAML as metadata: cluster: {column}"
        )
    count = len(order.numbers)
    units = None if order.units is None else order.units[order.numbers]
    independent = count if units is None else len(np.unique(units))
    low, high = statistic.limits
    direction = task.higher_is_better().get(metric, statistic.higher_is_better)
    design = TaskDesign(
        documents=count,
        metric=metric,
        margin=margin_of(statistic, settings) or None,
        higher_is_better=True if direction is None else bool(direction),
        span=None if low is None or high is None else high - low,
        cluster=None if units is None else order.cluster,
    )
    if independent < LEAST_UNITS:
        raise _FixedSizeError(f"it has {independent} independent units, and a look needs {LEAST_UNITS}")
    sizes = look_sizes(count if units is None else units, rule.looks, least_units=LEAST_UNITS)
    return _Plan(task, order, sizes, design, statistic.unit)


def _whole_units(units: Hashes | None, order: NDArray[np.intp], most: int | None) -> int:
    """How many documents of an order are asked at most: whole units, at least one."""
    if most is None or most >= len(order):
        return len(order)
    if units is None:
        return most
    in_order = units[order]
    ends = [*(np.flatnonzero(in_order[1:] != in_order[:-1]) + 1).tolist(), len(order)]
    return max((end for end in ends if end <= most), default=ends[0])


def _differences(
    task: str, base: Run, adapter: Run, settings: Settings
) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """The adapter's scores minus the base's, (n,), and the units of the documents."""
    before = measure(base, task, settings)
    after = measure(adapter, task, settings, like=before)
    if reason := before.not_tested or after.not_tested:
        raise TaskError(reason)
    if not before.statistic.is_mean or not after.statistic.is_mean:
        raise TaskError(f"{before.metric.metric} is not the mean of a score for each document")
    before = agreed_factor(before, [after])
    paired = pair(before, adapter.name, {"": after}, settings)
    assert paired.before is not None
    first, (second,) = paired.numbers()
    return second[:, 0] - first[:, 0], paired.before.clusters
