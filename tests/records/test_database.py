"""A database that cannot be used: the reason, the way back, and nothing half done."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from hostler.errors import InvalidRequest, StorageUnavailable
from hostler.records.database import Database
from hostler.records.location import locate
from hostler.records.objects import PageRequest
from hostler.records.store import Records
from support.postgresql import send
from support.records import says, words_of
from support.workers import wait_until

DEADLINE_S = 30
NOBODY = 65534


@pytest.fixture
def file(sqlite_records, home):
    """A closed database with a thread in it."""
    sqlite_records.threads.create(id="t", messages=[says(str(number) * 3000) for number in range(10)])
    sqlite_records.close()
    return home / "hostler.db"


def quick(home):
    """Records that wait for another program as long as a test may."""
    records = Records(home)
    records.database.busy_timeout_s = 0.05
    return records


# -- the file -----------------------------------------------------------------------------------------------------------


def test_the_settings_of_a_connection_keep_what_was_acknowledged(sqlite_records):
    sqlite_records.open()
    sqlite_records.database.engine.dispose()  # the connection that made the tables had its own settings
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    with sqlite_records.database.read() as connection:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas}
        timeout_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()

    assert found == pragmas
    assert timeout_ms == 5000


def test_a_locked_file_can_be_read_and_a_write_is_503_until_it_is_free(home, file):
    other = sqlite3.connect(file, isolation_level=None)
    records = quick(home)
    try:
        records.open()
        other.execute("BEGIN IMMEDIATE")

        assert records.threads.get("t").id == "t"
        with pytest.raises(StorageUnavailable, match=r"locked by another program for more than 0\.05 s; close") as caught:
            records.threads.create()
        records.check()  # what passes does not stop a server from starting
        other.execute("ROLLBACK")

        assert str(file) in caught.value.message
        assert caught.value.retry_after_s == 1.0
        records.threads.create()
    finally:
        other.close()
        records.close()


class Turn:
    """A lock that counts who asks for it."""

    def __init__(self):
        self.n_asked = 0
        self._lock = threading.Lock()

    def acquire(self, timeout=-1):
        self.n_asked += 1
        return self._lock.acquire(timeout=timeout)

    def release(self):
        self._lock.release()


def test_writers_that_have_waited_for_their_turn_do_not_wait_for_a_locked_file_one_after_the_other(home, file):
    import sqlalchemy

    other = sqlite3.connect(file, isolation_level=None)
    records = quick(home)
    begun: list[str] = []
    told: list[str] = []

    def write():
        try:
            records.threads.create()
        except StorageUnavailable as error:
            told.append(error.message)

    try:
        records.open()
        sqlalchemy.event.listen(records.database.engine, "before_cursor_execute", lambda *call: begun.append(call[2]))
        turn = records.database._turn = Turn()
        other.execute("BEGIN IMMEDIATE")
        turn.acquire()
        writers = [threading.Thread(target=write) for _ in range(8)]
        for writer in writers:
            writer.start()
        wait_until(lambda: turn.n_asked == 1 + len(writers))
        turn.release()
        for writer in writers:
            writer.join(DEADLINE_S)
        other.execute("ROLLBACK")

        assert begun == ["BEGIN IMMEDIATE"]  # the others were told what this one was told
        assert len(told) == len(writers)
        assert set(told) == {told[0]}
        assert "locked by another program" in told[0]
        records.threads.create()
    finally:
        other.close()
        records.close()


def test_a_transaction_that_will_write_is_alone_from_its_beginning(home, file):
    """Else what it has read could be overtaken before it writes, and SQLite would refuse it then."""
    one, other = quick(home), quick(home)
    other.is_owner = False
    try:
        other.open()
        with one.database.write() as connection:
            connection.exec_driver_sql("SELECT * FROM threads").all()
            with pytest.raises(StorageUnavailable, match="locked by another program"):
                other.threads.create()
            connection.exec_driver_sql("UPDATE threads SET updated = 7")

        assert other.threads.get("t").updated == 7
    finally:
        one.close()
        other.close()


def fill(records):
    """Let the file grow by a few pages only."""
    import sqlalchemy

    records.open()
    with records.database.read() as connection:
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    records.database.engine.dispose()
    sqlalchemy.event.listen(
        records.database.engine, "connect", lambda driver, _: driver.execute(f"PRAGMA max_page_count={n_pages + 5}")
    )


def test_a_full_disk_is_503_undoes_the_write_and_leaves_the_rest_readable(home, file):
    records = quick(home)
    try:
        fill(records)

        with pytest.raises(StorageUnavailable, match="cannot grow, nothing was changed: the disk is full; free some room"):
            records.messages.append("t", [says("small"), says("x" * 100_000)])

        assert len(words_of(records.messages.all("t"))) == 10
        records.messages.append("t", [says("small")])
    finally:
        records.close()


READ_ONLY = """
import os, sys
from pathlib import Path
from hostler.errors import StorageUnavailable
from hostler.records.store import Records

Records(Path(sys.argv[2])).open()  # loads what the other user might not be allowed to read
records = Records(Path(sys.argv[1]))
if os.geteuid() == 0:
    os.setegid({nobody}); os.seteuid({nobody})  # root may write everything
for ask in (records.check, records.open):
    try:
        ask()
        print("taken")
    except StorageUnavailable as error:
        print(error.message)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_written_is_refused_with_the_way_back(what):
    with tempfile.TemporaryDirectory() as folder:  # below tmp_path the other user could not even look
        home = Path(folder) / "home"
        records = Records(home)
        if what == "file":
            records.open()
            records.close()
            (home / "hostler.db").chmod(0o444)
        else:
            home.mkdir()
        Path(folder).chmod(0o755)
        home.chmod(0o555)

        script = READ_ONLY.format(nobody=NOBODY)
        done = subprocess.run(
            [sys.executable, "-c", script, str(home), f"{folder}/other"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        home.chmod(0o755)

    assert done.returncode == 0, done.stderr
    checked, opened = done.stdout.splitlines()
    assert "give this user the right to write" in opened or "folder that this user may write" in opened
    if what == "file":
        assert str(home / "hostler.db") in checked
        assert "read-only" in checked
    else:
        assert checked == "taken"  # there is no file to look at yet


def garbage(file):
    file.write_bytes(b"this is no database\n" * 500)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-8192])


def overwritten(file):
    data = bytearray(file.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    file.write_bytes(data)


def first_page(file):
    data = bytearray(file.read_bytes())
    data[100:4096] = bytes(3996)
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, cut_off, first_page])
def test_a_damaged_file_is_refused_at_the_start_with_the_way_back(home, file, damage):
    damage(file)
    records = Records(home)
    try:
        for ask in (records.check, records.open):
            with pytest.raises(StorageUnavailable, match="is damaged or no database") as caught:
                ask()
            assert str(file) in caught.value.message
            assert "put a copy of it back, or move it away" in caught.value.message
    finally:
        records.close()


def test_damage_that_is_found_later_is_503_with_the_way_back(home, file):
    overwritten(file)
    records = Records(home)
    try:
        with pytest.raises(StorageUnavailable, match="is damaged or no database"):
            records.threads.get("t")
    finally:
        records.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [("no JSON", "JSON is malformed"), ('{"id": "t"}', "the thread t in the database is damaged"), ("5", "a thread in the")],
)
def test_a_damaged_row_is_503_and_leaves_the_others_readable(home, file, body, reason):
    records = Records(home)
    records.threads.create(id="other")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE threads SET body = ? WHERE id = 't'", (body,))
    connection.close()
    try:
        for ask in (lambda: records.threads.get("t"), lambda: records.threads.list(PageRequest())):
            with pytest.raises(StorageUnavailable, match=reason):
                ask()

        assert records.threads.get("other").id == "other"
        assert len(words_of(records.messages.all("t"))) == 10
    finally:
        records.close()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"two words"])
def test_a_damaged_name_of_the_home_is_refused_with_the_way_back(home, file, data):
    (home / "home.id").write_bytes(data)
    records = Records(home)
    try:
        with pytest.raises(StorageUnavailable, match=r"home\.id is damaged; put a copy of it back, or remove it"):
            records.open()
    finally:
        records.close()


def test_a_file_moved_away_is_the_way_back_that_the_message_names(home, file):
    garbage(file)
    file.rename(home / "damaged.db")
    records = Records(home)
    try:
        records.check()
        assert records.threads.list(PageRequest()).data == []
    finally:
        records.close()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)], ids=["a folder", "a loop"])
def test_what_is_no_file_is_refused(home, make):
    home.mkdir()
    make(home / "hostler.db")
    records = Records(home)
    try:
        with pytest.raises(StorageUnavailable, match=r"hostler\.db cannot be opened"):
            records.open()
    finally:
        records.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "home").write_text("a file")
    records = Records(tmp_path / "home")
    try:
        with pytest.raises(StorageUnavailable, match="folder that this user may write"):
            records.open()
    finally:
        records.close()


def test_an_empty_file_is_a_new_database(home):
    home.mkdir()
    (home / "hostler.db").touch()
    records = Records(home)
    try:
        records.check()
        records.threads.create()
    finally:
        records.close()


def test_a_wrong_statement_is_a_bug_not_a_storage_error(records):
    import sqlalchemy.exc

    records.open()
    with pytest.raises(sqlalchemy.exc.DBAPIError), records.database.read() as connection:
        connection.exec_driver_sql("SELEC")


def test_a_write_that_gets_no_turn_says_so(sqlite_records, monkeypatch):
    monkeypatch.setattr("hostler.records.database.TURN_TIMEOUT_S", 0.01)
    sqlite_records.open()
    with sqlite_records.database.write():
        answers: list[Exception] = []

        def write():
            try:
                sqlite_records.threads.create()
            except StorageUnavailable as error:
                answers.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join(DEADLINE_S)

    (error,) = answers
    assert "was busy for 0.01 s with what others write; try again" in str(error)


# -- PostgreSQL ---------------------------------------------------------------------------------------------------------


def test_a_postgresql_that_does_not_answer_is_refused_and_the_password_not_shown(home):
    records = Records(home, "postgresql://user:secret@127.0.0.1:1/hostler")
    try:
        for ask in (records.check, records.open):
            with pytest.raises(StorageUnavailable, match="see that PostgreSQL runs, takes this user and has room") as caught:
                ask()
            assert "postgresql://user@127.0.0.1:1/hostler cannot be used" in caught.value.message
            assert "refused" in caught.value.message
            assert "secret" not in caught.value.message
    finally:
        records.close()


def test_a_database_that_does_not_exist_is_refused(home, postgresql):
    records = Records(home, postgresql.replace("/postgres?", "/nope?"))
    try:
        with pytest.raises(StorageUnavailable, match='database "nope" does not exist'):
            records.check()
    finally:
        records.close()


def test_a_postgresql_that_only_reads_is_503(home, cleared_postgresql):
    records = Records(home, f"{cleared_postgresql}&options=-c%20default_transaction_read_only%3Don")
    try:
        with pytest.raises(StorageUnavailable, match="read-only transaction"):
            records.open()
    finally:
        records.close()


def test_connections_that_postgresql_has_ended_are_made_anew(home, cleared_postgresql):
    records = Records(home, cleared_postgresql)
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hostler'"
    try:
        thread = records.threads.create()
        send(cleared_postgresql, end_all)
        assert records.threads.get(thread.id) == thread

        with pytest.raises(StorageUnavailable, match="cannot be used"):
            write_while(records, lambda: send(cleared_postgresql, end_all))
        assert [one.id for one in records.threads.list(PageRequest()).data] == [thread.id]
    finally:
        records.close()


def write_while(records, happens):
    with records.database.write() as connection:
        happens()
        connection.exec_driver_sql("DELETE FROM threads")


def test_what_postgresql_cannot_keep_is_the_callers_mistake(home, cleared_postgresql):
    records = Records(home, cleared_postgresql)
    try:
        with pytest.raises(InvalidRequest, match="PostgreSQL cannot keep this"):
            records.threads.create(created_at=2**70)
    finally:
        records.close()


def test_a_driver_that_is_not_installed_is_named_with_its_package(home, monkeypatch):
    from hostler.errors import ConfigError

    monkeypatch.setitem(sys.modules, "psycopg", None)
    database = Database(locate(home, "postgresql://host/name"))

    with pytest.raises(ConfigError, match=r"pip install 'hostler\[postgresql\]'"), database.read():
        pass
