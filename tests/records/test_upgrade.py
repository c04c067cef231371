"""The tables: made at once or step by step they are the same, older ones are brought up to date, newer ones are refused."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.errors import StorageUnavailable
from hostler.records import revisions, upgrade
from hostler.records.database import Database
from hostler.records.location import locate
from hostler.records.objects import PageRequest
from hostler.records.revisions import HEAD, REVISIONS, VERSION_TABLE
from hostler.records.store import Records
from hostler.records.upgrade import MIGRATIONS, bring_up_to_date, migrate, stored_revision
from support.postgresql import make_empty
from support.records import says, words_of


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request):
    """The setting `database` of one without tables."""
    return "" if request.param == "sqlite" else request.getfixturevalue("empty_postgresql")


@pytest.fixture
def database(home, empty_url):
    """A database without tables."""
    database = Database(locate(home, empty_url))
    yield database
    database.close()


def revision_of(database):
    with database.read() as connection:
        return stored_revision(connection)


def shape_of(database):
    """Everything the database itself says of its tables."""
    import sqlalchemy

    with database.read() as connection:
        if database.is_sqlite:
            rows = connection.exec_driver_sql("SELECT name, tbl_name, sql FROM sqlite_master ORDER BY name").all()
            return [(name, table, re.sub(r"\s*([(),])\s*", r"\1", sql or "").replace('"', "")) for name, table, sql in rows]
        inspector = sqlalchemy.inspect(connection)
        return {
            table: (
                [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
                inspector.get_pk_constraint(table),
                sorted(map(str, inspector.get_unique_constraints(table))),
                sorted(map(str, inspector.get_foreign_keys(table))),
                sorted(map(str, inspector.get_indexes(table))),
            )
            for table in sorted(inspector.get_table_names())
        }


def test_the_known_revisions_are_those_of_the_scripts():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)

    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS
    assert scripts.get_current_head() == HEAD


def test_tables_made_at_once_are_those_that_the_scripts_make(tmp_path, empty_url):
    shapes = []
    for name in ("at once", "by scripts"):
        database = Database(locate(tmp_path / name, empty_url))
        if name == "at once":
            bring_up_to_date(database)
        else:
            with database.rebuild() as connection:
                migrate(connection)
        assert revision_of(database) == HEAD
        shapes.append(shape_of(database))
        database.close()
        if empty_url:
            make_empty(empty_url)

    assert shapes[0] == shapes[1]


def test_alembic_finds_nothing_to_change_after_its_scripts(database):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from hostler.records.tables import metadata

    with database.rebuild() as connection:
        migrate(connection)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})

        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_database_of_any_revision_is_brought_up_to_date_and_keeps_what_it_has(database, home, empty_url, revision):
    with database.rebuild() as connection:
        migrate(connection, revision)
        body = '{"id":"t","created_at":1,"created":1,"updated":1,"title":"kept"}'
        message = '{"id":"m","created_at":1,"created":1,"thread_id":"t","role":"user","content":[]}'
        connection.exec_driver_sql(
            f"INSERT INTO threads (id, created_at, updated, next_position, body) VALUES ('t', 1, 1, 2, '{body}')"
        )
        connection.exec_driver_sql(f"INSERT INTO messages (thread_id, position, id, body) VALUES ('t', 1, 'm', '{message}')")

    records = Records(home, empty_url)
    try:
        assert records.threads.get("t").title == "kept"
        assert records.threads.get("t").messages == ["m"]
        records.messages.append("t", [says("new")])
        assert len(records.messages.list("t", PageRequest()).data) == 2
    finally:
        records.close()

    assert revision_of(database) == HEAD
    copies = sorted(path.name for path in home.glob("*.bak")) if home.exists() else []
    assert copies == ([f"hostler.db.{revision}.bak"] if database.is_sqlite and revision != HEAD else [])


# -- a change that is still to come -------------------------------------------------------------------------------------

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("threads") as table:  # SQLite makes the table anew, and drops the old one
        table.add_column(sa.Column("new", sa.Text))
    {then}
"""


@pytest.fixture
def next_revision(tmp_path, monkeypatch):
    """Have one revision more than there is, whose script ends as the test says."""
    folder = tmp_path / "migrations"

    def add(then: str = "pass") -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "next.py").write_text(NEXT.format(head=HEAD, then=then))
        monkeypatch.setattr(upgrade, "MIGRATIONS", folder)
        monkeypatch.setattr(upgrade, "HEAD", "next")
        monkeypatch.setattr(revisions, "REVISIONS", (*REVISIONS, "next"))

    return add


@pytest.fixture
def thread(home, empty_url):
    """The id of a thread with one message, written by this program before there was a next revision."""
    records = Records(home, empty_url)
    thread = records.threads.create(messages=[says("kept")])
    records.close()
    return thread.id


def test_a_rebuilt_table_keeps_its_children_and_a_copy_is_kept_of_the_file(home, empty_url, thread, next_revision):
    next_revision()

    records = Records(home, empty_url)
    try:
        assert words_of(records.messages.all(thread)) == ["kept"]
        assert revision_of(records.database) == "next"
        records.threads.delete(thread)
        with records.database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM messages").scalar() == 0  # foreign keys are on again
    finally:
        records.close()

    assert sorted(home.glob("*.bak")) == ([] if empty_url else [home / f"hostler.db.{HEAD}.bak"])
    if not empty_url:
        copy = sqlite3.connect(home / f"hostler.db.{HEAD}.bak")
        assert copy.execute("SELECT count(*) FROM messages").fetchone() == (1,)
        assert copy.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone() == (HEAD,)
        copy.close()


def test_a_change_that_fails_changes_nothing_and_is_made_by_the_next_start(home, empty_url, thread, next_revision):
    next_revision("raise RuntimeError('half way')")
    records = Records(home, empty_url)
    with pytest.raises(RuntimeError, match="half way"):
        records.open()
    assert revision_of(records.database) == HEAD
    with records.database.read() as connection:
        columns = connection.exec_driver_sql("SELECT * FROM threads").keys()
    records.close()

    next_revision()
    again = Records(home, empty_url)
    try:
        assert words_of(again.messages.all(thread)) == ["kept"]
        assert revision_of(again.database) == "next"
    finally:
        again.close()
    assert "new" not in columns


@pytest.fixture
def file(sqlite_records, home):
    """A file that this program wrote before there was a next revision; whoever runs a PostgreSQL has backups of it."""
    sqlite_records.threads.create(messages=[says("kept")])
    sqlite_records.close()
    return home / "hostler.db"


def test_a_change_that_orphans_rows_is_refused(home, file, next_revision):
    """SQLite rebuilds tables without foreign keys; what they would have refused is found at the end."""
    next_revision("op.execute('DELETE FROM threads')")
    records = Records(home)
    try:
        with pytest.raises(StorageUnavailable, match="could not be brought up to date"):
            records.open()
        assert revision_of(records.database) == HEAD
    finally:
        records.close()


def test_a_file_that_cannot_be_copied_is_not_changed(home, file, next_revision):
    next_revision()
    file.with_name(f"hostler.db.{HEAD}.bak.part").mkdir()
    records = Records(home)
    try:
        with pytest.raises(StorageUnavailable, match=r"could not be copied .* nothing was changed: make room"):
            records.open()
        assert revision_of(records.database) == HEAD
    finally:
        records.close()


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_a_newer_database_is_refused_by_check_and_by_open_and_not_touched(home, empty_url, thread):
    records = Records(home, empty_url)
    with records.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    records.close()

    again = Records(home, empty_url)
    try:
        for ask in (again.check, again.open, lambda: again.threads.get(thread)):
            with pytest.raises(StorageUnavailable, match=r"written by a newer hostler \(its revision is 9999") as caught:
                ask()
            assert again.database.location.where in caught.value.message
            assert "install that version again" in caught.value.message
        assert revision_of(again.database) == "9999"
    finally:
        again.close()


def test_a_database_of_another_program_is_refused_and_not_touched(database, home, empty_url):
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE threads (color TEXT)")

    records = Records(home, empty_url)
    try:
        with pytest.raises(StorageUnavailable, match=r"has tables of another program \(threads\)"):
            records.open()
        with records.database.read() as connection:
            assert list(connection.exec_driver_sql("SELECT * FROM threads").keys()) == ["color"]
    finally:
        records.close()


def test_tables_of_others_beside_ours_do_not_matter(database, home, empty_url):
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num TEXT)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('theirs')")

    records = Records(home, empty_url)
    try:
        records.check()
        records.threads.create()
        assert revision_of(records.database) == HEAD
    finally:
        records.close()


# -- packaging, and a crash in the middle ---------------------------------------------------------------------------------


def test_the_scripts_are_part_of_the_package():
    """scikit-build-core takes every file of the package that git does not ignore."""
    import importlib.resources

    folder = importlib.resources.files("hostler.records") / "migrations"
    names = ["env.py", "script.py.mako", *(f"versions/{path.name}" for path in (folder / "versions").iterdir())]
    files = [str(folder / name) for name in names if name.endswith((".py", ".mako"))]

    assert len(files) == len(REVISIONS) + 2
    root = Path(__file__).resolve().parents[2]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=root, capture_output=True, text=True, check=False)
    if "not a git repository" not in ignored.stderr:
        assert (ignored.stdout, ignored.returncode) == ("", 1)


KILLED = """
import os, signal, sys
from pathlib import Path
import sqlalchemy
from hostler.records.store import Records

records, left = Records(Path(sys.argv[1])), int(sys.argv[2])


def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


sqlalchemy.event.listen(records.database.engine, "after_cursor_execute", count)
records.open()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_first_start_killed_after_any_statement_is_finished_by_the_next(tmp_path):
    n_killed = 0
    for n_statements in range(1, 200):
        home = tmp_path / str(n_statements)
        done = subprocess.run([sys.executable, "-c", KILLED, str(home), str(n_statements)], timeout=60, check=False)
        n_killed += done.returncode != 0
        records = Records(home)
        records.check()
        assert records.assistants.get("jan").name == "Jan"
        assert revision_of(records.database) == HEAD
        records.close()
        if done.returncode == 0:
            break

    assert n_killed > 15
