"""Assistants, the default one among them. Floor 1; any thread. Imports SQLAlchemy."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import Connection, delete, select, update

from hostler.errors import AssistantNotFound, DefaultAssistant, RecordExists
from hostler.records.database import Database
from hostler.records.events import EventLog
from hostler.records.ids import new_id
from hostler.records.messages import deleted_body
from hostler.records.objects import DEFAULT_ASSISTANT, Assistant, AssistantModel, Deleted, Page, PageRequest
from hostler.records.paging import fetch_page, page_of
from hostler.records.rows import insert_new, now, object_of
from hostler.records.tables import assistants


class AssistantStore:
    """All assistants."""

    def __init__(self, database: Database, events: EventLog, default_model: str = "") -> None:
        """Take the database.

        Args:
            database, events: Where they are kept, and what tells of their changes.
            default_model: For an assistant that is made without a model.
        """
        self._database = database
        self._events = events
        self._default_model = default_model

    def create(self, *, id: str | None = None, created_at: int | None = None, **fields: Any) -> Assistant:
        """Make an assistant.

        Args:
            id, created_at: Given by an import.
            fields: Those of `Assistant`, native types; `model` and `models` follow each other.

        Raises:
            RecordExists: The id is taken.
        """
        time = now() if created_at is None else created_at
        if not fields.get("models") and not fields.get("model"):
            fields["model"] = self._default_model
        made = _with_one_model(Assistant(id or new_id("asst"), time, time, **fields), fields)
        with self._database.write() as connection:
            _insert(connection, made)
            self._events.append(connection, "assistant.created", made.id, msgspec.json.encode(made))
        return made

    def get(self, assistant_id: str) -> Assistant:
        """One assistant.

        Raises:
            AssistantNotFound
        """
        with self._database.read() as connection:
            return _find(connection, assistant_id)

    def list(self, page: PageRequest) -> Page[Assistant]:
        """A page of all assistants, by the time they were created.

        Raises:
            InvalidRequest
        """
        order = (assistants.c.created_at, assistants.c.seq)
        with self._database.read() as connection:
            rows, has_more = fetch_page(connection, assistants, [assistants.c.body], page, order=order, what="assistant")
        return page_of([_assistant(row) for row in rows], has_more=has_more)

    def modify(self, assistant_id: str, **changes: Any) -> Assistant:
        """Replace fields of an assistant; `model` and `models` follow each other.

        Raises:
            AssistantNotFound
        """
        with self._database.write() as connection:
            before = _find(connection, assistant_id, is_locking=True)
            changed = _with_one_model(structs.replace(before, **changes), changes)
            if changed != before:
                _update(connection, changed)
                self._events.append(connection, "assistant.updated", assistant_id, msgspec.json.encode(changed))
        return changed

    def put(self, assistant: Assistant) -> Assistant:
        """Write an assistant as it is, whether there was one of its id or not: for imports.

        Raises:
            StorageUnavailable
        """
        assistant = _with_one_model(assistant, {"model": assistant.model} if assistant.model else {"models": assistant.models})
        with self._database.write() as connection:
            is_new = _update(connection, assistant) == 0
            if is_new:
                _insert(connection, assistant)
            name = "assistant.created" if is_new else "assistant.updated"
            self._events.append(connection, name, assistant.id, msgspec.json.encode(assistant))
        return assistant

    def delete(self, assistant_id: str) -> Deleted:
        """Delete an assistant; threads and runs that name it keep its id.

        Raises:
            AssistantNotFound
            DefaultAssistant: It is the one that always exists.
        """
        if assistant_id == DEFAULT_ASSISTANT:
            raise DefaultAssistant(
                f"The assistant {DEFAULT_ASSISTANT} is the default one and cannot be deleted; change it instead"
            )
        with self._database.write() as connection:
            gone = _find(connection, assistant_id, is_locking=True)
            connection.execute(delete(assistants).where(assistants.c.id == assistant_id))
            self._events.append(connection, "assistant.deleted", assistant_id, deleted_body(gone))
        return Deleted(assistant_id, "assistant.deleted")

    def ensure_default(self) -> None:
        """Make the assistant that always exists, with Jan's own words; its model is whatever `default_model` is then."""
        with self._database.read() as connection:
            if _row(connection, DEFAULT_ASSISTANT) is not None:
                return
        made = _default(now())
        try:
            with self._database.write() as connection:
                _insert(connection, made)
                self._events.append(connection, "assistant.created", made.id, msgspec.json.encode(made))
        except RecordExists:
            pass  # another hostler on the same PostgreSQL was faster


def is_untouched(assistant: Assistant) -> bool:
    """Whether it is the default assistant, as it was made: an import may replace it."""
    return assistant == _default(assistant.created_at)


def _default(created_at: int) -> Assistant:
    return Assistant(
        DEFAULT_ASSISTANT,
        created_at,
        created_at,
        name="Jan",
        description="A default assistant that can use all downloaded models",
        avatar="",
        instructions="",
    )


def _with_one_model(assistant: Assistant, said: dict[str, Any]) -> Assistant:
    """Keep Jan's `models` and OpenAI's `model` equal; if both are said, OpenAI's counts, and further models of Jan's stay."""
    if said.get("model") is not None:
        others = assistant.models[1:]
        first = [AssistantModel(assistant.model)] if assistant.model else []
        return structs.replace(assistant, models=[*first, *others])
    if "models" in said:
        return structs.replace(assistant, model=assistant.models[0].model_id if assistant.models else "")
    return assistant


def _insert(connection: Connection, made: Assistant) -> None:
    row = {"id": made.id, "created_at": made.created_at, "body": made}
    insert_new(connection, assistants, row, RecordExists(f"There is an assistant {made.id} already"))


def _update(connection: Connection, changed: Assistant) -> int:
    values = {"created_at": changed.created_at, "body": changed}
    return connection.execute(update(assistants).where(assistants.c.id == changed.id).values(values)).rowcount


def _row(connection: Connection, assistant_id: str, *, is_locking: bool = False) -> Any:
    query = select(assistants.c.body).where(assistants.c.id == assistant_id)
    return connection.execute(query.with_for_update() if is_locking else query).one_or_none()


def _find(connection: Connection, assistant_id: str, *, is_locking: bool = False) -> Assistant:
    row = _row(connection, assistant_id, is_locking=is_locking)
    if row is None:
        raise AssistantNotFound(f"The assistant {assistant_id} does not exist")
    return _assistant(row)


def _assistant(row: Any) -> Assistant:
    return object_of(row, Assistant)
