"""Webhooks and the stream of events of a whole server: which events, in which order, and that a kill -9 loses none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from hostler.events import ModelObject
from support.hub import FileServer
from support.receiver import Received, Receiver
from support.server import DEADLINE_S, Server, add_echo, eventually, run_hostler, serving
from support.tiny_gguf import tiny_gguf

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

SECRET = "whsec_c29tZSBrZXkgb2Ygc29tZSBsZW5ndGg="


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    add_echo(home)
    return home


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def configure(home: Path, url: str, events: str = '["model.*"]') -> None:
    (home / "config.toml").write_text(f'[[webhooks]]\nurl = "{url}"\nsecret = "{SECRET}"\nevents = {events}\n')


class Stream:
    """Reads `GET /v1/events` on a thread of its own."""

    def __init__(self, server: Server, **headers: str) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ids: list[int] = []
        self.is_open = threading.Event()
        self._server = server
        self._headers = headers
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        assert self.is_open.wait(DEADLINE_S)

    def _read(self) -> None:
        name = ""
        with (
            contextlib.suppress(Exception),
            self._server.client() as client,
            client.stream("GET", "/v1/events", params={"types": "model.*"}, headers=self._headers) as answer,
        ):
            for line in answer.iter_lines():
                self.is_open.set()
                field, _, value = line.partition(": ")
                if field == "id":
                    self.ids.append(int(value))
                elif field == "event":
                    name = value
                elif field == "data":
                    self.events.append((name, json.loads(value)))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def of(bodies: list[dict[str, Any]], model: str) -> list[str]:
    return [body["event"].removeprefix("model.") for body in bodies if body["id"] == model]


# -- which events -----------------------------------------------------------------------------------------------------


def test_every_change_of_a_models_state_is_told_once_in_order_to_webhook_and_stream(home: Path, receiver: Receiver) -> None:
    configure(home, receiver.url)
    add_echo(home, "refuses", manners={"load_refuse": "not today"})
    imported = home.with_name("late.echo")
    imported.write_text("{}")
    with FileServer() as files, serving(home) as server:
        stream = Stream(server)

        def post(path: str, body: Any = None, method: str = "POST") -> None:
            assert server.call(method, path, body).status_code == 200

        # A run, asked for twice, reloaded with other settings, changed, crashed, stopped twice.
        post("/v1/models/echo/start")
        post("/v1/models/echo/start")
        post("/v1/models/echo/start", {"n_parallel": 2})
        post("/v1/models/echo", {"parameters": {"temperature": 0.5}}, "PATCH")
        post("/v1/models/echo", {"parameters": {"temperature": 0.5}}, "PATCH")
        os.kill(server.worker_pid("echo"), signal.SIGKILL)
        eventually(lambda: of([body for _, body in stream.events], "echo").count("running") == 3, "the restart is told")
        post("/v1/models/echo/stop")
        post("/v1/models/echo/stop")
        post("/v1/models/echo", method="DELETE")
        # A start that fails.
        assert server.call("POST", "/v1/models/refuses/start").status_code == 500
        # Downloads: one that succeeds, asked for again when it is here, and one that fails.
        files.add("/tiny.gguf", tiny_gguf())
        for _ in range(2):
            post("/v1/models", {"source_url": f"{files.url}/tiny.gguf", "wait": True})
        assert server.call("POST", "/v1/models", {"source_url": f"{files.url}/none.gguf", "wait": True}).status_code == 502
        # An import, by the command line, which has the server do it.
        assert run_hostler(home, "import", str(imported)).returncode == 0
        # A model that runs when the server ends.
        post("/v1/models/late/start")
        assert server.stop() == 0
        log = server.log

    stream.thread.join(DEADLINE_S)
    bodies = [body for _, body in stream.events]
    assert of(bodies, "echo") == [
        *("starting", "running"),
        *("stopping", "stopped", "starting", "running", "updated"),
        *("starting", "running", "stopping", "stopped", "deleted"),
    ]
    assert of(bodies, "refuses") == ["starting", "start_failed"]
    assert of(bodies, "tiny") == ["downloading", "registered", "downloaded"]
    assert of(bodies, "none") == ["downloading", "download_failed"]
    assert of(bodies, "late") == ["registered", "downloaded", "starting", "running", "stopping", "stopped"]
    assert [name for name, _ in stream.events] == [body["event"] for body in bodies]
    assert stream.ids == sorted(set(stream.ids))

    # The same to the webhook, model by model, signed, and valid by the schema.
    assert len(receiver.got) == len(bodies), log
    received = [request.verify(SECRET) for request in receiver.got]
    for model in ("echo", "refuses", "tiny", "none", "late"):
        assert [one for one in received if one["id"] == model] == [one for one in bodies if one["id"] == model]
    for request in receiver.got:
        msgspec.json.decode(request.body, type=ModelObject, strict=True)
    with openai.OpenAI(api_key="unused", webhook_secret=SECRET) as client:
        client.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers)

    # What the bodies say.
    def find(model: str, event: str) -> dict[str, Any]:
        return next(body for body in reversed(bodies) if (body["id"], body["event"]) == (model, f"model.{event}"))

    crash = find("echo", "starting")
    assert (crash["previous_lifecycle"], crash["state"]) == ("running", "stopped")
    assert "signal 9" in crash["last_error"] or "SIGKILL" in crash["last_error"]
    failed = find("refuses", "start_failed")
    assert (failed["lifecycle"], failed["previous_lifecycle"]) == ("downloaded", "starting")
    assert "not today" in failed["last_error"]
    assert "404" in find("none", "download_failed")["last_error"]
    updated = find("echo", "updated")
    assert (updated["lifecycle"], updated["previous_lifecycle"], updated["state"]) == ("running", "running", "running")
    gone = find("echo", "deleted")
    assert (gone["deleted"], gone["previous_lifecycle"], gone["lifecycle"]) == (True, "stopped", "not_downloaded")


def test_a_start_that_is_stopped_ends_where_it_was_and_is_no_failure(home: Path) -> None:
    add_echo(home, "slow", manners={"load_s": 60})
    with serving(home) as server:
        stream = Stream(server)
        assert server.call("POST", "/v1/models/slow/start", {"wait": False}).json()["state"] == "starting"

        server.call("POST", "/v1/models/slow/stop")

        eventually(lambda: len(stream.events) >= 3, "its end is told")
        assert of([body for _, body in stream.events], "slow") == ["starting", "stopping", "downloaded"]
        assert all("last_error" not in body for _, body in stream.events)


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_what_a_kill_9_left_undelivered_is_delivered_by_the_next_server(home: Path, receiver: Receiver) -> None:
    """The receiver has the first event in its hands and has not answered: it must come again, and the later ones behind it."""
    configure(home, receiver.url)
    receiver.manners = lambda request: "hang"
    with serving(home) as server:
        assert server.call("POST", "/v1/models/echo/start").status_code == 200
        (first,) = receiver.wait_for(1)
        path = f"/v1/webhooks/{server.call('GET', '/v1/webhooks').json()['data'][0]['id']}"
        eventually(lambda: server.call("GET", path).json()["n_pending"] == 2, "both events wait")
        server.signal(signal.SIGKILL)
        server.wait()
    receiver.manners = lambda request: 204

    with serving(home) as server:
        received = receiver.wait_for(3)
        eventually(lambda: server.call("GET", path).json()["n_delivered"] == 2, "both are noted")

    assert [request.event for request in received] == ["model.starting", "model.starting", "model.running"]
    assert first.event == "model.starting"
    assert received[0].id == received[1].id
    assert all(request.verify(SECRET)["id"] == "echo" for request in received)


def test_a_kill_9_at_any_moment_loses_no_event_that_the_stream_has_shown(home: Path, receiver: Receiver) -> None:
    configure(home, receiver.url)
    shown: list[int] = []
    for _ in range(3):
        with serving(home) as server:
            stream = Stream(server, **({"last-event-id": str(shown[-1])} if shown else {}))
            caller = threading.Thread(target=_start_and_stop, args=(server,), daemon=True)
            caller.start()
            before = len(stream.ids)
            eventually(lambda s=stream, n=before: len(s.ids) >= n + 5, "events are shown")
            server.signal(signal.SIGKILL)
            server.wait()
            caller.join(DEADLINE_S)
            stream.thread.join(DEADLINE_S)
            shown += stream.ids
    with serving(home) as server:
        with (
            server.client() as client,
            client.stream("GET", "/v1/events", params={"last_event_id": 0, "types": "model.*"}) as all_,
        ):
            logged = _ids(all_, shown[-1])

        # Resumed by its last id, the stream missed none and repeated none; the webhook got each, some of them twice.
        assert shown == sorted(set(shown))
        assert set(shown) <= set(logged)
        eventually(lambda: len(_first_of_each(receiver.got)) >= len(logged), "everything is delivered")
    lifecycles = [request.json["lifecycle"] for request in _first_of_each(receiver.got)]
    starts = [index for index, lifecycle in enumerate(lifecycles) if lifecycle == "starting"]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        # A run is told in its order, up to where the kill came.
        run = lifecycles[start:end]
        assert run == ["starting", "running", "stopping", "stopped"][: len(run)]


def _start_and_stop(server: Server) -> None:
    with contextlib.suppress(Exception):
        while True:
            server.call("POST", "/v1/models/echo/start")
            server.call("POST", "/v1/models/echo/stop")


def _ids(answer: Any, last: int) -> list[int]:
    found = []
    for line in answer.iter_lines():
        if line.startswith("id: "):
            found.append(int(line[4:]))
            if found[-1] >= last:
                return found
    raise AssertionError("the log ended early")


def _first_of_each(requests: list[Received]) -> list[Received]:
    seen: dict[str, Received] = {}
    for request in list(requests):
        seen.setdefault(request.id, request)
    return list(seen.values())


def test_a_server_ends_promptly_though_a_receiver_hangs_and_a_stream_is_open(home: Path, receiver: Receiver) -> None:
    receiver.manners = lambda request: "hang" if request.path == "/hangs" else 204
    with serving(home, "--webhooks", f"{receiver.url}hangs", "--webhooks", receiver.url) as server:
        stream = Stream(server)
        server.call("POST", "/v1/models/echo/start")
        receiver.wait_for(3)
        started = time.monotonic()

        assert server.stop() == 0

        assert time.monotonic() - started < 20  # against 10 s for the receiver's timeout and 30 s to drain, on any machine
        stream.thread.join(DEADLINE_S)
        assert stream.names == ["model.starting", "model.running", "model.stopping", "model.stopped"]
        assert [one.event for one in receiver.got if one.path == "/"] == stream.names
        assert "Traceback" not in server.log


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_manages_webhooks_with_and_without_a_server(home: Path, receiver: Receiver) -> None:
    receiver.manners = lambda request: 200
    added = run_hostler(home, "webhooks", "add", f"{receiver.url}one", "--secret", SECRET, "--json")
    assert added.returncode == 0, added.stderr
    one = json.loads(added.stdout)
    assert (one["secret"], one["events"]) == ("whsec_***", ["model.*"])

    with serving(home) as server:
        two = json.loads(
            run_hostler(
                home, "webhooks", "add", f"{receiver.url}two", "--event", "thread.*", "--generate-secret", "--json"
            ).stdout
        )
        assert two["secret"].startswith("whsec_")
        listed = run_hostler(home, "webhooks", "list")
        assert f"{receiver.url}one" in listed.stdout
        assert two["secret"] not in listed.stdout
        tested = run_hostler(home, "webhooks", "test", two["id"])
        assert tested.returncode == 0, tested.stderr
        assert "200" in tested.stdout
        receiver.wait_for(1)[0].verify(two["secret"])
        by_url = run_hostler(home, "webhooks", "test", f"{receiver.url}one", "--json")
        assert json.loads(by_url.stdout)["is_delivered"] is True
        receiver.wait_for(2)[1].verify(SECRET)
        server.call("POST", "/v1/models/echo/start")
        eventually(lambda: "model.running" in receiver.events, "the webhook that was added before hears of it")
        gone = run_hostler(home, "webhooks", "rm", one["id"], f"{receiver.url}two")
        assert gone.returncode == 0, gone.stderr
        assert json.loads(run_hostler(home, "webhooks", "list", "--json").stdout) == []

    unknown = run_hostler(home, "webhooks", "rm", "nope")
    assert (unknown.returncode, unknown.stderr.strip()) == (1, "Error: The webhook nope does not exist")
    elsewhere = run_hostler(home, "webhooks", "test", f"{receiver.url}else", "--secret", "sesame")
    assert elsewhere.returncode == 0, elsewhere.stderr
    receiver.got[-1].verify(b"sesame")
    receiver.manners = lambda request: 500
    refused = run_hostler(home, "webhooks", "test", f"{receiver.url}else")
    assert refused.returncode == 1
    assert "the receiver answered 500" in refused.stderr
