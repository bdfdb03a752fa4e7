"""One log of Inspect (inspect_ai), an `.eval` file or a JSON log: one task of one model, in log format version 2.

An `.eval` file is a zip with `header.json` and one `samples/ID_epoch_N.json` for each sample and epoch, compressed by
zstandard or deflate. A JSON log is the same in one object, its samples under `samples`.

A scorer is a metric; one that scores a dict is a metric for each key, `scorer/key`. C, I, P and N (correct, incorrect,
partly correct, no answer) count as 1, 0, ½ and 0, and several epochs of a sample as their mean: what Inspect's
`value_to_float` and its default reducer make of them.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness_ext.errors import ResultsError
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
    turns,
)
from harness_ext.results.run import MetricValue, Run, TaskResult

logger = logging.getLogger(__name__)

INSPECT = "Inspect"
SUFFIX = ".eval"
_JSON_LOG = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:')  # pydantic keeps the order of fields
_SAMPLE = re.compile(r"samples/.+_epoch_\d+\.json")
_CHUNKED = re.compile(r"samples/.+_epoch_\d+/sample\.json")
_ZSTANDARD = 93  # method of PKWARE's specification; in `zipfile` from Python 3.14 on
_RETRY = "finish it with `inspect eval-retry"
_FILTER = "none"
_MARKS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_AVERAGES = ("accuracy", "mean")  # Inspect's metrics that are the mean of the samples
_OWN_SHARES = ("f1",)  # of Inspect's own scorers that give numbers, those on 0–1


class UnfinishedLog(ResultsError):
    """A log of an evaluation that did not succeed: it holds only some of the samples."""


# -- files ---------------------------------------------------------------------------------------------------------


def begins_log(file: Path) -> bool:
    """Whether a JSON file begins as a log does; the rest is not read."""
    try:
        with file.open("rb") as start:
            return _JSON_LOG.match(start.read(200)) is not None
    except OSError:
        return False


def is_log(payload: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a log."""
    return "version" in payload and "status" in payload and "task" in mapping(payload.get("eval"))


def read_log(file: Path) -> Mapping[str, Any]:
    """What a log says of the whole evaluation; of a JSON log, its samples, too.

    Raises:
        UnfinishedLog: of an evaluation that failed, was cancelled or still runs.
        ResultsError: no log, or one that is cut short.
    """
    if file.suffix != SUFFIX:
        log = _parsed(file, file.name, file.read_bytes())
    else:
        with _opened(file) as archive:
            if "header.json" not in archive.namelist():
                raise UnfinishedLog(f"{file}: no header.json in it, so the evaluation did not end; {_RETRY} {file}`")
            log = _parsed(file, "header.json", _member(archive, "header.json"))
    if not is_log(log):
        raise ResultsError(f"{file}: not a log of Inspect; name one that `inspect eval` wrote")
    if log["status"] != "success":
        raise UnfinishedLog(f"{file}: the evaluation ended with status {log['status']!r}; {_RETRY} {file}`")
    return log


def _opened(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise ResultsError(
            f"{file}: not a complete zip, as Inspect's logs are ({error}); copy or evaluate it again"
        ) from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file in a zip; `zipfile` before Python 3.14 knows no zstandard, so those are read as stored and unpacked here.

    Raises:
        ResultsError: it is damaged, or compressed in yet another way.
    """
    entry = archive.getinfo(name)
    try:
        if entry.compress_type != _ZSTANDARD:
            return archive.read(entry)
        stored = copy.copy(entry)
        stored.compress_type, stored.file_size = zipfile.ZIP_STORED, entry.compress_size
        del stored.CRC  # of the unpacked content, which is checked below
        content = _unpacked(archive.open(stored).read())
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ResultsError(f"{archive.filename}: {name} is damaged ({error}); copy or evaluate it again") from None
    if zlib.crc32(content) != entry.CRC:
        raise ResultsError(f"{archive.filename}: {name} is damaged (wrong checksum); copy or evaluate it again")
    return content


def _unpacked(content: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
        return bytes(stream.read())


def _parsed(file: Path, name: str, content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ResultsError(f"{file}: {name} cannot be read as JSON ({error}); copy or evaluate it again") from None
    return mapping(found)


def _logged_samples(file: Path) -> Iterator[Mapping[str, Any]]:
    """Every sample and epoch of a log, one at a time where the file allows it."""
    if file.suffix != SUFFIX:
        yield from entries(read_log(file).get("samples"))
        return
    with _opened(file) as archive:
        names = list(dict.fromkeys(archive.namelist()))
        if any(map(_CHUNKED.fullmatch, names)):
            raise ResultsError(f"{file}: its samples are in chunks, which are not read; use the log before conversion")
        for name in filter(_SAMPLE.fullmatch, names):
            yield _parsed(file, name, _member(archive, name))


# -- samples -------------------------------------------------------------------------------------------------------


@dataclass
class _Document:
    """One sample over its epochs."""

    doc: Mapping[str, Any]
    document: str
    prompt: str
    target: Any
    stops: list[Any] = field(default_factory=list)
    scores: dict[str, list[Any]] = field(default_factory=dict)  # metric -> one value for each epoch that scored
    unscored: int = 0  # epochs without any score …
    errors: int = 0  # … and those of them that ended with an error


def iter_samples(file: Path) -> Iterator[dict[str, Any]]:
    """The documents of a log as lm-eval logs samples: hashes, and the mean over epochs under each metric's name.

    Metadata of a sample is its columns, beside `input` and `target`. Documents without a score do not carry the metric.

    Raises:
        ResultsError: a damaged log.
    """
    for number, each in enumerate(_documents(_logged_samples(file))):
        values = {metric: _reduced(scores) for metric, scores in each.scores.items()}
        found = sample(number, each.doc, each.document, each.prompt, each.target, values)
        if len(each.stops) == 1 and each.stops[0]:
            found["finish_reason"] = "length" if each.stops[0] == "max_tokens" else "stop"
        yield found


def _documents(samples: Iterable[Mapping[str, Any]]) -> Iterator[_Document]:
    documents: dict[str, _Document] = {}
    for logged in samples:
        key = str(logged.get("id"))
        if key not in documents:
            documents[key] = _document(logged)
        document = documents[key]
        document.stops.append(_stop_reason(logged))
        scored = {metric: value for metric, value in _values(logged).items() if not _is_unscored(value)}
        for metric, value in scored.items():
            document.scores.setdefault(metric, []).append(value)
        document.unscored += not scored
        document.errors += not scored and bool(logged.get("error"))
    yield from documents.values()


def _document(logged: Mapping[str, Any]) -> _Document:
    given, target = logged.get("input"), logged.get("target")
    question = turns(given) if isinstance(given, list) else given
    return _Document(
        doc={**mapping(logged.get("metadata")), "input": question, "target": target},
        document=hash_of(str(logged.get("id")), question, logged.get("choices"), target),
        prompt=hash_of(prompt_of(logged.get("messages"))),
        target=target,
    )


def _stop_reason(logged: Mapping[str, Any]) -> Any:
    choices = entries(mapping(logged.get("output")).get("choices"))
    return choices[0].get("stop_reason") if choices else None


def _values(logged: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample scored, by metric."""
    found: dict[str, Any] = {}
    for scorer, score in mapping(logged.get("scores")).items():
        value = mapping(score).get("value")
        if isinstance(value, Mapping):
            found |= {f"{scorer}/{key}": each for key, each in value.items()}
        else:
            found[scorer] = value
    return found


def _is_unscored(value: Any) -> bool:
    """NaN is how Inspect marks a sample that a scorer could not score."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | None:
    """A value as `value_to_float` reads it; None for text that stands for no number."""
    if isinstance(value, str):
        if value in _MARKS:
            return _MARKS[value]
        if value.lower() in _WORDS:
            return _WORDS[value.lower()]
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, (bool, int, float)) else None


def _reduced(scores: list[Any]) -> Any:
    """The mean over epochs; what is no number stays as it is, for the reader to name it."""
    numbers = [_number(score) for score in scores]
    known = [number for number in numbers if number is not None]
    return mean(known) if len(known) == len(scores) else scores[numbers.index(None)]


def _is_mark(value: Any) -> bool:
    """Whether a value says right or wrong, so that its mean is a share."""
    return isinstance(value, bool) or (isinstance(value, str) and (value in _MARKS or value.lower() in _WORDS))


# -- the run -------------------------------------------------------------------------------------------------------


def parse_run(file: Path, log: Mapping[str, Any]) -> Run:
    """The run in a log: one model on one task. What has no score is left out, counted and logged.

    Args:
        file: the log.
        log: as `read_log` returns it.

    Raises:
        ResultsError: a damaged sample, or nothing was scored.
    """
    spec = mapping(log["eval"])
    documents = list(_documents(_logged_samples(file) if file.suffix == SUFFIX else entries(log.get("samples"))))
    result = _task_result(file, log, documents)
    if not result.metrics:
        raise ResultsError(f"{file}: nothing was scored; score it with `inspect score {file}`")
    _warn_of_unscored(file, documents)
    arguments = mapping(spec.get("model_args"))
    return Run(str(spec["model"]), file, arguments, {result.task: result}, base=None, adapter=None, config={},
               tool=INSPECT)  # fmt: skip


def _task_result(file: Path, log: Mapping[str, Any], documents: list[_Document]) -> TaskResult:
    spec = mapping(log["eval"])
    fields = _protocol(log)
    scored = [document for document in documents if document.scores]
    metrics = _metrics(log, scored)
    return TaskResult(
        task=str(spec["task"]),
        version=str(spec.get("task_version", 0)),
        n_shot=0,
        metrics=metrics,
        fingerprint=fingerprint(fields),
        n=len(scored),
        samples_path=file if documents else None,
        config={"metadata": _metadata(log, metrics, scored)},
        fingerprint_fields=fields,
        sample_data=False,
        read_samples=iter_samples,
    )


def _protocol(log: Mapping[str, Any]) -> dict[str, Any]:
    """What a score depends on, beside the model."""
    spec, plan = mapping(log["eval"]), mapping(log.get("plan"))
    return {
        "dataset": mapping(spec.get("dataset")).get("name"),
        "epochs": mapping(spec.get("config")).get("epochs") or 1,
        "generation_kwargs": sampling(spec.get("model_generate_config"), plan.get("config")),
        "scorers": [[each.get("name"), each.get("options")] for each in entries(spec.get("scorers"))],
        "solver": [[step.get("solver"), step.get("params")] for step in entries(plan.get("steps"))],
        "task_args": mapping(spec.get("task_args")),
    }


def _metrics(log: Mapping[str, Any], documents: list[_Document]) -> dict[str, MetricValue]:
    """The scorers' means, as logged; of the documents where Inspect logged another statistic."""
    logged = _logged_means(log)
    names = dict.fromkeys(metric for document in documents for metric in document.scores)
    found: dict[str, MetricValue] = {}
    for metric in names or logged:
        value, stderr = logged.get(metric, (None, None))
        if value is None:
            reduced = [_reduced(document.scores[metric]) for document in documents if metric in document.scores]
            if not all(map(is_number, reduced)):
                continue
            value = mean(reduced)
        found[metric] = MetricValue(metric, _FILTER, value, stderr)
    return found


def _logged_means(log: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """(mean, its standard error) by metric, of scores whose epochs were averaged."""
    found: dict[str, tuple[float, float | None]] = {}
    for score in entries(mapping(log.get("results")).get("scores")):
        scorer, name = str(score.get("scorer")), str(score.get("name"))
        values = {metric: mapping(each).get("value") for metric, each in mapping(score.get("metrics")).items()}
        numbers = {metric: value for metric, value in values.items() if is_number(value)}
        means = [numbers[metric] for metric in _AVERAGES if metric in numbers]
        if score.get("reducer") in (None, "mean") and means:
            found.setdefault(_metric(scorer, name), (means[0], numbers.get("stderr")))
    return found


def _metric(scorer: str, name: str) -> str:
    return scorer if name == scorer else f"{scorer}/{name}"


def _metadata(log: Mapping[str, Any], metrics: Mapping[str, Any], documents: list[_Document]) -> dict[str, Any]:
    """The units that Inspect's own values have, and the headline."""
    declared: dict[str, Any] = {}
    for metric in metrics:
        values = [value for document in documents for value in document.scores.get(metric, ())]
        if metric in _OWN_SHARES or (values and all(map(_is_mark, values))):
            declared[metric] = {"unit": "share", "range": [0, 1], "higher_is_better": True}
    headline = mapping(mapping(log.get("results")).get("headline"))
    primary = _metric(str(headline.get("scorer")), str(headline.get("score")))
    return {"metrics": declared} | ({"primary_metric": primary} if primary in metrics else {})


def _warn_of_unscored(file: Path, documents: list[_Document]) -> None:
    """Say how many samples carry no score; Inspect leaves them out of its metrics, too."""
    unscored, errors = (sum(getattr(each, name) for each in documents) for name in ("unscored", "errors"))
    if unscored:
        logger.warning(
            "%s: %d samples without a score are left out, %d of them ended with an error", file, unscored, errors
        )
