"""Records as a whole: opened by the first who asks, once; a failure may pass; and nothing is loaded before."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from hostler.errors import StorageUnavailable
from hostler.records import store
from hostler.records.objects import PageRequest
from hostler.records.store import Records
from support.records import says

N_THREADS = 8
DEADLINE_S = 30


def test_nothing_is_made_before_somebody_asks(home):
    records = Records(home)
    records.check()
    records.close()

    assert not home.exists()


def test_everything_is_there_after_a_restart(home, url, records):
    thread = records.threads.create(title="kept", messages=[says("one")])
    records.close()

    again = Records(home, url)
    try:
        again.check()
        assert again.threads.get(thread.id) == thread
    finally:
        again.close()


def test_many_who_ask_at_once_open_it_once(home, url):
    records = Records(home, url)
    opened: list[object] = []
    records.on_open.append(opened.append)
    barrier = threading.Barrier(N_THREADS)
    jans: list[object] = []

    def ask():
        barrier.wait(DEADLINE_S)
        jans.append(records.assistants.get("jan"))

    threads = [threading.Thread(target=ask) for _ in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    try:
        assert len(jans) == N_THREADS
        assert all(jan == jans[0] for jan in jans)
        assert len(opened) == 1
        assert len(records.assistants.list(PageRequest()).data) == 1
    finally:
        records.close()


def test_a_closed_one_is_refused_not_opened_again(records):
    records.open()
    threads = records.threads
    records.close()
    records.close()

    for ask in (lambda: records.threads.list(PageRequest()), lambda: threads.create()):
        with pytest.raises(StorageUnavailable, match="hostler is stopping"):
            ask()


def test_a_database_that_could_not_be_opened_is_tried_again_after_a_while(home, monkeypatch):
    home.mkdir()
    (home / "hostler.db").mkdir()
    records = Records(home)
    try:
        with pytest.raises(StorageUnavailable, match="cannot be opened") as first:
            records.open()
        (home / "hostler.db").rmdir()
        with pytest.raises(StorageUnavailable, match="cannot be opened") as second:
            records.open()
        monkeypatch.setattr(store, "RETRY_S", 0.0)
        records.open()
    finally:
        records.close()

    assert first.value is not second.value  # a raised error carries its own traceback


def loaded_after(code):
    """Which of the heavy packages a process has loaded when some code has run."""
    heavy = "print([name for name in ('sqlalchemy', 'alembic', 'psycopg') if name in sys.modules])"
    command = [sys.executable, "-c", f"import sys\n{code}\n{heavy}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_look_at_the_file_loads_no_sqlalchemy(home, sqlite_records):
    """It would cost a server's start a third of its time."""
    sqlite_records.threads.create()
    sqlite_records.close()
    code = f"from pathlib import Path; from hostler.records.store import Records; Records(Path({str(home)!r})).check()"

    assert loaded_after(code) == "[]"


def test_opening_a_new_home_and_an_old_one_loads_no_alembic(home):
    """It would cost the host 40 MB."""
    code = f"from pathlib import Path; from hostler.records.store import Records; Records(Path({str(home)!r})).open()"

    assert loaded_after(code) == "['sqlalchemy']"
    assert loaded_after(code) == "['sqlalchemy']"


@pytest.mark.parametrize("module", ["hostler.records.store", "hostler.records.objects", "hostler.runtime", "hostler.api.app"])
def test_a_module_that_a_server_needs_at_once_loads_no_sqlalchemy(module):
    assert loaded_after(f"import {module}") == "[]"
