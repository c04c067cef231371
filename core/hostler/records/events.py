"""The log of events, which is also the outbox: an event is committed together with what it tells of, or not at all.

Floor 1; any thread. An event's id says its place for good: ids rise in the order in which transactions end, also where
several processes write (PostgreSQL numbers rows before they are committed, so there the log is locked first), and are never
used again. Who has read up to an id therefore misses nothing by asking for what comes after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from hostler.records.database import OUTBOX, Database
from hostler.records.rows import now
from hostler.records.tables import events

NUMBERING = 4703171
"""PostgreSQL's advisory lock around the numbering of events; any number, the same in all."""


_TALK = ("thread", "message")
"""Nouns of the events whose bodies hold what people say."""
_SAID: dict[str, Any] = {"content": [], "title": ""}
"""The fields that hold it -> what is left of them."""


def _emptied(told: dict[str, Any]) -> dict[str, Any]:
    return {name: nothing for name, nothing in _SAID.items() if name in told}


class LoggedEvent(Struct, frozen=True):
    """Something that happened."""

    id: int
    created: int
    name: str
    """`message.created`, `model.running`, ..."""
    subject: str
    """The id of the model, assistant or thread it is about; a message's thread, so that a thread's events keep their order."""
    body: bytes
    """JSON of that object; after a deletion with `"deleted": true`."""


class EventLog:
    """Events of this database, the oldest pruned."""

    def __init__(self, database: Database, listeners: Sequence[Callable[[int], None]] = ()) -> None:
        """Take the outbox's place in the database's transactions.

        Args:
            database: Where they are logged.
            listeners: Called with the newest id after each commit that logged events, on its thread; they must not wait.
        """
        self._database = database
        self._listeners = listeners
        self._grown = threading.Condition()  # protects _last_id
        self._last_id: int | None = None
        """The newest id this process knows of; None: it has not asked."""
        database.before_commit = self._write_outbox

    def append(self, connection: Connection, name: str, subject: str, body: bytes) -> None:
        """Add an event to a transaction of `Database.write`; it gets its id at the transaction's end."""
        event = {"created": now(), "name": name, "subject": subject, "body": body}
        connection.info.setdefault(OUTBOX, []).append(event)

    def publish(self, name: str, subject: str, body: bytes) -> None:
        """Log an event that tells of nothing in the database.

        Raises:
            StorageUnavailable
        """
        with self._database.write() as connection:
            self.append(connection, name, subject, body)

    def forget(self, connection: Connection, thread_id: str, message_id: str | None = None) -> None:
        """Take what was said in a thread, or in one message of it, out of its events; that they happened stays.

        In a write() of another store, like `append`. Deliveries that wait have copies and go out as they are.
        """
        is_told = (events.c.subject == thread_id) & or_(*(events.c.name.startswith(f"{noun}.") for noun in _TALK))
        emptied = []
        for row in connection.execute(select(events.c.id, events.c.body).where(is_told)):
            told = msgspec.json.decode(row.body)
            if message_id is None or told["id"] == message_id:
                emptied.append({"event_id": row.id, "emptied": msgspec.json.encode({**told, **_emptied(told)})})
        if emptied:
            change = update(events).where(events.c.id == bindparam("event_id")).values(body=bindparam("emptied"))
            connection.execute(change, emptied)

    def after(self, event_id: int, limit: int) -> list[LoggedEvent]:
        """The next events after an id, the oldest first."""
        query = select(events).where(events.c.id > event_id).order_by(events.c.id).limit(limit)
        with self._database.read() as connection:
            return [LoggedEvent(**row) for row in connection.execute(query).mappings()]

    def last_id(self) -> int:
        """The id of the newest event; 0: there is none."""
        with self._database.read() as connection:
            newest = connection.execute(select(func.max(events.c.id))).scalar() or 0
        with self._grown:
            self._last_id = max(self._last_id or 0, newest)
            return self._last_id

    def prune(self, keep: int, *, but_after: int | None = None) -> int:
        """Forget all but the newest so many events.

        Args:
            keep: How many stay.
            but_after: Events after this id stay, too, however many they are.

        Returns:
            How many went.
        """
        with self._database.write() as connection:
            oldest = connection.execute(select(events.c.id).order_by(events.c.id.desc()).offset(keep).limit(1)).scalar()
            if oldest is None:
                return 0
            last = oldest if but_after is None else min(oldest, but_after)
            return connection.execute(delete(events).where(events.c.id <= last)).rowcount

    def wait(self, event_id: int, timeout_s: float) -> bool:
        """Wait until there is an event after an id, or the time is over; True: there is one.

        Woken by commits of this process at once. What another process commits is seen by the next call that finds
        nothing here, so a reader of a shared PostgreSQL is late by its own timeout at most.
        """
        if self._last_id is None:
            self.last_id()
        with self._grown:
            if self._grown.wait_for(lambda: (self._last_id or 0) > event_id, timeout_s):
                return True
        return self.last_id() > event_id

    def _write_outbox(self, connection: Connection) -> Callable[[], None] | None:
        pending = connection.info.pop(OUTBOX, None)
        if not pending:
            return None
        if not self._database.is_sqlite:
            # Held to the end of the transaction, so that ids become visible in their order.
            connection.execute(select(func.pg_advisory_xact_lock(NUMBERING)))
        connection.execute(insert(events), pending)
        newest = int(connection.execute(select(func.max(events.c.id))).scalar_one())
        return lambda: self._wake(newest)

    def _wake(self, newest: int) -> None:
        with self._grown:
            self._last_id = max(self._last_id or 0, newest)
            self._grown.notify_all()
        for listener in self._listeners:
            listener(newest)
