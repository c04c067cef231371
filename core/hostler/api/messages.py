"""`/v1/threads/{thread_id}/messages`, and the files that messages name. Source: spec/API.md section 8.

Floor 5; on the waitress thread of the request. A run that is working on the thread keeps nobody from writing into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon
import msgspec

from hostler.api.body import read_object
from hostler.api.schema.messages import read_message_changes, read_new_message
from hostler.api.schema.paging import read_page

if TYPE_CHECKING:
    from hostler.records.messages import MessageStore
    from hostler.runtime import Runtime


class Messages:
    """The turns of a thread, in order."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """createMessage: at the thread's end."""
        (made,) = self._messages.append(thread_id, [read_new_message(read_object(req))])
        resp.data = msgspec.json.encode(made)

    def list_all(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """listMessages, of one run if the query says so."""
        page = self._messages.list(thread_id, read_page(req.get_param), run_id=req.get_param("run_id") or None)
        resp.data = msgspec.json.encode(page)

    def get(self, req: falcon.Request, resp: falcon.Response, thread_id: str, message_id: str) -> None:
        """retrieveMessage."""
        del req
        resp.data = msgspec.json.encode(self._messages.get(thread_id, message_id))

    def modify(self, req: falcon.Request, resp: falcon.Response, thread_id: str, message_id: str) -> None:
        """Change its metadata, or its content as Cortex's clients do."""
        content, metadata = read_message_changes(read_object(req))
        changed = self._messages.modify(thread_id, message_id, content=content, metadata=metadata)
        resp.data = msgspec.json.encode(changed)

    def delete(self, req: falcon.Request, resp: falcon.Response, thread_id: str, message_id: str) -> None:
        """Take it out of the thread."""
        del req
        resp.data = msgspec.json.encode(self._messages.delete(thread_id, message_id))

    def list_files(self, req: falcon.Request, resp: falcon.Response, thread_id: str, message_id: str) -> None:
        """listMessageFiles: the files it names, whether they are here or not."""
        resp.data = msgspec.json.encode(self._messages.files(thread_id, message_id, read_page(req.get_param)))

    def get_file(self, req: falcon.Request, resp: falcon.Response, thread_id: str, message_id: str, file_id: str) -> None:
        """retrieveMessageFile."""
        del req
        resp.data = msgspec.json.encode(self._messages.file(thread_id, message_id, file_id))

    @property
    def _messages(self) -> MessageStore:
        return self._runtime.records.messages
