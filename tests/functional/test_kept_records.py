"""Records behind a real server: kept over kill -9 on PostgreSQL, too, and refused with a reason when they cannot be."""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
import threading
import time

import httpx
import pytest

from support.server import DEADLINE_S, run_hostler, serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

N_ROUNDS = 10
LONGEST_S = 0.4
"""Writers of a round work for so long at most before the host is killed."""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


# -- what is kept -------------------------------------------------------------------------------------------------------


def words_of(client, thread):
    """All texts of a thread, in order."""
    found, after = [], None
    while True:
        query = {"limit": 100, "order": "asc", **({"after": after} if after else {})}
        page = client.get(f"/v1/threads/{thread}/messages", params=query).json()
        found += [message["content"][0]["text"]["value"] for message in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            return found


def write_until_killed(server, shared, name, acknowledged):
    """Write into the shared thread and make threads of its own; note what was answered with 200."""
    number = 0
    with server.client() as client:
        try:
            while True:
                words = f"{name} {number}"
                answer = client.post(f"/v1/threads/{shared}/messages", json={"role": "user", "content": words})
                assert answer.status_code == 200, answer.text
                acknowledged.append(("message", words))
                two = [{"role": "user", "content": f"{words} {letter}"} for letter in "ab"]
                answer = client.post("/v1/threads", json={"title": words, "messages": two})
                assert answer.status_code == 200, answer.text
                acknowledged.append(("thread", answer.json()["id"]))
                number += 1
        except httpx.TransportError:
            pass  # the host is gone; what it had not answered may be there or not


def check_round(server, shared, acknowledged, names):
    with server.client() as client:
        words = words_of(client, shared)
        for name in names:
            own = [text for text in words if text.startswith(f"{name} ")]
            n_acknowledged = sum(kind == "message" and text.startswith(f"{name} ") for kind, text in acknowledged)
            assert own == [f"{name} {number}" for number in range(len(own))]
            assert len(own) in {n_acknowledged, n_acknowledged + 1}
        newest = client.get("/v1/threads", params={"limit": 20}).json()["data"]  # whether acknowledged or not
        threads = {id for kind, id in acknowledged if kind == "thread"} | {thread["id"] for thread in newest}
        for thread_id in threads - {shared}:
            one, two = words_of(client, thread_id)
            assert (one[-2:], two) == (" a", f"{one[:-2]} b")


def kill_again_and_again(home, n_rounds, *flags):
    """Kill a host in each round and look in the next what is there. Returns how much was acknowledged in all."""
    shared, acknowledged, names = "", [], []
    n_acknowledged = 0
    for number in range(n_rounds + 1):
        with serving(home, *flags) as server:
            if number:
                check_round(server, shared, acknowledged, names)
                n_acknowledged += len(acknowledged)
            else:
                shared = server.call("POST", "/v1/threads").json()["id"]
            if number == n_rounds:
                assert server.stop() == 0
                break
            acknowledged, names = [], [f"r{number}.{writer}" for writer in range(4)]
            writers = [
                threading.Thread(target=write_until_killed, args=(server, shared, name, acknowledged)) for name in names
            ]
            for writer in writers:
                writer.start()
            time.sleep(random.uniform(0.0, LONGEST_S))  # the moment shall be any moment
            server.signal(signal.SIGKILL)
            for writer in writers:
                writer.join(DEADLINE_S)
            server.wait()
    return n_acknowledged


def test_what_a_host_acknowledged_survives_kill_9_on_postgresql_too(home, empty_postgresql):
    """On SQLite test_kill.py does this, more thoroughly."""
    assert kill_again_and_again(home, N_ROUNDS, "--database", empty_postgresql) > N_ROUNDS

    assert not (home / "hostler.db").exists()


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(home):
    """The database of a server that has ended."""
    messages = [{"role": "user", "content": "x" * 5000}] * 40
    with serving(home) as server:
        assert server.call("POST", "/v1/threads", {"title": "kept", "messages": messages}).status_code == 200
        assert server.stop() == 0
    return home / "hostler.db"


def refusal(home, *flags):
    """The one line with which `hostler serve` ends."""
    done = run_hostler(home, "serve", "--port", "0", *flags)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_a_newer_database_ends_the_start_with_one_line(home, file):
    connection = sqlite3.connect(file)
    connection.execute("UPDATE hostler_revision SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = file.read_bytes()

    line = refusal(home)

    assert f"{file} was written by a newer hostler" in line
    assert file.read_bytes() == before


def test_a_damaged_database_ends_the_start_with_one_line_and_moving_it_away_is_the_way_back(home, file):
    file.write_bytes(b"garbage" * 1000)

    line = refusal(home)

    assert f"{file} is damaged or no database" in line
    file.rename(home / "damaged.db")
    with serving(home) as server:
        assert server.call("GET", "/v1/threads").json()["data"] == []


def test_a_postgresql_that_does_not_answer_ends_the_start_with_one_line(home):
    line = refusal(home, "--database", "postgresql://user:secret@127.0.0.1:1/hostler")

    assert "postgresql://user@127.0.0.1:1/hostler cannot be used" in line
    assert "secret" not in line


def test_a_url_of_no_database_ends_the_start_with_one_line(home):
    assert "hostler keeps records in postgresql://" in refusal(home, "--database", "mysql://user@host/name")


def test_a_database_that_another_program_locks_is_503_for_writes_and_200_again_afterwards(home, file):
    with serving(home) as server:
        (thread,) = server.call("GET", "/v1/threads").json()["data"]
        path = f"/v1/threads/{thread['id']}/messages"
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            answer = server.call("POST", path, {"role": "user", "content": "x"})
            assert answer.status_code == 503
            error = answer.json()["error"]
            assert error["code"] == "storage_unavailable"
            assert f"{file} has been locked by another program" in error["message"]
            assert "retry-after" in answer.headers
            assert server.call("GET", path).status_code == 200
        finally:
            other.close()

        assert server.call("POST", path, {"role": "user", "content": "x"}).status_code == 200
        assert "Traceback" not in server.log


def test_a_database_damaged_where_the_start_does_not_look_is_503_and_never_a_traceback(home, file):
    data = bytearray(file.read_bytes())
    half = len(data) // 2 // 4096 * 4096
    data[half:] = random.randbytes(len(data) - half)
    file.write_bytes(data)

    with serving(home) as server:
        answer = server.call("GET", "/v1/threads")  # asks for the ids of messages, too

        assert answer.status_code == 503
        assert f"{file} is damaged or no database" in answer.json()["error"]["message"]
        assert server.call("GET", "/v1/models").status_code == 200  # models need no records
        assert "Traceback" not in server.log
        assert server.stop() == 0
