"""Inserting what may be there already, and reading objects out of rows. Floor 1; imports SQLAlchemy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import IntegrityError

from hostler.errors import HostlerError


def now() -> int:
    """Whole Unix seconds, as every object carries them."""
    return int(time.time())


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any], taken: HostlerError) -> None:
    """Insert a row, or raise `taken`: its id is there. Two that try at once are told apart by the database."""
    try:
        connection.execute(insert(table).values(row))
    except IntegrityError as error:
        raise taken from error
