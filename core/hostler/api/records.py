"""`POST /v1/records/import`: threads, messages and assistants come in with their ids, times and order.

Floor 5; on the waitress thread of the request. For the command line of this home only: whoever may choose ids and times may
write history. A thread with its messages is one transaction; what cannot be imported is told in the answer, one result for
each, and keeps nobody else out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import falcon
import msgspec

from hostler.api.body import MAX_DEPTH, read_object
from hostler.api.errors import error_body
from hostler.api.schema.records import ImportAnswer, ImportResult, Unit, read_import, read_units
from hostler.errors import (
    AssistantNotFound,
    CommandLineOnly,
    HostlerError,
    RecordExists,
    StorageUnavailable,
    ThreadNotFound,
)
from hostler.records.ids import new_id
from hostler.records.objects import Assistant, NewMessage, Thread

if TYPE_CHECKING:
    from hostler.records.store import Records
    from hostler.runtime import Runtime

WRAPPING = 2
"""Levels of the body around an object, which may be as deep as the request that made it."""


class RecordImports:
    """The way in for records that were made elsewhere."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Import what the body has."""
        if not req.context.is_from_cli:
            raise CommandLineOnly(
                "Records are imported by the command line of this home: hostler threads import, hostler import-jan"
            )
        body = read_import(read_object(req, MAX_DEPTH + WRAPPING))
        work = Import(
            self._runtime.records,
            on_conflict=body.on_conflict or "fail",
            is_dry=bool(body.dry_run),
            assumed=frozenset(body.assume or ()),
        )
        results = [work.bring_in(unit) for unit in read_units(body.objects, int(time.time()))]
        resp.data = msgspec.json.encode(ImportAnswer(results))


class Import:
    """One request's import; used by one thread."""

    def __init__(self, records: Records, *, on_conflict: str, is_dry: bool, assumed: frozenset[str]) -> None:
        self._records = records
        self._on_conflict = on_conflict
        self._is_dry = is_dry
        self._assumed = set(assumed)
        """Threads that are here, or would be by now."""
        self._moved: dict[str, str] = {}
        """Threads that were copied: old id -> new id."""

    def bring_in(self, unit: Unit) -> ImportResult:
        """Import one unit.

        Raises:
            StorageUnavailable: Nothing more can be imported.
        """
        result = ImportResult(unit.kind, unit.index, unit.id, "imported", n_messages=unit.n_messages)
        try:
            if unit.error is not None:
                raise unit.error
            if unit.thread is not None:
                return self._thread(unit.thread, unit.messages, result)
            if unit.assistant is not None:
                return self._assistant(unit.assistant, result)
            return self._messages(unit.messages, result)
        except StorageUnavailable:
            raise
        except HostlerError as error:
            told = error_body(error).error
            return msgspec.structs.replace(result, outcome="failed", n_messages=0, n_failed=unit.n_messages, error=told)

    # -- threads and messages -------------------------------------------------------------------------------------------

    def _thread(self, thread: Thread, messages: tuple[NewMessage, ...], result: ImportResult) -> ImportResult:
        if self._is_dry:
            is_new = not thread.id or not self._has_thread(thread.id)
            self._assumed.add(thread.id)
            if is_new:
                return result
        else:
            try:
                made = self._make(thread, thread.id or None, messages)
            except RecordExists:
                pass
            else:
                return result if thread.id else msgspec.structs.replace(result, new_id=made.id)
        if self._on_conflict == "fail":
            raise RecordExists(f"The thread {thread.id} is here already", param="id")
        if self._on_conflict == "skip":
            return msgspec.structs.replace(self._add(thread.id, messages, result), outcome="skipped")
        if self._is_dry:
            return msgspec.structs.replace(result, outcome="copied")
        made = self._make(thread, None, messages)
        self._moved[thread.id] = made.id
        return msgspec.structs.replace(result, outcome="copied", new_id=made.id)

    def _make(self, thread: Thread, thread_id: str | None, messages: tuple[NewMessage, ...]) -> Thread:
        return self._records.threads.create(
            title=thread.title,
            assistants=thread.assistants,
            metadata=thread.metadata,
            tool_resources=thread.tool_resources,
            messages=messages,
            id=thread_id,
            created_at=thread.created_at,
            updated=thread.updated,
        )

    def _messages(self, messages: tuple[NewMessage, ...], result: ImportResult) -> ImportResult:
        thread_id = self._moved.get(result.id or "", result.id or "")
        if self._is_dry and thread_id in self._assumed:
            return result
        return self._add(thread_id, messages, result)

    def _add(self, thread_id: str, messages: tuple[NewMessage, ...], result: ImportResult) -> ImportResult:
        """Append the messages that a thread does not have."""
        known = {message.id for message in self._records.messages.all(thread_id)}
        new = [message for message in messages if message.id not in known]
        if len(new) < len(messages) and self._on_conflict == "fail":
            taken = next(message.id for message in messages if message.id in known)
            raise RecordExists(f"The thread {thread_id} has a message {taken} already", param="id")
        if self._on_conflict == "copy":
            new = [msgspec.structs.replace(one, id=None) if one.id in known else one for one in messages]
        if new and not self._is_dry:
            self._records.messages.append(thread_id, new)
        return msgspec.structs.replace(result, n_messages=len(new), n_skipped=len(messages) - len(new))

    def _has_thread(self, thread_id: str) -> bool:
        try:
            self._records.threads.get(thread_id)
        except ThreadNotFound:
            return False
        return True

    # -- assistants -----------------------------------------------------------------------------------------------------

    def _assistant(self, assistant: Assistant, result: ImportResult) -> ImportResult:
        from hostler.records.assistants import is_untouched  # late: SQLAlchemy

        store = self._records.assistants
        try:
            here = store.get(assistant.id)
        except AssistantNotFound:
            here = None
        if here == assistant:
            return msgspec.structs.replace(result, outcome="skipped")
        if here is not None and not is_untouched(here):
            if self._on_conflict == "fail":
                raise RecordExists(f"The assistant {assistant.id} is here already, and differs", param="id")
            if self._on_conflict == "skip":
                return msgspec.structs.replace(result, outcome="skipped")
            assistant = msgspec.structs.replace(assistant, id=new_id("asst"))
            result = msgspec.structs.replace(result, outcome="copied", new_id=None if self._is_dry else assistant.id)
        if not self._is_dry:
            store.put(assistant)
        return result
