"""`GET /v1/events`: what happens, as it happens, for as long as the client stays. Source: spec/API.md section 10.

Floor 5; a stream holds the waitress thread of its request and a place of `max_requests`.

    id: 42
    event: model.running
    data: {"id":"zephyr-7b","object":"model",...,"event":"model.running"}

A client that comes back names the last id it has seen in `Last-Event-ID`, as browsers do by themselves. Where that is older
than what is kept, the first event is `events.gap`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import falcon
import msgspec

from hostler.api.answers import KEEP_ALIVE_S, POLL_S, client_watch
from hostler.api.errors import error_frame
from hostler.api.sse import CONTENT_TYPE, KEEP_ALIVE
from hostler.errors import InvalidRequest
from hostler.events import Follower
from hostler.subscription import check_globs

if TYPE_CHECKING:
    from hostler.records.events import LoggedEvent
    from hostler.runtime import Runtime

ALL = ("*",)
GAP = "events.gap"
RETRY_MS = 2000
"""After which browsers connect again."""
MAX_ID = 2**63 - 1
MAX_DIGITS = 19
"""Of MAX_ID; Python refuses to read numbers of thousands of digits by an error of its own."""


class Events:
    """The stream of events."""

    def __init__(self, runtime: Runtime, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._runtime = runtime
        self._keep_alive_s = keep_alive_s

    def stream(self, req: falcon.Request, resp: falcon.Response) -> None:
        """streamEvents."""
        last_event_id = read_last_event_id(req)
        types = req.get_param("types")
        globs = ALL if not types else check_globs([part.strip() for part in types.split(",") if part.strip()], "types")
        resp.content_type = CONTENT_TYPE
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-accel-buffering", "no")
        if req.method == "HEAD":
            return
        with contextlib.ExitStack() as held:
            held.enter_context(self._runtime.hold("event stream"))
            follower = self._runtime.events.follow(last_event_id, globs)
            held.callback(follower.close)
            resp.stream = EventStream(follower, held.pop_all(), client_watch(req), self._keep_alive_s, req.context.request_id)


class EventStream:
    """The body of the answer; the server closes it. No generator: one that was never begun would not give its place back."""

    def __init__(
        self,
        follower: Follower,
        held: contextlib.ExitStack,
        is_client_gone: Callable[[], bool],
        keep_alive_s: float,
        request_id: str,
    ) -> None:
        self._follower = follower
        self._held = held
        self._is_client_gone = is_client_gone
        self._keep_alive_s = keep_alive_s
        self._request_id = request_id
        self._chunks = self._run()

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """Give the place back."""
        self._chunks.close()
        self._held.close()

    def _run(self) -> Generator[bytes, None, None]:
        yield b"retry: %d\n\n" % RETRY_MS  # also tells the client that it is connected
        if self._follower.gap is not None:
            gap = self._follower.gap
            yield frame(gap.first_kept_id - 1, GAP, msgspec.json.encode(gap))
        try:
            yield from self._frames()
        except Exception as error:  # noqa: BLE001 - a bug, too, must reach the client as an error
            yield b"event: error\n" + error_frame(error, self._request_id)

    def _frames(self) -> Iterator[bytes]:
        written_at = time.monotonic()
        for event in self._follower.events(min(POLL_S, self._keep_alive_s)):
            if event is not None:
                yield frame_of(event)
            elif self._is_client_gone():
                return
            elif time.monotonic() - written_at >= self._keep_alive_s:
                yield KEEP_ALIVE
            else:
                continue
            written_at = time.monotonic()


def read_last_event_id(req: falcon.Request) -> int | None:
    """Where to go on: the header of a browser that comes back wins over the query of the URL that it came by first.

    Raises:
        InvalidRequest: It is no id of an event.
    """
    for name, value in (("Last-Event-ID", req.get_header("last-event-id")), ("last_event_id", req.get_param("last_event_id"))):
        if value:
            if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS and int(value) <= MAX_ID):
                raise InvalidRequest(f"{name} is {value!r}; allowed: the id of an event", param=name)
            return int(value)
    return None


def frame_of(event: LoggedEvent) -> bytes:
    """One event of the log."""
    return frame(event.id, event.name, event.body)


def frame(event_id: int, name: str, body: bytes) -> bytes:
    """One event; JSON has no line ends of its own."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event_id, name.encode(), body)
