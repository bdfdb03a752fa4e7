"""Results in the format of Every Eval Ever, with samples: https://github.com/evaleval/every_eval_ever.

```
DIR/data/COLLECTION/DEVELOPER/MODEL/UUID.json             one task of one run, all its metrics
DIR/data/COLLECTION/DEVELOPER/MODEL/UUID_samples.jsonl    one line for each document and metric
```
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from harness_ext.atomic import creating_folder, write_chunks, write_text
from harness_ext.errors import CutShortError, ResultsError
from harness_ext.metrics.declarations import declared
from harness_ext.metrics.statistic import POINTS, SHARE
from harness_ext.publish.places import without_places
from harness_ext.reporting.datasets import dataset_of
from harness_ext.results.file import DATE, read_payload
from harness_ext.results.run import LM_EVAL, MetricValue, Run, TaskResult

SCHEMA_VERSION = "0.3.0"
Relationship = Literal["first_party", "third_party", "collaborative", "other"]
RELATIONSHIPS: tuple[Relationship, ...] = ("first_party", "third_party", "collaborative", "other")
_NOT_IN_A_NAME = re.compile(r"[^\w.-]+")
_NAMESPACE = uuid.UUID("6f1c2d1e-6f0e-4c39-9c1b-0f3f0d8f9d10")
_UNITS = {SHARE: "proportion", POINTS: "percent"}


@dataclass(frozen=True)
class Source:
    """Who evaluated."""

    organization: str
    relationship: Relationship = "other"  # to the model's developer


@dataclass(frozen=True)
class Exported:
    """The files of one task of one run."""

    run: str
    task: str
    file: Path
    samples: Path | None  # None if no samples were logged
    rows: int  # lines in `samples`


def export(
    runs: Sequence[Run], output: str | Path, source: Source, *, collection: str = "harness-ext"
) -> list[Exported]:
    """Write the results of runs in the format of Every Eval Ever, version 0.3.0.

    The same results always get the same names. Metrics that documents do not have as a number, such as the pairs of
    labels of macro F1, are in the aggregate only.

    Args:
        runs: as `load_runs` returns them.
        output: folder; `data/` is made in it.
        source: who evaluated.
        collection: first folder below `data/`.

    Raises:
        ResultsError: a run is of a tool that is not lm-eval, or has no task with a finite metric.
        CutShortError: samples are not whole; nothing of their task is written.
        WriteError: a file cannot be written.
    """
    done = []
    for run in runs:
        if run.tool != LM_EVAL:
            raise ResultsError(f"{run.name} is of {run.tool}; Every Eval Ever has a converter of its own for it: "
                               "`every_eval_ever convert`")  # fmt: skip
        done += [_export_task(run, result, Path(output), source, collection) for result in run.tasks.values()
                 if not result.is_group and _numbers_of(result)]  # fmt: skip
    if not done:
        raise ResultsError("the results hold no task with a metric; evaluate without --predict_only")
    return done


def _export_task(run: Run, result: TaskResult, output: Path, source: Source, collection: str) -> Exported:
    model = model_id(run)
    developer, _, name = model.partition("/")
    folder = "/".join(["data", *map(_as_name, (collection, developer, name))])
    payload = read_payload(run.path)
    identity = f"{run.path.name}:{run.name}:{result.task}:{result.digest or ''}"
    number = _uuid4(identity)
    evaluation_id = f"{collection}/{model}/{result.task}/{number}"
    aggregate = aggregate_of(run, result, payload, source, model=model, evaluation_id=evaluation_id)
    file, samples = output / folder / f"{number}.json", output / folder / f"{number}_samples.jsonl"
    with creating_folder(file.parent):
        rows = 0
        if result.samples_path is not None or result.digest is not None:
            counted = _Counted(instances_of(result, model=model, evaluation_id=evaluation_id))
            write_chunks(samples, counted)
            rows = counted.lines
        if not rows:
            samples.unlink(missing_ok=True)
        else:
            aggregate["detailed_evaluation_results"] = {
                "format": "jsonl",
                "file_path": f"{folder}/{samples.name}",
                "hash_algorithm": "sha256",
                "checksum": counted.digest.hexdigest(),
                "total_rows": rows,
            }
        write_text(file, json.dumps(aggregate, indent=2, ensure_ascii=False) + "\n")
    return Exported(run.name, result.task, file, samples if rows else None, rows)


class _Counted:
    """Lines of bytes, counted and hashed as they pass."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._records = records
        self.lines = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for record in self._records:
            line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace")
            self.lines += 1
            self.digest.update(line)
            yield line


def model_id(run: Run) -> str:
    """Developer and name of a run's model: those of a Hub id, else `local/NAME`."""
    name = run.adapter or run.base or run.name
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) and not Path(name).exists() and run.adapter is None:
        return name
    return f"local/{_as_name(Path(name).name if run.adapter is None else run.name)}"


def _as_name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("_", text).strip("._") or "unnamed"


def _uuid4(identity: str) -> str:
    """A number in the form of a UUID 4, the same for the same identity."""
    return str(uuid.UUID(bytes=uuid.uuid5(_NAMESPACE, identity).bytes, version=4))


# -- the aggregate ---------------------------------------------------------------------------------------------------


def aggregate_of(
    run: Run, result: TaskResult, payload: Mapping[str, Any], source: Source, *, model: str, evaluation_id: str
) -> dict[str, Any]:
    """One task of one run as the schema `eval.schema.json` has it."""
    when = _timestamp(run, payload)
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": evaluation_id,
        **({"evaluation_timestamp": when} if when else {}),
        "retrieved_timestamp": str(int(datetime.now(timezone.utc).timestamp())),
        "source_metadata": {
            "source_name": "harness-ext",
            "source_type": "evaluation_run",
            "source_organization_name": source.organization,
            "evaluator_relationship": source.relationship,
        },
        "eval_library": {
            "name": "lm_eval",
            "version": str(payload.get("lm_eval_version") or "unknown"),
            "additional_details": _texts({"fork": "harness-ext" if payload.get("harness_ext") else None,
                                          "transformers": payload.get("transformers_version")}),
        },
        "model_info": _model_info(run, model),
        "evaluation_results": [
            _metric(result, metric, evaluation_id, when) for metric in _numbers_of(result)
        ],
    }  # fmt: skip


def _timestamp(run: Run, payload: Mapping[str, Any]) -> str | None:
    date = payload.get("date")
    if isinstance(date, (int, float)) and not isinstance(date, bool) and abs(date) < 1e11:
        return str(int(date))
    match = DATE.search(run.path.stem)
    return match.group(1) if match else None


def _model_info(run: Run, model: str) -> dict[str, Any]:
    is_local = model.startswith("local/")
    details = {
        "deployment_type": "self_deployed",
        "model_availability": "unknown" if is_local else "open_weights",
        "base_model": run.base,
        "adapter": run.adapter,
        "dtype": run.model_args.get("dtype"),
        "revision": run.model_args.get("revision"),
    }
    return {
        "name": run.name,
        "id": model,
        **({} if is_local else {"developer": model.partition("/")[0]}),
        "inference_engine": {"name": str(run.config.get("model") or "unknown")},
        "additional_details": _texts(details),
    }


def _numbers_of(result: TaskResult) -> list[MetricValue]:
    return [metric for metric in result.metrics.values() if abs(metric.value) < float("inf")]


def _metric(result: TaskResult, metric: MetricValue, evaluation_id: str, when: str | None) -> dict[str, Any]:
    statistic = declared(metric.metric, result.metadata, list(result.metrics))[0]
    higher = metric.higher_is_better if metric.higher_is_better is not None else statistic.higher_is_better
    config: dict[str, Any] = {
        "evaluation_description": _description(result, metric),
        "metric_id": metric.metric,
        "metric_name": metric.metric,
        "lower_is_better": higher is False,
    }
    if statistic.unit:
        config["metric_unit"] = _UNITS.get(statistic.unit, statistic.unit)
    if statistic.low is not None and statistic.high is not None:
        config |= {"score_type": "continuous", "min_score": statistic.low, "max_score": statistic.high}
    uncertainty: dict[str, Any] = {"num_samples": result.n} if result.n > 0 else {}
    if metric.stderr is not None and metric.stderr < float("inf"):
        uncertainty["standard_error"] = {"value": metric.stderr}
    details = {"fingerprint": result.fingerprint, "task_version": result.version, "num_fewshot": result.n_shot}
    return {
        "evaluation_result_id": _result_id(evaluation_id, metric),
        "evaluation_name": result.task,
        "source_data": _source_data(result),
        **({"evaluation_timestamp": when} if when else {}),
        "metric_config": config,
        "score_details": {"score": metric.value, "details": _texts(details), "uncertainty": uncertainty},
    }


def _description(result: TaskResult, metric: MetricValue) -> str:
    return f"{metric.metric} of the lm-eval task {result.task}, filter {metric.filter}"


def _result_id(evaluation_id: str, metric: MetricValue) -> str:
    return f"{evaluation_id}#{metric.metric},{metric.filter}"


def _source_data(result: TaskResult) -> dict[str, Any]:
    dataset = dataset_of(result)
    if not dataset.is_on_hub:
        return {"dataset_name": dataset.name, "source_type": "other"}
    details = _texts({"config": dataset.config, "revision": dataset.revision})
    return {
        "dataset_name": dataset.name,
        "source_type": "hf_dataset",
        "hf_repo": dataset.name,
        **({"hf_split": dataset.split} if dataset.split else {}),
        "samples_number": result.n,
        **({"additional_details": details} if details else {}),
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Details as the schema wants them: texts only, and no paths of this machine."""
    return {name: str(without_places(str(value))) for name, value in values.items() if value is not None}


# -- samples ---------------------------------------------------------------------------------------------------------


def instances_of(result: TaskResult, *, model: str, evaluation_id: str) -> Iterator[dict[str, Any]]:
    """Each document and metric as the schema `instance_level_eval.schema.json` has it.

    Raises:
        CutShortError: the samples are not whole.
    """
    metrics = _numbers_of(result)
    for sample in result.logged_samples():
        if not isinstance(sample.get("arguments"), (Mapping, list)):
            raise CutShortError(f"{result.samples_path}: a sample has no arguments; evaluate again")
        for metric in metrics:
            score = sample.get(metric.metric)
            if sample.get("filter", metric.filter) != metric.filter or isinstance(score, (str, type(None))):
                continue
            if isinstance(score, (bool, int, float)) and abs(score) < float("inf"):
                yield _instance(result, metric, sample, float(score), model, evaluation_id)


def _instance(
    result: TaskResult, metric: MetricValue, sample: Mapping[str, Any], score: float, model: str, evaluation_id: str
) -> dict[str, Any]:
    requests = _requests(sample["arguments"])
    prompt = str(requests[0][0]) if requests and requests[0] else ""
    choices = [str(request[1]) for request in requests if len(request) > 1] if len(requests) > 1 else None
    output, extracted, how = _outputs(sample, choices)
    reference = [_as_text(target) for target in _listed(sample.get("target"))]
    top = {POINTS: 100.0}.get(declared(metric.metric, result.metadata, list(result.metrics))[0].unit, 1.0)
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": evaluation_id,
        "model_id": model,
        "evaluation_name": result.task,
        "evaluation_result_id": _result_id(evaluation_id, metric),
        "sample_id": str(sample.get("doc_id", "")),
        "sample_hash": hashlib.sha256((prompt + "".join(reference)).encode("utf-8", "replace")).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": prompt, "formatted": prompt, "reference": reference, "choices": choices},
        "output": {"raw": output},
        "messages": None,
        "answer_attribution": [{
            "turn_idx": 0, "source": "output.raw", "extracted_value": extracted, "extraction_method": how,
            "is_terminal": True,
        }],
        "evaluation": {"score": score, "is_correct": score >= top},
        "metadata": _hashes(sample),
    }  # fmt: skip


def _hashes(sample: Mapping[str, Any]) -> dict[str, str]:
    names = ("doc_hash", "prompt_hash", "target_hash", "filter", "finish_reason")
    return {name: str(sample[name]) for name in names if sample.get(name) is not None}


def _requests(arguments: Any) -> list[list[Any]]:
    """The arguments of each request, as lm-eval logs them: `gen_args_0: {arg_0: …}`, or lists."""
    entries = arguments.values() if isinstance(arguments, Mapping) else arguments
    return [list(entry.values()) if isinstance(entry, Mapping) else _listed(entry) for entry in entries]


def _outputs(sample: Mapping[str, Any], choices: Sequence[str] | None) -> tuple[list[str], str, str]:
    """The outputs, what was taken from them, and how: the likeliest choice, or the answer behind the filter."""
    answers = _listed(sample.get("filtered_resps"))
    if choices and len(answers) >= len(choices):
        scores = [_logprob(answer) for answer in answers[: len(choices)]]
        best = choices[max(range(len(scores)), key=scores.__getitem__)]
        return [best], best, "likeliest choice"
    raw = [_as_text(answer) for response in _listed(sample.get("resps")) for answer in _listed(response)]
    return raw, _as_text(answers[0]) if answers else "", str(sample.get("filter") or "none")


def _logprob(answer: Any) -> float:
    value = answer[0] if isinstance(answer, list) and answer else answer
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("-inf")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
