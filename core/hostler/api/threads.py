"""`/v1/threads`: conversations, and which assistants take part. Source: spec/API.md section 8.

Floor 5; on the waitress thread of the request. What a thread does not say of an assistant stays unsaid in the record, so that
a later change of the assistant counts there, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import falcon
import msgspec
from msgspec import UNSET, UnsetType

from hostler.api.body import read_object
from hostler.api.schema.paging import read_page
from hostler.api.schema.threads import (
    Assistantship,
    ThreadCall,
    read_assistant_changes,
    read_thread,
    read_thread_changes,
)
from hostler.errors import AssistantNotFound
from hostler.records.objects import DEFAULT_ASSISTANT, Thread, ThreadAssistant

if TYPE_CHECKING:
    from hostler.records.store import Records
    from hostler.runtime import Runtime


class Threads:
    """Conversations."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """createThread."""
        resp.data = msgspec.json.encode(create_thread(self._records, read_thread(read_object(req))))

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listThreads."""
        resp.data = msgspec.json.encode(self._records.threads.list(read_page(req.get_param)))

    def get(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """getThread; also getThreadAssistants and listThreadMessage, which answer the whole thread."""
        del req
        resp.data = msgspec.json.encode(self._records.threads.get(thread_id))

    def modify(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """modifyThread."""
        call = read_thread_changes(read_object(req))
        changed = self._records.threads.modify(
            thread_id,
            title=call.title,
            assistants=entries_of(self._records, call.assistants) if call.assistants is not UNSET else UNSET,
            metadata=call.metadata,
            tool_resources=call.tool_resources,
            messages=call.messages,
        )
        resp.data = msgspec.json.encode(changed)

    def delete(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """deleteThread; its messages and runs go with it."""
        del req
        resp.data = msgspec.json.encode(self._records.threads.delete(thread_id))
        self._runtime.runs.thread_deleted(thread_id)

    def modify_assistant(self, req: falcon.Request, resp: falcon.Response, thread_id: str, assistants_id: str) -> None:
        """postThreadAssistants: what the body says of that assistant is merged into what the thread says of it."""
        said = read_assistant_changes(read_object(req), assistants_id)
        known = known_entry(self._records, assistants_id)

        def merged(thread: Thread) -> Thread:
            here = {entry.assistant_id: entry for entry in thread.assistants}
            entry = here.get(assistants_id, known)
            if entry is None:
                raise AssistantNotFound(f"The assistant {assistants_id} does not exist")
            here[assistants_id] = said.over(entry)
            return msgspec.structs.replace(thread, assistants=list(here.values()))

        resp.data = msgspec.json.encode(self._records.threads.update(thread_id, merged))

    @property
    def _records(self) -> Records:
        return self._runtime.records


def create_thread(records: Records, call: ThreadCall) -> Thread:
    """Make a thread of a body that was checked; also for runs that make their own."""
    said: dict[str, Any] = {
        name: getattr(call, name) for name in ("title", "metadata", "tool_resources") if getattr(call, name) is not UNSET
    }
    return records.threads.create(assistants=entries_of(records, call.assistants), messages=call.messages, **said)


def entries_of(records: Records, said: list[Assistantship] | UnsetType) -> list[ThreadAssistant]:
    """A thread's assistants; none at all means the one that always exists. Others need not: they are kept as given."""
    if said is UNSET or not said:
        return [known_entry(records, DEFAULT_ASSISTANT) or ThreadAssistant()]
    return [
        one.over(known_entry(records, one.assistant_id) or ThreadAssistant(one.assistant_id, one.assistant_id)) for one in said
    ]


def known_entry(records: Records, assistant_id: str) -> ThreadAssistant | None:
    """An assistant as a thread knows it before anything is said: its name. None: there is no such assistant."""
    try:
        assistant = records.assistants.get(assistant_id)
    except AssistantNotFound:
        return None
    return ThreadAssistant(assistant.id, assistant.name or assistant.id)
