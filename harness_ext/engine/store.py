"""The response store: every answer of a model, in one folder, as soon as it is there.

```
key (sha256 of the model's content and the request) ──> the answer, and what is known of it
```

On a local disk answers go into one SQLite file, to which several processes may write at once. On any other file system
each process appends to a log of its own (`answer_logs`), since SQLite's log in shared memory works on one machine only.
Whatever of both is in a folder is read.

Answers are added in transactions, one for each batch. A process that is killed loses the batch it was computing, and
nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

from harness_ext.engine.answer_logs import AnswerLogs
from harness_ext.engine.array_shard import Shard
from harness_ext.engine.file_system import is_local
from harness_ext.errors import StoreError, first_line
from harness_ext.reading.json_input import parse_json

logger = logging.getLogger(__name__)

FILE = "responses.sqlite"
APPLICATION_ID = int.from_bytes(b"hxrs", "big")  # in the header of the file: https://sqlite.org/pragma.html
FORMAT = 1
BUSY_SECONDS = 60.0  # how long to wait for another process that writes
AGAIN_SECONDS = 1.0  # the same, once that was in vain
AT_ONCE = 500  # keys in one query
SCHEMA = """
CREATE TABLE responses (key BLOB PRIMARY KEY, batch INT, response TEXT NOT NULL, crc INT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (digest BLOB PRIMARY KEY, parts TEXT NOT NULL, info TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE designs (digest BLOB PRIMARY KEY, design TEXT NOT NULL) WITHOUT ROWID;
"""
SHARDS = (  # not in stores that an earlier release made
    "CREATE TABLE IF NOT EXISTS shards "
    "(evaluation BLOB, number INT, count INT, PRIMARY KEY (evaluation, number, count)) WITHOUT ROWID"
)
WRITES = {
    "response": "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?)",
    "forget": "DELETE FROM responses WHERE key = ?",
    "model": "INSERT OR REPLACE INTO models VALUES (?, ?, ?)",
    "design": "INSERT OR REPLACE INTO designs VALUES (?, ?)",
    "shard": "INSERT OR IGNORE INTO shards VALUES (?, ?, ?)",
}


class Response(NamedTuple):
    """An answer, and what is known of it."""

    answer: Any  # (log-probability, is greedy), a text, or a log-probability
    record: tuple[str, int, int] | None = None  # of a generation: finish reason, input tokens, output tokens
    batch: int | None = None  # identifies the requests that were laid out together with this one


class StoredModel(NamedTuple):
    """A model that a store has answers of."""

    parts: dict[str, Any]  # what its answers depend on
    info: dict[str, Any]  # what lm-eval says of it in results


class ResponseStore:
    """Answers by key, in a folder or, without one, in memory.

    What cannot be written is kept in memory and said once; the evaluation goes on.

    Args:
        folder: where answers are or will be; None for a store that ends with this object.
        must_exist: do not make a new one.
        others: further folders, whose answers are read.

    Raises:
        StoreError: a file is of another kind, from a newer release, or cannot be made; or there is nothing where
            something must be.
    """

    def __init__(self, folder: Path | None, *, must_exist: bool = False, others: Sequence[Path] = ()) -> None:
        self._waiting: dict[bytes, Response] = {}  # not written yet
        self._problem: str | None = None
        self._is_damaged = False
        folders = [] if folder is None else [folder, *others]
        self._logs = [AnswerLogs(each, schema=f"{SCHEMA}{SHARDS};", writes=WRITES) for each in folders]
        for number, (each, logs) in enumerate(zip(folders, self._logs, strict=True)):
            if (number or must_exist) and not logs and not (each / FILE).exists():
                remedy = "check --store" if number else "evaluate once without --from-store"
                raise StoreError(f"there is no response store {each / FILE}; {remedy}")
        self._is_shared = folder is not None and not is_local(folder)
        self.path = folder if folder is None or self._is_shared else folder / FILE
        self._connection = _connected(folder, self._logs[0]) if folder and self._is_shared else _connect(self.path)
        files = [each / FILE for each in folders[0 if self._is_shared else 1 :]]
        self._others = [_to_read(file) for file in files if file.exists()]  # databases that are only read
        self.is_read_only = _is_read_only(self.path)
        if self.is_read_only:
            self._problem = f"{self.path} can only be read: new answers are not stored"
            logger.warning("%s", self._problem)

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """How many answers are in it."""
        return len({key for source in self._sources() for (key,) in source.execute("SELECT key FROM responses")})

    @property
    def unwritten(self) -> int:
        """How many answers are in memory alone."""
        return len(self._waiting)

    def _sources(self) -> list[sqlite3.Connection]:
        """Where answers are, the place where new ones go first."""
        for logs in self._logs:
            logs.refresh()
        return list(dict.fromkeys([self._connection, *(logs.index for logs in self._logs if logs), *self._others]))

    def close(self) -> None:
        """Write what could not be written before, if that is possible now."""
        if self._waiting:
            self.add({})
        if self._waiting and not self.is_read_only:
            logger.warning("%s: %d answers of this run are not stored", self.path, len(self._waiting))
        open_ones: list[sqlite3.Connection | AnswerLogs] = [self._connection, *self._others, *self._logs]
        for each in open_ones:
            with suppress(sqlite3.Error, OSError):
                each.close()

    # -- answers -------------------------------------------------------------------------------------------------

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Response]:
        """The answers to those of the keys that have one."""
        wanted = list(dict.fromkeys(keys))
        found = {key: self._waiting[key] for key in wanted if key in self._waiting}
        damaged = 0
        for key, batch, text, crc in self._rows([key for key in wanted if key not in found]):
            response = _response(text, batch) if crc == _crc(key, batch, text) else None
            if response is None:
                damaged += 1
            else:
                found[key] = response
        if damaged:
            logger.warning("%s: %d answers are damaged and are not used", self.path, damaged)
        return found

    def _rows(self, keys: Sequence[bytes]) -> list[tuple[bytes, int | None, str, int]]:
        found: dict[bytes, tuple[bytes, int | None, str, int]] = {}
        for source in self._sources():
            if source is self._connection and self._is_damaged:
                continue
            wanted = [key for key in keys if key not in found]
            for start in range(0, len(wanted), AT_ONCE):
                some = wanted[start : start + AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, batch, response, crc FROM responses WHERE key IN ({marks})"
                with self._surviving("cannot be read", source):
                    found |= {row[0]: row for row in source.execute(query, some)}
        return list(found.values())

    def add(self, responses: Mapping[bytes, Response]) -> None:
        """Write answers, in one transaction; what was there under the same keys is replaced."""
        self._waiting |= responses
        if self.is_read_only or self._is_damaged or not self._waiting:
            return
        rows = []
        for key, response in self._waiting.items():
            text = json.dumps([response.answer, response.record])
            rows.append((key, response.batch, text, _crc(key, response.batch, text)))
        with self._surviving("cannot be written to"):
            self._write("response", rows)
            self._waiting.clear()

    def forget(self, keys: Iterable[bytes]) -> None:
        """Remove the answers to these keys."""
        gone = list(keys)
        for key in gone:
            self._waiting.pop(key, None)
        if gone and not self.is_read_only:
            with self._surviving("cannot be written to"):
                self._write("forget", [(key,) for key in gone])

    def _write(self, what: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, all of them or none."""
        if self._is_shared:
            self._logs[0].append([(what, row) for row in rows])
            return
        with self._transaction():
            self._connection.executemany(WRITES[what], rows)

    # -- models --------------------------------------------------------------------------------------------------

    def models(self) -> dict[bytes, StoredModel]:
        """What the models with answers in this store are, by digest."""
        query = "SELECT digest, parts, info FROM models"
        rows = [row for source in reversed(self._sources()) for row in source.execute(query)]
        place = str(self.path)
        return {
            digest: StoredModel(parse_json(parts, place=place), parse_json(info, place=place))
            for digest, parts, info in rows
        }

    def add_model(self, digest: bytes, model: StoredModel) -> None:
        """Note what a model is."""
        if self.is_read_only:
            return
        row = (digest, *(json.dumps(value, sort_keys=True, default=str) for value in model))
        with self._surviving("cannot be written to"):
            if row not in self._connection.execute("SELECT * FROM models WHERE digest = ?", (digest,)).fetchall():
                self._write("model", [row])

    # -- designs and shards ----------------------------------------------------------------------------------------

    def design(self, digest: bytes) -> Any:
        """The design with which an evaluation began, as JSON; None if it begins now.

        Args:
            digest: of what is evaluated.
        """
        for source in self._sources():
            row = source.execute("SELECT design FROM designs WHERE digest = ?", (digest,)).fetchone()
            if row is not None:
                return parse_json(row[0], place=str(self.path))
        return None

    def add_design(self, digest: bytes, design: Mapping[str, Any]) -> None:
        """Note with which design an evaluation begins."""
        if not self.is_read_only:
            with self._surviving("cannot be written to"):
                self._write("design", [(digest, json.dumps(design, sort_keys=True))])

    def shards(self, evaluation: bytes) -> set[Shard]:
        """The shards of an evaluation that are done."""
        done: set[Shard] = set()
        for source in self._sources():
            with suppress(sqlite3.OperationalError):  # there is no such table
                query = "SELECT number, count FROM shards WHERE evaluation = ?"
                done |= {Shard(int(number), int(count)) for number, count in source.execute(query, (evaluation,))}
        return done

    def add_shard(self, evaluation: bytes, shard: Shard) -> None:
        """Note that all answers of a shard are there."""
        if not self.is_read_only:
            with self._surviving("cannot be written to"):
                self._connection.execute(SHARDS)
                self._write("shard", [(evaluation, shard.number, shard.count)])

    # -- failures ------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _surviving(self, what: str, source: sqlite3.Connection | None = None) -> Iterator[None]:
        """Say once that a file fails, and go on."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if source in self._others:
                self._others.remove(source)
                logger.warning("a database of --store %s (%s): its answers are not used", what, _reason(error))
                return
            self._is_damaged |= not isinstance(error, (sqlite3.OperationalError, OSError))
            if self._problem is None:
                self._problem = f"{self.path} {what} ({_reason(error)})"
                logger.warning("%s; the evaluation goes on, and answers stay in memory", self._problem)
            with suppress(sqlite3.Error):  # the next failure need not take as long
                self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * AGAIN_SECONDS)}")


def _response(text: str, batch: int | None) -> Response | None:
    """A stored answer, to the last bit and surrogate; None where the text is none."""
    try:
        answer, record = json.loads(text)
        if isinstance(answer, list):
            answer = float(answer[0]), bool(answer[1])
        if record is not None:
            record = str(record[0]), int(record[1]), int(record[2])
    except (TypeError, ValueError, LookupError, RecursionError):
        return None
    return Response(answer, record, batch) if isinstance(answer, (str, float, tuple)) else None


def _crc(key: bytes, batch: int | None, text: str) -> int:
    return zlib.crc32(key + f"{batch} {text}".encode())


def _connected(folder: Path, logs: AnswerLogs) -> sqlite3.Connection:
    """The index of the logs in a shared folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"no response store can be made in {folder} ({_reason(error)}); name another folder with --store, or add "
            "--no-store"
        ) from error
    return logs.index


def _to_read(file: Path) -> sqlite3.Connection:
    """A connection to a store that this process does not write to.

    Raises:
        StoreError: it is damaged or something else.
    """
    elsewhere = "name another folder with --store"
    if not file.is_file():
        raise StoreError(f"{file} is no file, so no response store; {elsewhere}")
    for immutable in (False, True):  # a write-ahead log of another machine cannot be read
        connection = _read_only(file, immutable=immutable)
        try:
            if _is_ours(connection, file, elsewhere):
                return connection
            reason = "it is empty"
        except sqlite3.Error as error:
            reason = first_line(error)
        connection.close()
    raise StoreError(f"{file} cannot be read ({reason}); {elsewhere}")


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.executescript(SCHEMA)
        return connection
    elsewhere = "name another folder with --store, or add --no-store"
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is no file, so no response store; {elsewhere}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _opened(path, elsewhere)
    except OSError as error:
        raise StoreError(f"no response store can be made in {path.parent} ({_reason(error)}); {elsewhere}") from error
    except sqlite3.OperationalError as error:
        raise StoreError(f"the response store {path} cannot be opened ({first_line(error)}); {elsewhere}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} is damaged or no response store ({first_line(error)}); move it away, or {elsewhere}"
        ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _opened(path: Path, elsewhere: str) -> sqlite3.Connection:
    """A connection to a store, which is made if there is nothing yet; to one that cannot be written, for reading."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        if not _is_ours(connection, path, elsewhere):
            _make(connection, path, elsewhere)
        connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode a power cut costs the last answers only
        connection.execute("SELECT count(*) FROM (SELECT 1 FROM responses LIMIT 1)")
    except sqlite3.OperationalError:
        connection.close()
        if not path.is_file() or not path.stat().st_size:
            raise
        connection = _read_only(path)
        if not _is_ours(connection, path, elsewhere):
            raise
    except BaseException:
        connection.close()
        raise
    return connection


def _read_only(path: Path, *, immutable: bool = False) -> sqlite3.Connection:
    """A connection to a file that cannot be written; without a write-ahead log, nobody else writes it either."""
    how = "mode=ro" if path.with_name(f"{FILE}-wal").exists() and not immutable else "immutable=1"
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?{how}", uri=True, isolation_level=None)


def _is_ours(connection: sqlite3.Connection, path: Path, elsewhere: str) -> bool:
    """Whether a file is a store that this release reads; False for a new file.

    Raises:
        StoreError: it is something else.
    """
    application, version, tables = _header(connection)
    if application == APPLICATION_ID and version == FORMAT:
        return True
    if application == APPLICATION_ID:
        raise StoreError(
            f"{path} has format {version} of a response store, and this release reads {FORMAT}; update harness-ext, or "
            f"{elsewhere}"
        )
    if application or version or tables:
        raise StoreError(f"{path} is a database of another program; {elsewhere}")
    return False


def _make(connection: sqlite3.Connection, path: Path, elsewhere: str) -> None:
    """Make the tables, unless another process has made them meanwhile."""
    _use_wal(connection)
    connection.execute("BEGIN IMMEDIATE")
    if not _is_ours(connection, path, elsewhere):
        for statement in SCHEMA.strip().splitlines():
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to a write-ahead log; SQLite does not wait by itself for other processes that do the same."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _header(connection: sqlite3.Connection) -> list[int]:
    """Application, format and number of tables of a file, at one moment: another process may be making them."""
    queries = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    opens = not connection.in_transaction
    if opens:
        connection.execute("BEGIN")
    try:
        return [int(connection.execute(query).fetchone()[0]) for query in queries]
    finally:
        if opens:
            connection.execute("ROLLBACK")


def _is_read_only(path: Path | None) -> bool:
    """Whether a file, or the folder where logs are written, cannot be written to."""
    if path is None or not path.exists():
        return False
    return not all(os.access(place, os.W_OK) for place in ([path] if path.is_dir() else [path, path.parent]))
