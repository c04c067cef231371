"""Questions to one worker process that have answers of their own: calls and embeds.

Floor 3, in the host. A CallTable belongs to one worker process and ends with it. Any thread asks and waits; the worker's
control thread brings what it says; its end thread says `worker_ended`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from hostler.domain import EmbedRequest, EmbedResult
from hostler.errors import EngineUnavailable
from hostler.worker.answers import Sender, error_of
from hostler.worker.wire import Call, CancelCall, Embed, Embedded, EmbedReply, HostMessage, Reply


class PendingCall:
    """One question on its way. Made by CallTable only; one thread waits."""

    def __init__(self, table: CallTable, call_id: int, name: str) -> None:
        self.id = call_id
        self.name = name
        self._table = table
        self._done = threading.Event()
        # Written by the control thread before `_done` is set.
        self._reply: Reply | None = None
        self._vectors: list[bytes] = []

    @property
    def n_vectors(self) -> int:
        """Vectors that are here already."""
        return len(self._vectors)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the answer; False: it is not here yet."""
        return self._done.wait(timeout_s)

    def value(self) -> Any:
        """The answer, which must be here.

        Raises:
            HostlerError: As the worker says; EngineUnavailable when it died.
        """
        reply = self._reply
        if reply is None:
            raise self._table.unavailable()
        if reply.code is not None:
            raise error_of(reply.code, reply.message, reply.param)
        return reply.value

    def embedded(self) -> EmbedResult:
        """The answer to an embed; raises as `value`."""
        reply = msgspec.convert(self.value(), EmbedReply)
        return EmbedResult(tuple(self._vectors), reply.n_tokens)

    def close(self) -> None:
        """Whoever asked is done with it; what is still under way is dropped by the worker. Idempotent."""
        self._table.close(self)

    def take(self, message: Reply | Embedded) -> None:
        """A message for it has come; control thread."""
        if isinstance(message, Embedded):
            self._vectors += message.vectors
        else:
            self._reply = message
            self._done.set()

    def end(self) -> None:
        """No message will come."""
        self._done.set()


class CallTable:
    """The open calls of one worker process. Any thread."""

    def __init__(self, sender: Sender, unavailable: Callable[[], EngineUnavailable]) -> None:
        """None are open.

        Args:
            unavailable: Makes the error of a worker that is gone.
        """
        # None once the worker has ended: it knows this table, and a circle would keep its shared memory until the garbage
        # collector comes by.
        self._sender: Sender | None = sender
        self.unavailable = unavailable
        self._lock = threading.Lock()  # protects both below
        self._open: dict[int, PendingCall] = {}
        self._has_ended = False
        self._ids = itertools.count(1)

    @property
    def n_embeds(self) -> int:
        """Embeds that the worker has not answered."""
        with self._lock:
            return sum(call.name == "embed" for call in self._open.values())

    def call(self, name: str, argument: Any) -> PendingCall:
        """Ask something.

        Raises:
            EngineUnavailable: The worker is gone.
        """
        return self._ask(name, lambda call_id: Call(call_id, name, argument))

    def embed(self, request: EmbedRequest) -> PendingCall:
        """Ask for vectors.

        Raises:
            EngineUnavailable: The worker is gone.
        """
        return self._ask("embed", lambda call_id: Embed(call_id, request.inputs, request.dimensions))

    def _ask(self, name: str, message: Callable[[int], HostMessage]) -> PendingCall:
        with self._lock:
            if self._has_ended:
                raise self.unavailable()
            call = PendingCall(self, next(self._ids), name)
            self._open[call.id] = call
        sender = self._sender
        try:
            if sender is None or not sender.send(message(call.id)):
                raise self.unavailable()
        except BaseException:
            with self._lock:
                self._open.pop(call.id, None)
            raise
        return call

    def received(self, message: Reply | Embedded) -> None:
        """The worker said something; what nobody waits for any more is dropped."""
        with self._lock:
            call = self._open.get(message.call_id)
            if isinstance(message, Reply):
                self._open.pop(message.call_id, None)
        if call is not None:
            call.take(message)

    def close(self, call: PendingCall) -> None:
        """See PendingCall.close."""
        with self._lock:
            is_open = self._open.pop(call.id, None) is not None and not self._has_ended
        call.end()
        sender = self._sender
        if sender is not None and is_open and call.name == "embed":
            sender.send(CancelCall(call.id))

    def worker_ended(self) -> None:
        """The process is gone: whoever waits is told."""
        with self._lock:
            self._has_ended = True
            self._sender = None
            calls = list(self._open.values())
            self._open.clear()
        for call in calls:
            call.end()


