"""What a card claims: scores, and gains over the base, in the `model-index` of its metadata.

The format is the Hub's. Its `args` of a metric hold what the format has no place for: the lm-eval task, the interval,
the baseline, the fingerprint of the protocol and the settings of the evaluation. `verify` reads them back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from harness_ext.comparison.rows import Row
from harness_ext.errors import CardError, first_line
from harness_ext.names import clean_name
from harness_ext.protocol.documents import hub_dataset
from harness_ext.protocol.token_settings import is_token_setting
from harness_ext.reporting.datasets import Dataset, dataset_of
from harness_ext.results.run import Run, TaskResult

SOURCE = "harness-ext"
SOURCE_URL = "https://github.com/harness-ext/harness-ext"
TASK_NAME = re.compile(r"[\w.,+-]+", re.ASCII)  # no path: a card does not choose files of the reader's machine
_METRIC_TYPES = {"acc": "accuracy", "exact": "exact_match", "em": "exact_match"}  # the Hub's names
_DIGITS = 6
_LONGEST = 20_000  # characters of a setting
_GENERATION = (
    "until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p", "num_beams", "repetition_penalty",
)  # fmt: skip
_PLACES = ("tokenizer", "gguf_file", "quantization_config")  # model arguments that may name files


@dataclass(frozen=True)
class Claim:
    """One score of an adapter, as its card states it; shares are 0–1."""

    task: str
    metric: str
    filter: str
    value: float
    n: int | None = None  # number of documents
    baseline: float | None = None
    difference: float | None = None  # over the base, on the same documents; of logarithms if the scale is "log"
    verdict: str | None = None
    fingerprint: str | None = None  # of the protocol
    weights: str | None = None  # sha256 of the adapter's weights
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the evaluation; see `settings_of`
    interval: tuple[float, float] | None = None
    unit: str = ""
    is_sample: bool = False  # evaluated on the sample that is bundled with harness_ext
    dataset: Dataset | None = None


def settings_of(run: Run, result: TaskResult) -> dict[str, Any]:
    """The settings that `harness-ext eval` needs to evaluate a task in the same way; no paths, no devices."""
    arguments = {
        name: value
        for name, value in run.model_args.items()
        if (name == "dtype" or is_token_setting(name)) and _is_plain(value) and name not in _PLACES
    }
    settings = {"num_fewshot": result.n_shot or None, **result.evaluation, "model_args": arguments or None}
    limit = settings.get("limit")
    settings["limit"] = int(limit) if isinstance(limit, float) and limit >= 1 else limit
    return {name: value for name, value in settings.items() if value is not None}


def claim_of(row: Row, run: Run) -> Claim:
    """The claim that a row of a comparison makes."""
    result = run.tasks[row.task]
    interval = row.score.interval
    return Claim(
        task=row.task,
        metric=row.metric,
        filter=row.filter,
        value=row.score.value,
        n=row.n or None,
        baseline=row.baseline.value,
        difference=row.difference,
        verdict=row.verdict,
        fingerprint=result.fingerprint,
        weights=result.adapter_sha256.get("adapter_model.safetensors"),
        settings=settings_of(run, result),
        interval=(interval.low, interval.high) if interval else None,
        unit=row.unit,
        is_sample=row.is_sample,
        dataset=dataset_of(result),
    )


def model_index(name: str, claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims as the Hub's `model-index`.

    Args:
        name: of the model.
        claims: of one adapter.
    """
    results = []
    for claim in claims:  # one by one: the Hub's own function merges tasks that share a data set
        (entry,) = eval_results_to_model_index(name, [_eval_result(claim)])
        results += entry["results"]
    return [{"name": name, "results": results}]


def _eval_result(claim: Claim) -> EvalResult:
    low, high = claim.interval or (None, None)
    dataset = claim.dataset or Dataset(claim.task, False)
    details = {
        "task": claim.task, "metric": claim.metric, "filter": claim.filter, "n": claim.n,
        "unit": claim.unit or None, "is_sample": claim.is_sample or None, "low": _rounded(low), "high": _rounded(high),
        "baseline": _rounded(claim.baseline), "difference": _rounded(claim.difference),
        "verdict": claim.verdict, "fingerprint": claim.fingerprint, "weights": claim.weights,
        "settings": dict(claim.settings) or None,
    }  # fmt: skip
    return EvalResult(
        task_type="text-generation",
        task_name=claim.task,
        dataset_type=dataset.name,
        dataset_name=dataset.name,
        dataset_config=dataset.config,
        dataset_split=dataset.split,
        dataset_revision=dataset.revision,
        metric_type=_METRIC_TYPES.get(claim.metric, claim.metric),
        metric_name=claim.metric,
        metric_value=_rounded(claim.value),
        metric_args={name: value for name, value in details.items() if value is not None},
        source_name=SOURCE,
        source_url=SOURCE_URL,
    )


def is_ours(result: Any) -> bool:
    """Whether an entry of a `model-index` was written by `model_index`."""
    source = result.get("source") if isinstance(result, Mapping) else None
    return isinstance(source, Mapping) and source.get("name") == SOURCE


def claims_in(metadata: Mapping[str, Any], place: str) -> list[Claim]:
    """The claims in a card's metadata; entries of other tools are claims only if they name an lm-eval task.

    Args:
        metadata: front matter of a card.
        place: path of the card, for messages.

    Raises:
        CardError: the `model-index` has another form than the Hub's, or a value is of the wrong type.
    """
    index = metadata.get("model-index")
    if not index:
        return []
    try:
        _, results = model_index_to_eval_results(index)
        return [_claim(result, place) for result in results if isinstance((result.metric_args or {}).get("task"), str)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CardError(
            f"{place}: its model-index cannot be read ({type(error).__name__}: {first_line(error):.80}); correct it"
        ) from error


def _claim(result: EvalResult, place: str) -> Claim:
    details = result.metric_args
    assert details is not None
    task, settings = details["task"], details.get("settings") or {}
    if not TASK_NAME.fullmatch(task):
        raise CardError(f"{place}: {task!r:.80} is no name of a task; correct its model-index")
    low, high = _number(details.get("low")), _number(details.get("high"))
    value = _number(result.metric_value)
    if value is None:
        raise TypeError(f"the value of {task} is {result.metric_value!r:.40}")
    n = details.get("n")
    return Claim(
        task=task,
        metric=clean_name(details.get("metric") or result.metric_name or result.metric_type),
        filter=clean_name(details.get("filter") or "none"),
        value=value,
        n=n if isinstance(n, int) and n > 0 else None,
        baseline=_number(details.get("baseline")),
        difference=_number(details.get("difference")),
        verdict=_text(details.get("verdict")),
        fingerprint=_text(details.get("fingerprint")),
        weights=_text(details.get("weights")),
        settings=_checked_settings(settings, place),
        interval=(low, high) if low is not None and high is not None else None,
        unit=_text(details.get("unit")) or "",
        is_sample=details.get("is_sample") is True,
        dataset=Dataset(
            str(result.dataset_type),
            hub_dataset(str(result.dataset_type)) is not None,
            _text(result.dataset_config),
            _text(result.dataset_split),
            _text(result.dataset_revision),
        ),
    )


def _checked_settings(settings: Any, place: str) -> dict[str, Any]:
    """Settings of a card as keyword arguments of an evaluation: none that names a file, a model or code."""
    kinds: dict[str, tuple[type, ...]] = {
        "num_fewshot": (int,), "apply_chat_template": (bool, str), "fewshot_as_multiturn": (bool,),
        "system_instruction": (str,), "limit": (int, float), "seed": (list,), "gen_kwargs": (dict,),
        "model_args": (dict,),
    }  # fmt: skip
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings is {settings!r:.40}")
    for name, value in settings.items():
        if name not in kinds or not isinstance(value, kinds[name]) or len(str(value)) > _LONGEST:
            raise CardError(f"{place}: the setting {name}={value!r:.40} in its model-index is not known; remove it")
    for name, value in (settings.get("model_args") or {}).items():
        if not (name == "dtype" or is_token_setting(str(name))) or name in _PLACES or not _is_plain(value):
            raise CardError(f"{place}: the model argument {name}={value!r:.40} in its model-index is not accepted; "
                            "remove it")  # fmt: skip
    if unknown := [name for name in settings.get("gen_kwargs") or {} if name not in _GENERATION]:
        raise CardError(f"{place}: the generation argument {unknown[0]!r:.40} in its model-index is not accepted; "
                        "remove it")  # fmt: skip
    if not all(seed is None or isinstance(seed, int) for seed in settings.get("seed") or []):
        raise CardError(f"{place}: the seeds in its model-index are not whole numbers; correct them")
    return dict(settings)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and "/" not in value and "\\" not in value)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _text(value: Any) -> str | None:
    if not isinstance(value, (str, type(None))):
        raise TypeError(f"{value!r:.40} is no text")
    return None if value is None else clean_name(value)


def _rounded(value: float | None) -> float | None:
    """Six decimals; None for what is not finite, which YAML's readers disagree on."""
    return None if value is None or not math.isfinite(value) else round(value, _DIGITS)
