"""Read a report of EvalScope 1.x, `reports/MODEL/DATASET.json`, and the reviews of its samples.

```
RUN/reports/MODEL/DATASET.json              scores by metric, category and subset
RUN/reviews/MODEL/DATASET_SUBSET.jsonl      one line per sample: its messages and its `sample_score`
RUN/configs/task_config*.yaml               the configuration of the evaluation
```

Metrics are named as in the reviews. Repeated generations of a sample are averaged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness_ext.errors import InputError, ResultsError
from harness_ext.names import clean_name
from harness_ext.reading.files import is_regular
from harness_ext.reading.yaml_input import read_yaml
from harness_ext.results import samples as lm_eval
from harness_ext.results.other_tools import (
    entries,
    fingerprint,
    hash_of,
    is_number,
    mapping,
    mean,
    prompt_of,
    sample,
    sampling,
)
from harness_ext.results.run import MetricValue, Run, TaskResult

logger = logging.getLogger(__name__)

EVALSCOPE = "EvalScope"
REPORTS = "reports"
_FILTER = "none"
_ROUNDING = 2e-4  # reports round to four digits, by subset, by category and by metric
_ALIASES = {"acc": "accuracy", "bertscore": "bert_score", "f1_score": "f1", "em": "exact_match"}
_SHARES = ("bleu",)  # on 0–1 in EvalScope but 0–100 in lm-eval; reports before version 2 state no unit
_PROTOCOL = (  # fields of a benchmark as EvalScope resolved it
    "aggregation", "dataset_revision", "eval_split", "extra_params", "few_shot_prompt_template", "few_shot_random",
    "filters", "metric_list", "prompt_template", "query_template", "shuffle", "shuffle_choices",
    "system_prompt",
)  # fmt: skip


def is_report(payload: Mapping[str, Any]) -> bool:
    """Whether a JSON object is the report of one model on one dataset."""
    return isinstance(payload.get("metrics"), list) and "dataset_name" in payload and "model_name" in payload


def root_of(report: Path) -> Path:
    """The folder of the evaluation that a report belongs to."""
    return report.parent.parent.parent


def parse_run(report: Path, payload: Mapping[str, Any]) -> Run:
    """The run in a report: one model on one dataset. A warning says how many samples have no usable score.

    Raises:
        ResultsError: nothing was scored, or the reviews are cut short or of another format.
    """
    dataset = str(payload["dataset_name"])
    reviews = _review_files(report, dataset, payload)
    documents = list(_documents(reviews)) if reviews else []
    config = _config(report)
    fields = _protocol(config, dataset)
    metrics, declared = _metrics(payload, documents)
    if not metrics:
        raise ResultsError(f"{report}: has no metric; evaluate {dataset} again")
    if unscored := sum(document.unscored for document in documents):
        logger.warning("%s: left out %d samples without a usable score", report, unscored)
    result = TaskResult(
        task=clean_name(dataset),
        version=_version(config, dataset),
        n_shot=_count(_resolved(config, dataset).get("few_shot_num")),
        metrics=metrics,
        fingerprint=fingerprint(fields) if fields else None,
        n=sum(bool(document.scores) for document in documents) or _count(payload.get("num")),
        samples_path=reviews[0] if reviews else None,
        config={"metadata": {"metrics": declared} | _primary(payload, metrics)},
        fingerprint_fields=fields,
        sample_data=False,
        read_samples=partial(_samples, reviews),
    )
    name, arguments = clean_name(payload["model_name"]), mapping(config.get("model_args"))
    return Run(name, report, arguments, {result.task: result}, base=None, adapter=None, config={}, tool=EVALSCOPE)


# -- reviews -------------------------------------------------------------------------------------------------------


@dataclass
class _Document:
    """One sample, with the scores of its repeated generations."""

    doc: Mapping[str, Any]
    doc_hash: str
    prompt_hash: str
    target: Any
    scores: dict[str, list[float]] = field(default_factory=dict)
    unscored: int = 0


def _review_files(report: Path, dataset: str, payload: Mapping[str, Any]) -> list[Path]:
    """The review files of a report's subsets, by exact name: the name of one dataset may be the prefix of another's."""
    names = dict.fromkeys(
        str(subset.get("name"))
        for metric in entries(payload.get("metrics"))
        for category in entries(metric.get("categories"))
        for subset in entries(category.get("subsets"))
    )
    folder = root_of(report) / "reviews" / report.parent.name
    files = [folder / f"{dataset}_{name}.jsonl" for name in names]
    return [file for file in files if is_regular(file)]


def _documents(reviews: Sequence[Path]) -> Iterator[_Document]:
    for file in reviews:
        documents: dict[str, _Document] = {}
        for line, review in enumerate(lm_eval.iter_samples(file), start=1):
            score = review.get("sample_score")
            if not isinstance(score, Mapping):
                raise ResultsError(
                    f"{file}:{line}: no sample_score; EvalScope writes it from version 1.0 on: evaluate again with that"
                )
            group = score.get("group_id")
            key = str(review.get("index") if group is None else group)
            document = documents.setdefault(key, _document(file, key, review, mapping(score.get("sample_metadata"))))
            values = mapping(mapping(score.get("score")).get("value"))
            numbers = {metric: float(value) for metric, value in values.items() if _is_score(value)}
            for metric, value in numbers.items():
                document.scores.setdefault(metric, []).append(value)
            document.unscored += not numbers
        yield from sorted(documents.values(), key=lambda document: document.doc_hash)  # logged in order of completion


def _is_score(value: Any) -> bool:
    return isinstance(value, bool) or is_number(value)


def _document(file: Path, key: str, review: Mapping[str, Any], metadata: Mapping[str, Any]) -> _Document:
    target, messages = review.get("target"), review.get("messages")
    return _Document(
        doc=metadata,
        doc_hash=hash_of(file.stem, key, target),
        prompt_hash=hash_of(prompt_of(messages) if messages else review.get("input")),
        target=target,
    )


def _samples(reviews: Sequence[Path], _file: Path) -> Iterator[dict[str, Any]]:
    """The documents of all subsets in lm-eval's format of samples; the metadata of a sample become its columns."""
    for number, document in enumerate(_documents(reviews)):
        values = {metric: mean(scores) for metric, scores in document.scores.items()}
        yield sample(number, document.doc, document.doc_hash, document.prompt_hash, document.target, values)


# -- reports -------------------------------------------------------------------------------------------------------


def _metrics(
    payload: Mapping[str, Any], documents: Sequence[_Document]
) -> tuple[dict[str, MetricValue], dict[str, dict[str, Any]]]:
    """Metrics by name, and the units that the report declares for them.

    Reports round their scores; if a score is the rounded mean over the documents, the exact mean is used.
    """
    metrics: dict[str, MetricValue] = {}
    declared: dict[str, dict[str, Any]] = {}
    reported = {_name(metric): metric for metric in entries(payload.get("metrics")) if is_number(metric.get("score"))}
    for name in dict.fromkeys(name for document in documents for name in document.scores):
        value = mean(mean(document.scores[name]) for document in documents if name in document.scores)
        metric = reported.pop(_canonical(name), {})
        score = metric.get("score", value)
        is_mean = abs(score - value) <= _ROUNDING * max(1.0, abs(score))
        metrics[name] = _value(name, value if is_mean else float(score), metric)
        declared[name] = _declared(name, metric)
    for name, metric in reported.items():
        metrics[name] = _value(name, float(metric["score"]), metric)
        declared[name] = _declared(name, metric)
    return metrics, {name: fields for name, fields in declared.items() if fields}


def _name(metric: Mapping[str, Any]) -> str:
    """Name of a reported metric: `accuracy` for a mean; otherwise with its aggregation, `accuracy:pass_at_k[k=2]`."""
    identity = mapping(metric.get("identity"))
    if not identity:  # a report before version 2
        return _canonical(re.sub(r"^mean_", "", str(metric.get("name"))))
    dimensions = ",".join(f"{name}={value}" for name, value in mapping(identity.get("dimensions")).items())
    aggregation = identity.get("aggregation")
    name = f"{identity.get('name')}" + ("" if aggregation in ("mean", "identity") else f":{aggregation}")
    return f"{name}[{dimensions}]" if dimensions else name


def _canonical(name: str) -> str:
    """The name that a report uses for the metric `name` of the reviews: snake case, without abbreviations."""
    snake = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
    return _ALIASES.get(snake, snake)


def _value(name: str, value: float, metric: Mapping[str, Any]) -> MetricValue:
    direction = mapping(metric.get("semantics")).get("direction")
    higher = {"higher_is_better": True, "lower_is_better": False}.get(str(direction))
    return MetricValue(name, _FILTER, value, higher_is_better=higher)


def _declared(name: str, metric: Mapping[str, Any]) -> dict[str, Any]:
    """The unit of a metric, if the report says that it is a percentage."""
    semantics = mapping(metric.get("semantics"))
    limits = mapping(semantics.get("value_range"))
    low, high = limits.get("min"), limits.get("max")
    if semantics.get("display_kind") == "percent" and low == 0 and high in (1, 100):
        return {"unit": "share" if high == 1 else "points", "range": [low, high]}
    return {"unit": "share"} if not semantics and name in _SHARES else {}


def _primary(payload: Mapping[str, Any], metrics: Mapping[str, MetricValue]) -> dict[str, str]:
    identity = payload.get("primary_metric_identity")
    primary = _name({"identity": identity}) if identity else None
    return next(({"primary_metric": name} for name in metrics if primary in (name, _canonical(name))), {})


def _count(value: Any) -> int:
    """A number of documents or examples; 0 if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


# -- the task's configuration --------------------------------------------------------------------------------------


def _config(report: Path) -> Mapping[str, Any]:
    """The newest configuration of the evaluation; empty if there is none that can be read."""
    files = sorted((root_of(report) / "configs").glob("task_config*.yaml"), key=lambda file: file.lstat().st_mtime)
    try:
        return mapping(read_yaml(files[-1])) if files else {}
    except InputError as error:
        logger.warning("%s, so the protocol is not checked", error)
        return {}


def _resolved(config: Mapping[str, Any], dataset: str) -> Mapping[str, Any]:
    return mapping(mapping(config.get("resolved_benchmarks")).get(dataset))


def _protocol(config: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """What a score depends on besides the model; empty if not logged, as in EvalScope up to 1.10."""
    resolved = _resolved(config, dataset)
    if not resolved:
        return {}
    fields = {name: resolved.get(name) for name in _PROTOCOL}
    return fields | {
        "generation_kwargs": sampling(config.get("generation_config")),
        "judge": config.get("judge"),
        "repeats": config.get("repeats") or 1,
    }


def _version(config: Mapping[str, Any], dataset: str) -> str | None:
    identity = mapping(mapping(mapping(config.get("evaluation_identity")).get("benchmarks")).get(dataset))
    version = identity.get("evaluation_version")
    return None if version is None else str(version)
