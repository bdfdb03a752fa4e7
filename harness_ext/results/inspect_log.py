"""Read a log of Inspect (inspect_ai) in log format version 2: one task of one model, as `.eval` file or as JSON.

An `.eval` file is a zip with `header.json` and one `samples/ID_epoch_N.json` per sample and epoch, compressed with
zstandard or deflate. A JSON log holds the same in one object, with the samples under `samples`.

Each scorer is a metric; a scorer that returns a dict gives one metric per key, named `scorer/key`. C, I, P and N
(correct, incorrect, partly correct, no answer) count as 1, 0, ½ and 0, and the epochs of a sample are averaged, as by
Inspect's `value_to_float` and its default reducer.
"""

from __future__ import annotations

import copy
import logging
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness_ext.errors import InputError, ResultsError
from harness_ext.names import clean_name, visible
from harness_ext.reading.files import LINE_SIZE, RESULTS_SIZE, is_regular, open_regular
from harness_ext.reading.json_input import parse_json, read_json
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
_JSON_LOG = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:')  # pydantic writes fields in this order
_SAMPLE = re.compile(r"samples/.+_epoch_\d+\.json")
_CHUNKED = re.compile(r"samples/.+_epoch_\d+/sample\.json")
_ZSTANDARD = 93  # compression method in PKWARE's specification; `zipfile` supports it from Python 3.14 on
_RETRY = "complete it with `inspect eval-retry"
_FILTER = "none"
_MARKS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_AVERAGES = ("accuracy", "mean")  # Inspect's metrics that are the mean of the samples
_OWN_SHARES = ("f1",)  # Inspect's own scorers whose numbers are on 0–1


class UnfinishedLog(ResultsError):
    """The log of an evaluation that did not finish and so lacks samples."""


# -- files ---------------------------------------------------------------------------------------------------------


def begins_log(file: Path) -> bool:
    """Whether a JSON file begins like a log; only the beginning is read."""
    try:
        with open_regular(file) as start:
            return _JSON_LOG.match(start.read(200)) is not None
    except InputError:
        return False


def is_log(payload: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a log."""
    return "version" in payload and "status" in payload and "task" in mapping(payload.get("eval"))


def read_log(file: Path) -> Mapping[str, Any]:
    """The header of a log; for a JSON log, the whole log.

    Raises:
        UnfinishedLog: the evaluation failed, was cancelled or is still running.
        ResultsError: the file is not a log, or is cut short.
    """
    if file.suffix != SUFFIX:
        try:
            log = mapping(read_json(file, limit=RESULTS_SIZE))
        except InputError as error:
            raise ResultsError(f"{error}; copy the file or evaluate again") from None
    else:
        with _opened(file) as archive:
            if "header.json" not in archive.namelist():
                raise UnfinishedLog(f"{file}: no header.json, so the evaluation did not finish; {_RETRY} {file}`")
            log = _parsed(file, "header.json", _member(archive, "header.json"))
    if not is_log(log):
        raise ResultsError(f"{file}: not a log of Inspect; pass one that `inspect eval` wrote")
    if log["status"] != "success":
        raise UnfinishedLog(f"{file}: the evaluation ended with status {log['status']!r}; {_RETRY} {file}`")
    return log


def _opened(file: Path) -> zipfile.ZipFile:
    if not is_regular(file):
        raise ResultsError(f"{file}: is no regular file; name a log that `inspect eval` wrote")
    try:
        return zipfile.ZipFile(file)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:
        raise ResultsError(
            f"{file}: not a complete zip file ({error}), as a log of Inspect is; copy the file or evaluate again"
        ) from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file in a zip.

    `zipfile` before Python 3.14 cannot read zstandard, so such files are read as stored and decompressed here.

    Raises:
        ResultsError: the file is damaged, or compressed by an unknown method.
    """
    entry = archive.getinfo(name)
    try:
        if entry.compress_type != _ZSTANDARD:
            with archive.open(entry) as member:
                return _limited(archive, name, member)
        stored = copy.copy(entry)
        stored.compress_type, stored.file_size = zipfile.ZIP_STORED, entry.compress_size
        del stored.CRC  # it belongs to the decompressed content, and is checked below
        with archive.open(stored) as member:
            content = _decompressed(archive, name, member)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise ResultsError(
            f"{archive.filename}: {name} is damaged ({error}); copy the file or evaluate again"
        ) from None
    if zlib.crc32(content) != entry.CRC:
        raise ResultsError(f"{archive.filename}: {name} is damaged (wrong checksum); copy the file or evaluate again")
    return content


def _decompressed(archive: zipfile.ZipFile, name: str, member: IO[bytes]) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(_limited(archive, name, member)), "zstd") as stream:
        return _limited(archive, name, stream)


def _limited(archive: zipfile.ZipFile, name: str, stream: IO[bytes]) -> bytes:
    """All of a stream, which a few bytes in the zip may decompress to without end."""
    content = bytes(stream.read(LINE_SIZE + 1))
    if len(content) > LINE_SIZE:
        raise ResultsError(f"{archive.filename}: {name} is larger than {LINE_SIZE:,} bytes; evaluate fewer samples")
    return content


def _parsed(file: Path, name: str, content: bytes) -> Mapping[str, Any]:
    try:
        return mapping(parse_json(content, place=f"{file}: {visible(name)}"))
    except InputError as error:
        raise ResultsError(f"{error}; copy the file or evaluate again") from None


def _logged_samples(file: Path) -> Iterator[Mapping[str, Any]]:
    """Every sample and epoch of a log; from an `.eval` file, one at a time."""
    if file.suffix != SUFFIX:
        yield from entries(read_log(file).get("samples"))
        return
    with _opened(file) as archive:
        names = list(dict.fromkeys(archive.namelist()))
        if any(map(_CHUNKED.fullmatch, names)):
            raise ResultsError(
                f"{file}: stores its samples in chunks, which cannot be read; use the log before conversion"
            )
        for name in filter(_SAMPLE.fullmatch, names):
            yield _parsed(file, name, _member(archive, name))


# -- samples -------------------------------------------------------------------------------------------------------


@dataclass
class _Document:
    """One sample, with its scores over all epochs."""

    doc: Mapping[str, Any]
    doc_hash: str
    prompt_hash: str
    target: Any
    completion: str  # what the model wrote in the first epoch
    stops: list[Any] = field(default_factory=list)
    scores: dict[str, list[Any]] = field(default_factory=dict)  # metric -> one value per scored epoch
    unscored: int = 0  # number of epochs without any score
    errors: int = 0  # number of those that ended with an error


def iter_samples(file: Path) -> Iterator[dict[str, Any]]:
    """The documents of a log in lm-eval's format of samples: hashes, each metric's mean over epochs, and `completion`.

    The columns of a document are the sample's metadata, `input` and `target`. A document without a score lacks the
    metric.

    Raises:
        ResultsError: the log is damaged.
    """
    for number, document in enumerate(_documents(_logged_samples(file))):
        values = {metric: _reduced(scores) for metric, scores in document.scores.items()}
        logged = sample(number, document.doc, document.doc_hash, document.prompt_hash, document.target, values)
        if len(document.stops) == 1 and document.stops[0]:
            logged["finish_reason"] = "length" if document.stops[0] == "max_tokens" else "stop"
        logged["completion"] = document.completion
        yield logged


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
    question, target = logged.get("input"), logged.get("target")
    if isinstance(question, list):
        question = turns(question)
    return _Document(
        doc={**mapping(logged.get("metadata")), "input": question, "target": target},
        doc_hash=hash_of(str(logged.get("id")), question, logged.get("choices"), target),
        prompt_hash=hash_of(prompt_of(logged.get("messages"))),
        target=target,
        completion=str(mapping(logged.get("output")).get("completion") or ""),
    )


def _stop_reason(logged: Mapping[str, Any]) -> Any:
    choices = entries(mapping(logged.get("output")).get("choices"))
    return choices[0].get("stop_reason") if choices else None


def _values(logged: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a sample, by metric."""
    values: dict[str, Any] = {}
    for scorer, score in mapping(logged.get("scores")).items():
        value = mapping(score).get("value")
        if isinstance(value, Mapping):
            values |= {f"{scorer}/{key}": inner for key, inner in value.items()}
        else:
            values[scorer] = value
    return values


def _is_unscored(value: Any) -> bool:
    """Whether there is no score; Inspect logs NaN for a sample that a scorer could not score."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | None:
    """A value as `value_to_float` reads it; None for text that is not a number."""
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
    """The mean over epochs; a value that is not a number is returned unchanged, to be reported by the reader."""
    numbers = [_number(score) for score in scores]
    known = [number for number in numbers if number is not None]
    return mean(known) if len(known) == len(scores) else scores[numbers.index(None)]


def _is_mark(value: Any) -> bool:
    """Whether a value means right or wrong, so that its mean is a share."""
    return isinstance(value, bool) or (isinstance(value, str) and (value in _MARKS or value.lower() in _WORDS))


# -- the run -------------------------------------------------------------------------------------------------------


def parse_run(file: Path, log: Mapping[str, Any]) -> Run:
    """The run in a log: one model on one task. A warning says how many samples have no score.

    Args:
        file: path of the log.
        log: the log, as returned by `read_log`.

    Raises:
        ResultsError: a sample is damaged, or nothing was scored.
    """
    spec = mapping(log["eval"])
    documents = list(_documents(_logged_samples(file) if file.suffix == SUFFIX else entries(log.get("samples"))))
    result = _task_result(file, log, documents)
    if not result.metrics:
        raise ResultsError(f"{file}: nothing was scored; score it with `inspect score {file}`")
    _warn_of_unscored(file, documents)
    arguments = mapping(spec.get("model_args"))
    name = clean_name(spec.get("model"))
    return Run(name, file, arguments, {result.task: result}, base=None, adapter=None, config={}, tool=INSPECT)


def _task_result(file: Path, log: Mapping[str, Any], documents: list[_Document]) -> TaskResult:
    spec = mapping(log["eval"])
    fields = _protocol(log)
    scored = [document for document in documents if document.scores]
    metrics = _metrics(log, scored)
    return TaskResult(
        task=clean_name(spec["task"]),
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
    """What a score depends on besides the model."""
    spec, plan = mapping(log["eval"]), mapping(log.get("plan"))
    return {
        "dataset": mapping(spec.get("dataset")).get("name"),
        "epochs": mapping(spec.get("config")).get("epochs") or 1,
        "generation_kwargs": sampling(spec.get("model_generate_config"), plan.get("config")),
        "scorers": [[scorer.get("name"), scorer.get("options")] for scorer in entries(spec.get("scorers"))],
        "solver": [[step.get("solver"), step.get("params")] for step in entries(plan.get("steps"))],
        "task_args": mapping(spec.get("task_args")),
    }


def _metrics(log: Mapping[str, Any], documents: list[_Document]) -> dict[str, MetricValue]:
    """The mean of each scorer: as logged, or over the documents if Inspect logged another statistic."""
    logged = _logged_means(log)
    names = dict.fromkeys(metric for document in documents for metric in document.scores)
    metrics: dict[str, MetricValue] = {}
    for metric in names or logged:
        value, stderr = logged.get(metric, (None, None))
        if value is None:
            reduced = [_reduced(document.scores[metric]) for document in documents if metric in document.scores]
            if not all(map(is_number, reduced)):
                continue
            value = mean(reduced)
        metrics[metric] = MetricValue(metric, _FILTER, value, stderr)
    return metrics


def _logged_means(log: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """(mean, standard error) by metric, for scores whose epochs were averaged."""
    logged: dict[str, tuple[float, float | None]] = {}
    for score in entries(mapping(log.get("results")).get("scores")):
        metric = _metric(str(score.get("scorer")), str(score.get("name")))
        values = {name: mapping(statistic).get("value") for name, statistic in mapping(score.get("metrics")).items()}
        numbers = {name: value for name, value in values.items() if is_number(value)}
        means = [numbers[name] for name in _AVERAGES if name in numbers]
        if score.get("reducer") in (None, "mean") and means:
            logged.setdefault(metric, (means[0], numbers.get("stderr")))
    return logged


def _metric(scorer: str, name: str) -> str:
    return scorer if name == scorer else f"{scorer}/{name}"


def _metadata(log: Mapping[str, Any], metrics: Mapping[str, Any], documents: list[_Document]) -> dict[str, Any]:
    """The units of Inspect's own values, and the headline as primary metric."""
    declared: dict[str, Any] = {}
    for metric in metrics:
        values = [value for document in documents for value in document.scores.get(metric, ())]
        if metric in _OWN_SHARES or (values and all(map(_is_mark, values))):
            declared[metric] = {"unit": "share", "range": [0, 1], "higher_is_better": True}
    headline = mapping(mapping(log.get("results")).get("headline"))
    primary = _metric(str(headline.get("scorer")), str(headline.get("score")))
    return {"metrics": declared} | ({"primary_metric": primary} if primary in metrics else {})


def _warn_of_unscored(file: Path, documents: list[_Document]) -> None:
    """Warn about samples without a score; Inspect leaves them out of its metrics, too."""
    unscored = sum(document.unscored for document in documents)
    errors = sum(document.errors for document in documents)
    if unscored:
        logger.warning(
            "%s: left out %d samples without a score; %d of them ended with an error", file, unscored, errors
        )
