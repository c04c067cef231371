"""Brings a database to the tables of this program.

Floor 1; under the lock of Records.open. A new database gets the tables at once; an older one goes through Alembic's
scripts, which is why Alembic (40 MB, 0.2 s) is imported in that case only. Both happen in one transaction: after kill -9
the database is what it was, and the next start begins again.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from hostler.errors import StorageUnavailable
from hostler.records.database import Database
from hostler.records.revisions import HEAD, VERSION_TABLE, refuse_unknown
from hostler.records.sqlitefile import copy_file

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger("hostler.records")

MIGRATIONS = Path(__file__).parent / "migrations"


def bring_up_to_date(database: Database) -> None:
    """Make the tables, or change them to what this program knows.

    Raises:
        StorageUnavailable: The database is newer than this program, another program's, or cannot be changed.
    """
    with database.read() as connection:
        revision = stored_revision(connection)
    if revision == HEAD:
        return
    if revision is not None:
        refuse_unknown(revision, database.location.where)
        _copy(database, revision)
    with database.rebuild() as connection:
        found = stored_revision(connection)  # once more: another hostler may share a PostgreSQL
        if found == HEAD:
            return
        if found is None:
            _create(database, connection)
        else:
            log.info("bringing %s from revision %s to %s", database.location.where, found, HEAD)
            migrate(connection)


def stored_revision(connection: Connection) -> str | None:
    """The revision a database is at; None: it has no tables of ours."""
    import sqlalchemy

    if not sqlalchemy.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
    return None if revision is None else str(revision)


def migrate(connection: Connection, revision: str = "head") -> None:
    """Run Alembic's scripts inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _create(database: Database, connection: Connection) -> None:
    import sqlalchemy

    from hostler.records.tables import metadata

    taken = sorted(set(metadata.tables) & set(sqlalchemy.inspect(connection).get_table_names()))
    if taken:
        raise StorageUnavailable(
            f"{database.location.where} has tables of another program ({', '.join(taken)}); give hostler a database of its "
            f"own with --database"
        )
    metadata.create_all(connection, checkfirst=False)
    # As Alembic would have written it; a test compares the two ways.
    connection.exec_driver_sql(
        f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
        f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
    )
    connection.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('{HEAD}')")


def _copy(database: Database, revision: str) -> None:
    """Keep the file as it is before it is changed: the way back to the version before."""
    path = database.location.path
    if path is None:
        return  # whoever runs a PostgreSQL has backups of it
    target = path.with_name(f"{path.name}.{revision}.bak")
    try:
        copy_file(path, target)
    except (sqlite3.Error, OSError) as error:
        raise StorageUnavailable(
            f"{path} must be brought from revision {revision} to {HEAD}, and could not be copied to {target} before that "
            f"({error}); nothing was changed: make room and start again"
        ) from error
    log.info("kept a copy of %s as %s", path, target)
