"""From a generation's events to an answer: collected into one, or streamed as they come.

Floor 5; everything here runs on the waitress thread of its request, which is also the only reader of the generation. The
generation is closed exactly once, whatever happens: the end, an error, a client that leaves before or while it is served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import falcon

from hostler.api.errors import as_hostler_error, error_frame
from hostler.api.log import GenerationRecord
from hostler.api.sse import DONE, KEEP_ALIVE
from hostler.domain import (
    FinishEvent,
    FinishReason,
    GenerationEvent,
    PrefillEvent,
    TextEvent,
    Timings,
    TokenLogprob,
    Usage,
)
from hostler.errors import EngineFailed, InternalError, RequestCancelled
from hostler.views import ModelView

POLL_S = 0.25
"""Longest silence before the client is looked at: a quarter of a second after it left, its slot is free."""
KEEP_ALIVE_S = 15.0
"""Silence after which a stream gets a comment, so that clients and proxies with idle timeouts stay."""


class Events(Protocol):
    """A generation, or several that answer one request."""

    id: str
    model: ModelView
    created: int

    def events(self, poll_s: float, *, gathers: bool = False) -> Iterator[GenerationEvent | None]:
        """See hostler.generation.Generation."""

    def close(self) -> None:
        """Cancel what runs, give everything back."""

    def __enter__(self) -> Events:
        """Itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""


class FrameMaker(Protocol):
    """Bytes of a stream; see api/sse.py."""

    def begin(self, index: int) -> bytes: ...
    def text(self, event: TextEvent) -> bytes: ...
    def finish(self, event: FinishEvent, timings: Timings | None) -> bytes: ...
    def usage(self, usage: Usage, timings: Timings) -> bytes: ...


@dataclass
class Answer:
    """One choice, complete."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: FinishEvent


def client_watch(req: falcon.Request) -> Callable[[], bool]:
    """A function that tells whether the client has left; on a server that cannot tell it never says so."""
    return req.env.get("waitress.client_disconnected") or (lambda: False)


def total_usage(finishes: dict[int, FinishEvent], n: int) -> Usage:
    """Tokens of all choices; a prompt counts once for its `n` answers, and as cached where it was for all of them."""
    prompt = completion = cached = 0
    for first in range(0, len(finishes), n):
        usages = [finishes[index].usage for index in range(first, first + n)]
        prompt += usages[0].prompt_tokens
        cached += min(usage.cached_tokens for usage in usages)
        completion += sum(usage.completion_tokens for usage in usages)
    return Usage(prompt, completion, cached)


def total_timings(finishes: dict[int, FinishEvent]) -> Timings:
    """Timings of all choices: counts add up, times are those of the slowest, for they run side by side."""
    timings = [finish.timings for finish in finishes.values()]
    if len(timings) == 1:
        return timings[0]
    return Timings(
        prompt_n=sum(one.prompt_n for one in timings),
        prompt_ms=max(one.prompt_ms for one in timings),
        cached_n=sum(one.cached_n for one in timings),
        predicted_n=sum(one.predicted_n for one in timings),
        predicted_ms=max(one.predicted_ms for one in timings),
        draft_n=sum(one.draft_n for one in timings),
        draft_accepted_n=sum(one.draft_accepted_n for one in timings),
    )


def common_reason(finishes: dict[int, FinishEvent]) -> str:
    """For the log: how the choices ended."""
    return "+".join(sorted({finish.reason.value for finish in finishes.values()}))


def check_finish(event: FinishEvent) -> None:
    """An answer that was cut off is an error, never a short answer.

    Raises:
        RequestCancelled, EngineFailed
    """
    if event.reason is FinishReason.CANCELLED:
        raise RequestCancelled("The request was cancelled before its answer was complete")
    if event.reason is FinishReason.ERROR:
        raise EngineFailed("The engine gave up on this request and did not say why; the worker's log has its output")


def collect(
    generation: Events, n_choices: int, record: GenerationRecord, is_client_gone: Callable[[], bool]
) -> tuple[list[Answer], dict[int, FinishEvent]]:
    """Read a generation to its end.

    Raises:
        RequestCancelled: Somebody cancelled it, or the client has left.
        HostlerError: What went wrong.
    """
    texts: list[list[str]] = [[] for _ in range(n_choices)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n_choices)]
    finishes: dict[int, FinishEvent] = {}
    looked_at = time.monotonic()
    with generation:
        for event in generation.events(POLL_S, gathers=True):
            now = time.monotonic()
            if now - looked_at >= POLL_S:  # nothing is written meanwhile, so nothing else would notice
                looked_at = now
                if is_client_gone():
                    record.write("client_gone")
                    raise RequestCancelled("The client has left")
            if isinstance(event, TextEvent):
                record.text_came()
                record.n_output += event.n_tokens
                texts[event.index].append(event.text)
                logprobs[event.index].extend(event.logprobs)
            elif isinstance(event, FinishEvent):
                check_finish(event)
                finishes[event.index] = event
            elif event is not None:
                record.n_prompt = event.n_total
    _check_complete(finishes, n_choices)
    answers = [Answer("".join(texts[i]), tuple(logprobs[i]), finishes[i]) for i in range(n_choices)]
    return answers, finishes


def _check_complete(finishes: dict[int, FinishEvent], n_choices: int) -> None:
    if len(finishes) != n_choices:
        raise InternalError(f"Only {len(finishes)} of {n_choices} answers came to their end")


class AnswerStream:
    """The body of a streamed answer. `start` before the response begins, then iterate; the server closes it.

    It is no generator, because a generator that was never begun does not run its `finally` when it is closed.
    """

    def __init__(
        self,
        generation: Events,
        frames: FrameMaker,
        record: GenerationRecord,
        is_client_gone: Callable[[], bool],
        *,
        n_choices: int,
        n: int,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        """Take over the generation.

        Args:
            n_choices: Answers in all: prompts x n.
            n: Answers a prompt.
            keep_alive_s: Seconds of silence before a comment.
        """
        self._generation = generation
        self._frames = frames
        self._record = record
        self._is_client_gone = is_client_gone
        self._n_choices = n_choices
        self._n = n
        self._keep_alive_s = keep_alive_s
        self._events = generation.events(min(POLL_S, keep_alive_s))
        self._first: TextEvent | FinishEvent | None = None
        self._finishes: dict[int, FinishEvent] = {}
        self._chunks = self._run()

    def start(self) -> None:
        """Wait for the first text, so that what goes wrong before it still has a status; give up waiting when it is time
        for a keep-alive, which starts the response.

        Raises:
            RequestCancelled: The client has left, or somebody cancelled the request.
            HostlerError: What went wrong.
        """
        deadline = time.monotonic() + self._keep_alive_s
        try:
            for event in self._events:
                if isinstance(event, TextEvent | FinishEvent):
                    if isinstance(event, FinishEvent):
                        check_finish(event)
                    self._first = event
                    return
                if self._is_client_gone():
                    self._record.write("client_gone")
                    raise RequestCancelled("The client has left")
                if event is not None:
                    self._record.n_prompt = event.n_total
                if time.monotonic() >= deadline:
                    return
            raise InternalError("The generation ended without an answer")
        except BaseException:
            self._chunks.close()
            self._generation.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """End it: what still runs is cancelled."""
        self._chunks.close()
        self._generation.close()
        self._record.write("client_gone")  # unless the end was recorded before

    def _run(self) -> Generator[bytes, None, None]:
        try:
            yield from self._frames_of_events()
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001 - a bug, too, must reach the client as an error
            shown = as_hostler_error(error, self._record.request_id)
            self._record.write(shown.code)
            self._generation.close()
            yield error_frame(shown, self._record.request_id)

    def _all_events(self) -> Iterator[GenerationEvent | None]:
        if self._first is not None:
            yield self._first
        yield from self._events

    def _frames_of_events(self) -> Iterator[bytes]:
        frames, record = self._frames, self._record
        begin: bytes | None = b"".join(frames.begin(index) for index in range(self._n_choices))
        if self._first is None:
            yield KEEP_ALIVE
        last_write = time.monotonic()
        for event in self._all_events():
            if isinstance(event, TextEvent):
                record.n_output += event.n_tokens
                data = frames.text(event)
                if begin is not None:
                    record.text_came()
                    data, begin = begin + data, None
                if data:
                    yield data
                    last_write = time.monotonic()
            elif isinstance(event, FinishEvent):
                data, begin = (begin or b"") + self._finish(event), None
                yield data
            else:
                if self._is_client_gone():
                    return
                if isinstance(event, PrefillEvent):
                    record.n_prompt = event.n_total
                if time.monotonic() - last_write >= self._keep_alive_s:
                    yield KEEP_ALIVE
                    last_write = time.monotonic()
        _check_complete(self._finishes, self._n_choices)

    def _finish(self, event: FinishEvent) -> bytes:
        check_finish(event)
        self._finishes[event.index] = event
        if len(self._finishes) < self._n_choices:
            return self._frames.finish(event, None)
        usage, timings = total_usage(self._finishes, self._n), total_timings(self._finishes)
        self._record.write(common_reason(self._finishes), usage, timings)
        return self._frames.finish(event, timings) + self._frames.usage(usage, timings) + DONE
