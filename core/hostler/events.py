"""What happens in this host, as events: those of models are made here, all are read here.

Floor 4. Model events come from threads that hold a model's lock or the library's, so they are only put into a queue; one
thread, `events`, writes them to the log (records/events.py) in their order. It begins with the first event, and so does the
import of the database: a host in which nothing happens does not pay for it. Events of threads, messages and assistants are
written by their own transactions. Source: spec/API.md section 10.

`_changed` (a condition) protects `_queue`, `_n_lost`, `_must_prune`, `_is_closing` and `_n_followers`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hostler.domain import Lifecycle
from hostler.errors import HostlerError
from hostler.library.manifest import Manifest
from hostler.subscription import is_wanted

if TYPE_CHECKING:
    from hostler.records.events import EventLog, LoggedEvent
    from hostler.records.store import Records

log = logging.getLogger("hostler.events")

MAX_QUEUED = 10_000
"""Model events that wait while the database cannot be used; past it the oldest but one are lost."""
KEPT = 10_000
"""Events that can be resumed from; webhooks have copies of what they have not taken yet."""
KEPT_FOR_WEBHOOKS = 100_000
"""Events kept at most for webhooks that have not looked at them: one whose server never comes back must not fill the disk."""
PRUNE_EVERY = 500
"""Events after which the log is cut to KEPT."""
RETRY_S = 1.0
"""After the database could not be used."""
CLOSE_TIMEOUT_S = 3.0
"""At the end: for what is queued, and again for who still reads."""
BATCH = 100
"""Events a follower reads at once."""


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every model event: the four fields of the seed's webhook, then hostler's own."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    state: str
    """As in getModel: not_downloaded, downloaded, running or stopped."""
    lifecycle: Lifecycle
    previous_lifecycle: Lifecycle
    """The same as `lifecycle` where the event changed something else."""
    event: str
    deleted: bool | UnsetType = UNSET
    """Only after a deletion."""
    last_error: str | UnsetType = UNSET
    """Only after a failure or a crash: why."""


STATES = {
    Lifecycle.NOT_DOWNLOADED: "not_downloaded",
    Lifecycle.DOWNLOADING: "not_downloaded",
    Lifecycle.DOWNLOADED: "downloaded",
    Lifecycle.RUNNING: "running",
    Lifecycle.STOPPING: "running",
    Lifecycle.STOPPED: "stopped",
}
"""`state` for each lifecycle; while it starts a model is what it was before."""


class Gap(msgspec.Struct, frozen=True):
    """Events that a reader asks for are gone."""

    last_event_id: int
    """What it asked for."""
    first_kept_id: int
    """What it gets next, if that is there yet."""


class EventBus:
    """Takes model events from any thread, gives all events to any number of followers."""

    def __init__(self, records: Records) -> None:
        """Nothing runs and nothing is opened yet."""
        self._records = records
        self._changed = threading.Condition()
        self._queue: deque[tuple[str, str, bytes]] = deque()
        self._n_lost = 0
        """Since the last warning."""
        self._is_closing = False
        self._n_followers = 0
        self._thread: threading.Thread | None = None
        self._pruned_at = 0
        """The newest event when the log was cut last; read and set by whoever logs, a race costs a look."""
        self._must_prune = False
        self.is_closed = False
        """Everything is written; followers end when they have read it."""

    # -- telling ------------------------------------------------------------------------------------------------------

    def model(
        self,
        what: str,
        manifest: Manifest,
        previous: Lifecycle,
        lifecycle: Lifecycle,
        *,
        resting: Lifecycle = Lifecycle.DOWNLOADED,
        error: str | None = None,
    ) -> None:
        """Something happened to a model. From any thread, under any lock; does not wait.

        Args:
            what: The event's name without `model.`.
            resting: What the model was before it was started; it is so still while it starts.
            error: Why it failed or crashed.
        """
        event = f"model.{what}"
        body = ModelObject(
            id=manifest.id,
            created=manifest.created,
            owned_by=manifest.owned_by,
            state=STATES.get(lifecycle) or STATES[resting],
            lifecycle=lifecycle,
            previous_lifecycle=previous,
            event=event,
            deleted=True if what == "deleted" else UNSET,
            last_error=UNSET if error is None else error,
        )
        self._put(event, manifest.id, msgspec.json.encode(body))

    def _put(self, name: str, subject: str, body: bytes) -> None:
        with self._changed:
            if self._is_closing:
                return
            if len(self._queue) >= MAX_QUEUED:
                del self._queue[1]  # the first is being written
                self._n_lost += 1
            self._queue.append((name, subject, body))
            self._wake()

    def grew(self, newest: int) -> None:
        """The log has a new event, from whomever. On the thread that committed it; does not wait."""
        if newest - self._pruned_at < PRUNE_EVERY:
            return
        self._pruned_at = newest
        with self._changed:
            if not self._is_closing:
                self._must_prune = True
                self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def close(self) -> None:
        """Write what is queued, then let followers read it; bounded by CLOSE_TIMEOUT_S for each."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        with self._changed:
            if self._queue:
                log.warning("%d events of models could not be logged before the end", len(self._queue))
            self.is_closed = True
            self._changed.wait_for(lambda: not self._n_followers, CLOSE_TIMEOUT_S)

    # -- the one thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        complaint = ""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._must_prune or self._is_closing)
                if self._is_closing and not self._queue:
                    return
                # It stays in the queue until it is written: nothing is lost but to a kill -9.
                event = self._queue[0] if self._queue else None
                must_prune, self._must_prune = self._must_prune, False
                n_lost, self._n_lost = self._n_lost, 0
            if n_lost:
                log.warning("%d events of models are lost: the database could not be used for too long", n_lost)
            try:
                if event is not None:
                    self._records.events.publish(*event)
                if must_prune:
                    self._prune()
            except HostlerError as error:
                if error.message != complaint:
                    log.warning("events of models wait: %s", error.message)
                complaint = error.message
                if self._pause():
                    return
                continue
            except Exception:
                log.exception("an event could not be logged and is lost: %s", event)
            complaint = ""
            with self._changed:
                if event is not None and self._queue and self._queue[0] is event:
                    self._queue.popleft()

    def _prune(self) -> None:
        records = self._records
        records.events.prune(KEPT, but_after=records.webhooks.least_seen())
        records.events.prune(KEPT_FOR_WEBHOOKS)

    def _pause(self) -> bool:
        """Wait before the next try; True: there is none, the host ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, RETRY_S)
            return self._is_closing

    # -- reading ------------------------------------------------------------------------------------------------------

    def follow(self, last_event_id: int | None, globs: Sequence[str]) -> Follower:
        """Read events as they come; close what you get.

        Args:
            last_event_id: Go on behind this one; None: only what comes from now on.
            globs: Which events; all others are passed over.

        Raises:
            StorageUnavailable
        """
        events = self._records.events
        newest = events.last_id()
        position, gap = newest, None
        if last_event_id is not None:
            oldest = next((event.id for event in events.after(0, 1)), newest + 1)
            position = last_event_id
            # Beyond the newest: the database is another than the one that gave this id.
            if not oldest - 1 <= last_event_id <= newest:
                position, gap = oldest - 1, Gap(last_event_id, oldest)
        with self._changed:
            self._n_followers += 1
        return Follower(self, events, position, tuple(globs), gap)

    def leave(self) -> None:
        """A follower is through."""
        with self._changed:
            self._n_followers -= 1
            self._changed.notify_all()


class Follower:
    """One reader of the log; of one thread."""

    def __init__(self, bus: EventBus, events: EventLog, position: int, globs: tuple[str, ...], gap: Gap | None) -> None:
        self._bus = bus
        self._events = events
        self._position = position
        self._globs = globs
        self._is_open = True
        self.gap = gap
        """What it asked for and cannot have."""

    def events(self, poll_s: float) -> Iterator[LoggedEvent | None]:
        """Events as they come; None after each `poll_s` seconds without one. Ends when the host does.

        Raises:
            StorageUnavailable
        """
        while True:
            is_last = self._bus.is_closed  # asked before looking: what was logged before the end is still told
            new = self._events.after(self._position, BATCH)
            for event in new:
                self._position = event.id
                if is_wanted(event.name, self._globs):
                    yield event
            if new:
                continue
            if is_last:
                return
            if not self._events.wait(self._position, poll_s):
                yield None

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._bus.leave()
