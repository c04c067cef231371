"""Threads. Floor 1; any thread. Imports SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, structs
from sqlalchemy import Connection, delete, func, literal, select, update

from hostler.errors import RecordExists
from hostler.records.database import Database
from hostler.records.events import EventLog
from hostler.records.ids import new_id
from hostler.records.messages import (
    deleted_body,
    find_messages,
    insert_messages,
    make_messages,
    save_message,
    thread_not_found,
    touch_thread,
)
from hostler.records.objects import (
    MAX_MESSAGE_IDS,
    Deleted,
    Message,
    Metadata,
    NewMessage,
    Page,
    PageRequest,
    Thread,
    ThreadAssistant,
)
from hostler.records.paging import fetch_page, page_of
from hostler.records.rows import insert_new, now, object_of
from hostler.records.tables import messages, threads

_COLUMNS = (threads.c.id, threads.c.updated, threads.c.body)


class ThreadStore:
    """All threads."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events

    def create(
        self,
        *,
        title: str = "",
        assistants: Sequence[ThreadAssistant] = (),
        metadata: Metadata | None = None,
        tool_resources: dict[str, Any] | None = None,
        messages: Sequence[NewMessage] = (),
        id: str | None = None,
        created_at: int | None = None,
        updated: int | None = None,
    ) -> Thread:
        """Make a thread with its first messages, all of it or nothing.

        Args:
            title, metadata, tool_resources: As given.
            assistants: None: the default assistant.
            messages: In their order.
            id, created_at, updated: Given by an import.

        Raises:
            RecordExists: The id is taken, or two messages have one id.
        """
        thread, made = make_thread(
            title=title,
            assistants=assistants,
            metadata=metadata,
            tool_resources=tool_resources,
            messages=messages,
            id=id,
            created_at=created_at,
            updated=updated,
        )
        with self._database.write() as connection:
            insert_thread(connection, self._events, thread, made)
        return thread

    def get(self, thread_id: str) -> Thread:
        """One thread, with the ids of its newest messages.

        Raises:
            ThreadNotFound
        """
        with self._database.read() as connection:
            return _find(connection, thread_id)

    def list(self, page: PageRequest) -> Page[Thread]:
        """A page of all threads, by the time they were created.

        Raises:
            InvalidRequest
        """
        order = (threads.c.created_at, threads.c.seq)
        with self._database.read() as connection:
            rows, has_more = fetch_page(connection, threads, _COLUMNS, page, order=order, what="thread")
            return page_of(_read(connection, rows), has_more=has_more)

    def modify(
        self,
        thread_id: str,
        *,
        title: str | UnsetType = UNSET,
        assistants: Sequence[ThreadAssistant] | UnsetType = UNSET,
        metadata: Metadata | UnsetType = UNSET,
        tool_resources: dict[str, Any] | UnsetType | None = UNSET,
        messages: Sequence[NewMessage] = (),
    ) -> Thread:
        """Replace what is given; messages with an id that the thread has are changed, others appended, in one transaction.

        Raises:
            ThreadNotFound
        """

        def change(thread: Thread) -> Thread:
            changed = structs.replace(
                thread,
                title=thread.title if title is UNSET else title,
                metadata=thread.metadata if metadata is UNSET else metadata,
                tool_resources=thread.tool_resources if tool_resources is UNSET else tool_resources,
            )
            return changed if assistants is UNSET else _with_assistants(changed, list(assistants))

        return self.update(thread_id, change, messages)

    def update(self, thread_id: str, change: Callable[[Thread], Thread], messages: Sequence[NewMessage] = ()) -> Thread:
        """Change a thread by what it is; nobody else changes it meanwhile.

        Args:
            thread_id: Which.
            change: Takes the thread and gives it as it shall be; it must not ask the database.
            messages: As in `modify`.

        Raises:
            ThreadNotFound
        """
        with self._database.write() as connection:
            touch_thread(connection, thread_id)
            thread = _find(connection, thread_id)
            changed = change(thread)
            changed = _with_assistants(changed, changed.assistants)
            if changed != thread:
                body = structs.replace(changed, messages=[])
                connection.execute(update(threads).where(threads.c.id == thread_id).values(body=body))
            self._change_messages(connection, thread_id, messages)
            changed = _find(connection, thread_id)
            self._events.append(connection, "thread.updated", thread_id, msgspec.json.encode(changed))
        return changed

    def delete(self, thread_id: str) -> Deleted:
        """Delete a thread with its messages and runs. A run that is going on learns of it when it ends.

        Raises:
            ThreadNotFound
        """
        with self._database.write() as connection:
            touch_thread(connection, thread_id)
            thread = _find(connection, thread_id)
            connection.execute(delete(threads).where(threads.c.id == thread_id))
            self._events.forget(connection, thread_id)
            gone = structs.replace(thread, title="")
            self._events.append(connection, "thread.deleted", thread_id, deleted_body(gone))
        return Deleted(thread_id, "thread.deleted")

    def _change_messages(self, connection: Connection, thread_id: str, given: Sequence[NewMessage]) -> None:
        ids = [message.id for message in given if message.id is not None]
        known = find_messages(connection, thread_id, ids) if ids else {}
        for message in given:
            if message.id in known:
                save_message(connection, self._events, _changed(known[message.id], message))
        new = [message for message in given if message.id not in known]
        if new:
            insert_messages(connection, self._events, thread_id, make_messages(thread_id, new))


# -- for the transactions of other stores -------------------------------------------------------------------------------


def make_thread(
    *,
    title: str = "",
    assistants: Sequence[ThreadAssistant] = (),
    metadata: Metadata | None = None,
    tool_resources: dict[str, Any] | None = None,
    messages: Sequence[NewMessage] = (),
    id: str | None = None,
    created_at: int | None = None,
    updated: int | None = None,
) -> tuple[Thread, list[Message]]:
    """A thread as it will be, and its messages; nothing is written. For what is given see ThreadStore.create."""
    time = now() if created_at is None else created_at
    thread_id = id or new_id("thread")
    made = make_messages(thread_id, messages)
    if updated is None:
        updated = max([time, *(message.created_at for message in made)])
    thread = Thread(
        id=thread_id,
        created_at=time,
        created=time,
        updated=updated,
        title=title,
        metadata=metadata or {},
        messages=[message.id for message in made[-MAX_MESSAGE_IDS:]],
        tool_resources=tool_resources,
    )
    return _with_assistants(thread, list(assistants) or [ThreadAssistant()]), made


def insert_thread(connection: Connection, log: EventLog, thread: Thread, made: list[Message]) -> None:
    """Write what `make_thread` has made inside a transaction.

    Raises:
        RecordExists: The thread's id is taken, or two messages have one id.
    """
    row = {
        "id": thread.id,
        "created_at": thread.created_at,
        "updated": thread.updated,
        "next_position": 1,
        "body": structs.replace(thread, messages=[]),
    }
    insert_new(connection, threads, row, RecordExists(f"There is a thread {thread.id} already"))
    log.append(connection, "thread.created", thread.id, msgspec.json.encode(thread))
    if made:
        insert_messages(connection, log, thread.id, made, updated=thread.updated)


# -- inside -------------------------------------------------------------------------------------------------------------


def _changed(message: Message, given: NewMessage) -> Message:
    """Content and role are always said; of the rest, what is not empty."""
    return structs.replace(
        message,
        role=given.role,
        content=given.content,
        file_ids=given.file_ids or message.file_ids,
        attachments=given.attachments or message.attachments,
        metadata=given.metadata or message.metadata,
    )


def _with_assistants(thread: Thread, assistants: list[ThreadAssistant]) -> Thread:
    return structs.replace(thread, assistants=assistants, assistant_ids=[one.assistant_id for one in assistants])


def _find(connection: Connection, thread_id: str) -> Thread:
    row = connection.execute(select(*_COLUMNS).where(threads.c.id == thread_id)).one_or_none()
    if row is None:
        raise thread_not_found(thread_id)
    return _read(connection, [row])[0]


def _read(connection: Connection, rows: Sequence[Any]) -> list[Thread]:
    """Threads with what stands outside their bodies; one statement for the messages of all."""
    ids: dict[str, list[str]] = {row.id: [] for row in rows}
    if ids:
        other = messages.alias()
        # The position of a thread's newest message but MAX_MESSAGE_IDS, looked up once a thread in the index.
        beyond = (
            select(other.c.position)
            .where(other.c.thread_id == threads.c.id)
            .order_by(other.c.position.desc())
            .offset(MAX_MESSAGE_IDS)
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(messages.c.thread_id, messages.c.id)
            .select_from(threads.join(messages, messages.c.thread_id == threads.c.id))
            .where(threads.c.id.in_(ids), messages.c.position > func.coalesce(beyond, literal(0)))
            .order_by(messages.c.thread_id, messages.c.position)
        )
        for thread_id, message_id in connection.execute(query):
            ids[thread_id].append(message_id)
    return [structs.replace(object_of(row, Thread), updated=row.updated, messages=ids[row.id]) for row in rows]
