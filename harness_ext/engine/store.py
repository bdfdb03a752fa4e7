"""The response store: every answer of a model, in one SQLite file, as soon as it is there.

```
key (sha256 of the model's content and the request) ──> the answer, and what is known of it
```

Answers are added in transactions, one for each batch. A process that is killed loses the batch it was computing, and
nothing else. Several processes of one machine may write to a store at once.
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

from harness_ext.errors import StoreError, first_line
from harness_ext.reading.json_input import parse_json

logger = logging.getLogger(__name__)

FILE = "responses.sqlite"
APPLICATION_ID = int.from_bytes(b"hxrs", "big")  # in the header of the file: https://sqlite.org/pragma.html
FORMAT = 1
BUSY_SECONDS = 60.0  # how long to wait for another process that writes
AT_ONCE = 500  # keys in one query
SCHEMA = """
CREATE TABLE responses (key BLOB PRIMARY KEY, batch INT, response TEXT NOT NULL, crc INT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (digest BLOB PRIMARY KEY, parts TEXT NOT NULL, info TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE designs (digest BLOB PRIMARY KEY, design TEXT NOT NULL) WITHOUT ROWID;
"""


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
    """Answers by key, in a file or, without a folder, in memory.

    What cannot be written is kept in memory and said once; the evaluation goes on.

    Args:
        folder: where the file is or will be; None for a store that ends with this object.
        must_exist: do not make a new one.

    Raises:
        StoreError: the file is of another kind, from a newer release, or cannot be made.
    """

    def __init__(self, folder: Path | None, *, must_exist: bool = False) -> None:
        self.path = None if folder is None else folder / FILE
        self._waiting: dict[bytes, Response] = {}  # not written yet
        self._problem: str | None = None
        self._is_damaged = False
        self._connection = _connect(self.path, must_exist=must_exist)
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
        return int(self._connection.execute("SELECT count(*) FROM responses").fetchone()[0])

    def close(self) -> None:
        """Write what could not be written before, if that is possible now."""
        if self._waiting:
            self.add({})
        if self._waiting and not self.is_read_only:
            logger.warning("%s: %d answers of this run are not stored", self.path, len(self._waiting))
        with suppress(sqlite3.Error):
            self._connection.close()

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
        rows: list[tuple[bytes, int | None, str, int]] = []
        for start in range(0, 0 if self._is_damaged else len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            with self._surviving("cannot be read"):
                query = f"SELECT key, batch, response, crc FROM responses WHERE key IN ({marks})"
                rows += self._connection.execute(query, some).fetchall()
        return rows

    def add(self, responses: Mapping[bytes, Response]) -> None:
        """Write answers, in one transaction; what was there under the same keys is replaced."""
        self._waiting |= responses
        if self.is_read_only or self._is_damaged or not self._waiting:
            return
        rows = []
        for key, response in self._waiting.items():
            text = json.dumps([response.answer, response.record])
            rows.append((key, response.batch, text, _crc(key, response.batch, text)))
        with self._surviving("cannot be written to"), self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?)", rows)
            self._waiting.clear()

    def forget(self, keys: Iterable[bytes]) -> None:
        """Remove the answers to these keys."""
        gone = list(keys)
        for key in gone:
            self._waiting.pop(key, None)
        if not self.is_read_only:
            with self._surviving("cannot be written to"), self._transaction():
                self._connection.executemany("DELETE FROM responses WHERE key = ?", [(key,) for key in gone])

    # -- models --------------------------------------------------------------------------------------------------

    def models(self) -> dict[bytes, StoredModel]:
        """What the models with answers in this store are, by digest."""
        rows = self._connection.execute("SELECT digest, parts, info FROM models").fetchall()
        place = str(self.path)
        return {
            digest: StoredModel(parse_json(parts, place=place), parse_json(info, place=place))
            for digest, parts, info in rows
        }

    def add_model(self, digest: bytes, model: StoredModel) -> None:
        """Note what a model is."""
        if self.is_read_only:
            return
        with self._surviving("cannot be written to"):
            parts, info = (json.dumps(value, sort_keys=True, default=str) for value in model)
            self._connection.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", (digest, parts, info))

    # -- designs -------------------------------------------------------------------------------------------------

    def design(self, digest: bytes) -> Any:
        """The design with which an evaluation began, as JSON; None if it begins now.

        Args:
            digest: of what is evaluated.
        """
        row = self._connection.execute("SELECT design FROM designs WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else parse_json(row[0], place=str(self.path))

    def add_design(self, digest: bytes, design: Mapping[str, Any]) -> None:
        """Note with which design an evaluation begins."""
        if not self.is_read_only:
            with self._surviving("cannot be written to"):
                row = (digest, json.dumps(design, sort_keys=True))
                self._connection.execute("INSERT OR REPLACE INTO designs VALUES (?, ?)", row)

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
    def _surviving(self, what: str) -> Iterator[None]:
        """Say once that the file fails, and go on."""
        try:
            yield
        except sqlite3.Error as error:
            self._is_damaged |= not isinstance(error, sqlite3.OperationalError)
            if self._problem is None:
                self._problem = f"{self.path} {what} ({first_line(error)})"
                logger.warning("%s; the evaluation goes on, and answers stay in memory", self._problem)
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 1000")  # the next failure need not take as long


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


def _connect(path: Path | None, *, must_exist: bool) -> sqlite3.Connection:
    if path is None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.executescript(SCHEMA)
        return connection
    elsewhere = "name another folder with --store, or add --no-store"
    if must_exist and not path.exists():
        raise StoreError(f"there is no response store {path}; evaluate once without --from-store")
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


def _reason(error: OSError) -> str:
    return error.strerror or first_line(error)


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


def _read_only(path: Path) -> sqlite3.Connection:
    """A connection to a file that cannot be written; without a write-ahead log, nobody else writes it either."""
    how = "mode=ro" if path.with_name(f"{FILE}-wal").exists() else "immutable=1"
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
    """Whether a file, or its folder, where the log is written, cannot be written to."""
    return path is not None and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
