"""The listeners of plugins: each is told of the events it wants, on a thread of its own, so that one that is slow, stuck or
broken costs nobody else anything.

Floor 4; while a server serves. A listener hears each event once, in order, from the server's start on: what happens while no
server runs it never hears of, and after a kill -9 nothing is told twice. It reads the log of events (records/events.py) by
itself; its thread begins with the first event after the start, so a host in which nothing happens does not pay for it. While
it is slow its events wait in the log, of which the last `events.KEPT` are sure to be there.

`_lock` protects the list of tellers; each teller's `_changed` its own fields.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hostler.errors import HostlerError
from hostler.listening import Event, ListenerSpec
from hostler.subscription import is_wanted

if TYPE_CHECKING:
    from hostler.records.events import LoggedEvent
    from hostler.records.store import Records
    from hostler.records.webhooks import WebhookStore

log = logging.getLogger("hostler.listeners")

BATCH = 100
"""Events read at once."""
SLOW_S = 10.0
"""A listener that is at one event for so long is named when the next one comes."""
RETRY_S = 1.0
"""After the log could not be read."""
SHARED_IDLE_S = 5.0
"""How soon events are seen that another host logs in a shared PostgreSQL."""
CLOSE_TIMEOUT_S = 3.0
"""At the end, for what has been logged and not been told yet; all listeners together."""

Read = Callable[[int, int], "list[LoggedEvent]"]
"""Takes an id and a limit, gives the events that follow."""


class ListenerView(msgspec.Struct, frozen=True):
    """How a listener fares."""

    plugin: str
    listener: str
    events: tuple[str, ...]
    n_told: int
    """Events it was called with."""
    n_failed: int
    """Calls that raised."""
    busy_s: float | None = None
    """For so long it is at one event; None: it waits for the next."""
    last_error: str | None = None


class Listeners:
    """All listeners of one host. Any thread."""

    def __init__(self, records: Records) -> None:
        """Nothing runs and nothing is opened yet."""
        self._records = records
        self._lock = threading.Lock()
        self._tellers: list[Teller] = []
        self._position = 0
        """The newest event when the database was opened; before that there is none to tell."""
        self._is_serving = False

    def start(self, wanted: Iterable[tuple[str, ListenerSpec]]) -> None:
        """A server serves: tell what happens from now on.

        Args:
            wanted: Plugin and listener.
        """
        with self._lock:
            self._is_serving = True
        self.use(wanted)

    def use(self, wanted: Iterable[tuple[str, ListenerSpec]], changed: Iterable[str] = ()) -> None:
        """These are the listeners from now on; those that were there before go on where they are, save those of plugins that
        have changed."""
        anew = set(changed)
        with self._lock:
            if not self._is_serving:
                return
            before = {(teller.plugin, teller.spec): teller for teller in self._tellers}
            newest = max([self._position, *(teller.newest for teller in self._tellers)])
            idle_s = None if self._records.database.location.is_private else SHARED_IDLE_S
            self._tellers, old = [], self._tellers
            for plugin, spec in wanted:
                teller = before.get((plugin, spec))
                if teller is None or plugin in anew:
                    # A listener of a plugin that has changed goes on with what its predecessor has not been told.
                    position = newest if teller is None else teller.position
                    teller = Teller(plugin, spec, position, self._read, idle_s)
                    teller.catch_up(newest)
                self._tellers.append(teller)
            gone = [teller for teller in old if teller not in self._tellers]
        for teller in gone:
            teller.stop(is_patient=False)

    def opened(self, store: WebhookStore) -> None:
        """The database is open, and nobody has written anything yet."""
        with self._lock:
            if not self._is_serving:
                return
            self._position = store.newest_event()
            for teller in self._tellers:
                teller.begin_at(self._position)

    def grew(self, newest: int) -> None:
        """The log has a new event. On the thread that committed it; does not wait."""
        with self._lock:
            tellers = list(self._tellers)
        for teller in tellers:
            teller.grew(newest)

    def views(self) -> list[ListenerView]:
        """How each fares."""
        with self._lock:
            tellers = list(self._tellers)
        return [teller.view() for teller in tellers]

    def close(self) -> None:
        """Tell what is logged, if listeners are quick; those that are not are named and left behind."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with self._lock:
            tellers, self._tellers, self._is_serving = self._tellers, [], False
        for teller in tellers:
            teller.stop(is_patient=True)
        for teller in tellers:
            teller.join(max(0.0, deadline - time.monotonic()))

    def _read(self, event_id: int, limit: int) -> list[LoggedEvent]:
        return self._records.events.after(event_id, limit)


class Teller:
    """One listener and the thread that calls it."""

    def __init__(self, plugin: str, spec: ListenerSpec, position: int, read: Read, idle_s: float | None) -> None:
        self.plugin = plugin
        self.spec = spec
        self.newest = position
        """The newest event it knows of."""
        self._read = read
        self._idle_s = idle_s
        self.position = position
        """The last event that is done with; its thread's to change, once that runs."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._must_end = False
        self._is_patient = False
        self._busy_with: Event | None = None
        self._busy_since = 0.0
        self._is_named = False
        """It has been said that it is slow with this event."""
        self._n_told = 0
        self._n_failed = 0
        self._last_error: str | None = None

    # -- from any thread ----------------------------------------------------------------------------------------------

    def begin_at(self, position: int) -> None:
        """Tell what follows this event; before anything was told."""
        with self._changed:
            if self._thread is None:
                self.position = self.newest = position

    def catch_up(self, newest: int) -> None:
        """There may be events up to this one that it has not told."""
        with self._changed:
            self.newest = max(self.newest, newest)
            if self._must_end or self.newest <= self.position:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"listener {self.plugin}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def grew(self, newest: int) -> None:
        """There is a new event."""
        self.catch_up(newest)
        with self._changed:
            busy_with, busy_s = self._busy_with, time.monotonic() - self._busy_since
            if busy_with is None or busy_s < SLOW_S or self._is_named:
                return
            self._is_named = True
        log.warning(
            "plugin %r: %s has been at event %d (%s) for %.0f s; the events behind it wait",
            self.plugin, self.spec.listener, busy_with.id, busy_with.name, busy_s,
        )  # fmt: skip

    def stop(self, *, is_patient: bool) -> None:
        """End soon: after what is logged, or after the event that it is at."""
        with self._changed:
            self._must_end, self._is_patient = True, is_patient
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for its end; one that does not come is left behind."""
        thread = self._thread
        if thread is None:
            return
        thread.join(timeout_s)
        if thread.is_alive():
            with self._changed:
                what = f"event {self._busy_with.id} ({self._busy_with.name})" if self._busy_with else "what was logged last"
                self._is_patient = False
            log.warning("plugin %r: %s is still at %s and is left behind", self.plugin, self.spec.listener, what)

    def view(self) -> ListenerView:
        """How it fares."""
        with self._changed:
            return ListenerView(
                self.plugin,
                self.spec.listener,
                self.spec.events,
                self._n_told,
                self._n_failed,
                time.monotonic() - self._busy_since if self._busy_with is not None else None,
                self._last_error,
            )

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        function: Callable[[Event], Any] | None = None
        while self._await_news():
            for event in self._next_events():
                if self._must_end and not self._is_patient:
                    return
                if is_wanted(event.name, self.spec.events):
                    function = function or self._import()
                    if function is None:
                        return
                    self._tell(function, event)
                self.position = event.id

    def _await_news(self) -> bool:
        """Wait for an event to tell. False: the end has come."""

        def has_news() -> bool:
            return self._must_end or self.newest > self.position

        with self._changed:
            self._changed.wait_for(has_news, self._idle_s)
            return not self._must_end or (self._is_patient and self.newest > self.position)

    def _next_events(self) -> Sequence[LoggedEvent]:
        try:
            events = self._read(self.position, BATCH)
            oldest = self._read(0, 1) if events and events[0].id > self.position + 1 else []
        except HostlerError as error:
            log.warning("plugin %r: events wait for %s: %s", self.plugin, self.spec.listener, error.message)
            with self._changed:
                if not self._changed.wait_for(lambda: self._must_end, RETRY_S):
                    return []
                self._is_patient = False  # the host ends, and so does the database
            return []
        if oldest and oldest[0].id > self.position + 1:
            log.warning(
                "plugin %r: %s was too slow: the events %d to %d are gone",
                self.plugin, self.spec.listener, self.position + 1, oldest[0].id - 1,
            )  # fmt: skip
        if not events:
            self.position = max(self.position, self.newest)  # pruned, every one
        return events

    def _import(self) -> Callable[[Event], Any] | None:
        module, _, name = self.spec.listener.partition(":")
        try:
            function: Callable[[Event], Any] = getattr(importlib.import_module(module), name)
        except BaseException as error:
            log.error("plugin %r: %s cannot be imported; it hears of nothing", self.plugin, self.spec.listener, exc_info=error)
            with self._changed:
                self._last_error = f"cannot be imported: {type(error).__name__}: {error}"
                self._must_end = True
            return None
        return function

    def _tell(self, function: Callable[[Event], Any], logged: LoggedEvent) -> None:
        event = Event(logged.id, logged.created, logged.name, logged.subject, msgspec.json.decode(logged.body))
        with self._changed:
            self._busy_with, self._busy_since, self._is_named = event, time.monotonic(), False
        failure = None
        try:
            function(event)
        except BaseException as error:  # SystemExit, too: it would end the thread in silence
            failure = f"{type(error).__name__}: {error}"
            # The traceback once for each kind of failure: a listener that is broken is so at each event.
            details = error if failure != self._last_error else None
            log.error(
                "plugin %r: %s raised %s on event %d (%s)",
                self.plugin, self.spec.listener, failure, event.id, event.name, exc_info=details,
            )  # fmt: skip
        with self._changed:
            self._busy_with = None
            self._n_told += 1
            if failure is not None:
                self._n_failed += 1
                self._last_error = failure
