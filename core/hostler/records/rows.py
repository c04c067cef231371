"""Inserting what may be there already, and reading objects out of rows. Floor 1; imports SQLAlchemy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import IntegrityError

from hostler.errors import HostlerError, StorageUnavailable

T = TypeVar("T")


def now() -> int:
    """Whole Unix seconds, as every object carries them."""
    return int(time.time())


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any], taken: HostlerError) -> None:
    """Insert a row, or raise `taken`: its id is there. Two that try at once are told apart by the database."""
    try:
        connection.execute(insert(table).values(row))
    except IntegrityError as error:
        raise taken from error


def object_of(row: Any, kind: type[T]) -> T:
    """The object that a row's body is.

    Raises:
        StorageUnavailable: It is none: the disk, or another program, has changed it.
    """
    try:
        return msgspec.convert(row.body, kind)
    except msgspec.ValidationError as error:
        known = row.body.get("id") if isinstance(row.body, dict) else None
        named = f"the {kind.__name__.lower()} {known}" if isinstance(known, str) else f"a {kind.__name__.lower()}"
        raise StorageUnavailable(
            f"{named} in the database is damaged ({error}); put a copy of the database back, or take its row out of it"
        ) from error
