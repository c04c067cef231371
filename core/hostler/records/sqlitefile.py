"""The SQLite file itself: looked at before it is used, copied before it is changed, and what its errors mean.

Floor 1; any thread. Uses the standard library's sqlite3 only: `hostler serve` looks before it announces itself, and
SQLAlchemy would cost it a third of its start.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from hostler.errors import StorageUnavailable
from hostler.library.disk import sync_folder
from hostler.records.revisions import VERSION_TABLE, refuse_unknown

LOOK_TIMEOUT_S = 1.0
"""A file that another program holds for longer is served all the same: requests get 503 until it is free."""

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def look_at(path: Path) -> None:
    """Refuse a file that could not be served: damaged, newer than this program, read-only, or no file.

    A file that is not there is fine: it is made on the first use.

    Raises:
        StorageUnavailable: With the reason and the way back.
    """
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=LOOK_TIMEOUT_S)
    except sqlite3.Error as error:
        raise explain(error, path) from error
    try:
        connection.isolation_level = None
        # The first asks for the right to write. The second reads the header and the table of tables, and with it SQLite
        # compares the file's length with what its header says: a copy that ended early is seen here.
        connection.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if VERSION_TABLE in tables:
            for (revision,) in connection.execute(f"SELECT version_num FROM {VERSION_TABLE}"):
                refuse_unknown(str(revision), str(path))
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        if not is_locked(error):
            raise explain(error, path) from error
    finally:
        connection.close()


def copy_file(path: Path, target: Path) -> None:
    """Copy a database as one moment shows it, log included; the copy appears whole and readable by this user only.

    Raises:
        sqlite3.Error, OSError: There is no copy then.
    """
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    create_private(part)
    try:
        source, sink = sqlite3.connect(path), sqlite3.connect(part)
        try:
            source.backup(sink)
        finally:
            sink.close()
            source.close()
        descriptor = os.open(part, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def create_private(path: Path) -> None:
    """Make an empty file that only this user may read: conversations go in there. SQLite's side files follow its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def primary_code(error: BaseException | None) -> int:
    """SQLite's primary result code; 0 for what has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else 0


def is_locked(error: BaseException | None) -> bool:
    """Whether another program holds the file."""
    return primary_code(error) in _BUSY


def explain(error: BaseException, path: Path, waited_s: float = LOOK_TIMEOUT_S) -> StorageUnavailable:
    """What one of SQLite's errors means for the person who asked, and the way back."""
    code = primary_code(error)
    if is_locked(error):
        return StorageUnavailable(
            f"{path} has been locked by another program for more than {waited_s:g} s; close what works on it and try again",
            retry_after_s=1.0,
        )
    if code == sqlite3.SQLITE_FULL:
        return StorageUnavailable(f"{path} cannot grow, nothing was changed: the disk is full; free some room and try again")
    if code == sqlite3.SQLITE_READONLY:
        return StorageUnavailable(
            f"{path} cannot be written: it, its folder or its disk is read-only; give this user the right to write, or "
            f"choose another folder with --home"
        )
    if code in _DAMAGED:
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_CANTOPEN:
        return StorageUnavailable(
            f"{path} cannot be opened ({error}); it must be a file in a folder that this user may write, or choose "
            f"another folder with --home"
        )
    return StorageUnavailable(f"{path} cannot be used: {error}; look at the disk and its free room, then try again")


def damaged(path: Path, reason: str) -> StorageUnavailable:
    """The error for a file that cannot be read, and the way back."""
    return StorageUnavailable(
        f"{path} is damaged or no database ({reason}); stop hostler, then put a copy of it back, or move it away together "
        f"with {path.name}-wal and {path.name}-shm: hostler starts with an empty one, and `sqlite3 {path.name} .recover` "
        f"reads what can still be read of the old"
    )
