"""`GET /v1/events` over real sockets: what comes, where it goes on, and what ends it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from hostler.domain import Lifecycle
from support.server import eventually

DEADLINE_S = 30.0
Serve = Callable[..., str]


class Events:
    """The events of one open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.comments: list[str] = []
        assert next(self._lines) == "retry: 2000"
        assert next(self._lines) == ""

    def next(self) -> dict[str, Any] | None:
        """The next one; None at the end."""
        fields: dict[str, Any] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
                assert next(self._lines) == ""
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = json.loads(value) if name == "data" else value
            elif fields:
                return fields
        return None

    def take(self, count: int) -> list[dict[str, Any]]:
        found = []
        for _ in range(count):
            event = self.next()
            assert event is not None, f"it ended after {found}"
            found.append(event)
        return found


@contextlib.contextmanager
def opened(url: str, *, last: str | None = None, **query: str) -> Iterator[Events]:
    headers = {} if last is None else {"last-event-id": last}
    with httpx.stream("GET", f"{url}/v1/events", params=query, headers=headers, timeout=DEADLINE_S, trust_env=False) as answer:
        assert answer.status_code == 200, answer.read()
        yield Events(answer)


def tell(runtime: Any, *lifecycles: str, model: str = "phi") -> None:
    for lifecycle in lifecycles:
        runtime.events.model(lifecycle, runtime.model(model).manifest, Lifecycle.DOWNLOADED, Lifecycle(lifecycle))


def test_events_come_as_they_happen_with_id_name_and_object(serve: Serve, runtime: Any) -> None:
    with opened(serve()) as events:
        assert events.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert events.response.headers["cache-control"] == "no-cache"
        assert events.response.headers["x-accel-buffering"] == "no"
        tell(runtime, "starting", "running")

        starting, running = events.take(2)

    assert (starting["event"], running["event"]) == ("model.starting", "model.running")
    assert int(running["id"]) == int(starting["id"]) + 1
    assert running["data"]["id"] == "phi"
    assert running["data"]["event"] == "model.running"


def test_threads_are_in_the_stream_too(serve: Serve, runtime: Any) -> None:
    url = serve()
    with opened(url) as events:
        thread = httpx.post(f"{url}/v1/threads", json={"title": "Zwei\nZeilen"}, trust_env=False).json()

        (created,) = events.take(1)

    assert created["event"] == "thread.created"
    assert created["data"] == thread


def test_a_stream_begins_now_and_one_that_comes_back_goes_on_where_it_was(serve: Serve, runtime: Any) -> None:
    url = serve()
    with opened(url) as events:
        tell(runtime, "starting", "running")
        first = events.take(2)
    tell(runtime, "stopping", "stopped")

    with opened(url, last=first[0]["id"]) as by_header, opened(url, last_event_id=first[1]["id"]) as by_query:
        assert [event["event"] for event in by_header.take(3)] == ["model.running", "model.stopping", "model.stopped"]
        assert [event["event"] for event in by_query.take(2)] == ["model.stopping", "model.stopped"]
    with opened(url, last=first[1]["id"], last_event_id="0") as both:
        assert both.take(1)[0]["event"] == "model.stopping"


def test_types_choose_events(serve: Serve, runtime: Any) -> None:
    with opened(serve(), types="model.st*, thread.*") as events:
        tell(runtime, "running", "stopping")

        assert events.take(1)[0]["event"] == "model.stopping"


def test_what_is_no_longer_kept_is_told_first(serve: Serve, runtime: Any, records: Any) -> None:
    url = serve()
    with opened(url) as events:
        tell(runtime, *["starting", "running"] * 3)
        ids = [event["id"] for event in events.take(6)]
    records.events.prune(2)

    with opened(url, last=ids[0]) as events:
        gap, fifth, sixth = events.take(3)

    assert gap["event"] == "events.gap"
    assert gap["data"] == {"last_event_id": int(ids[0]), "first_kept_id": int(ids[4])}
    assert gap["id"] == str(int(ids[4]) - 1)  # who comes back with it goes on without another gap
    assert [fifth["id"], sixth["id"]] == ids[4:]


def test_silence_is_filled_with_comments(serve: Serve, runtime: Any) -> None:
    with opened(serve(keep_alive_s=0.05)) as events:
        timer = threading.Timer(0.5, lambda: tell(runtime, "starting"))
        timer.start()
        events.take(1)
        timer.join()

    assert events.comments
    assert set(events.comments) == {": keep-alive"}


def test_a_stream_holds_a_place_until_its_client_leaves(serve: Serve, runtime: Any) -> None:
    n_free = runtime.n_free
    with opened(serve()):
        assert runtime.held == ["event stream"]
        assert runtime.n_free == n_free - 1

    eventually(lambda: runtime.n_free == n_free, "the place is given back")


def test_no_place_is_429_and_a_database_that_cannot_be_used_503(client: Any, runtime: Any, records: Any) -> None:
    n_free = runtime.n_free
    records.close()
    away = client.simulate_get("/v1/events")
    assert runtime.n_free == n_free
    runtime.n_free = 0
    full = client.simulate_get("/v1/events")

    assert (away.status_code, away.json["error"]["code"]) == (503, "storage_unavailable")
    assert (full.status_code, full.json["error"]["code"]) == (429, "queue_full")


def test_head_takes_no_place_and_has_no_body(client: Any, runtime: Any) -> None:
    answer = client.simulate_head("/v1/events")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert runtime.held == []


@pytest.mark.parametrize(
    "value", ["x", "-1", "1.5", "99999999999999999999", "1" * 5000, "\u0663"], ids=lambda value: value[:20]
)
def test_a_last_id_that_is_none_is_400(client: Any, value: str) -> None:
    answer = client.simulate_get("/v1/events", params={"last_event_id": value})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "last_event_id")


@pytest.mark.parametrize(("types", "param"), [("modle.*", "types[0]"), ("model.*,x", "types[1]"), (",", "types")])
def test_types_that_mean_no_event_are_400(client: Any, types: str, param: str) -> None:
    answer = client.simulate_get("/v1/events", params={"types": types})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)


def test_the_end_of_the_host_ends_the_stream_after_the_last_event(serve: Serve, runtime: Any) -> None:
    with opened(serve()) as events:
        closing = threading.Thread(target=runtime.events.close)
        tell(runtime, "stopping", "stopped")
        closing.start()

        assert [event["event"] for event in events.take(2)] == ["model.stopping", "model.stopped"]
        assert events.next() is None
        closing.join(DEADLINE_S)
