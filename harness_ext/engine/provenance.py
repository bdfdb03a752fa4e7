"""What a results file says of where it comes from: variant, adapter card, protocol, data, time.

lm-eval's own results stay as they are; this is the key `harness_ext` beside them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from harness_ext.engine.hosts import Host, prompt_settings
from harness_ext.engine.isolation import Failures
from harness_ext.engine.variants import Variant
from harness_ext.models.card import AdapterCard
from harness_ext.models.snapshot import AdapterSnapshot
from harness_ext.protocol import documents
from harness_ext.protocol.fingerprint import PROMPT_FIELDS, Fingerprint, differing_fields, fingerprint
from harness_ext.protocol.lm_eval_api import EvaluatorConfig, Task
from harness_ext.protocol.token_settings import token_settings
from harness_ext.version import __version__

logger = logging.getLogger(__name__)


def key_of_each(
    our_key: Callable[[Sequence[Task]], dict[str, Any]], tasks: Sequence[Task], failures: Failures
) -> dict[str, Any] | None:
    """What we add to a results file, for the tasks that it can be told of; None when it can be told of none."""
    with contextlib.suppress(Exception):
        return our_key(tasks)
    good = []
    for task in tasks:
        with failures.catching(task.task_name, "no fingerprint in its results: "):
            our_key([task])
            good.append(task)
    return our_key(good) if good else None


def provenance(
    config: EvaluatorConfig,
    host: Host,
    variant: Variant,
    tasks: Sequence[Task],
    tokenizer_notes: Mapping[str, str],
    *,
    seconds: float,
) -> dict[str, Any]:
    """The key `harness_ext` of a results file, for some of its tasks."""
    settings = prompt_settings(config)
    prints = {task.task_name: fingerprint(task, settings, host.hf) for task in tasks}
    sources = {
        task.task_name: documents.source_of(
            task.config.custom_dataset, task.config.dataset_kwargs, task.config.metadata
        )
        for task in tasks
    }
    adapter = host.snapshot
    if adapter is not None and adapter.card is not None:
        _warn_of_other_prompts(variant.name, adapter.card, prints)
    return {
        "version": __version__,
        "variant": variant.name,
        "base": host.base,
        "adapter": variant.adapter,
        "card": _card(adapter),
        "adapter_sha256": None if adapter is None else dict(adapter.sha256),
        "token_settings": {**token_settings(config.model_args), **tokenizer_notes},
        "fingerprints": {name: each.digest for name, each in prints.items()},
        "fingerprint_fields": {name: each.fields for name, each in prints.items()},
        "sample_data": any(source is not None and source.is_sample for source in sources.values()),
        "local_data": [name for name, source in sources.items() if source is not None and source.is_local],
        **({"engine": dict(about)} if (about := host.about()) else {}),
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
    }


def _card(adapter: AdapterSnapshot | None) -> dict[str, Any] | None:
    """What an adapter's card says, and the size of its weights, for whoever compares."""
    if adapter is None or adapter.card is None:
        return None
    return {**asdict(adapter.card), "adapter_bytes": adapter.weights_bytes}


def _warn_of_other_prompts(name: str, card: AdapterCard, prints: Mapping[str, Fingerprint]) -> None:
    """Warn when a task asks an adapter about its own data in other words than it was trained with."""
    for task, found in prints.items():
        differing = differing_fields(card.fingerprint_fields, found.fields, PROMPT_FIELDS)
        if differing and "dataset" not in differing:
            logger.warning(
                "%s was trained on %s with another prompt than %s has here: %s",
                name,
                card.task,
                task,
                ", ".join(differing),
            )
