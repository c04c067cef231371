"""One request for embeddings on its way through the host: queue, worker, vectors. Floor 4.

It takes no slot and no ring of its worker, but a place in the model's queue, so that the same limits hold for it: what may
wait, how long a model counts as busy, what a stop ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hostler.domain import EmbedRequest, EmbedResult
from hostler.errors import EngineUnavailable, RequestCancelled
from hostler.hosted import HostedModel
from hostler.request import HostedRequest
from hostler.scheduler import Ticket
from hostler.views import ModelView
from hostler.worker.calls import PendingCall


class Embedding(HostedRequest):
    """One request's vectors."""

    def __init__(
        self,
        request: EmbedRequest,
        model: ModelView,
        hosted: HostedModel,
        ticket: Ticket,
        reenter: Callable[[], Ticket],
        on_close: Callable[[HostedRequest], None],
    ) -> None:
        """See HostedRequest."""
        super().__init__(request.id, model, hosted, ticket, reenter, on_close)
        self.request = request
        self._call: PendingCall | None = None
        self._n_stops = hosted.n_stops
        self._result: EmbedResult | None = None

    def progress(self, poll_s: float) -> Iterator[None]:
        """Yield after each `poll_s` seconds of waiting, and end when `result` is there.

        Raises:
            RequestCancelled: Somebody cancelled it.
            HostlerError: What went wrong.
        """
        call = self._call = yield from self._enter_worker(poll_s, self._submit)
        self._state = "embed"
        while not self._is_cancelled and not call.wait(poll_s):
            yield None
        if self._is_cancelled:
            raise RequestCancelled("The request was cancelled before its embeddings were complete")
        try:
            self._result = call.embedded()
        except EngineUnavailable:
            if self.hosted.n_stops != self._n_stops:
                raise self.hosted.was_stopped() from None
            raise

    @property
    def result(self) -> EmbedResult:
        """The vectors, once `progress` has come to its end."""
        assert self._result is not None, "progress() has not ended"
        return self._result

    def _submit(self) -> PendingCall:
        worker = self.hosted.worker
        if worker is None:
            raise EngineUnavailable(f"{self.model.manifest.id} was stopped; try again", retry_after_s=1.0)
        return worker.embed(self.request)

    def _cancel_in_worker(self) -> None:
        call = self._call
        if call is not None:
            call.close()

    def _leave_worker(self) -> None:
        self._cancel_in_worker()
        self._ticket.release_all()
