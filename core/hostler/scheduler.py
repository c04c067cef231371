"""Who may run now: the admission queue of one model, and the budget of requests over all of them.

Floor 4; used by the host's waitress threads. Nothing here knows a worker: a queue counts sequences, and whoever submits
one gives its place back when the worker has closed it.

Two numbers bound a model. `n_slots` sequences run in the engine at once. `n_admitted` sequences may be inside the worker
(each holds a token ring); the ones beyond the slots are rendered and tokenized ahead, so that a freed slot is filled in the
same step. Everything else waits here, at most `queue_len` beyond the slots.

The order is that of a Line (turns.py): by priority, with a bound on how often one may be overtaken. The worker's loop orders
in the same way those who are inside. Some of the places beyond the slots are kept for higher priorities, so that an
interactive request stands before the next free slot at once, however many of a batch came before it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hostler.domain import Priority
from hostler.errors import HostlerError, QueueFull, RequestCancelled
from hostler.turns import Line

RETRY_AFTER_S = 2.0
"""What a full queue tells a client to wait: about one short answer."""


class RequestBudget:
    """Counts everything that holds a waitress thread; `max_requests` is its size. Safe from any thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()  # protects n_held
        self.n_held = 0

    def acquire(self, what: str) -> None:
        """Take one place.

        Raises:
            QueueFull: All are taken.
        """
        with self._lock:
            if self.n_held >= self.size:
                raise QueueFull(
                    f"The server is at its limit of {self.size} open requests (max_requests), so this {what} has to wait; "
                    f"try again, or raise max_requests",
                    retry_after_s=RETRY_AFTER_S,
                )
            self.n_held += 1

    def release(self) -> None:
        """Give one place back."""
        with self._lock:
            self.n_held -= 1

    @contextmanager
    def hold(self, what: str) -> Iterator[None]:
        """Hold one place for as long as the block runs."""
        self.acquire(what)
        try:
            yield
        finally:
            self.release()


class Ticket:
    """A request's place in a queue: `n` sequences that start together. Made by AdmissionQueue only."""

    def __init__(self, queue: AdmissionQueue, n: int) -> None:
        self.n = n
        self._queue = queue
        self._event = threading.Event()
        # Protected by the queue's lock:
        self.n_held = 0
        self.error: HostlerError | None = None
        self.is_over = False

    @property
    def is_admitted(self) -> bool:
        """All its sequences may be submitted."""
        return self.n_held > 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is admitted.

        Raises:
            HostlerError: It was cancelled, or the queue was closed with an error.
        """
        if not self._event.wait(timeout_s):
            return False
        if self.error is not None:
            raise self.error.copy()  # others who wait have the same one
        return True

    def cancel(self, error: HostlerError | None = None) -> None:
        """Leave the queue, from any thread; an admitted ticket is left alone."""
        self._queue.cancel(self, error or RequestCancelled("The request was cancelled while it waited for a slot"))

    def release(self, n: int = 1) -> None:
        """Give back the places of `n` closed sequences."""
        self._queue.release(self, n)

    def release_all(self) -> None:
        """Give back whatever is still held, or leave the queue. Idempotent."""
        self._queue.release_all(self)

    def settle(self, error: HostlerError | None) -> None:
        """Wake the waiter; called under the queue's lock."""
        self.error = error
        self._event.set()


class AdmissionQueue:
    """The queue of one model. Safe from any thread; one lock protects all fields, tickets' included."""

    def __init__(self, n_slots: int, queue_len: int) -> None:
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._waiting: Line[Ticket] = Line()
        self._n_admitted = 0
        self._capacity = 0
        self.n_slots = n_slots
        self.queue_len = queue_len

    def open(self, n_slots: int, n_admitted: int) -> None:
        """The model runs: let `n_admitted` sequences into its worker."""
        with self._lock:
            self.n_slots = n_slots
            self._capacity = n_admitted
            self._admit()

    def pause(self) -> None:
        """The model is not running now: who waits keeps waiting."""
        with self._lock:
            self._capacity = 0

    def fail(self, error: HostlerError) -> None:
        """The model will not run: everyone who waits gets the error."""
        with self._lock:
            for ticket in self._waiting.clear():
                ticket.is_over = True
                ticket.settle(error)

    def enter(self, n: int, priority: Priority, queue_len: int | None = None) -> Ticket:
        """Take a place for `n` sequences.

        Raises:
            QueueFull: More than `queue_len` sequences would wait beyond the slots.
        """
        limit = self.queue_len if queue_len is None else queue_len
        with self._lock:
            n_beyond = max(0, self._n_in_flight() - self.n_slots)
            if self._n_in_flight() + n - max(self.n_slots, n) > limit:
                raise QueueFull(
                    f"All {self.n_slots} slots of this model are busy and {n_beyond} sequences "
                    f"wait already (queue_len {limit}); try again in a moment",
                    retry_after_s=RETRY_AFTER_S,
                )
            ticket = Ticket(self, n)
            self._waiting.put(ticket, priority.rank, next(self._order))
            self._admit()
            return ticket

    def cancel(self, ticket: Ticket, error: HostlerError) -> None:
        """See Ticket.cancel."""
        with self._lock:
            if self._waiting.remove(ticket):
                ticket.is_over = True
                ticket.settle(error)
                self._admit()

    def release(self, ticket: Ticket, n: int) -> None:
        """See Ticket.release."""
        with self._lock:
            n = min(n, ticket.n_held)
            ticket.n_held -= n
            ticket.is_over = ticket.n_held == 0
            self._n_admitted -= n
            self._admit()

    def release_all(self, ticket: Ticket) -> None:
        """See Ticket.release_all."""
        with self._lock:
            self._waiting.remove(ticket)
            self._n_admitted -= ticket.n_held
            ticket.n_held = 0
            ticket.is_over = True
            self._admit()

    @property
    def n_in_flight(self) -> int:
        """Sequences that run or wait."""
        with self._lock:
            return self._n_in_flight()

    @property
    def n_queued(self) -> int:
        """Sequences beyond the slots."""
        with self._lock:
            return max(0, self._n_in_flight() - self.n_slots)

    def _n_in_flight(self) -> int:
        return self._n_admitted + sum(ticket.n for ticket in self._waiting)

    def _admit(self) -> None:
        # INVARIANT: strictly in order, so a request with many answers is not starved by small ones behind it.
        while self._waiting:
            ticket, rank = self._waiting.first()
            if self._n_admitted + ticket.n > self._capacity or self._n_admitted >= self._room(rank):
                break
            self._waiting.take()
            ticket.n_held = ticket.n
            self._n_admitted += ticket.n
            ticket.settle(None)

    def _room(self, rank: int) -> int:
        """Places that ones of this rank may fill: of those beyond the slots a quarter is kept for each higher rank."""
        n_kept = max(0, self._capacity - self.n_slots) // 4
        return self._capacity - rank * n_kept
