"""The stream of a run: OpenAI's named events, and the body that follows a run and writes them.

Floor 5; on the waitress thread that writes the stream. It only watches: a client that leaves ends the stream and not the run.

    event: thread.run.created          data: the object as it is then
    event: thread.message.delta        data: new text only
    event: done                        data: [DONE], after the run's last event, whatever that was
    event: error                       data: hostler's error form, where there is no run to tell more of; nothing follows it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from itertools import groupby
from typing import Any, Literal

import msgspec
from msgspec import Struct

from hostler.api.answers import KEEP_ALIVE_S, POLL_S
from hostler.api.errors import as_hostler_error, error_frame
from hostler.api.sse import KEEP_ALIVE
from hostler.errors import RequestCancelled
from hostler.liverun import LiveRun, RunEvent, TextDelta
from hostler.records.objects import Run

DONE = b"event: done\ndata: [DONE]\n\n"
ERROR = b"event: error\n"

_encode = msgspec.json.Encoder().encode


class DeltaText(Struct, frozen=True):
    """The inside of a piece of text."""

    value: str
    annotations: list[Any] = []


class DeltaPart(Struct, frozen=True):
    """A piece of the content part `index`."""

    text: DeltaText
    index: int = 0
    type: Literal["text"] = "text"


class Delta(Struct, frozen=True):
    """What is new of a message."""

    content: list[DeltaPart]


class MessageDelta(Struct, frozen=True):
    """The data of `thread.message.delta`."""

    id: str
    delta: Delta
    object: Literal["thread.message.delta"] = "thread.message.delta"


def frames(events: list[RunEvent]) -> bytes:
    """Events as they go over the wire; text that came in one breath makes one event."""
    return b"".join(_frames(events))


def _frames(events: list[RunEvent]) -> Iterator[bytes]:
    for is_text, group in groupby(events, lambda event: isinstance(event.data, TextDelta)):
        if not is_text:
            yield from (_frame(event.name, event.data) for event in group)
            continue
        first, *others = group
        assert isinstance(first.data, TextDelta)
        text = first.data.text + "".join(event.data.text for event in others if isinstance(event.data, TextDelta))
        yield _frame(first.name, MessageDelta(first.data.message_id, Delta([DeltaPart(DeltaText(text))])))


def _frame(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode(data))


class RunStream:
    """The body of a streamed run. `start` before the response begins, then iterate; the server closes it.

    No generator, for the reason that AnswerStream gives.
    """

    def __init__(
        self,
        live: LiveRun,
        request_id: str,
        is_client_gone: Callable[[], bool],
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        on_close: Callable[[], None],
    ) -> None:
        """Begin to follow.

        Args:
            on_close: Gives back what the stream holds; called once or more.
        """
        self._live = live
        self._request_id = request_id
        self._is_client_gone = is_client_gone
        self._keep_alive_s = keep_alive_s
        self._on_close = on_close
        self._chunks = self._run()

    def start(self) -> Run | None:
        """Wait until the run is recorded, so that a refusal still has a status; give up waiting when it is time for a
        keep-alive, which starts the response.

        Raises:
            RequestCancelled: The client has left; the run goes on.
            HostlerError: The run was refused.
        """
        deadline = time.monotonic() + self._keep_alive_s
        try:
            while (remaining_s := deadline - time.monotonic()) > 0:
                run = self._live.wait_recorded(min(POLL_S, remaining_s))
                if run is not None:
                    return run
                if self._is_client_gone():
                    raise RequestCancelled("The client has left")
            return None
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """Stop following. Idempotent."""
        self._chunks.close()
        self._on_close()

    def _run(self) -> Generator[bytes, None, None]:
        try:
            yield from self._events()
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001 - a bug, too, must reach the client as an error
            yield ERROR + error_frame(as_hostler_error(error, self._request_id), self._request_id)

    def _events(self) -> Iterator[bytes]:
        if self._live.run is None:
            yield KEEP_ALIVE
        written_at = time.monotonic()
        for news in self._live.follow(min(POLL_S, self._keep_alive_s)):
            if news is not None:
                yield frames(news)
                written_at = time.monotonic()
                continue
            if self._is_client_gone():
                return
            if time.monotonic() - written_at >= self._keep_alive_s:
                yield KEEP_ALIVE
                written_at = time.monotonic()
        yield DONE
