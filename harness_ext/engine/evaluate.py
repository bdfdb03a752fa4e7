"""Evaluate a base and its adapters under one protocol, in one process.

The numbers are lm-eval's: `simple_evaluate` renders, scores and aggregates, `EvaluationTracker` writes. We choose what
runs, and add the key `harness_ext` to each results file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness_ext.engine.array_shard import Shard
from harness_ext.engine.sequential import UntilDecided, run_until_decided
from harness_ext.engine.session import Part, Session, Store, VariantResults
from harness_ext.errors import TaskError, first_line, suggest
from harness_ext.protocol.lm_eval_api import EvaluatorConfig, loggers_of

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hf-tree"


def evaluate(
    base: str | None = None,
    *,
    tasks: Sequence[str],
    adapters: Sequence[str | Path] = (),
    model: str = DEFAULT_MODEL,
    store: Store = None,
    from_store: bool = False,
    until_decided: UntilDecided | None = None,
    **settings: Any,
) -> list[VariantResults]:
    """Evaluate a base, then each adapter, on the same tasks.

    Args:
        base: Hub id, local folder or packaged model; read from the first adapter when left out.
        tasks: names, or paths of YAML files.
        adapters: adapter folders.
        model: lm-eval's name of the model class.
        store: folder of the response store; that of `output_path` when left out, and none if False.
        from_store: take all answers from the store, and load no weights.
        until_decided: stop asking as soon as every adapter has a verdict; see `harness_ext.engine.sequential`.
        settings: any field of lm-eval's `EvaluatorConfig`: `limit`, `num_fewshot`, `output_path`, `log_samples`, ...

    Returns:
        One entry for the base and one for each adapter, in that order; tasks that failed stand in `failures`. One that
        lacks the chat template that the others have is named there, and has no results. An adapter that cannot be
        evaluated has an `error`.

    Raises:
        HarnessExtError: one line on what is wrong; of adapters only if none could be evaluated.
    """
    model_args = dict(settings.pop("model_args", None) or {})
    if base is not None:
        model_args["pretrained"] = base
    known = [field.name for field in fields(EvaluatorConfig)]
    if unknown := [name for name in settings if name not in known]:
        raise TaskError(
            f"evaluate knows no setting {unknown[0]!r}{suggest(unknown[0], known)}; see lm-eval's EvaluatorConfig"
        )
    try:
        config = EvaluatorConfig(model=model, model_args=model_args, tasks=list(tasks), **settings)._configure()
    except (TypeError, ValueError) as error:
        raise TaskError(f"evaluate: {first_line(error)}") from error
    if until_decided is not None and from_store:
        raise TaskError("until_decided asks the model, and from_store does not; leave out one of them")
    done = list(
        run(config, adapters=adapters, store=store, from_store=from_store)
        if until_decided is None
        else run_until_decided(config, adapters=adapters, store=store, rule=until_decided)
    )
    errors = [each.error for each in done if each.error is not None]
    if errors and len(errors) == sum(each.variant.adapter is not None for each in done):
        raise errors[0]
    for each in done:
        if each.error is not None:
            logger.error("%s: %s", each.variant.name, each.error)
        for name, reason in each.failures.items():
            logger.error("%s, %s: %s", each.variant.name, name, reason)
    return done


def run(
    config: EvaluatorConfig,
    *,
    adapters: Sequence[str | Path] = (),
    store: Store = None,
    from_store: bool = False,
) -> Iterator[VariantResults]:
    """Evaluate what a config asks for; yields each variant's results as soon as they are written.

    With `peft` among the model arguments and no `adapters`, only that adapter is evaluated, as in stock lm-eval. An
    adapter that cannot be evaluated does not stop the others. Where several processes are launched, they share the
    requests; the first one has the results.

    Args:
        config: checked by lm-eval.
        adapters: adapter folders, evaluated after the base.
        store: folder of the response store; that of `output_path` when left out, and none if False.
        from_store: take all answers from the store, and load no weights.
    """
    with Session.open(config, adapters=adapters, store=store, from_store=from_store) as session:
        for variant in session.host.variants:
            yield session.evaluate(variant)


def run_shard(
    config: EvaluatorConfig, *, shard: Shard, adapters: Sequence[str | Path] = (), store: Store = None
) -> Iterator[VariantResults]:
    """Ask one shard of the requests of an evaluation; the store takes the answers, and nothing is scored or written.

    When all shards are done, `run` with `from_store` gives the results of the whole evaluation, or names what is
    missing.

    Args:
        config: checked by lm-eval, the same for all shards.
        shard: which one.
        adapters: adapter folders, in the same order for all shards.
        store: folder of the response store; that of `output_path` when left out.

    Yields:
        The `tally` and `failures` of each variant that the shard asks.

    Raises:
        HarnessExtError: one line on what is wrong, such as answers that cannot be stored.
    """
    with Session.open(config, adapters=adapters, store=store, must_store=True) as session:
        variants, is_whole = session.host.variants, True
        for place, variant in enumerate(variants):
            if (asked := shard.of_variant(place, len(variants))) is not None:
                done = session.evaluate(variant, Part(asked=asked))
                is_whole &= not done.failures and done.error is None
                yield done
        with session.shards.together():
            session.answers.check_written(shard)
        if is_whole and not session.shards.rank:
            session.answers.add_shard(shard)


def report_to_trackers(config: EvaluatorConfig, done: VariantResults) -> None:
    """Send one variant's results to W&B and trackio, where `--wandb_args` or `--trackio_args` asks for it."""
    results = {name: value for name, value in done.results.items() if name != "samples"}
    for tracker in loggers_of(config):
        tracker.post_init(results)
        tracker.log_eval_result()
        if config.log_samples:
            tracker.log_eval_samples(done.results["samples"])
        tracker.run.finish() if hasattr(tracker, "run") else tracker.finish()
