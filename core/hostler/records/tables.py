"""The tables of records. Floor 1; imports SQLAlchemy, so nobody imports it before a database is used.

INVARIANT: `body` is the object as it is answered, field by field. The other columns are what the database itself must know
of it: identity, order, belonging, and what is filtered or unique; they are written with the body, in one statement. What
changes with every message of a thread (`updated`, the ids of its messages) stands outside the body, so that appending to a
long thread writes the message and a few numbers.

A change here needs a script in migrations/versions and its line in revisions.py; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

metadata = MetaData()

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both; SQLite numbers rows by itself only in a column whose type is INTEGER."""


class Words(TypeDecorator[str]):
    """Text as both databases can hold it: PostgreSQL knows no U+0000, and neither takes half a surrogate pair.

    Only ids and other names stand in such columns. One with a character that cannot be kept is looked up like any other,
    and not found.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what cannot be kept by U+FFFD."""
        del dialect
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _seq() -> Column[Any]:
    return Column("seq", Number, primary_key=True, autoincrement=True)


threads = Table(
    "threads",
    metadata,
    _seq(),
    Column("id", Words, nullable=False, unique=True),
    Column("created_at", Number, nullable=False),
    Column("updated", Number, nullable=False),
    Column("next_position", Number, nullable=False),
    Column("body", JSON, nullable=False),
    Index("threads_by_time", "created_at", "seq"),
)
"""A thread's body has no `updated` and no `messages`. `next_position` only grows: a position is never used twice."""

messages = Table(
    "messages",
    metadata,
    Column("thread_id", Words, ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Number, primary_key=True),
    Column("id", Words, nullable=False),
    Column("run_id", Words),
    Column("body", JSON, nullable=False),
    UniqueConstraint("thread_id", "id", name="messages_id"),
)
"""Ids are unique in a thread: a thread copied by hand out of Jan's folder keeps those of its original."""

Index(
    "messages_of_run",
    messages.c.run_id,
    messages.c.position,
    sqlite_where=messages.c.run_id.is_not(None),
    postgresql_where=messages.c.run_id.is_not(None),
)

assistants = Table(
    "assistants",
    metadata,
    _seq(),
    Column("id", Words, nullable=False, unique=True),
    Column("created_at", Number, nullable=False),
    Column("body", JSON, nullable=False),
    Index("assistants_by_time", "created_at", "seq"),
)

files = Table(
    "files",
    metadata,
    _seq(),
    Column("id", Words, nullable=False, unique=True),
    Column("created_at", Number, nullable=False),
    Column("purpose", Words, nullable=False),
    Column("sha256", Words, nullable=False, index=True),
    Column("body", JSON, nullable=False),
    Index("files_by_time", "created_at", "seq"),
)

runs = Table(
    "runs",
    metadata,
    _seq(),
    Column("id", Words, nullable=False, unique=True),
    Column("thread_id", Words, ForeignKey("threads.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Number, nullable=False),
    Column("status", Words, nullable=False),
    Column("home", Words, nullable=False),
    Column("body", JSON, nullable=False),
    Index("runs_by_time", "thread_id", "created_at", "seq"),
)
"""`home` says whose process works on it: several may share a PostgreSQL, and each finds its own interrupted runs."""

_IS_ACTIVE = text("status IN ('queued', 'in_progress', 'requires_action', 'cancelling')")

ONE_ACTIVE = Index("runs_one_active", runs.c.thread_id, unique=True, sqlite_where=_IS_ACTIVE, postgresql_where=_IS_ACTIVE)
"""A thread has at most one run that is not over, whoever asks at the same moment."""

steps = Table(
    "steps",
    metadata,
    _seq(),
    Column("id", Words, nullable=False, unique=True),
    Column("run_id", Words, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("body", JSON, nullable=False),
    Index("steps_by_run", "run_id", "seq"),
)

events = Table(
    "events",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("created", Number, nullable=False),
    Column("name", Words, nullable=False),
    Column("subject", Words, nullable=False),
    Column("body", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""The outbox. AUTOINCREMENT: an id is never used again, though the newest event be pruned; clients resume by it."""

webhooks = Table(
    "webhooks",
    metadata,
    _seq(),
    Column("id", Words, nullable=False, unique=True),
    Column("home", Words, nullable=False),
    Column("url", Words, nullable=False),
    Column("secret", Words, nullable=False),
    Column("events", JSON, nullable=False),
    Column("source", Words, nullable=False),
    Column("created_at", Number, nullable=False),
    Column("seen", Number, nullable=False),
    Column("last_status", Number),
    Column("last_error", Words),
    Column("last_delivery_at", Number),
    Column("n_delivered", Number, nullable=False),
    Column("n_dropped", Number, nullable=False),
    UniqueConstraint("home", "url", name="webhooks_url"),
)
"""Each belongs to a home, which delivers it. `seen`: deliveries are made of all events up to this one."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("webhook_id", Words, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", Number, nullable=False),
    Column("message_id", Words, nullable=False),
    Column("name", Words, nullable=False),
    Column("subject", Words, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created", Number, nullable=False),
    Column("n_attempts", Number, nullable=False),
    Column("next_at", Double),
    Column("last_error", Words),
    Index("deliveries_by_subject", "webhook_id", "subject", "id"),
    Index("deliveries_by_time", "webhook_id", "next_at"),
    sqlite_autoincrement=True,
)
"""Events that a webhook has not taken yet, in their order. AUTOINCREMENT: a sender that comes back late must not meet another
delivery under its id. `next_at`: see webhooks.py."""
