"""What every request to a model has on its way through the host, whatever it asks for: a place, a wait, an end. Floor 4.

A HostedRequest belongs to the waitress thread that answers it; `cancel` and `view` may be called from any thread. It holds
one place of the request budget and one of its model's queue; `close` gives them back, however it ended.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self, TypeVar

from hostler.errors import EngineUnavailable
from hostler.hosted import HostedModel
from hostler.scheduler import Ticket
from hostler.views import ModelView, RequestView

RESUBMITS = 3
"""How often a request that met a dying worker before it was submitted goes back to the queue."""

T = TypeVar("T")


class HostedRequest:
    """One request; see Generation and Embedding."""

    def __init__(
        self,
        id: str,
        model: ModelView,
        hosted: HostedModel,
        ticket: Ticket,
        reenter: Callable[[], Ticket],
        on_close: Callable[[HostedRequest], None],
    ) -> None:
        """Made by Runtime, which has taken the places that `close` gives back.

        Args:
            reenter: Takes a new place in the queue, starting the model if need be.
            on_close: Called once.
        """
        self.id = id
        self.model = model
        self.created = int(time.time())
        self.hosted = hosted
        self._ticket = ticket
        self._reenter = reenter
        self._on_close = on_close
        self._is_cancelled = False
        self._is_closed = False
        # What `view` shows: written by the reading thread, read by any; a moment's mismatch between them does no harm.
        self._state = "queued"
        self._started = time.monotonic()
        self._n_prompt = 0
        self._n_evaluated = 0
        self._n_output = 0

    def _enter_worker(self, poll_s: float, submit: Callable[[], T]) -> Generator[None, None, T]:
        """Wait for a place, yielding None after each `poll_s` seconds, then submit.

        Raises:
            RequestCancelled: It was cancelled in the queue.
            HostlerError: The model could not be started, or keeps dying.
        """
        for _ in range(RESUBMITS):
            while not self._ticket.wait(poll_s):
                yield None
            try:
                return submit()
            except EngineUnavailable:
                self._ticket.release_all()
                self._ticket = self._reenter()
                if self._is_cancelled:  # it came while there was no ticket to cancel
                    self._ticket.cancel()
        raise EngineUnavailable(f"The engine of {self.model.manifest.id} keeps dying; try again", retry_after_s=1.0)

    def cancel(self) -> None:
        """Cancel from any thread, in whatever phase it is."""
        self._is_cancelled = True
        self._ticket.cancel()
        self._cancel_in_worker()

    def view(self) -> RequestView:
        """What it is doing now."""
        age_s = time.monotonic() - self._started
        return RequestView(
            self.id, self.model.manifest.id, self._state, self._n_prompt, self._n_output, age_s, self._n_evaluated
        )

    def close(self) -> None:
        """Cancel what still runs and give everything back. Idempotent; called by the reading thread."""
        if self._is_closed:
            return
        self._is_closed = True
        self._leave_worker()
        self._on_close(self)

    @abstractmethod
    def _cancel_in_worker(self) -> None:
        """Cancel what was submitted, if it was."""

    @abstractmethod
    def _leave_worker(self) -> None:
        """Give back what the worker holds, and the ticket's places."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
