"""`/v1/threads/{thread_id}/runs`: an assistant answers a thread. Source: spec/API.md section 9 and OpenAI's Assistants API.

Floor 5; on the waitress thread of the request, which a run does not need: it goes on in the host when the answer has been
sent. A streamed run holds one place of `max_requests` for the stream, and one for its generation as long as that lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import falcon
import msgspec
from msgspec import UNSET

from hostler.api.answers import KEEP_ALIVE_S, POLL_S, client_watch
from hostler.api.body import read_object
from hostler.api.inference import name_model
from hostler.api.runframes import RunStream
from hostler.api.schema.paging import read_page
from hostler.api.schema.runs import check_tool_outputs, read_run, read_run_changes, read_thread_run
from hostler.api.schema.threads import ThreadCall
from hostler.api.sse import CONTENT_TYPE
from hostler.api.threads import entries_of
from hostler.errors import RequestCancelled, UnsupportedParameter
from hostler.runplan import NewThread

if TYPE_CHECKING:
    from hostler.liverun import LiveRun
    from hostler.records.runs import RunStore
    from hostler.runtime import Runtime


class Runs:
    """Answers of assistants."""

    def __init__(self, runtime: Runtime, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._runtime = runtime
        self._keep_alive_s = keep_alive_s

    def create(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """createRun."""
        req.context.is_inference = True
        call = read_run(read_object(req))
        runs = self._runtime.runs
        self._answer(
            req,
            resp,
            lambda is_followed: runs.start(thread_id, call.request, is_followed=is_followed),
            is_stream=call.is_stream,
        )

    def create_with_thread(self, req: falcon.Request, resp: falcon.Response) -> None:
        """createThreadAndRun."""
        req.context.is_inference = True
        call = read_thread_run(read_object(req))
        assert call.thread is not None
        thread, runs = self._new_thread(call.thread), self._runtime.runs
        self._answer(
            req,
            resp,
            lambda is_followed: runs.start_with_thread(thread, call.request, is_followed=is_followed),
            is_stream=call.is_stream,
        )

    def list_all(self, req: falcon.Request, resp: falcon.Response, thread_id: str) -> None:
        """listRuns."""
        resp.data = msgspec.json.encode(self._store.list(thread_id, read_page(req.get_param)))

    def get(self, req: falcon.Request, resp: falcon.Response, thread_id: str, run_id: str) -> None:
        """getRun."""
        del req
        resp.data = msgspec.json.encode(self._runtime.runs.get(thread_id, run_id))

    def modify(self, req: falcon.Request, resp: falcon.Response, thread_id: str, run_id: str) -> None:
        """modifyRun: its metadata."""
        metadata = read_run_changes(read_object(req))
        store = self._store
        run = store.get(thread_id, run_id) if metadata is None else store.modify(thread_id, run_id, metadata)
        resp.data = msgspec.json.encode(run)

    def cancel(self, req: falcon.Request, resp: falcon.Response, thread_id: str, run_id: str) -> None:
        """cancelRun."""
        del req
        resp.data = msgspec.json.encode(self._runtime.runs.cancel(thread_id, run_id))

    def submit_tool_outputs(self, req: falcon.Request, resp: falcon.Response, thread_id: str, run_id: str) -> None:
        """submitToolOuputsToRun: refused, since no run of this release asks for any."""
        del resp
        check_tool_outputs(read_object(req))
        run = self._store.get(thread_id, run_id)
        raise UnsupportedParameter(
            f"The run {run_id} is {run.status}; only one that is requires_action takes tool outputs, and tools are not "
            f"supported in this release",
            param="tool_outputs",
        )

    def list_steps(self, req: falcon.Request, resp: falcon.Response, thread_id: str, run_id: str) -> None:
        """listRunSteps."""
        resp.data = msgspec.json.encode(self._store.steps(thread_id, run_id, read_page(req.get_param)))

    def get_step(self, req: falcon.Request, resp: falcon.Response, thread_id: str, run_id: str, step_id: str) -> None:
        """getRunStep."""
        del req
        resp.data = msgspec.json.encode(self._store.step(thread_id, run_id, step_id))

    # -- inside ---------------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> RunStore:
        return self._runtime.records.runs

    def _new_thread(self, call: ThreadCall) -> NewThread:
        return NewThread(
            title="" if call.title is UNSET else call.title,
            # One that names no assistant gets the run's, not the default one.
            assistants=entries_of(self._runtime.records, call.assistants) if call.assistants else [],
            metadata={} if call.metadata is UNSET else call.metadata,
            tool_resources=None if call.tool_resources is UNSET else call.tool_resources,
        )

    def _answer(
        self, req: falcon.Request, resp: falcon.Response, begin: Callable[[bool], LiveRun], *, is_stream: bool
    ) -> None:
        if is_stream:
            self._stream(req, resp, begin)
            return
        live, is_client_gone = begin(False), client_watch(req)
        while (run := live.wait_recorded(POLL_S)) is None:
            if is_client_gone():  # its thread may serve others; the run goes on
                raise RequestCancelled("The client has left")
        name_model(resp, run.model)
        resp.data = msgspec.json.encode(run)

    def _stream(self, req: falcon.Request, resp: falcon.Response, begin: Callable[[bool], LiveRun]) -> None:
        with ExitStack() as held:
            held.enter_context(self._runtime.hold("run stream"))
            stream = RunStream(
                begin(True),
                req.context.request_id,
                client_watch(req),
                keep_alive_s=self._keep_alive_s,
                on_close=held.pop_all().close,
            )
        run = stream.start()
        if run is not None:
            name_model(resp, run.model)
        resp.content_type = CONTENT_TYPE
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-accel-buffering", "no")
        resp.stream = stream
