"""Read runs from a CSV with scores of any origin: one row per document, run, task and metric.

```
id,run,task,metric,value,cluster
q1,base,trivia,acc,1,passage-1
```

The column `cluster` is optional; it names the unit of evidence.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness_ext.errors import InputError, ResultsError, suggest
from harness_ext.names import clean_name
from harness_ext.reading.files import RESULTS_SIZE, open_regular
from harness_ext.results.other_tools import hash_of, mean, sample
from harness_ext.results.run import MetricValue, Run, TaskResult

CSV = "CSV"
CLUSTER = "cluster"
_COLUMNS = ("id", "run", "task", "metric", "value")
_RESERVED = {"filter", "doc", "doc_id", "doc_hash", "prompt_hash", "target", "target_hash", "arguments", "resps"}
_FILTER = "none"
_MOST_COLUMNS = 50  # more are not listed in a message


@dataclass
class _Documents:
    """Scores of one run on one task, by document."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # id -> metric -> value

    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for values in self.scores.values() for metric in values))

    def values(self, metric: str) -> list[float]:
        return [values[metric] for values in self.scores.values() if metric in values]


class _Table:
    """The rows of a file, each checked when it is added."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs: dict[str, dict[str, _Documents]] = {}  # run -> task -> documents
        self.clusters: dict[str, dict[str, str]] = {}  # task -> id -> unit of evidence, the same for all runs

    def add(self, row: Mapping[str, Any], line: int) -> None:
        if None in row or any(value is None for value in row.values()):
            raise self._error(line, "does not have one value for each column of the header; correct the row")
        for name, text in row.items():
            if not text.strip():
                raise self._error(line, f"{name} is empty; fill it in")
        document = row["id"].strip()
        run, task, metric = (clean_name(row[name].strip()) for name in _COLUMNS[1:4])
        if metric in _RESERVED:
            raise self._error(line, f"a metric cannot be called {metric!r}; choose another name")
        values = self.runs.setdefault(run, {}).setdefault(task, _Documents()).scores.setdefault(document, {})
        if metric in values:
            raise self._error(line, f"second value of {metric} for {run}, {task}, {document!r}; keep one")
        values[metric] = self._number(row["value"].strip(), line)
        if CLUSTER in row:
            cluster = row[CLUSTER].strip()
            earlier = self.clusters.setdefault(task, {}).setdefault(document, cluster)
            if earlier != cluster:
                raise self._error(
                    line,
                    f"{document!r} of {task} is in cluster {cluster!r}, but in {earlier!r} further up; use one of them",
                )

    def _number(self, text: str, line: int) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._error(line, f"value {text[:40]!r} is not a number; correct it or remove the row")
        return number

    def _error(self, line: int, problem: str) -> ResultsError:
        return ResultsError(f"{self.file}:{line}: {problem}")


def read_table(file: Path) -> list[Run]:
    """The runs in a CSV, in the order they first appear.

    Args:
        file: in UTF-8, with a header; columns id, run, task, metric, value and, if documents are not independent,
            cluster.

    Raises:
        ResultsError: the file has a missing or unknown column, no rows, an empty cell, a value that is not a number,
            two values for the same document, run, task and metric, or a document in two clusters.
    """
    table = _Table(file)
    try:
        with open_regular(file, limit=RESULTS_SIZE) as content:
            lines = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
            rows = csv.DictReader(lines, strict=True)
            rows.fieldnames = _checked_header(file, rows.fieldnames)
            for row in rows:
                table.add(row, rows.line_num)
    except (InputError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{file}: cannot be read as CSV in UTF-8 ({error}); save it as such") from None
    if not table.runs:
        raise ResultsError(f"{file}: has no rows; write one per document, run, task and metric")
    return [_run(table, name) for name in table.runs]


def _checked_header(file: Path, header: Any) -> list[str]:
    columns = [clean_name(name.strip()) for name in header or []]
    if len(columns) > _MOST_COLUMNS:
        raise ResultsError(
            f"{file}: has {len(columns):,} columns; the header must name {', '.join(_COLUMNS)} and, if documents are "
            f"not independent, {CLUSTER}"
        )
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise ResultsError(
            f"{file}: no column {', '.join(missing)} (it has {', '.join(columns) or 'none'}); the header must name "
            f"{', '.join(_COLUMNS)} and, if documents are not independent, {CLUSTER}"
        )
    for name in columns:
        if name not in (*_COLUMNS, CLUSTER):
            raise ResultsError(f"{file}: unknown column {name!r}{suggest(name, (*_COLUMNS, CLUSTER))}; remove it")
    if len(set(columns)) < len(columns):
        raise ResultsError(f"{file}: duplicate column in {', '.join(columns)}; keep one")
    return columns


def _run(table: _Table, name: str) -> Run:
    tasks = {task: _task(table, task, documents) for task, documents in table.runs[name].items()}
    return Run(name, table.file, {}, tasks, base=None, adapter=None, config={}, tool=CSV)


def _task(table: _Table, task: str, documents: _Documents) -> TaskResult:
    clusters = table.clusters.get(task, {})
    return TaskResult(
        task=task,
        version=None,
        n_shot=0,
        metrics={
            metric: MetricValue(metric, _FILTER, mean(documents.values(metric))) for metric in documents.metrics()
        },
        fingerprint=None,
        n=len(documents.scores),
        samples_path=table.file,
        config={"metadata": {"cluster": CLUSTER}} if clusters else {},
        sample_data=False,
        read_samples=partial(_samples, documents, clusters),
    )


def _samples(documents: _Documents, clusters: Mapping[str, str], _file: Path) -> Iterator[dict[str, Any]]:
    for number, (document, values) in enumerate(documents.scores.items()):
        doc = {"id": document} | ({CLUSTER: clusters[document]} if document in clusters else {})
        key = hash_of(document)  # prompts are unknown, so those of one document count as equal
        yield sample(number, doc, key, key, None, values)
