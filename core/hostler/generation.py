"""One request on its way through the host: queue, worker, answers. Floor 4.

A Generation belongs to the waitress thread that streams it; `cancel` and `view` may be called from any thread. It holds one
place of the request budget, one of its model's queue, and, once it is submitted, the rings of its sequences; `close` gives
all of them back, however it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType

import msgspec

from hostler.domain import (
    SEED_RANDOM,
    FinishEvent,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    PrefillEvent,
    SamplingParams,
    TextEvent,
    Timings,
    Usage,
)
from hostler.errors import EngineUnavailable, RequestCancelled
from hostler.hosted import HostedModel
from hostler.scheduler import Ticket
from hostler.views import ModelView, RequestView
from hostler.worker.supervisor import ReaderGroup

RESUBMITS = 3
"""How often a request that met a dying worker before it was submitted goes back to the queue."""


class Generation:
    """One request's answers."""

    def __init__(
        self,
        request: GenerateRequest,
        model: ModelView,
        hosted: HostedModel,
        ticket: Ticket,
        reenter: Callable[[], Ticket],
        on_close: Callable[[Generation], None],
    ) -> None:
        """Made by Runtime.generate, which has taken the places that `close` gives back.

        Args:
            reenter: Takes a new place in the queue, starting the model if need be.
            on_close: Called once.
        """
        self.id = request.id
        self.request = request
        self.model = model
        self.created = int(time.time())
        self.hosted = hosted
        self._ticket = ticket
        self._reenter = reenter
        self._on_close = on_close
        self._group: ReaderGroup | None = None
        self._is_cancelled = False
        self._is_closed = False
        # What `view` shows: written by the reading thread, read by any; a moment's mismatch between them does no harm.
        self._state = "queued"
        self._started = time.monotonic()
        self._n_prompt = 0
        self._n_output = 0

    def events(self, poll_s: float) -> Iterator[GenerationEvent | None]:
        """Yield events until every answer is finished; None after each `poll_s` seconds of silence.

        Raises:
            HostlerError: What went wrong; before the first TextEvent it can still become an HTTP status.
        """
        group: ReaderGroup | None = None
        for _ in range(RESUBMITS):
            try:
                while not self._ticket.wait(poll_s):
                    yield None
            except RequestCancelled:
                yield from self._cancelled()
                return
            try:
                group = self._submit()
                break
            except EngineUnavailable:
                if self._group is not None:
                    raise
                self._ticket.release_all()
                self._ticket = self._reenter()
                if self._is_cancelled:  # it came while there was no ticket to cancel
                    self._ticket.cancel()
        if group is None:
            raise EngineUnavailable(f"The engine of {self.model.manifest.id} keeps dying; try again", retry_after_s=1.0)
        self._group = group
        if self._is_cancelled:  # it came between the queue and the worker
            group.cancel()
        n_left = self.request.n
        while n_left:
            if not group.wait(poll_s):
                yield None
                continue
            for event in group.drain():
                if isinstance(event, TextEvent):
                    self._state = "decode"
                    self._n_output += event.n_tokens
                elif isinstance(event, PrefillEvent):
                    self._state = "prefill"
                    self._n_prompt = event.n_total
                else:
                    n_left -= 1
                    if event.reason is FinishReason.CANCELLED and not self._is_cancelled:
                        raise self.hosted.was_stopped()
                yield event

    def _submit(self) -> ReaderGroup:
        worker = self.hosted.worker
        if worker is None:
            raise EngineUnavailable(f"{self.model.manifest.id} was stopped; try again", retry_after_s=1.0)
        group = worker.reader_group()
        try:
            for index in range(self.request.n):
                worker.submit(
                    group,
                    index,
                    self._params(index),
                    messages=self.request.messages,
                    prompt=self.request.prompt,
                    cache_prompt=self.request.cache_prompt,
                    priority=self.request.priority,
                    template_kwargs=self.request.template_kwargs,
                    on_closed=self._ticket.release,
                )
        except BaseException:
            group.close()
            raise
        return group

    def _params(self, index: int) -> SamplingParams:
        params = self.request.params
        if index == 0 or params.seed == SEED_RANDOM:
            return params
        return msgspec.structs.replace(params, seed=(params.seed + index) & 0x7FFFFFFF)

    def _cancelled(self) -> Iterator[FinishEvent]:
        usage, timings = Usage(0, 0), Timings(0, 0.0, 0, 0, 0.0)
        for index in range(self.request.n):
            yield FinishEvent(index, FinishReason.CANCELLED, usage, timings)

    def cancel(self) -> None:
        """Cancel from any thread; `events` then ends with FinishEvent(CANCELLED) for what was still running."""
        self._is_cancelled = True
        self._ticket.cancel()
        group = self._group
        if group is not None:
            group.cancel()

    def view(self) -> RequestView:
        """What it is doing now."""
        age_s = time.monotonic() - self._started
        return RequestView(self.id, self.model.manifest.id, self._state, self._n_prompt, self._n_output, age_s)

    def close(self) -> None:
        """Cancel what still runs and give everything back. Idempotent; called by the reading thread."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._group is not None:
            self._group.close()  # the ticket's places come back as the worker closes the sequences
        else:
            self._ticket.release_all()
        self._on_close(self)

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
