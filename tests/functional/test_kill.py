"""kill -9 of the host at random moments under concurrent writers: what was acknowledged is there, what is there is whole.

Each writer keeps a book of what it has done: before a request it notes what may be true from now on, after the answer what
must be. So after a crash the request that was under way may have happened or not; nothing else is in doubt, nothing may be
half done, and nothing may be there that nobody wrote.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from support.server import DEADLINE_S, Server, hostler_environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

N_ROUNDS = 50
SEED = 20231121
MOST_ANSWERS = 60
"""Of all writers together in one round, before the kill: so a slow machine writes as much as a fast one."""
JITTER_S = 0.02
"""After the last of them: some requests' worth."""
STARTS_KILLED = 0.2
"""Share of rounds in which a server is killed while it starts, too."""
ABSENT = None
"""The state of what is not there."""
TIMEOUT_S = 30.0

State = Any


def text_of(mark: str) -> str:
    """What a message with this mark says: always the same, of any length up to some kilobytes, not only ASCII."""
    chance = random.Random(mark)
    return mark + ":" + "".join(chance.choices("abc äöü 漢字 \n\"\\'{}🙂", k=chance.choice((0, 7, 300, 5000))))


def bytes_of(mark: str) -> bytes:
    """What a file with this mark holds. Every fourth has the bytes of another: equal ones are kept once."""
    name, number = mark.rsplit("-", 1)
    chance = random.Random(f"{name}-{int(number) - int(number) % 4 % 2}")
    return chance.randbytes(chance.choice((0, 1, 5000, 300_000)))


class Book:
    """What one writer has done; its own while it writes, the test's afterwards."""

    def __init__(self, answers: threading.Semaphore) -> None:
        """Take what counts the answers of all writers."""
        self._answers = answers
        self.possible: dict[str, list[State]] = {}
        """Mark -> the states that may be true now; the last one is what was asked for last."""
        self.ids: dict[str, str] = {}
        """Mark -> the server's id, once it has told one."""
        self.touched: set[str] = set()
        """Since the last kill."""
        self.n_acknowledged = 0

    def ask(self, mark: str, state: State, call: Callable[[], httpx.Response]) -> dict[str, Any]:
        """Ask for a new state; a request that is cut off leaves both states possible."""
        self.touched.add(mark)
        self.possible[mark] = [*self.possible.get(mark, [ABSENT]), state]
        response = call()
        assert response.status_code == 200, f"{response.request.method} {response.request.url}: {response.text}"
        self.possible[mark] = [state]
        self.n_acknowledged += 1
        self._answers.release()
        found: dict[str, Any] = response.json()
        self.ids.setdefault(mark, found["id"])
        return found

    def known(self) -> list[str]:
        """Marks of what is certainly there."""
        return [mark for mark, states in self.possible.items() if len(states) == 1 and states[0] is not ABSENT]

    def compare(self, marks: set[str], found: dict[str, tuple[str, State]]) -> None:
        """Hold what is there against what may be; from now on it is what is there."""
        for mark in marks:
            id, state = found.get(mark, ("", ABSENT))
            assert state in self.possible[mark], f"{mark} is {state!r:.300}; possible: {self.possible[mark]!r:.600}"
            self.possible[mark] = [state]
            if state is not ABSENT:
                assert self.ids.setdefault(mark, id) == id
        strangers = set(found) - set(self.possible)
        assert not strangers, f"nobody wrote {sorted(strangers)}"


class Writer:
    """One thread that writes until its connection breaks."""

    def __init__(self, name: str, seed: int, answers: threading.Semaphore) -> None:
        self.name = name
        self.book = Book(answers)
        self.chance = random.Random(seed)
        self._n_made = 0
        self._error: BaseException | None = None

    def run(self, url: str) -> None:
        """Write until the server is gone."""
        try:
            with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S) as client:
                while True:
                    self.step(client)
        except httpx.TransportError:
            pass  # killed
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self._error = error

    def check_error(self) -> None:
        if self._error is not None:
            raise self._error

    def new_mark(self) -> str:
        self._n_made += 1
        return f"{self.name}-{self._n_made}"

    def step(self, client: httpx.Client) -> None:
        raise NotImplementedError

    def found(self, client: httpx.Client, marks: set[str] | None) -> dict[str, tuple[str, State]]:
        """What is there, by mark; only that of some marks in full, if they are given."""
        raise NotImplementedError


def every(client: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    """All items of a list, the oldest first."""
    query = {"limit": "100", "order": "asc"}
    while True:
        answer = client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield from page["data"]
        if not page["has_more"]:
            return
        query["after"] = page["last_id"]


def said(message: dict[str, Any]) -> str:
    """A message's text; it must be one whole part."""
    (part,) = message["content"]
    return str(part["text"]["value"])


class Threads(Writer):
    """Makes threads with messages, adds to them, renames and deletes them. State: the title and the messages' texts."""

    def step(self, client: httpx.Client) -> None:
        known = self.book.known()
        deed = self.chance.choice(("make", "make", "add", "add", "rename", "delete")) if known else "make"
        if deed == "make":
            mark = self.new_mark()
            texts = [text_of(f"{mark}/{index}") for index in range(self.chance.randrange(4))]
            body = {
                "title": f"{mark} new",
                "metadata": {"mark": mark},
                "messages": [{"role": "user", "content": text} for text in texts],
            }
            self.book.ask(mark, (body["title"], tuple(texts)), lambda: client.post("/v1/threads", json=body))
            return
        mark = self.chance.choice(known)
        (title, texts), path = self.book.possible[mark][0], f"/v1/threads/{self.book.ids[mark]}"
        if deed == "delete":
            self.book.ask(mark, ABSENT, lambda: client.delete(path))
        elif deed == "rename":
            title = f"{mark} {self.chance.random()}"
            self.book.ask(mark, (title, texts), lambda: client.post(path, json={"title": title}))
        else:
            # By modifyThread: the title and the message are one transaction.
            text, title = text_of(f"{mark}/{len(texts)}"), f"{mark} with {len(texts) + 1}"
            body = {"title": title, "messages": [{"role": "assistant", "content": text}]}
            self.book.ask(mark, (title, (*texts, text)), lambda: client.patch(path, json=body))

    def found(self, client: httpx.Client, marks: set[str] | None) -> dict[str, tuple[str, State]]:
        found: dict[str, tuple[str, State]] = {}
        for thread in every(client, "/v1/threads"):
            mark = thread["metadata"].get("mark", "")
            if mark.startswith(self.name):
                assert mark not in found, f"{mark} is there twice"
                found[mark] = thread["id"], ()
                if marks is None or mark in marks:
                    messages = list(every(client, f"/v1/threads/{thread['id']}/messages"))
                    assert [message["id"] for message in messages][-100:] == thread["messages"]
                    found[mark] = thread["id"], (thread["title"], tuple(map(said, messages)))
        return found


class Messages(Writer):
    """Writes into a thread that another writer writes into, too, and takes some messages out. State: the text."""

    thread_id = ""

    def step(self, client: httpx.Client) -> None:
        path = f"/v1/threads/{self.thread_id}/messages"
        known = self.book.known()
        if known and self.chance.random() < 0.1:
            mark = self.chance.choice(known)
            self.book.ask(mark, ABSENT, lambda: client.delete(f"{path}/{self.book.ids[mark]}"))
            return
        mark = self.new_mark()
        body = {"role": "user", "content": text_of(mark), "metadata": {"mark": mark}}
        self.book.ask(mark, body["content"], lambda: client.post(path, json=body))

    def found(self, client: httpx.Client, marks: set[str] | None) -> dict[str, tuple[str, State]]:
        found = {}
        numbers = []
        for message in every(client, f"/v1/threads/{self.thread_id}/messages"):
            mark = message["metadata"]["mark"]
            if mark.startswith(self.name):
                assert mark not in found, f"{mark} is there twice"
                found[mark] = message["id"], said(message)
                numbers.append(int(mark.rpartition("-")[2]))
        assert numbers == sorted(numbers), "the order in which one writer wrote is not kept"
        return found


class Assistants(Writer):
    """Makes, changes and deletes assistants. State: instructions and model, which change together."""

    def step(self, client: httpx.Client) -> None:
        known = self.book.known()
        deed = self.chance.choice(("make", "change", "change", "delete")) if known else "make"
        mark = self.new_mark() if deed == "make" else self.chance.choice(known)
        path = f"/v1/assistants/{self.book.ids.get(mark, '')}".rstrip("/")
        if deed == "delete":
            self.book.ask(mark, ABSENT, lambda: client.delete(path))
            return
        model = f"model-{self.chance.randrange(1000)}"
        body = {"name": mark, "model": model, "instructions": text_of(f"{mark}/{model}"), "metadata": {"mark": mark}}
        self.book.ask(mark, (body["instructions"], model), lambda: client.post(path, json=body))

    def found(self, client: httpx.Client, marks: set[str] | None) -> dict[str, tuple[str, State]]:
        found = {}
        for assistant in every(client, "/v1/assistants"):
            mark = assistant["metadata"].get("mark")
            if mark is not None:
                assert mark not in found, f"{mark} is there twice"
                assert assistant["models"] == [{"model_id": assistant["model"]}]
                found[mark] = assistant["id"], (assistant["instructions"], assistant["model"])
        return found


class Files(Writer):
    """Uploads and deletes files. State: the SHA-256."""

    def step(self, client: httpx.Client) -> None:
        known = self.book.known()
        if known and self.chance.random() < 0.3:
            mark = self.chance.choice(known)
            self.book.ask(mark, ABSENT, lambda: client.delete(f"/v1/files/{self.book.ids[mark]}"))
            return
        mark = self.new_mark()
        form = {"files": {"file": (mark, bytes_of(mark))}, "data": {"purpose": "assistants"}}
        self.book.ask(mark, hashlib.sha256(bytes_of(mark)).hexdigest(), lambda: client.post("/v1/files", **form))

    def found(self, client: httpx.Client, marks: set[str] | None) -> dict[str, tuple[str, State]]:
        found = {}
        for file in every(client, "/v1/files"):
            mark = file["filename"]
            assert mark not in found, f"{mark} is there twice"
            if marks is None or mark in marks:
                content = client.get(f"/v1/files/{file['id']}/content")
                assert content.status_code == 200, content.text
                assert len(content.content) == file["bytes"]
                found[mark] = file["id"], hashlib.sha256(content.content).hexdigest()
            else:
                found[mark] = file["id"], ABSENT
        return found


def kill(process: subprocess.Popen[Any]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)


def kill_while_starting(home: Any, after_s: float) -> None:
    """Start a server and kill it, wherever it is by then: before, within or after the opening of its database."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hostler", "serve", "--port", "0", "--home", str(home)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=hostler_environment(),
        start_new_session=True,
    )
    time.sleep(after_s)  # the moment itself is what is random
    kill(process)


def check(server: Server, writers: list[Writer], *, is_all: bool) -> None:
    """Compare what is there with what may be."""
    with server.client() as client:
        for writer in writers:
            marks = set(writer.book.possible) if is_all else set(writer.book.touched)
            writer.book.compare(marks, writer.found(client, None if is_all else marks))
            writer.book.touched.clear()
        hashes = {state for states in files_of(writers).book.possible.values() for state in states if state is not ABSENT}
    folder = server.home / "files"
    blobs = {path.parent.name + path.name for path in folder.glob("??/*")}
    assert blobs == hashes, "the bytes under HOME/files are not those of the files that are listed"
    assert list((folder / "incoming").glob("*")) == []


def files_of(writers: list[Writer]) -> Files:
    return next(writer for writer in writers if isinstance(writer, Files))


def test_what_was_acknowledged_survives_kill_9_and_what_is_there_is_whole(tmp_path):
    home = tmp_path / "home"
    chance = random.Random(SEED)
    kinds = ((Threads, "thread"), (Messages, "left"), (Messages, "right"), (Assistants, "assistant"), (Files, "file"))
    answers = threading.Semaphore(0)
    writers = [kind(name, SEED + number, answers) for number, (kind, name) in enumerate(kinds)]
    server = Server(home)
    try:
        kill_while_starting(home, 0.2)
        for number in range(N_ROUNDS):
            if chance.random() < STARTS_KILLED:
                kill_while_starting(home, chance.uniform(0.0, 0.8))
            server = Server(home).start()
            if number == 0:
                Messages.thread_id = server.call("POST", "/v1/threads", {"title": "shared"}).json()["id"]
            check(server, writers, is_all=False)
            workers = [threading.Thread(target=writer.run, args=(server.url,)) for writer in writers]
            for worker in workers:
                worker.start()
            for _ in range(chance.randrange(MOST_ANSWERS)):
                if not answers.acquire(timeout=TIMEOUT_S):
                    for writer in writers:
                        writer.check_error()
                    pytest.fail("the server answered nothing more")
            time.sleep(chance.uniform(0.0, JITTER_S))  # the moment itself is what is random
            kill(server.process)
            for worker in workers:
                worker.join(DEADLINE_S)
                assert not worker.is_alive()
            while answers.acquire(blocking=False):
                pass  # what came after the last one that was waited for
            for writer in writers:
                writer.check_error()

        server = Server(home).start()
        check(server, writers, is_all=True)
        assert server.stop() == 0
    except BaseException as error:
        error.add_note(f"round {number}, seed {SEED}; log of the server:\n{server.log[-4000:]}")
        raise
    finally:
        server.clean_up()

    assert all(writer.book.n_acknowledged > 2 * N_ROUNDS for writer in writers), "too little was written to say anything"
    with sqlite3.connect(home / "hostler.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        orphans = "SELECT count(*) FROM messages WHERE thread_id NOT IN (SELECT id FROM threads)"
        assert connection.execute(orphans).fetchone() == (0,)
    connection.close()
