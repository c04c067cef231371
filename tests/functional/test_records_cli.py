"""The commands for records and `import-jan` as processes of their own: with a server, without one, and beside others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from hostler.home import HomeLock
from support.jan import THREAD_ID, jan_folder
from support.server import DEADLINE_S, eventually, hostler_environment, run_hostler, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def hostler(home, *arguments, given=None):
    done = run_hostler(home, *arguments, given=given)
    assert done.returncode == 0, done.stderr
    return done


def listed(home, *arguments):
    return json.loads(hostler(home, *arguments, "--json").stdout)


def test_what_is_written_without_a_server_is_there_with_one_and_the_other_way_round(home):
    first = hostler(home, "threads", "create", "Without a server.").stdout.strip()

    with serving(home) as server:
        second = hostler(home, "threads", "create", "Through a server.").stdout.strip()
        own = hostler(home, "assistants", "create", "--id", "mine", "--name", "Mine").stdout.strip()
        answered = server.call("GET", "/v1/threads").json()["data"]
        assert [thread["id"] for thread in answered] == [second, first]
        assert listed(home, "threads", "list") == answered

    assert [thread["id"] for thread in listed(home, "threads", "list")] == [second, first]
    assert listed(home, "assistants", "show", own)["name"] == "Mine"


def test_export_and_import_do_the_same_with_a_server_and_without(home, tmp_path):
    folder = jan_folder(tmp_path / "jan")
    other, file, beside = tmp_path / "other", tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    hostler(home, "import-jan", str(folder))
    hostler(home, "messages", "create", THREAD_ID, "-", given="Grüße\n")
    hostler(home, "threads", "export", "--output", str(file))

    with serving(other):
        imported = hostler(other, "threads", "import", str(file))
        again = run_hostler(other, "threads", "import", str(file))
        hostler(other, "import-jan", str(folder))
        hostler(other, "threads", "export", "--output", str(beside))

    assert imported.stdout == "threads: 2 imported\nmessages: 5 imported\n"
    assert again.returncode == 1
    assert file.read_bytes() == beside.read_bytes()


def test_ids_beyond_ascii_are_found_with_a_server_and_without(home):
    line = json.dumps({"object": "thread", "id": "Gespräch 1%2?#漢", "title": "x"})
    hostler(home, "threads", "import", "-", given=line)

    assert listed(home, "threads", "show", "Gespräch 1%2?#漢")["title"] == "x"
    with serving(home):
        assert listed(home, "threads", "show", "Gespräch 1%2?#漢")["title"] == "x"
        hostler(home, "threads", "delete", "Gespräch 1%2?#漢")


def test_a_key_of_the_server_is_not_asked_of_the_command_line(home):
    with serving(home, "--api-key", "secret"):
        thread_id = hostler(home, "threads", "create").stdout.strip()
        hostler(home, "threads", "import", "--on-conflict", "skip", "-", given=json.dumps({"object": "thread", "id": "t"}))

        assert {thread["id"] for thread in listed(home, "threads", "list")} == {thread_id, "t"}


def test_an_export_under_writers_has_whole_threads_in_order(home, tmp_path):
    file = tmp_path / "out.jsonl"
    stop = threading.Event()
    with serving(home) as server:
        ids = [server.call("POST", "/v1/threads", {"title": str(number)}).json()["id"] for number in range(5)]

        def write():
            with server.client() as client:
                for number in range(10_000):
                    if stop.is_set():
                        return
                    path = f"/v1/threads/{ids[number % 5]}"
                    client.post(f"{path}/messages", json={"role": "user", "content": str(number)}).raise_for_status()
                    if number % 7 == 3:
                        doomed = client.post("/v1/threads", json={}).json()["id"]
                        client.delete(f"/v1/threads/{doomed}").raise_for_status()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(5):
                hostler(home, "threads", "export", "--output", str(file))
        finally:
            stop.set()
            writer.join(DEADLINE_S)

    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines if line["object"] == "thread"} >= set(ids)
    current = None
    numbers = []
    for line in lines:
        if line["object"] == "thread":
            current, numbers = line["id"], []
        else:
            assert line["thread_id"] == current
            numbers.append(int(line["content"][0]["text"]["value"]))
            assert numbers == sorted(numbers)


def test_an_import_killed_with_9_is_finished_by_doing_it_again(home, tmp_path):
    file = tmp_path / "in.jsonl"
    with file.open("w") as stream:
        for number in range(2000):
            stream.write(json.dumps({"object": "thread", "id": f"t{number}"}) + "\n")
            message = {"object": "thread.message", "id": "m", "role": "user", "content": "x" * 1000}
            stream.write(json.dumps(message) + "\n")
    with serving(home) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "hostler", "--home", str(home), "threads", "import", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=hostler_environment(),
        )
        eventually(lambda: server.call("GET", "/v1/threads").json()["data"], "the first thread is there")
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)

        done = listed(home, "threads", "import", str(file), "--on-conflict", "skip")

        with server.client() as client:
            assert client.get("/v1/threads/t1999/messages").json()["data"][0]["id"] == "m"
    assert sum(done["threads"].values()) == sum(done["messages"].values()) == 2000
    assert done["threads"].get("skipped", 0) == done["messages"].get("skipped", 0)  # whole, or not at all


def test_one_command_writes_at_a_time_and_reading_goes_on(home):
    with HomeLock(home, "pull"):
        refused = run_hostler(home, "threads", "create")
        assert listed(home, "threads", "list") == []

    assert refused.returncode == 1
    assert "`hostler pull`" in refused.stderr


def test_a_database_that_is_none_is_told_in_one_line_with_the_way_back(home):
    home.mkdir()
    (home / "hostler.db").write_bytes(b"this is no database" * 1000)

    for command in (("threads", "list"), ("threads", "create"), ("threads", "import", "-")):
        done = run_hostler(home, *command, given='{"object": "thread"}')
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert str(home / "hostler.db") in line
        assert "Traceback" not in line


def test_a_server_that_goes_away_during_an_import_is_told_in_one_line(home, tmp_path):
    file = tmp_path / "in.jsonl"
    lines = [json.dumps({"object": "thread", "id": f"t{number}", "title": "x" * 400}) for number in range(20_000)]
    file.write_text("\n".join(lines))
    with serving(home) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "hostler", "--home", str(home), "threads", "import", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=hostler_environment(),
        )

        def has_begun():
            try:
                return server.call("GET", "/v1/threads").json()["data"]
            except httpx.TransportError:
                return False

        eventually(has_begun, "the first thread is there")
        server.signal(signal.SIGKILL)
        out, said = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, out) == (1, "")
    (line,) = said.splitlines()
    assert "does not answer" in line
    assert "--on-conflict skip goes on" in line
