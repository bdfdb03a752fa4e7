"""One report of EvalScope 1.x, `reports/MODEL/DATASET.json`, with the reviews of its samples beside it.

```
RUN/reports/MODEL/DATASET.json              scores by metric, category and subset
RUN/reviews/MODEL/DATASET_SUBSET.jsonl      one line for each sample: its messages and its `sample_score`
RUN/configs/task_config*.yaml               what was asked, and how
```

A metric has the name that the reviews have for it. Repeated generations of one sample count as their mean.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from harness_ext.errors import ResultsError
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
_ROUNDING = 2e-4  # of a report's score: to four digits by subset, by category and by metric
_ALIASES = {"acc": "accuracy", "bertscore": "bert_score", "f1_score": "f1", "em": "exact_match"}
_SHARES = ("bleu",)  # on 0–1 in EvalScope, on 0–100 in lm-eval, and without a unit in reports before version 2
_PROTOCOL = (  # of a benchmark as EvalScope resolved it
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
    """The run in a report: one model on one dataset. Samples without a usable score are left out, counted and logged.

    Raises:
        ResultsError: nothing was scored, or reviews that are cut short or of another form.
    """
    dataset = str(payload["dataset_name"])
    reviews = _review_files(report, dataset, payload)
    documents = list(_documents(reviews)) if reviews else []
    config = _config(report)
    fields = _protocol(config, dataset)
    metrics, declared = _metrics(payload, documents)
    if not metrics:
        raise ResultsError(f"{report}: no metric in it; evaluate {dataset} again")
    if unscored := sum(each.unscored for each in documents):
        logger.warning("%s: %d samples without a usable score are left out", report, unscored)
    result = TaskResult(
        task=dataset,
        version=_version(config, dataset),
        n_shot=_resolved(config, dataset).get("few_shot_num") or 0,
        metrics=metrics,
        fingerprint=fingerprint(fields) if fields else None,
        n=sum(bool(each.scores) for each in documents) or int(payload.get("num") or 0),
        samples_path=reviews[0] if reviews else None,
        config={"metadata": {"metrics": declared} | _primary(payload, metrics)},
        fingerprint_fields=fields,
        sample_data=False,
        read_samples=partial(_samples, reviews),
    )
    return Run(str(payload["model_name"]), report, mapping(config.get("model_args")), {dataset: result}, base=None,
               adapter=None, config={}, tool=EVALSCOPE)  # fmt: skip


# -- reviews -------------------------------------------------------------------------------------------------------


@dataclass
class _Document:
    """One sample over its repeated generations."""

    doc: Mapping[str, Any]
    document: str
    prompt: str
    target: Any
    scores: dict[str, list[float]] = field(default_factory=dict)
    unscored: int = 0


def _review_files(report: Path, dataset: str, payload: Mapping[str, Any]) -> list[Path]:
    """The reviews of a report's subsets; a dataset's name may begin another's, so they are not searched."""
    names = dict.fromkeys(
        str(subset.get("name"))
        for metric in entries(payload.get("metrics"))
        for category in entries(metric.get("categories"))
        for subset in entries(category.get("subsets"))
    )
    folder = root_of(report) / "reviews" / report.parent.name
    files = [folder / f"{dataset}_{name}.jsonl" for name in names]
    return [file for file in files if file.is_file()]


def _documents(reviews: Sequence[Path]) -> Iterator[_Document]:
    for file in reviews:
        documents: dict[str, _Document] = {}
        for line, review in enumerate(lm_eval.iter_samples(file), start=1):
            score = review.get("sample_score")
            if not isinstance(score, Mapping):
                raise ResultsError(
                    f"{file}:{line}: no sample_score, as EvalScope writes it from 1.0 on; evaluate again"
                )
            group = score.get("group_id")
            key = str(review.get("index") if group is None else group)
            document = documents.setdefault(key, _document(file, key, review, mapping(score.get("sample_metadata"))))
            values = mapping(mapping(score.get("score")).get("value"))
            numbers = {metric: float(value) for metric, value in values.items() if _counts(value)}
            for metric, value in numbers.items():
                document.scores.setdefault(metric, []).append(value)
            document.unscored += not numbers
        yield from sorted(documents.values(), key=lambda each: each.document)  # they were logged as they were answered


def _counts(value: Any) -> bool:
    return isinstance(value, bool) or is_number(value)


def _document(file: Path, key: str, review: Mapping[str, Any], metadata: Mapping[str, Any]) -> _Document:
    target, messages = review.get("target"), review.get("messages")
    return _Document(
        doc=metadata,
        document=hash_of(file.stem, key, target),
        prompt=hash_of(prompt_of(messages) if messages else review.get("input")),
        target=target,
    )


def _samples(reviews: Sequence[Path], _file: Path) -> Iterator[dict[str, Any]]:
    """The documents of all subsets as lm-eval logs samples; metadata of a sample is its columns."""
    for number, each in enumerate(_documents(reviews)):
        values = {metric: mean(scores) for metric, scores in each.scores.items()}
        yield sample(number, each.doc, each.document, each.prompt, each.target, values)


# -- reports -------------------------------------------------------------------------------------------------------


def _metrics(
    payload: Mapping[str, Any], documents: Sequence[_Document]
) -> tuple[dict[str, MetricValue], dict[str, dict[str, Any]]]:
    """Metrics by name, and what the report declares of them.

    A report rounds; where its score is the mean of the documents but for that, the mean counts.
    """
    found: dict[str, MetricValue] = {}
    declared: dict[str, dict[str, Any]] = {}
    reported = {_name(metric): metric for metric in entries(payload.get("metrics")) if is_number(metric.get("score"))}
    for name in dict.fromkeys(name for each in documents for name in each.scores):
        value = mean(mean(each.scores[name]) for each in documents if name in each.scores)
        metric = reported.pop(_canonical(name), {})
        score = metric.get("score", value)
        is_mean = abs(score - value) <= _ROUNDING * max(1.0, abs(score))
        found[name] = _value(name, value if is_mean else float(score), metric)
        declared[name] = _declared(name, metric)
    for name, metric in reported.items():
        found[name] = _value(name, float(metric["score"]), metric)
        declared[name] = _declared(name, metric)
    return found, {name: fields for name, fields in declared.items() if fields}


def _name(metric: Mapping[str, Any]) -> str:
    """A reported metric: `accuracy` of a mean, else with its aggregation, `accuracy:pass_at_k[k=2]`."""
    identity = mapping(metric.get("identity"))
    if not identity:  # a report before version 2
        return _canonical(re.sub(r"^mean_", "", str(metric.get("name"))))
    dimensions = ",".join(f"{name}={value}" for name, value in mapping(identity.get("dimensions")).items())
    aggregation = identity.get("aggregation")
    name = f"{identity.get('name')}" + ("" if aggregation in ("mean", "identity") else f":{aggregation}")
    return f"{name}[{dimensions}]" if dimensions else name


def _canonical(name: str) -> str:
    """How a report calls what reviews call `name`: snake case, without abbreviations."""
    snake = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
    return _ALIASES.get(snake, snake)


def _value(name: str, value: float, metric: Mapping[str, Any]) -> MetricValue:
    direction = mapping(metric.get("semantics")).get("direction")
    higher = {"higher_is_better": True, "lower_is_better": False}.get(str(direction))
    return MetricValue(name, _FILTER, value, higher_is_better=higher)


def _declared(name: str, metric: Mapping[str, Any]) -> dict[str, Any]:
    """The unit of a metric, where its report says that it is a percentage."""
    semantics = mapping(metric.get("semantics"))
    limits = mapping(semantics.get("value_range"))
    low, high = limits.get("min"), limits.get("max")
    if semantics.get("display_kind") == "percent" and low == 0 and high in (1, 100):
        return {"unit": "share" if high == 1 else "points", "range": [low, high]}
    return {"unit": "share"} if not semantics and name in _SHARES else {}


def _primary(payload: Mapping[str, Any], metrics: Mapping[str, MetricValue]) -> dict[str, str]:
    identity = payload.get("primary_metric_identity")
    wanted = _name({"identity": identity}) if identity else None
    return next(({"primary_metric": name} for name in metrics if wanted in (name, _canonical(name))), {})


# -- the task's configuration --------------------------------------------------------------------------------------


def _config(report: Path) -> Mapping[str, Any]:
    """What was asked, from the newest configuration; empty where there is none that can be read."""
    files = sorted((root_of(report) / "configs").glob("task_config*.yaml"), key=lambda file: file.stat().st_mtime)
    try:
        return mapping(yaml.safe_load(files[-1].read_text(encoding="utf-8"))) if files else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("%s: cannot be read, so the protocol is not checked (%s)", files[-1], str(error).split("\n")[0])
        return {}


def _resolved(config: Mapping[str, Any], dataset: str) -> Mapping[str, Any]:
    return mapping(mapping(config.get("resolved_benchmarks")).get(dataset))


def _protocol(config: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """What a score depends on, beside the model; empty where EvalScope did not log it, as in 1.10 and before."""
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
