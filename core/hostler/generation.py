"""One request on its way through the host: queue, worker, answers. Floor 4.

A Generation belongs to the waitress thread that streams it. Beside the places of every request it holds, once it is
submitted, the rings of its sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
from hostler.request import HostedRequest
from hostler.scheduler import Ticket
from hostler.views import ModelView
from hostler.worker.supervisor import ReaderGroup


class Generation(HostedRequest):
    """One request's answers."""

    def __init__(
        self,
        request: GenerateRequest,
        model: ModelView,
        hosted: HostedModel,
        ticket: Ticket,
        reenter: Callable[[], Ticket],
        on_close: Callable[[HostedRequest], None],
    ) -> None:
        """See HostedRequest."""
        super().__init__(request.id, model, hosted, ticket, reenter, on_close)
        self.request = request
        self._group: ReaderGroup | None = None
        self._gathers = False

    def events(self, poll_s: float, *, gathers: bool = False) -> Iterator[GenerationEvent | None]:
        """Yield events until every answer is finished; None after each `poll_s` seconds of silence.

        Args:
            gathers: Whole answers are wanted: text may come late and many tokens at once. See ReaderGroup.

        Raises:
            HostlerError: What went wrong; before the first TextEvent it can still become an HTTP status.
        """
        self._gathers = gathers
        try:
            group = yield from self._enter_worker(poll_s, self._submit)
        except RequestCancelled:
            yield from self._cancelled()
            return
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
                    self._n_prompt, self._n_evaluated = event.n_total, event.n_done
                else:
                    n_left -= 1
                    if event.reason is FinishReason.CANCELLED and not self._is_cancelled:
                        raise self.hosted.was_stopped()
                yield event

    def _submit(self) -> ReaderGroup:
        worker = self.hosted.worker
        if worker is None:
            raise EngineUnavailable(f"{self.model.manifest.id} was stopped; try again", retry_after_s=1.0)
        group = worker.reader_group(gathers=self._gathers)
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

    def _cancel_in_worker(self) -> None:
        """`events` then ends with FinishEvent(CANCELLED) for what was still running."""
        group = self._group
        if group is not None:
            group.cancel()

    def _leave_worker(self) -> None:
        if self._group is not None:
            self._group.close()  # the ticket's places come back as the worker closes the sequences
        else:
            self._ticket.release_all()
