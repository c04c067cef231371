"""Webhooks and the deliveries they have not taken yet. Floor 1; any thread; imports SQLAlchemy.

A delivery is a row from the event until the receiver has taken it or it is given up: what a kill -9 leaves behind is sent
again. It carries its body, so the log of events may be pruned. Each webhook remembers in `seen` up to which event it has its
deliveries; what was logged while nobody looked is caught up with.

INVARIANT: of the deliveries of one webhook and subject only the oldest has a `next_at`; the others wait behind it, whatever
becomes of it. So what is due is found by an index, however long the queue is. Transactions that touch a webhook's deliveries
lock its row first.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, Row, func, select

from hostler.errors import ConfiguredWebhook, InvalidRequest, RecordExists, WebhookNotFound
from hostler.records.database import Database
from hostler.records.ids import new_id
from hostler.records.objects import Page, PageRequest, PendingDelivery, Webhook, WebhookDetail
from hostler.records.paging import page_in_memory
from hostler.records.rows import insert_new
from hostler.records.tables import deliveries, events, webhooks
from hostler.subscription import Subscription, is_wanted, mask

MAX_WEBHOOKS = 32
"""A bound for the threads that deliver; far more than one machine's programs need."""
MAX_PENDING = 10_000
"""Deliveries a webhook may have waiting; past it the oldest are dropped, for what is newest tells most."""
SEEN_EVERY = 500
"""Events without interest to a webhook after which `seen` is written all the same, so that the log can be pruned."""
SHOWN_PENDING = 20


class Target(Struct, frozen=True):
    """A webhook as the deliverer needs it."""

    id: str
    url: str
    secret: str
    events: tuple[str, ...]
    seen: int
    """Deliveries are made of all events up to this one."""
    noted: int
    """What the row says of it: events without interest are not worth a write each."""


class Delivery(Struct, frozen=True):
    """One that is due."""

    id: int
    message_id: str
    name: str
    subject: str
    body: bytes
    n_attempts: int


class Result(Struct, frozen=True):
    """What became of an attempt."""

    status: int | None
    error: str | None
    """None: delivered."""
    retry_at: float | None = None
    """Unix seconds; None after a failure: given up."""


class WebhookStore:
    """Webhooks of one home; several homes may share a PostgreSQL, and each delivers its own."""

    def __init__(self, database: Database, home: str) -> None:
        self._database = database
        self._home = home

    # -- for the API ----------------------------------------------------------------------------------------------------

    def create(self, wanted: Subscription, now: int) -> Webhook:
        """Keep a webhook; it gets what happens from now on.

        Raises:
            RecordExists: The URL has one.
            InvalidRequest: There are MAX_WEBHOOKS.
        """
        with self._database.write() as connection:
            n_here = connection.execute(
                select(func.count()).select_from(webhooks).where(webhooks.c.home == self._home)
            ).scalar_one()
            if n_here >= MAX_WEBHOOKS:
                raise InvalidRequest(f"there are {n_here} webhooks, and at most {MAX_WEBHOOKS} are kept; delete one first")
            webhook_id = self._insert(connection, wanted, "api", now)
        return self.get(webhook_id)

    def page(self, page: PageRequest) -> Page[Webhook]:
        """Part of the list.

        Raises:
            InvalidRequest: `after` or `before` is no webhook's id.
        """
        with self._database.read() as connection:
            rows = connection.execute(self._mine(webhooks).order_by(webhooks.c.seq)).all()
            counts = self._pending_counts(connection)
        return page_in_memory([_shown(Webhook, row, counts.get(row.id, 0)) for row in rows], page)

    def get(self, webhook_id: str) -> WebhookDetail:
        """One, with the oldest of what it has not taken yet.

        Raises:
            WebhookNotFound
        """
        with self._database.read() as connection:
            row = connection.execute(self._mine(webhooks).where(webhooks.c.id == webhook_id)).one_or_none()
            if row is None:
                raise _not_found(webhook_id)
            n_pending = self._pending_counts(connection).get(webhook_id, 0)
            waiting = connection.execute(
                select(deliveries).where(deliveries.c.webhook_id == webhook_id).order_by(deliveries.c.id).limit(SHOWN_PENDING)
            ).all()
        shown: WebhookDetail = _shown(WebhookDetail, row, n_pending, pending=[_pending(one) for one in waiting])
        return shown

    def delete(self, webhook_id: str) -> None:
        """Forget a webhook and what it has not taken yet.

        Raises:
            WebhookNotFound
            ConfiguredWebhook: It stands in the configuration.
        """
        with self._database.write() as connection:
            query = self._mine(webhooks.c.source).where(webhooks.c.id == webhook_id)
            source = connection.execute(query.with_for_update()).scalar()
            if source is None:
                raise _not_found(webhook_id)
            if source == "config":
                raise ConfiguredWebhook(
                    f"The webhook {webhook_id} stands in the configuration (webhooks); take it out there and start again"
                )
            connection.execute(webhooks.delete().where(webhooks.c.id == webhook_id))

    # -- for the deliverer ----------------------------------------------------------------------------------------------

    def reconcile(self, wanted: Sequence[Subscription], now: int) -> None:
        """Make the webhooks of the configuration what it says: new ones get what happens from now on, changed ones keep what
        is pending, and those that are gone from it go with all they had pending. Writes only if something differs."""

        query = self._mine(webhooks)
        with self._database.read() as connection:
            if not self._differences(connection.execute(query).all(), wanted):
                return
        with self._database.write() as connection:
            for one, row in self._differences(connection.execute(query).all(), wanted):
                if row is None and one is not None:
                    self._insert(connection, one, "config", now)
                elif one is None and row is not None:
                    connection.execute(webhooks.delete().where(webhooks.c.id == row.id))
                elif one is not None and row is not None:
                    changed = {"secret": one.secret, "events": list(one.events), "source": "config"}
                    connection.execute(webhooks.update().where(webhooks.c.id == row.id).values(changed))

    def newest_event(self) -> int:
        """Where somebody begins who wants what follows: the id of the newest event; 0: there is none."""
        with self._database.read() as connection:
            return self._newest(connection)

    def targets(self) -> list[Target]:
        """All webhooks, with their secrets."""
        with self._database.read() as connection:
            rows = connection.execute(self._mine(webhooks).order_by(webhooks.c.seq)).all()
        return [Target(row.id, row.url, row.secret, tuple(row.events), row.seen, row.seen) for row in rows]

    def target(self, webhook_id: str) -> Target:
        """One of them.

        Raises:
            WebhookNotFound
        """
        found = next((target for target in self.targets() if target.id == webhook_id), None)
        if found is None:
            raise _not_found(webhook_id)
        return found

    def catch_up(self, target: Target, now: float, limit: int) -> Target:
        """Make the deliveries of the events that came since, at most of so many.

        Returns:
            How far it came; the same `seen` as before when there is nothing new.
        """
        with self._database.read() as connection:
            query = select(events).where(events.c.id > target.seen).order_by(events.c.id).limit(limit)
            new = connection.execute(query).all()
        if not new:
            return target
        wanted = [event for event in new if is_wanted(event.name, target.events)]
        last = int(new[-1].id)
        if not wanted and last - target.noted < SEEN_EVERY:
            return replace(target, seen=last)
        with self._database.write() as connection:
            if not self._lock(connection, target.id):
                return target  # deleted meanwhile
            subjects = {event.subject for event in wanted}
            waiting = self._subjects(connection, target.id, subjects)
            rows: list[dict[str, Any]] = []
            for event in wanted:
                is_first = event.subject not in waiting
                waiting.add(event.subject)
                rows.append(
                    {
                        "webhook_id": target.id,
                        "event_id": event.id,
                        "message_id": f"evt_{secrets.token_hex(12)}",
                        "name": event.name,
                        "subject": event.subject,
                        "body": event.body,
                        "created": event.created,
                        "n_attempts": 0,
                        "next_at": now if is_first else None,
                    }
                )
            if rows:
                connection.execute(deliveries.insert(), rows)
                self._drop_oldest(connection, target.id, now)
            connection.execute(webhooks.update().where(webhooks.c.id == target.id).values(seen=last))
        return replace(target, seen=last, noted=last)

    def least_seen(self) -> int | None:
        """The event up to which every webhook, of whichever home, has its deliveries; None: there is no webhook."""
        with self._database.read() as connection:
            return connection.execute(select(func.min(webhooks.c.seen))).scalar()

    def due(self, target: Target, now: float, limit: int, but: Iterable[int] = ()) -> list[Delivery]:
        """Deliveries whose time has come, the longest due first.

        Args:
            but: Ids of those that are under way.
        """
        columns = [deliveries.c[name] for name in Delivery.__struct_fields__]
        query = (
            select(*columns)
            .where(deliveries.c.webhook_id == target.id, deliveries.c.next_at <= now, deliveries.c.id.not_in(list(but)))
            .order_by(deliveries.c.next_at, deliveries.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Delivery(*row) for row in connection.execute(query)]

    def next_due(self, now: float) -> float | None:
        """When the next one is due that is not yet; None: none is."""
        query = select(func.min(deliveries.c.next_at)).where(
            deliveries.c.next_at > now, deliveries.c.webhook_id.in_(self._mine(webhooks.c.id))
        )
        with self._database.read() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else float(found)

    def record(self, target: Target, delivery: Delivery, result: Result, now: float) -> None:
        """Note what became of an attempt: the row goes, and the next of its subject is due; or it is to be tried again.
        A webhook that was deleted meanwhile is none of our business any more."""

        is_over = result.error is None or result.retry_at is None
        with self._database.write() as connection:
            if not self._lock(connection, target.id):
                return
            mine = deliveries.c.id == delivery.id
            if is_over:
                n_gone = connection.execute(deliveries.delete().where(mine)).rowcount
                of_subject = (deliveries.c.webhook_id == target.id, deliveries.c.subject == delivery.subject)
                first = select(func.min(deliveries.c.id)).where(*of_subject).scalar_subquery()
                waiting = deliveries.update().where(deliveries.c.id == first, deliveries.c.next_at.is_(None))
                connection.execute(waiting.values(next_at=now))
            else:
                values = {"n_attempts": delivery.n_attempts + 1, "next_at": result.retry_at, "last_error": result.error}
                n_gone = 0
                connection.execute(deliveries.update().where(mine).values(values))
            changed: dict[str, Any] = {"last_status": result.status, "last_error": result.error, "last_delivery_at": int(now)}
            # One that was dropped while it was under way has been counted as such.
            if result.error is None:
                changed["n_delivered"] = webhooks.c.n_delivered + 1
                changed["n_dropped"] = webhooks.c.n_dropped - (1 - n_gone)
            elif is_over:
                changed["n_dropped"] = webhooks.c.n_dropped + n_gone
            connection.execute(webhooks.update().where(webhooks.c.id == target.id).values(changed))

    def record_test(self, target: Target, status: int | None, error: str | None, now: float) -> None:
        """Note what became of a test event."""
        changed = {"last_status": status, "last_error": error, "last_delivery_at": int(now)}
        with self._database.write() as connection:
            connection.execute(webhooks.update().where(webhooks.c.id == target.id).values(changed))

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _mine(self, *columns: Any) -> Any:
        return select(*columns).where(webhooks.c.home == self._home)

    @staticmethod
    def _newest(connection: Connection) -> int:
        return connection.execute(select(func.max(events.c.id))).scalar() or 0

    def _insert(self, connection: Connection, wanted: Subscription, source: str, now: int) -> str:
        row = {
            "id": new_id("webhook"),
            "home": self._home,
            "url": wanted.url,
            "secret": wanted.secret,
            "events": list(wanted.events),
            "source": source,
            "created_at": now,
            "seen": self._newest(connection),
            "n_delivered": 0,
            "n_dropped": 0,
        }
        taken = RecordExists(f"{wanted.url} has a webhook already; delete it first", param="url")
        insert_new(connection, webhooks, row, taken)
        return str(row["id"])

    def _differences(
        self, rows: Sequence[Row[Any]], wanted: Sequence[Subscription]
    ) -> list[tuple[Subscription | None, Row[Any] | None]]:
        """What is new, changed or gone."""
        by_url = {row.url: row for row in rows}
        urls = {one.url for one in wanted}
        found: list[tuple[Subscription | None, Row[Any] | None]] = [
            (None, row) for row in rows if row.source == "config" and row.url not in urls
        ]
        for one in wanted:
            row = by_url.get(one.url)
            if row is None or (row.source, row.secret, tuple(row.events)) != ("config", one.secret, one.events):
                found.append((one, row))
        return found

    def _lock(self, connection: Connection, webhook_id: str) -> bool:
        """Take a webhook's row; False: it is gone."""
        query = select(webhooks.c.id).where(webhooks.c.id == webhook_id).with_for_update()
        return connection.execute(query).scalar() is not None

    def _subjects(self, connection: Connection, webhook_id: str, among: set[str]) -> set[str]:
        """Which of these subjects have deliveries waiting."""
        query = (
            select(deliveries.c.subject)
            .where(deliveries.c.webhook_id == webhook_id, deliveries.c.subject.in_(among))
            .distinct()
        )
        return set(connection.execute(query).scalars())

    def _pending_counts(self, connection: Connection) -> dict[str, int]:
        query = select(deliveries.c.webhook_id, func.count()).group_by(deliveries.c.webhook_id)
        return {row[0]: row[1] for row in connection.execute(query)}

    def _drop_oldest(self, connection: Connection, webhook_id: str, now: float) -> None:
        """Keep MAX_PENDING."""
        mine = deliveries.c.webhook_id == webhook_id
        n_here = connection.execute(select(func.count()).select_from(deliveries).where(mine)).scalar_one()
        n_over = n_here - MAX_PENDING
        if n_over <= 0:
            return
        oldest = connection.execute(
            select(deliveries.c.id, deliveries.c.subject).where(mine).order_by(deliveries.c.id).limit(n_over)
        ).all()
        connection.execute(deliveries.delete().where(mine, deliveries.c.id <= oldest[-1].id))
        subjects = {row.subject for row in oldest}
        heads = (
            select(func.min(deliveries.c.id)).where(mine, deliveries.c.subject.in_(subjects)).group_by(deliveries.c.subject)
        )
        ids = list(connection.execute(heads).scalars())
        connection.execute(
            deliveries.update().where(deliveries.c.id.in_(ids), deliveries.c.next_at.is_(None)).values(next_at=now)
        )
        counted = webhooks.c.n_dropped + n_over
        connection.execute(webhooks.update().where(webhooks.c.id == webhook_id).values(n_dropped=counted))


def _shown(kind: Any, row: Row[Any], n_pending: int, **more: Any) -> Any:
    return kind(
        id=row.id,
        created_at=row.created_at,
        created=row.created_at,
        url=row.url,
        secret=mask(row.secret),
        events=list(row.events),
        source=row.source,
        last_status=row.last_status,
        last_error=row.last_error,
        last_delivery_at=row.last_delivery_at,
        n_delivered=row.n_delivered,
        n_pending=n_pending,
        n_dropped=row.n_dropped,
        **more,
    )


def _pending(row: Row[Any]) -> PendingDelivery:
    return PendingDelivery(
        id=row.message_id,
        created_at=row.created,
        event=row.name,
        event_id=row.event_id,
        subject=row.subject,
        n_attempts=row.n_attempts,
        next_attempt_at=None if row.next_at is None else int(row.next_at),
        last_error=row.last_error,
    )


def _not_found(webhook_id: str) -> WebhookNotFound:
    return WebhookNotFound(f"The webhook {webhook_id} does not exist")
