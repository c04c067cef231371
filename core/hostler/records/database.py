"""One database, SQLite or PostgreSQL: its connections, its transactions, and what its errors mean.

Floor 1; any thread. Imports SQLAlchemy when it is first used: `hostler serve` announces itself before that.

A transaction that reads sees one moment. One that writes is alone: on SQLite by `BEGIN IMMEDIATE`, on PostgreSQL by the
rows it locks, in this order everywhere: the thread's row, its other rows, the outbox. What `write` has returned from is on
the disk (SQLite's log with synchronous=FULL, PostgreSQL's own default): it survives kill -9 and a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hostler.errors import ConfigError, HostlerError, InvalidRequest, StorageUnavailable
from hostler.records.location import Location
from hostler.records.sqlitefile import create_private, damaged, explain, is_locked

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

BUSY_TIMEOUT_S = 5.0
"""How long SQLite waits for another program that holds the file."""
TURN_TIMEOUT_S = 30.0
"""How long a thread waits for its turn, or for a connection; 128 writers on a disk that takes 50 ms to sync need 7 s."""
CONNECT_TIMEOUT_S = 5
"""For PostgreSQL to answer."""
POOL_SIZE = 8
"""Connections kept; each has a page cache of up to 2 MB."""
POOL_OVERFLOW = 24
"""Connections more while many threads ask at once; PostgreSQL allows 100 by default."""

OUTBOX = "hostler_outbox"
"""In `Connection.info`: the events of the connection's transaction, see events.py."""
_WRITES = "hostler_writes"


class Database:
    """A pool of connections; `read` and `write` hand them out."""

    def __init__(self, location: Location, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        """Nothing is opened yet."""
        self.location = location
        self.busy_timeout_s = busy_timeout_s
        self.before_commit: Callable[[Connection], Callable[[], None] | None] | None = None
        """Called last in each transaction that writes; what it returns is called once that is committed."""
        self._lock = threading.Lock()  # protects _engine and _is_closed
        self._engine: Engine | None = None
        self._is_closed = False
        # INVARIANT: SQLite has one writer. Waiting here is fair enough and wakes at once; SQLite's own waiting polls.
        self._turn = threading.Lock()  # protects _locked
        self._locked: tuple[float, HostlerError] | None = None
        """When another program kept the file from whoever had the turn last, and what that one was told."""

    @property
    def is_sqlite(self) -> bool:
        """SQLite, else PostgreSQL."""
        return self.location.is_sqlite

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, made on first use.

        Raises:
            StorageUnavailable: Closed.
            ConfigError: The driver is not installed.
        """
        with self._lock:
            if self._is_closed:
                raise StorageUnavailable("hostler is stopping and keeps no more records", retry_after_s=5.0)
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for statements that change nothing; they see the same moment on SQLite.

        Raises:
            StorageUnavailable: The database cannot be read; its text has the reason and the way back.
        """
        with self._explained(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, undone when it raises.

        Raises:
            StorageUnavailable: Nothing was changed; its text has the reason and the way back.
        """
        after_commit: Callable[[], None] | None = None
        with self._explained(), self._in_turn(), self.engine.connect() as connection:
            connection.execution_options(**{_WRITES: True})
            connection.info.pop(OUTBOX, None)  # left by a transaction that was undone
            with connection.begin():
                yield connection
                if self.before_commit is not None:
                    after_commit = self.before_commit(connection)
        if after_commit is not None:
            after_commit()

    @contextmanager
    def rebuild(self) -> Iterator[Connection]:
        """A transaction for migrations: alone on PostgreSQL, too, and without foreign keys on SQLite until its end.

        SQLite changes a table by making it anew and dropping the old one; foreign keys would take the children along.
        """
        with self._explained(), self._in_turn(), self.engine.connect() as connection:
            connection.execution_options(**{_WRITES: True})
            if not self.is_sqlite:
                with connection.begin():
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4703170)")  # any number, the same in all
                    yield connection
                return
            driver: Any = connection.connection.dbapi_connection
            driver.execute("PRAGMA foreign_keys=OFF")  # has no effect once a transaction has begun
            try:
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        raise StorageUnavailable(f"{self.location.where} could not be brought up to date: {broken}")
            finally:
                driver.execute("PRAGMA foreign_keys=ON")

    def close(self) -> None:
        """Close what nobody uses; later use is refused. Idempotent."""
        with self._lock:
            self._is_closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    # -- inside -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        import sqlalchemy.exc

        asked_at = time.monotonic()
        if not self._turn.acquire(timeout=TURN_TIMEOUT_S):
            raise StorageUnavailable(
                f"{self.location.where} was busy for {TURN_TIMEOUT_S:g} s with what others write; try again",
                retry_after_s=1.0,
            )
        try:
            if self._locked is not None and self._locked[0] > asked_at:
                # Somebody has waited for the file since then, in vain. Each waiting in its turn would add up.
                raise self._locked[1].copy()
            yield
            self._locked = None
        except sqlalchemy.exc.DBAPIError as error:
            explained = self._explain(error)
            if is_locked(error.orig) and explained is not None:
                self._locked = (time.monotonic(), explained)
            raise
        finally:
            self._turn.release()

    def _make_engine(self) -> Engine:
        import sqlalchemy

        options: dict[str, Any] = {
            # Objects are encoded as they are answered; SQLAlchemy's default is the slower json, which knows no structs.
            "json_serializer": _to_json,
            "json_deserializer": msgspec.json.decode,
            "pool_size": POOL_SIZE,
            "max_overflow": POOL_OVERFLOW,
            "pool_timeout": TURN_TIMEOUT_S,
        }
        path = self.location.path
        if path is None:
            try:
                return sqlalchemy.create_engine(
                    self.location.url,
                    # A restarted PostgreSQL leaves dead connections in the pool.
                    pool_pre_ping=True,
                    connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "hostler"},
                    **options,
                )
            except ImportError as error:
                raise ConfigError(
                    f"database is {self.location.where}, and the driver for PostgreSQL is not installed; "
                    f"pip install 'hostler[postgresql]'",
                    param="database",
                ) from error
            except sqlalchemy.exc.ArgumentError as error:
                raise ConfigError(
                    "database is no URL that can be read; it looks like postgresql://user:password@host:5432/name",
                    param="database",
                ) from error
        engine = sqlalchemy.create_engine(
            sqlalchemy.URL.create("sqlite", database=str(path)),
            # No isolation level: the driver must not begin transactions by itself, and not end them before DDL.
            connect_args={"timeout": self.busy_timeout_s, "isolation_level": None},
            **options,
        )
        sqlalchemy.event.listen(engine, "do_connect", lambda *_: _create(path))
        sqlalchemy.event.listen(engine, "connect", _prepare)
        sqlalchemy.event.listen(engine, "begin", _begin)
        return engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the database says into an error of ours. Bugs of ours (a wrong statement) pass as they are."""
        import sqlalchemy.exc

        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from error
        except sqlalchemy.exc.TimeoutError as error:
            raise StorageUnavailable(
                f"{self.location.where} was busy for {TURN_TIMEOUT_S:g} s with other requests; try again", retry_after_s=1.0
            ) from error

    def _damaged(self, reason: str) -> StorageUnavailable:
        """What is in a row's column of JSON is no JSON."""
        if self.location.path is not None:
            return damaged(self.location.path, reason)
        return StorageUnavailable(f"{self.location.where} holds a damaged row ({reason}); put a copy of it back")

    def _explain(self, error: Any) -> HostlerError | None:
        import sqlalchemy.exc

        path = self.location.path
        if path is not None:
            is_storage = isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(
                error.orig, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError | sqlite3.NotSupportedError
            )
            # 1, SQLITE_ERROR, is a wrong statement.
            is_bug = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
            return explain(error.orig, path, self.busy_timeout_s) if is_storage and not is_bug else None
        state = str(getattr(error.orig, "sqlstate", None) or "")
        reason = " ".join(str(error.orig).split())
        if isinstance(error, sqlalchemy.exc.DataError):
            return InvalidRequest(f"PostgreSQL cannot keep this: {reason}")
        if isinstance(error, sqlalchemy.exc.OperationalError) or state[:2] in _OUTSIDE or state in _FORBIDDEN:
            return StorageUnavailable(
                f"{self.location.where} cannot be used: {reason}; see that PostgreSQL runs, takes this user and has room, "
                f"then try again",
                retry_after_s=1.0,
            )
        return None


_OUTSIDE = frozenset({"08", "28", "3D", "40", "53", "55", "57", "58", "XX"})
"""SQLSTATE classes: connection, authorization, catalogue, rollback, resources, lock, operator, system, internal."""
_FORBIDDEN = frozenset({"25006", "42501"})
"""SQLSTATE: read-only transaction, insufficient privilege."""


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _create(path: Path) -> None:
    try:
        create_private(path)
    except OSError as error:
        raise StorageUnavailable(
            f"{path} cannot be opened: {error.strerror}; it must be a file in a folder that this user may write, or choose "
            f"another folder with --home"
        ) from error


def _prepare(driver: Any, record: Any) -> None:
    del record
    # Deleted text is overwritten, not just unlinked; the log that a large transaction blew up is cut down again.
    pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=FAST", "journal_size_limit=67108864")
    for pragma in pragmas:
        driver.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
