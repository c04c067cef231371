"""kill -9 of a process that writes with all its threads: what was acknowledged is there, what is there is whole.

The writer prints a line after each call has returned. The test kills it at a random moment, opens the database as the next
start does, and compares. All rounds of a test work on one home, so that each meets what the crashes before it left.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostler.errors import ThreadNotFound
from hostler.records.objects import ACTIVE_RUN, PageRequest
from hostler.records.store import Records
from support.records import words_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")]

DEADLINE_S = 60
LONGEST_S = 0.4
"""A round writes for so long at most; some hundred calls are acknowledged in that time."""

WRITER = """
import hashlib, io, itertools, os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from hostler.records.store import Records
from support.records import run_of, says

home, url, shared, _, round_ = sys.argv[1:]
records = Records(Path(home), url)
records.open()


def acknowledge(*words):
    os.write(1, (" ".join(words) + "\\n").encode())  # one write: lines of two threads do not mix


def append(name):
    for number in itertools.count():
        records.messages.append(shared, [says(f"{name} {number} a"), says(f"{name} {number} b")])
        acknowledge("message", name, str(number))


def converse(name):
    for number in itertools.count():
        thread = records.threads.create(id=f"{name}_{number}", messages=[says("one"), says("two")])
        acknowledge("thread", thread.id)
        run = records.runs.create(run_of(thread.id, f"run_{thread.id}"), [says("question")])
        acknowledge("run", thread.id, run.id)
        records.runs.set_status(run.id, "in_progress")
        records.runs.finish(run.id, status="completed", message=says("answer", "assistant"))
        acknowledge("answer", thread.id, run.id)
        if number % 3 == 0:
            records.threads.delete(thread.id)
            acknowledge("deleted", thread.id)


def upload(name):
    for number in itertools.count():
        data = f"{name} {number // 2}".encode() * 5000  # every second one has the bytes of the one before
        file = records.files.create(io.BytesIO(data), filename="a", purpose="x", max_bytes=10**6)
        acknowledge("file", file.id, hashlib.sha256(data).hexdigest())
        if number % 3 == 0:
            records.files.delete(file.id)
            acknowledge("removed", file.id)


work = [append, append, converse, converse, upload]
threads = [threading.Thread(target=one, args=(f"{round_}.{index}",)) for index, one in enumerate(work)]
acknowledge("begun")
for thread in threads:
    thread.start()
"""


def killed_at_random(home, url, shared, round_):
    """Let a writer work for a while and kill it. Returns what it acknowledged, line by line."""
    command = [sys.executable, "-c", WRITER, str(home), url, shared, str(Path(__file__).resolve().parents[1]), round_]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n", writer.communicate()
        time.sleep(random.uniform(0.0, LONGEST_S))  # the moment shall be any moment
        writer.send_signal(signal.SIGKILL)
        output, problems = writer.communicate(timeout=DEADLINE_S)
    assert writer.returncode == -signal.SIGKILL, problems
    return [line.split() for line in output.splitlines()]


def check_messages(records, shared, lines, round_):
    """Each writer's messages: acknowledged ones are there, in order, in pairs, and no gap before the last."""
    own = [text for text in words_of(records.messages.all(shared)) if text.startswith(f"{round_}.")]
    for name in {text.split()[0] for text in own} | {line[1] for line in lines if line[0] == "message"}:
        found = [text for text in own if text.startswith(f"{name} ")]
        n_acknowledged = sum(line[:2] == ["message", name] for line in lines)
        assert found == [f"{name} {number} {letter}" for number in range(len(found) // 2) for letter in "ab"]
        assert len(found) // 2 in {n_acknowledged, n_acknowledged + 1}  # one may have been committed and not yet told


def check_threads(records, lines, round_):
    """Threads are whole or gone; a run is completed with its answer, or failed without."""
    said = {kind: {line[1] for line in lines if line[0] == kind} for kind in ("thread", "run", "answer", "deleted")}
    # A thread whose deletion was not acknowledged may be gone already: only its name shows that it was to go.
    found = {thread_id for thread_id in said["thread"] if is_there(records, thread_id)}
    gone = said["thread"] - found
    assert said["deleted"] <= gone
    assert all(int(thread_id.rsplit("_", 1)[1]) % 3 == 0 and thread_id in said["answer"] for thread_id in gone)
    listed = [one.id for one in records.threads.list(PageRequest(limit=100)).data if one.id.startswith(f"{round_}.")]
    for thread_id in {*found, *listed}:
        words = words_of(records.messages.all(thread_id))
        runs = records.runs.list(thread_id, PageRequest()).data
        assert len(runs) <= 1
        status = runs[0].status if runs else None
        assert (
            words
            == {
                None: ["one", "two"],
                "failed": ["one", "two", "question"],
                "completed": ["one", "two", "question", "answer"],
            }[status]
        )
        assert thread_id not in said["run"] or runs
        assert thread_id not in said["answer"] or status == "completed"
        if status == "failed":
            assert runs[0].last_error.message == "hostler was stopped while this run was going on"


def is_there(records, thread_id):
    try:
        records.threads.get(thread_id)
    except ThreadNotFound:
        return False
    return True


def check_files(records, home, lines):
    """Acknowledged files have their bytes; no bytes are there but those of files."""
    removed = {line[1] for line in lines if line[0] == "removed"}
    pending = [line for line in lines if line[0] == "file" and line[1] not in removed]
    for _, file_id, sha256 in pending[:-1]:  # the last one's deletion may have been committed and not yet told
        assert hashlib.sha256(records.files.path(file_id).read_bytes()).hexdigest() == sha256
    rows = every(records.files.list)
    blobs = {path for path in (home / "files").rglob("*") if path.is_file()}
    assert blobs == {records.files.path(row.id) for row in rows}


def every(ask):
    found, after = [], None
    while True:
        page = ask(PageRequest(limit=100, after=after))
        found += page.data
        after = page.last_id
        if not page.has_more:
            return found


def check_whole(records):
    """The database's own opinion, and no run is left that nobody works on."""
    with records.database.read() as connection:
        if records.database.is_sqlite:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").first() is None
        active = ", ".join(f"'{status}'" for status in sorted(ACTIVE_RUN))
        assert connection.exec_driver_sql(f"SELECT count(*) FROM runs WHERE status IN ({active})").scalar() == 0
        # Each message that is there has told of itself: the outbox was committed with it.
        n_told = connection.exec_driver_sql("SELECT count(*) FROM events WHERE name = 'message.created'").scalar()
        n_there = connection.exec_driver_sql("SELECT count(*) FROM messages").scalar()
        assert n_told >= n_there


@pytest.mark.parametrize("n_rounds", [50])
def test_what_was_acknowledged_survives_kill_9_and_what_is_there_is_whole(home, url, n_rounds):
    n_rounds = n_rounds if not url else n_rounds // 5
    records = Records(home, url)
    shared = records.threads.create().id
    records.close()
    n_acknowledged = 0

    for number in range(n_rounds):
        round_ = f"r{number}"
        lines = killed_at_random(home, url, shared, round_)
        n_acknowledged += len(lines)
        records = Records(home, url)
        try:
            records.check()
            check_messages(records, shared, lines, round_)
            check_threads(records, lines, round_)
            check_files(records, home, lines)
            check_whole(records)
        finally:
            records.close()

    assert n_acknowledged > n_rounds
