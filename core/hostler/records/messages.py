"""The messages of a thread, in the order in which they were written.

Floor 1; any thread. Imports SQLAlchemy. Two writers on one thread lose nothing and share no position: a position is taken
by adding to the thread's row, which only one transaction at a time can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType, structs
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from hostler.errors import MessageNotFound, RecordExists, ThreadNotFound, UploadNotFound
from hostler.records.database import Database
from hostler.records.events import EventLog
from hostler.records.ids import new_id
from hostler.records.objects import (
    ContentPart,
    Deleted,
    Message,
    MessageFile,
    Metadata,
    NewMessage,
    Page,
    PageRequest,
)
from hostler.records.paging import fetch_page, page_in_memory, page_of
from hostler.records.rows import now, object_of
from hostler.records.tables import messages, threads

BATCH = 256
"""Messages read at once where a whole thread is asked for; no transaction stays open between two batches."""


class MessageStore:
    """Messages of all threads."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events

    def append(self, thread_id: str, new: Sequence[NewMessage]) -> list[Message]:
        """Add messages at the end of a thread, all of them or none.

        Raises:
            ThreadNotFound
            RecordExists: The thread has a message of a given id.
        """
        with self._database.write() as connection:
            return insert_messages(connection, self._events, thread_id, make_messages(thread_id, new))

    def get(self, thread_id: str, message_id: str) -> Message:
        """One message.

        Raises:
            ThreadNotFound, MessageNotFound
        """
        with self._database.read() as connection:
            return _find(connection, thread_id, message_id)

    def list(self, thread_id: str, page: PageRequest, *, run_id: str | None = None) -> Page[Message]:
        """A page of a thread, of one run's messages if asked so.

        Raises:
            ThreadNotFound, InvalidRequest
        """
        scope = [messages.c.thread_id == thread_id]
        if run_id is not None:
            scope.append(messages.c.run_id == run_id)
        with self._database.read() as connection:
            rows, has_more = fetch_page(
                connection, messages, [messages.c.body], page, *scope, order=[messages.c.position], what="message"
            )
            if not rows:
                check_thread(connection, thread_id)
        return page_of([_message(row) for row in rows], has_more=has_more)

    def all(self, thread_id: str, *, order: Literal["asc", "desc"] = "asc") -> Iterator[Message]:
        """All messages of a thread, read in batches as they are asked for.

        Raises:
            ThreadNotFound: At once, not with the first message.
        """
        with self._database.read() as connection:
            check_thread(connection, thread_id)
        return self._batches(thread_id, is_ascending=order == "asc")

    def older(self, thread_id: str, message_id: str | None, limit: int) -> tuple[Sequence[str], int]:
        """What stands before a message of a thread; before its end, for None.

        Returns:
            The ids of the last `limit` of those messages, in order, and how many there are in all.
        """
        position = messages.c.position
        scope = [messages.c.thread_id == thread_id]
        if message_id is not None:
            scope.append(position < select(position).where(_is(thread_id, message_id)).scalar_subquery())
        last = select(messages.c.id).where(*scope).order_by(position.desc()).limit(limit)
        with self._database.read() as connection:
            ids = connection.execute(last).scalars().all()
            n_older = connection.execute(select(func.count()).select_from(messages).where(*scope)).scalar_one()
        return ids[::-1], n_older

    def modify(
        self,
        thread_id: str,
        message_id: str,
        *,
        content: Sequence[ContentPart] | UnsetType = UNSET,
        metadata: Metadata | UnsetType = UNSET,
    ) -> Message:
        """Change what is given of a message.

        Raises:
            ThreadNotFound, MessageNotFound
        """
        with self._database.write() as connection:
            touch_thread(connection, thread_id)
            message = _find(connection, thread_id, message_id, is_locking=True)
            changed = structs.replace(
                message,
                content=message.content if content is UNSET else list(content),
                metadata=message.metadata if metadata is UNSET else metadata,
            )
            if changed != message:
                save_message(connection, self._events, changed)
        return changed

    def delete(self, thread_id: str, message_id: str) -> Deleted:
        """Delete a message.

        Raises:
            ThreadNotFound, MessageNotFound
        """
        with self._database.write() as connection:
            touch_thread(connection, thread_id)
            message = _find(connection, thread_id, message_id, is_locking=True)
            connection.execute(delete(messages).where(_is(thread_id, message_id)))
            self._events.forget(connection, thread_id, message_id)
            gone = structs.replace(message, content=[])
            self._events.append(connection, "message.deleted", thread_id, deleted_body(gone))
        return Deleted(message_id, "thread.message.deleted")

    def files(self, thread_id: str, message_id: str, page: PageRequest) -> Page[MessageFile]:
        """The files that a message names, in its `file_ids` or its attachments, whether they exist or not.

        Raises:
            ThreadNotFound, MessageNotFound, InvalidRequest
        """
        return page_in_memory(_files_of(self.get(thread_id, message_id)), page)

    def file(self, thread_id: str, message_id: str, file_id: str) -> MessageFile:
        """That a message names a file.

        Raises:
            ThreadNotFound, MessageNotFound
            UploadNotFound: It does not.
        """
        for file in _files_of(self.get(thread_id, message_id)):
            if file.id == file_id:
                return file
        raise UploadNotFound(f"The message {message_id} names no file {file_id}")

    def _batches(self, thread_id: str, *, is_ascending: bool) -> Iterator[Message]:
        position = messages.c.position
        query = select(position, messages.c.body).where(messages.c.thread_id == thread_id).limit(BATCH)
        query = query.order_by(position if is_ascending else position.desc())
        last: int | None = None
        while True:
            rest = query
            if last is not None:
                rest = query.where(position > last if is_ascending else position < last)
            with self._database.read() as connection:
                rows = connection.execute(rest).all()
            yield from map(_message, rows)
            if len(rows) < BATCH:
                return
            last = rows[-1].position


# -- for the transactions of other stores -------------------------------------------------------------------------------


def make_messages(thread_id: str, new: Sequence[NewMessage]) -> list[Message]:
    """The messages as they will be, with ids and times; nothing is written."""
    return [_made(thread_id, message) for message in new]


def insert_messages(
    connection: Connection, log: EventLog, thread_id: str, made: list[Message], *, updated: int | None = None
) -> list[Message]:
    """Append to a thread inside a transaction; locks the thread's row.

    Args:
        connection, log, thread_id: Where.
        made: By `make_messages`; they are returned.
        updated: What the thread says of its last change; None: now.

    Raises:
        ThreadNotFound, RecordExists
    """
    changed = (
        update(threads)
        .where(threads.c.id == thread_id)
        .values(next_position=threads.c.next_position + len(made), updated=now() if updated is None else updated)
        .returning(threads.c.next_position)
    )
    end = connection.execute(changed).scalar_one_or_none()
    if end is None:
        raise thread_not_found(thread_id)
    if not made:
        return []
    start = end - len(made)
    rows = [
        {"thread_id": thread_id, "position": start + index, "id": message.id, "run_id": message.run_id, "body": message}
        for index, message in enumerate(made)
    ]
    try:
        connection.execute(insert(messages), rows)
    except IntegrityError as error:
        ids = ", ".join(message.id for message in made)
        raise RecordExists(
            f"The thread {thread_id} already has a message of one of these ids, or two have one: {ids}"
        ) from error
    for message in made:
        log.append(connection, "message.created", thread_id, msgspec.json.encode(message))
    return made


def save_message(connection: Connection, log: EventLog, message: Message) -> None:
    """Write a changed message inside a transaction that has locked its thread."""
    connection.execute(update(messages).where(_is(message.thread_id, message.id)).values(body=message))
    log.append(connection, "message.updated", message.thread_id, msgspec.json.encode(message))


def touch_thread(connection: Connection, thread_id: str) -> None:
    """Lock a thread's row, and note that the thread has changed.

    Raises:
        ThreadNotFound
    """
    if connection.execute(update(threads).where(threads.c.id == thread_id).values(updated=now())).rowcount == 0:
        raise thread_not_found(thread_id)


def check_thread(connection: Connection, thread_id: str) -> None:
    """Make sure that a thread is there.

    Raises:
        ThreadNotFound
    """
    if connection.execute(select(threads.c.seq).where(threads.c.id == thread_id)).first() is None:
        raise thread_not_found(thread_id)


def thread_not_found(thread_id: str) -> ThreadNotFound:
    """The error, in the words of Jan's."""
    return ThreadNotFound(f"The thread {thread_id} does not exist")


def find_messages(connection: Connection, thread_id: str, ids: Sequence[str]) -> dict[str, Message]:
    """Those of some ids that a thread has."""
    query = select(messages.c.body).where(messages.c.thread_id == thread_id, messages.c.id.in_(ids))
    return {message.id: message for message in map(_message, connection.execute(query))}


def deleted_body(gone: msgspec.Struct) -> bytes:
    """The body of an event that tells of a deletion."""
    return msgspec.json.encode({**msgspec.to_builtins(gone), "deleted": True})


# -- inside -------------------------------------------------------------------------------------------------------------


def _is(thread_id: str, message_id: str) -> Any:
    return (messages.c.thread_id == thread_id) & (messages.c.id == message_id)


def _find(connection: Connection, thread_id: str, message_id: str, *, is_locking: bool = False) -> Message:
    query = select(messages.c.body).where(_is(thread_id, message_id))
    row = connection.execute(query.with_for_update() if is_locking else query).one_or_none()
    if row is None:
        check_thread(connection, thread_id)
        raise MessageNotFound(f"The thread {thread_id} has no message {message_id}")
    return _message(row)


def _message(row: Any) -> Message:
    return object_of(row, Message)


def _made(thread_id: str, new: NewMessage) -> Message:
    created_at = now() if new.created_at is None else new.created_at
    is_answer = new.role == "assistant"
    completed_at, incomplete_at = new.completed_at, new.incomplete_at
    if is_answer and new.status == "completed" and completed_at is None:
        completed_at = created_at
    if new.status == "incomplete" and incomplete_at is None:
        incomplete_at = created_at
    return Message(
        id=new.id or new_id("msg"),
        created_at=created_at,
        created=created_at,
        thread_id=thread_id,
        role=new.role,
        content=new.content,
        file_ids=new.file_ids,
        attachments=new.attachments,
        assistant_id=new.assistant_id,
        run_id=new.run_id,
        chat_completion_id=new.chat_completion_id,
        metadata=new.metadata,
        status=new.status,
        completed_at=completed_at,
        incomplete_at=incomplete_at,
        incomplete_details=new.incomplete_details,
    )


def _files_of(message: Message) -> list[MessageFile]:
    attached = [item.get("file_id") for item in message.attachments]
    ids = dict.fromkeys([*message.file_ids, *(id for id in attached if isinstance(id, str))])
    return [MessageFile(id, message.created_at, message.id) for id in ids]
