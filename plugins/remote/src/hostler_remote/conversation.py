"""One answer on its way from the upstream to the engine thread.

Two threads. The event loop's runs `run`, and puts what comes into `items`; the engine thread takes it out (`next`, `drained`)
and may cancel. `items` is a deque, whose append and popleft are atomic; the two counters are each written by one thread only.
When more waits than fits, `run` reads no further until some is taken, so that a slow client slows its upstream down by TCP.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterable

import httpx
import msgspec

from hostler import ContextLengthExceeded, EngineFailed, EngineUnavailable, FinishReason, HostlerError
from hostler_remote.answers import Ending, Item, Piece, Reading, UpstreamError
from hostler_remote.dialect import CUT_MAX_TOKENS, Call
from hostler_remote.eventloop import LoopThread
from hostler_remote.events import MAX_EVENT_BYTES, EventReader, TooLong
from hostler_remote.refusals import refusal, said_of
from hostler_remote.upstream import Upstream

log = logging.getLogger("hostler.remote")

MAX_WAITING_BYTES = 256 * 1024
MIN_WAITING_BYTES = 64 * 1024
PIECE_BYTES = 64
"""What a piece costs beside its text."""
PIECES_A_TOKEN = 4
"""An upstream that goes on after so many pieces for each token of max_tokens does not know max_tokens."""
LAST_WORDS_S = 10.0
"""After the answer's end, for the count of its tokens."""


class Conversation:
    """One request to the upstream, and its answer."""

    def __init__(self, call: Call, upstream: Upstream, thread: LoopThread, wake: Callable[[], None]) -> None:
        """Nothing is sent yet.

        Args:
            wake: Called on the event loop's thread when `items` has more.
        """
        self.items: deque[Item] = deque()
        self._call = call
        self._upstream = upstream
        self._thread = thread
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._n_put = 0
        """Bytes; written by the event loop's thread."""
        self._n_taken = 0
        """Bytes; written by the engine thread."""
        self._room: asyncio.Event | None = None
        """Set while `run` waits for room; replaced, never reused."""
        self._n_pieces = 0

    # -- engine thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the request."""
        self._thread.call(self._start)

    def cancel(self) -> None:
        """Hang up; nothing more is to be taken."""
        self._thread.call(self._cancel)

    def next(self) -> Item:
        """Take one item; there must be one."""
        item = self.items.popleft()
        self._n_taken += _size(item)
        return item

    def drained(self) -> None:
        """Tell `run` that there is room again, if it waits for it."""
        room = self._room
        if room is not None and self._n_put - self._n_taken <= MIN_WAITING_BYTES:
            self._room = None
            self._thread.call(room.set)

    # -- event loop's thread ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._is_cancelled:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _put(self, items: Iterable[Item]) -> None:
        for item in items:
            self.items.append(item)
            self._n_put += _size(item)
        # Each time: whether the engine thread has seen the last item already is not to be known from here.
        self._wake()

    async def _run(self) -> None:
        try:
            ending = await self._talk()
        except HostlerError as error:
            self._put([error])
        except Exception as error:  # noqa: BLE001 - a bug costs its answer
            hide = self._upstream.key.hide
            log.error("%s", hide(traceback.format_exc()))
            self._put([EngineFailed(f"The remote engine failed: {type(error).__name__}: {hide(str(error))}")])
        else:
            self._put([ending])

    async def _talk(self) -> Ending:
        try:
            return await self._ask(has_limit=True)
        except ContextLengthExceeded:
            if self._n_pieces or self._upstream.description.kind in CUT_MAX_TOKENS:
                raise
        # Prompt and max_tokens together may be too much where the prompt alone is not: hostler's promise is to cut the
        # answer to what is left, which is what upstreams do that are not told a limit. If it is the prompt, they say so again.
        return await self._ask(has_limit=False)

    async def _ask(self, *, has_limit: bool) -> Ending:
        upstream, description = self._upstream, self._upstream.description
        reading = Reading(self._call)
        limit = ("no answer", description.first_byte_timeout_s)
        try:
            async with asyncio.timeout(None) as deadline:
                response = await upstream.open(self._call.path, self._call.encoded(has_limit=has_limit), deadline)
                limit = ("nothing more", description.idle_timeout_s)
                try:
                    await self._read(response, reading, deadline)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            if reading.reason is None:
                upstream.breaker.failed()
                raise upstream.too_slow(*limit) from error
        except asyncio.CancelledError:
            upstream.breaker.given_up()
            raise
        except (httpx.TransportError, httpx.DecodingError, OSError) as error:
            if reading.reason is None:
                upstream.breaker.failed()
                raise self._broken(str(error) or type(error).__name__) from error
        if reading.reason is None:
            upstream.breaker.failed()
            raise self._broken("it ended without an end")
        upstream.breaker.succeeded()
        return reading.ending()

    async def _read(self, response: httpx.Response, reading: Reading, deadline: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        idle_s = self._upstream.description.idle_timeout_s
        deadline.reschedule(loop.time() + idle_s)
        is_stream = "json" not in response.headers.get("content-type", "")
        events = EventReader()
        whole: list[bytes] = []
        n_whole = 0
        chunks = response.aiter_raw() if "content-encoding" not in response.headers else response.aiter_bytes()
        async for data in chunks:
            if is_stream:
                self._take(self._events(events, data), reading)
            else:
                whole.append(data)
                n_whole += len(data)
                if n_whole > MAX_EVENT_BYTES:
                    self._upstream.breaker.failed()
                    raise self._broken("it sent an answer without an end")
            if reading.is_done or self._is_over_limit(reading):
                return
            if self._n_put - self._n_taken > MAX_WAITING_BYTES:
                deadline.reschedule(None)
                await self._wait_for_room()
            deadline.reschedule(loop.time() + (idle_s if reading.reason is None else min(idle_s, LAST_WORDS_S)))
        self._take(events.finish() if is_stream else [b"".join(whole)], reading)

    def _events(self, events: EventReader, data: bytes) -> list[bytes]:
        try:
            return events.feed(data)
        except TooLong as error:
            self._upstream.breaker.failed()
            raise self._broken(f"it sent {error}") from error

    def _take(self, payloads: list[bytes], reading: Reading) -> None:
        """Read payloads and hand over what is in them, in one go."""
        if not payloads:
            return
        had_begun = reading.has_begun
        found: list[Item] = []
        try:
            for payload in payloads:
                if reading.is_done:
                    break
                found += reading.take(payload)
        except UpstreamError as error:
            raise self._refused(error) from error
        except msgspec.DecodeError as error:
            self._upstream.breaker.failed()
            raise self._broken(f"it sent what is no chunk of an answer ({error})") from error
        finally:
            if found:
                self._n_pieces += len(found)
                self._put(found)
        if reading.has_begun and not had_begun:
            self._upstream.breaker.answered()

    def _refused(self, error: UpstreamError) -> HostlerError:
        refused = refusal(None, said_of(error.error, self._upstream.key), self._upstream.description)
        if isinstance(refused, EngineUnavailable | EngineFailed):
            self._upstream.breaker.failed()
        else:
            self._upstream.breaker.answered()
        return refused

    def _is_over_limit(self, reading: Reading) -> bool:
        if self._n_pieces <= PIECES_A_TOKEN * self._call.max_tokens + PIECES_A_TOKEN:
            return False
        log.warning("%s does not keep to max_tokens; the answer is cut", self._upstream.description.place)
        reading.reason = reading.reason or FinishReason.LENGTH
        return True

    async def _wait_for_room(self) -> None:
        room = asyncio.Event()
        self._room = room
        if self._n_put - self._n_taken <= MIN_WAITING_BYTES:  # all taken between the look and the mark
            self._room = None
            return
        await room.wait()

    def _broken(self, reason: str) -> EngineUnavailable:
        return EngineUnavailable(
            f"The answer of the upstream of this model, {self._upstream.description.place}, broke off: "
            f"{self._upstream.key.hide(reason)}",
            retry_after_s=1.0,
        )


def _size(item: Item) -> int:
    if isinstance(item, bytes):
        return PIECE_BYTES + len(item)
    return PIECE_BYTES * (2 + len(item.logprob.top)) + len(item.text) if isinstance(item, Piece) else PIECE_BYTES
